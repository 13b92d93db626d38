"""Training with the policy's own frozen tower as the judge, and the judge on several devices."""

import json

import jax
import numpy as np
import pytest

from speciarl_jax import assemble, train
from speciarl_jax.verify.flax_judge import FlaxJudge

# Tokens of the shipped prompt are 2,000 of the tiny vocabulary; these are few.
PROMPT = 'Sort the prediction.\n{pair}\nReply with {"verdict": "CLASS"}.'


@pytest.fixture
def prompt(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT)
    return path


def test_two_steps_with_the_tower_of_the_tiny_policy(small_config, prompt, tmp_path):
    config = small_config(
        model__path="emoji_tiny",
        data__options__image_size=48,
        rollout__num_rollouts=3,
        rollout__max_tokens=20,
        train__batch_size=4,
        train__steps=2,
        train__logprob_chunk=20,
        verifier__name="flax_judge",
        verifier__flax_judge__prompt=str(prompt),
        verifier__flax_judge__max_response_bytes=192,
    )
    run = assemble.prepare(config)
    assert isinstance(run.verifier, FlaxJudge)
    before = jax.tree.map(np.array, run.base)
    train.train(run, tmp_path / "workdir", lambda: None)
    rows = (tmp_path / "workdir" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in rows]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert all(np.isfinite(value) for value in row.values())
        assert row["verify/unverified"] == 0 and row["update/skipped_in_a_row"] == 0
        # This policy writes answers that can be read.
        assert row["verify/unparsed"] < 0.5
    # Neither donated nor changed, though the judge holds the same arrays.
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(run.base), strict=True):
        np.testing.assert_array_equal(old, new)


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
