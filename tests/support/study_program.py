"""Stands in for `train` and `evaluate` in tests of studies: writes made-up results at once.

    python study_program.py BEHAVIOUR PROGRAM FLAGS...

BEHAVIOUR is JSON: {"fail": {part of the workdir: exit code}, "say": what a failure says,
"wait_for": a file; until it is there nothing is written}.
"""

import ast
import hashlib
import json
import pathlib
import sys
import time

IMAGES = 40
NAMES = ("wrong", "abstain", "generic", "less_specific", "specific")


# What samples agree on; at the last confidence on nothing.
CHOICES = [
    {"confidence": 0.2, "named": 1.0, "correctness": 0.5, "specificity": 0.9},
    {"confidence": 0.8, "named": 0.5, "correctness": 0.8, "specificity": 0.4},
    {"confidence": 1.0, "named": 0.0, "correctness": None, "specificity": None},
]


def category(place: str, image: int) -> str:
    """Returns a verdict that depends on the run and on the image, whose difficulty runs share."""

    def chance(text):
        return int(hashlib.sha256(text.encode()).hexdigest()[:6], 16) / 16**6

    value = 0.5 * chance(f"image {image}") + 0.3 * chance(f"{place} {image}") + 0.2 * chance(place)
    value += 0.2 * ("/samples" in place)
    return NAMES[min(int(value * 6), 4)]


def main(behaviour: str, program: str, *arguments: str) -> int:
    """Writes what the program would write; returns its exit code."""
    asked = json.loads(behaviour)
    given = dict(one.removeprefix("--").split("=", 1) for one in arguments)
    workdir = pathlib.Path(given["workdir"])
    print(f"{program} in {workdir}", flush=True)
    for part, code in asked.get("fail", {}).items():
        if part in str(workdir):
            print(asked.get("say", "it went wrong"), flush=True)
            return code
    while "wait_for" in asked and not pathlib.Path(asked["wait_for"]).exists():
        time.sleep(0.02)
    workdir.mkdir(parents=True, exist_ok=True)
    if program == "train":
        (workdir / "config.json").write_text(given["config.evaluation.sets"])
    sets = given.get("config.evaluation.sets") or (workdir / "config.json").read_text()
    lines = (workdir / "predictions.jsonl").open("a")
    provenance, scored = {}, []
    path = workdir / "predictions_provenance.json"
    if path.exists():
        provenance = json.loads(path.read_text())
    policy = "base" if program == "evaluate" and "policies" not in given else "trained"
    prompt = given.get("config.data.prompt", "base")
    decodings = {"greedy": 1} if "policies" not in given else {}
    if "best_of" in given:
        decodings["samples"] = int(given["best_of"])
    for name in ast.literal_eval(sets):
        for decoding, count in decodings.items():
            part = f"{policy}/{name}/{prompt}/{decoding}"
            provenance[part] = {
                "policy": {
                    "weights": "w",
                    "adapters": "none" if policy == "base" else str(workdir),
                },
                **{"data": name, "images": name, "seed": 1, "verifier": "v", "labels": "l"},
            }
            for image in range(IMAGES):
                said = [category(f"{part}{workdir.name}{n}", image) for n in range(count)]
                row = {"image_id": image, "label": "x", "index": image, "policy": policy}
                row |= {"data": name, "prompt": prompt, "decoding": decoding}
                lines.write(json.dumps(row | {"responses": said, "categories": said}) + "\n")
        scored.append({"policy": policy, "data": name, "prompt": prompt})
        if "samples" in decodings:
            scored[-1]["choices"] = CHOICES
    lines.close()
    path.write_text(json.dumps(provenance))
    weights = dict(generic=1 / 3, less_specific=2 / 3, specific=1.0, more_specific=1.0)
    found = {"weights": weights, "runs": scored, "comparisons": [], "not_compared": []}
    (workdir / "metrics.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
