"""Training with the policy's own frozen encoder as the judge, and the judge on several devices."""

import dataclasses
import json
import socket

import jax
import judged_run
import numpy as np
import pytest
import small_run
import text_judge

from speciarl_jax import train
from speciarl_jax.evaluation import evaluator, predictions, provenance
from speciarl_jax.experiment.run import prepare, with_data
from speciarl_jax.verifiers.flax_judge import FlaxJudge
from speciarl_jax.verifiers.judge.retokenizing_judge import ReencodingJudge

# Tokens of the shipped prompt are 2,000 of the tiny vocabulary; these are few.
PROMPT = 'Sort the prediction.\n{pair}\nReply with {"verdict": "CLASS"}.'
VEHICLES = ("car", "bus", "train", "boat", "ship", "bicycle", "truck", "vehicle")


@pytest.fixture
def prompt(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT)
    return path


@pytest.fixture
def judged_config(small_config, prompt):
    """section__key=value, ... -> a run of two steps with the tiny policy and a flax_judge."""
    defaults = {
        "model__path": "emoji_tiny",
        "data__options__image_size": 48,
        "rollout__num_rollouts": 3,
        "rollout__max_tokens": 20,
        "train__batch_size": 4,
        "train__steps": 2,
        "train__logprob_chunk": 20,
        "verifier__name": "flax_judge",
        "verifier__flax_judge__prompt": str(prompt),
        "verifier__flax_judge__max_response_bytes": 192,
    }
    return lambda **changes: small_config(**defaults | changes)


@pytest.mark.slow
def test_two_steps_with_the_encoder_of_the_tiny_policy(judged_config, tmp_path):
    config = judged_config()
    run = prepare(config)
    assert isinstance(run.verifier, FlaxJudge)
    before = jax.tree.map(np.array, run.base)
    train.train(run, tmp_path / "workdir")
    rows = (tmp_path / "workdir" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in rows]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert all(np.isfinite(value) for value in row.values())
        assert row["verify/unjudged"] == 0 and row["update/skipped_in_a_row"] == 0
        # This policy writes answers that can be read.
        assert row["verify/unparsed"] < 0.5
        assert 1 / 6 <= row["verify/probability_mean"] <= 1
        assert row["verify/below_min_probability"] == 0
    # Neither donated nor changed, though the judge holds the same arrays.
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(run.base), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_policy_that_judges_itself_is_another_verifier_with_other_weights(judged_config):
    run = prepare(judged_config())
    source = run.eval_source
    before = provenance.of_verifier(run)
    assert "policy_base" not in before.values()

    def judged_by(base):
        return provenance.of_verifier(with_data(dataclasses.replace(run, base=base), None, source))

    same = judged_by(run.base)
    assert same == judged_by(jax.tree.map(lambda x: x + 0, run.base))
    other = judged_by(jax.tree.map(lambda x: x * 1.01, run.base))
    assert {key for key in same if same[key] != other[key]} == {"weights"}


@pytest.mark.slow
def test_a_judge_with_another_vocabulary_judges_a_run(judged_config, policy_folder, tmp_path):
    """Its words are not the policy's, so text goes to it through the host; half of its verdicts are
    too doubtful to count."""
    text_judge.make_judge(tmp_path / "judge", "qwen2", policy_folder)
    config = judged_config(
        verifier__flax_judge__weights=str(tmp_path / "judge"),
        verifier__max_unjudged_fraction=1.0,
        verifier__num_chunks=2,
        evaluation__batch_size=24,
    )
    sure = prepare(config).verifier
    said = [f"<think></think><answer>{word}</answer>" for word in VEHICLES]
    _, probability_BNK = sure.judge([said] * 8, list(range(8)))
    limit = float(np.median(probability_BNK.max(axis=-1)))
    config.verifier.flax_judge.min_probability = limit
    run = prepare(config)
    assert isinstance(run.verifier, ReencodingJudge)
    train.train(run, tmp_path / "workdir")
    rows = (tmp_path / "workdir" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in rows]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert 1 / 6 <= row["verify/probability_mean"] <= 1
        assert (row["verify/unjudged"] > 0) == (row["verify/below_min_probability"] > 0)
        assert row["verify/unjudged"] <= row["verify/below_min_probability"] <= 1
    judged = evaluator.Evaluator(run)(run.lora)
    run.verifier.close()
    small_run.write_answers(tmp_path / "answers.jsonl", judged)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    asked, doubted = [line for line in lines if "probabilities" in line], 0
    for line in asked:
        (probability,), (category,) = line["probabilities"], line["categories"]
        assert 1 / 6 <= probability <= 1
        if abs(probability - limit) > 1e-5:
            assert (category == predictions.UNVERIFIED) == (probability < limit)
        doubted += category == predictions.UNVERIFIED
    assert 0 < doubted < len(asked)
    for line in lines:
        # What was not asked has a stated verdict.
        stated = ("wrong", "abstain", "unparsed")
        assert "probabilities" in line or line["categories"][0] in stated


@pytest.mark.slow
def test_two_processes_judge_with_another_vocabulary(start, policy_folder, prompt, tmp_path):
    text_judge.make_judge(tmp_path / "judge", "qwen2", policy_folder)
    for processes in (1, 2):
        (tmp_path / f"run_{processes}").mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = {
            "url": "http://127.0.0.1:1/v1",
            "cache": "",
            "workdir": str(tmp_path / f"run_{processes}"),
            "out": str(tmp_path / f"lora_{processes}"),
            "processes": processes,
            "port": port,
            "config": {
                "mesh__fsdp": 4,
                "train__steps": 2,
                "verifier__name": "flax_judge",
                "verifier__num_chunks": 1,
                "verifier__flax_judge__prompt": str(prompt),
                "verifier__flax_judge__weights": str(tmp_path / "judge"),
            },
        }
        running = [
            start(
                judged_run.__file__,
                json.dumps(options | {"process": process}),
                devices=4 // processes,
                quick=True,
            )
            for process in range(processes)
        ]
        printed = [process.communicate(timeout=900)[0] for process in running]
        assert not any(process.returncode for process in running), "\n".join(printed)
    one, two = (
        [json.loads(row) for row in (tmp_path / f"run_{n}" / "metrics.jsonl").open()]
        for n in (1, 2)
    )
    for got, want in zip(two, one, strict=True):
        got, want = (
            {k: v for k, v in row.items() if not k.startswith("time")} for row in (got, want)
        )
        # Only a judge on the host has this metric.
        assert "verify/cache_hits" in got and got["verify/probability_mean"] > 0
        assert got == pytest.approx(want, rel=1e-3, abs=1e-4)
    assert len(one) == 2
    first, second = ((tmp_path / f"run_{n}" / "answers.jsonl").open() for n in (1, 2))
    for got, want in zip(map(json.loads, second), map(json.loads, first), strict=True):
        sure = got.pop("probabilities", None), want.pop("probabilities", None)
        assert got == want and sure[0] == pytest.approx(sure[1], abs=1e-4)


@pytest.mark.slow
def test_verdicts_are_the_same_on_eight_devices(start, policy_folder, prompt, tmp_path):
    running = {}
    for sizes in ("111", "222"):
        out = tmp_path / f"{sizes}.npz"
        command = ("tests/support/judge_program.py", policy_folder, prompt, out, *sizes)
        running[out] = start(*command, devices=8 if sizes == "222" else 1, quick=True)
    for process in running.values():
        printed, _ = process.communicate(timeout=400)
        assert process.returncode == 0, printed
    one, eight = (np.load(out) for out in running)
    assert one["parts"] == 1 and eight["parts"] == 4  # fsdp x tensor
    np.testing.assert_array_equal(one["category"], eight["category"])
    np.testing.assert_array_equal(one["category"][:, 2:5], [[1, -1, 0]] * 8)
    np.testing.assert_allclose(one["probability"], eight["probability"], atol=1e-4)
    assert one["valid"].all() and eight["valid"].all()
