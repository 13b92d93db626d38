"""An evaluation folder of the contract between `evaluate` and the report, made up and small."""

import json
import pathlib

WEIGHTS = {"generic": 1 / 3, "less_specific": 2 / 3, "specific": 1.0, "more_specific": 1.0}
# What the greedy and sampled answers of a trained policy and its base were made with.
MADE_WITH = {
    "policy": {"weights": "0123456789abcdef", "adapters": "none"},
    "data": {"name": "emoji", "options": {"split": "held_out"}},
    "prompt": "fedcba9876543210",
    "seed": 1,
    "verifier": {
        "name": "cascade",
        "judge": {"name": "http_judge", "model": "Qwen3-30B", "prompt": "abcdef0123456789"},
    },
}
# Answers of the tree's own and of other labels, in turn: (answer, category, why).
REASONS = (
    ("Passer domesticus", "specific", "synonym 'Passer domesticus' of 'House Sparrow'"),
    ("songbird", "less_specific", "ancestor 1 'songbird'"),
    ("house finch", "wrong", "is a name of 'House Finch'"),
    ("spuggy", "specific", "no name of the tree; the judge decided"),
    ("unknown", "abstain", "abstention"),
    ("bird", "wrong", None),  # The tree says otherwise.
)
TREE = {
    "version": 1,
    "groups": {"bird": ["bird"]},
    "leaves": {
        "sparrow": {
            "name": "House Sparrow",
            "generic": "bird",
            "synonyms": ["Passer domesticus"],
            "ancestors": [["songbird"]],
        },
        "finch": {"name": "House Finch", "generic": "bird"},
    },
}
CYCLE = ("generic", "wrong", "specific", "less_specific", "abstain", "more_specific", "unparsed")
# What a model may say that must not become markup, leave its place, or break the script.
HOSTILE = (
    "<script>window.broken = 1</script>",
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 1'>",
    "\"quoted\" 'twice' `thrice` &amp; \\u003c \\",
    "<!-- <script> ]]> -->",
    "\u202eright to left\u202c \u05d0\u05d1\u05d2",
    "zero\u200bwidth\u2060\ufeff \u2028line\u2029 \x00 \x1b[31m",
    "a" * 5000,
    "${window.broken = 1} {{x}} %s",
)


def score(categories):
    histogram = {c: categories.count(c) for c in CYCLE}
    correct = [WEIGHTS[c] for c in categories if c in WEIGHTS]
    correctness = len(correct) / len(categories)
    specificity = sum(correct) / max(len(correct), 1)
    total = correctness + specificity
    hm = 2 * correctness * specificity / total if total else 0.0
    values = {"correctness": correctness, "specificity": specificity, "hm": hm}
    return values | {"histogram": histogram}


def make(
    folder: pathlib.Path,
    images: int = 60,
    hostile: bool = True,
    samples: int = 8,
    sets: tuple[str, ...] = ("emoji",),
) -> None:
    """Writes the files of a run of `train` and `evaluate`; all sets have the same image ids."""
    predictions, runs = [], []
    for policy_number, policy in enumerate(("base", "trained")):
        for set_number, data in enumerate(sets):
            # The second set: what the policies became there is the reverse.
            number = (policy_number + set_number) % 2
            greedy = []
            for i in range(images):
                category = CYCLE[(i // (1 + number)) % len(CYCLE)]
                said = (
                    HOSTILE[i % len(HOSTILE)] if hostile and i < 2 * len(HOSTILE) else f"thing {i}"
                )
                row = {
                    "image_id": 1000 + i,
                    "label": HOSTILE[i % 7] if hostile and i < 7 else f"label {i % 10}",
                    "generic": "animal",
                    "difficulty": ("easy", "hard")[i % 2],
                    "index": i,
                    "policy": policy,
                    "data": data,
                    "prompt": "base",
                }
                response = f"<think>It is {policy}.</think> <answer>{said}</answer>"
                answer = {"decoding": "greedy", "responses": [response], "categories": [category]}
                greedy.append(category)
                predictions.append(row | answer)
                others = [CYCLE[(i + n) % len(CYCLE)] for n in range(samples)]
                many = [f"<answer>{said}{n % 3}</answer>" for n in range(samples)]
                sampled = {"decoding": "samples", "responses": many, "categories": others}
                predictions.append(row | sampled)
            runs.append(_run(policy, data, score(greedy), images, number))
    steps = [{"step": s, "time": 0.0, **_training(s)} for s in range(1, 31)]
    shown = [
        {
            "step": s,
            "image_id": 5000 + s,
            "label": HOSTILE[0] if hostile else "owl",
            "responses": [f"<answer>{HOSTILE[n]}</answer>" for n in range(4)],
            "categories": ["specific", "generic", "unverified", "unparsed"],
            "rewards": [1.0, 0.0, None, -1.0],
        }
        for s in (1, 10, 20, 30)
    ]
    for name, rows in (
        ("predictions", predictions),
        ("metrics", steps),
        ("rollout_samples", shown),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    difference = {"value": 0.05, "interval": [-0.01, 0.11], "p": 0.08}
    comparisons = [
        {
            "a": {"policy": "base", "data": data, "prompt": "base"},
            "b": {"policy": "trained", "data": data, "prompt": "base"},
            "images": images,
            "differences": {k: difference for k in ("correctness", "specificity", "hm")},
        }
        for data in sets
    ]
    found = {"runs": runs, "comparisons": comparisons}
    (folder / "metrics.json").write_text(json.dumps(found))
    (folder / "summary.json").write_text(json.dumps({"steps": 30, "wall_seconds": 90.0}))


def explain(folder: pathlib.Path) -> None:
    """Changes the last images of `make` into sparrows, with answers of `REASONS`."""
    path = folder / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    first = max(row["index"] for row in rows) + 1 - len(REASONS)
    for row in rows:
        if row["index"] >= first:
            answer, category, _ = REASONS[row["index"] - first]
            row |= {"label": "House Sparrow", "label_id": "sparrow"}
            count = len(row["responses"])
            row["responses"] = [f"<think></think><answer>{answer}</answer>"] * count
            row["categories"] = [category] * count
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def know_more(folder: pathlib.Path) -> None:
    """Adds provenance, weights, the best constant answer, and answers that the tree lacks."""
    path = folder / "metrics.json"
    found = json.loads(path.read_text()) | {"weights": WEIGHTS | {"name": "thirds"}}
    answer = score(["generic"] * 40 + ["wrong"] * 20) | {"answer": "bird"}
    provenance = {}
    for row in found["runs"]:
        most = [["house martin <b>", 5], ["spuggy", 2]]
        row["unknown_answers"] = {"share": 0.125, "most_frequent": most}
        row["constant_answer"] = answer
        key = "/".join(row[name] for name in ("policy", "data", "prompt"))
        adapters = "none" if row["policy"] == "base" else "9876543210"
        policy = MADE_WITH["policy"] | {"adapters": adapters}
        for decoding in ("greedy", "samples"):
            sampling = {"temperature": 0.6, "answers": 8} if decoding == "samples" else {}
            known = MADE_WITH | {"policy": policy, "sampling": sampling}
            provenance[f"{key}/{decoding}"] = known
    path.write_text(json.dumps(found))
    (folder / "predictions_provenance.json").write_text(json.dumps(provenance))


def _run(policy, data, found, images, number):
    values = {k: found[k] for k in ("correctness", "specificity", "hm")}
    return {
        "policy": policy,
        "data": data,
        "prompt": "base",
        "images": images,
        "score": found,
        "intervals": {k: [v - 0.03, v + 0.03] for k, v in values.items()},
        "abstain": 0.1,
        "unparsed": 0.0,
        "unverified": 0.0,
        "best_of": [{"n": 2**i, **{k: v * 0.1 * i for k, v in values.items()}} for i in range(7)],
        "calibration": [
            {
                "low": i / 5,
                "high": (i + 1) / 5,
                "images": 5 * i,
                "agreement": 0.1 + i / 5,
                "correctness": 0.2 + i / 10,
            }
            for i in range(5)
        ],
        "by_class": {
            label: {"images": 6, "correctness": 0.5, "specificity": 0.25 + number / 4, "hm": 0.4}
            for label in ("label 1", "label 2", HOSTILE[0])
        },
    }


def _training(step):
    shares = {c: (step if c == "specific" else 30) / (30 * 6 + step) for c in CYCLE}
    return {f"verify/{c}": share for c, share in shares.items()} | {
        "reward/mean": step / 40,
        "update/kl": step * 1e-4,
        "update/entropy": 1 / step,
        "update/loss": -1 / step,
    }
