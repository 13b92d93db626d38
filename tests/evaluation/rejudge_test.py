"""Kept answers judged by another verifier: what is asked, written, and left alone."""

import functools
import json
import types

import judge_server
import pytest
import small_run

from speciarl_jax import evaluate
from speciarl_jax.evaluation import evaluation_sets, predictions, rejudge, results
from speciarl_jax.evaluation.predictions import Part
from speciarl_jax.runtime import compilation_cache

FLAGS = {
    **{"policies": [], "sets": [], "prompts": [], "step": None, "best": False, "best_of": 0},
    **{"overwrite": False, "open_world": False, "embeddings": None, "judge_inclusion": False},
    **{"answers": [], "partial_answers": False, "rejudge": False, "rejudge_into": None},
    **{"distributed": False, "coordinator": None, "num_processes": None, "process_id": None},
    "heartbeat_timeout": 60,
}
PART = Part("m", "emoji", "base", "greedy")
# There is no such policy, and none is needed.
small_config = functools.partial(small_run.small_config, "nowhere")
SAID = ("car", "contraption", "none")


@pytest.fixture
def command(monkeypatch):
    """Flags -> `evaluate.main` that may load no policy and writes no report."""
    monkeypatch.setattr(compilation_cache, "enable", lambda folder: None)
    monkeypatch.setattr(evaluate.report, "write", lambda workdir: [])
    monkeypatch.setattr(evaluate, "policy_run", None)

    def command(workdir, config, **given):
        given = FLAGS | {"workdir": str(workdir), "config": config} | given
        monkeypatch.setattr(evaluate.flags, "FLAGS", types.SimpleNamespace(**given))
        evaluate.main(["evaluate"])

    return command


@pytest.fixture
def answers(tmp_path):
    """A file with answers about all images of evaluation, in another order."""
    config = small_config()
    _, source = evaluation_sets.sources(config, with_training=True)
    lines = [{"image_id": source[i]["image_id"], "answer": SAID[i % 3]} for i in range(len(source))]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    return str(path)


def folder_of(path):
    names = predictions.LINES, predictions.PROVENANCE, results.FILE
    return {name: (path / name).read_bytes() for name in names}


def test_another_verifier_judges_into_a_folder_of_its_own_and_back_gives_the_same(
    command, answers, tmp_path, capsys
):
    first, config = tmp_path / "first", small_config()
    command(first, config, answers=[answers])
    before = folder_of(first)
    (row,) = json.loads(before[results.FILE])["runs"]
    assert row["policy"] == "m" and row["abstain"] > 0.3 and row["constant_answer"]
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Sort.\nReply.\n{pair}")
    judged = small_config(
        verifier__name="cascade",
        verifier__cascade__judge="http_judge",
        verifier__http_judge__model="judge",
        verifier__http_judge__cache="",
        verifier__http_judge__prompt=str(prompt),
        # The images are those of the evaluation.
        evaluation__options__views=7,
    )
    with judge_server.JudgeServer(opinion=lambda pair: "less specific") as server:
        judged.verifier.http_judge.server.url = server.url
        command(first, judged, rejudge=True)
        asked = {judge_server.pair_of(body)["prediction"] for body in server.requests}
        count = len(server.requests)
        command(first, judged, rejudge=True)
        assert len(server.requests) == count
    # The tree has no such name, and decides about the rest.
    assert asked == {"contraption"}
    folder = first / "judged_by_cascade_http_judge"
    assert folder_of(first) == before
    old, new = predictions.read(first)[PART], predictions.read(folder)[PART]
    assert [line["responses"] for line in old] == [line["responses"] for line in new]
    moved = [
        (a["categories"], b["categories"])
        for a, b in zip(old, new, strict=True)
        if a["categories"] != b["categories"]
    ]
    assert moved == [(["wrong"], ["less_specific"])] * len(moved) and len(moved) == len(old[1::3])
    assert f"m/emoji/base/greedy: {1 - len(moved) / len(old):.1%} of {len(old)} verdicts" in (
        said := capsys.readouterr().out
    )
    assert f"most often: wrong -> less specific ({len(moved)})." in said
    made, remade = (predictions.read_provenance(one)[str(PART)] for one in (first, folder))
    assert {key for key in made if made[key] != remade[key]} == {"verifier"}
    # The tree again, from the judge's folder.
    command(folder, config, rejudge=True, rejudge_into=str(tmp_path / "back"))
    assert folder_of(tmp_path / "back") == before
    # Another verifier in a folder that has verdicts is refused.
    with pytest.raises(ValueError, match="verifier.name: 'cascade' -> 'taxonomy'"):
        command(first, config, rejudge=True, rejudge_into=str(folder))
    with pytest.raises(ValueError, match="--rejudge_into must not be --workdir"):
        command(first, config, rejudge=True, rejudge_into=str(first))
    # Without a configuration, the verifier of the evaluation.
    command(first, None, rejudge=True)
    assert folder_of(first / "judged_by_taxonomy") == before


def test_flags_that_do_not_fit_and_folders_without_answers_are_refused(command, answers, tmp_path):
    config = small_config()
    with pytest.raises(ValueError, match="holds no answers; give the --workdir"):
        command(tmp_path, config, rejudge=True)
    with pytest.raises(ValueError, match="samples none; leave out ..--answers., .--best_of.."):
        command(tmp_path, config, rejudge=True, answers=["x"], best_of=2)
    with pytest.raises(ValueError, match="--answers and --policies both have ..mine..; write"):
        command(tmp_path, config, answers=[f"mine={answers}"], policies=["mine=emoji_tiny"])


def test_changes_count_only_verdicts_that_exist():
    def lines(*names):
        return [{"index": i, "categories": [name]} for i, name in enumerate(names)]

    before = {PART: lines("wrong", "wrong", "specific", "unverified", "generic")}
    after = {PART: lines("generic", "generic", "specific", "wrong", "unverified")}
    (said,) = rejudge.changes(before, after)
    assert said == (
        "m/emoji/base/greedy: 33.3% of 3 verdicts are as before; most often: wrong -> generic (2)."
    )
    assert rejudge.changes({}, after) == []
