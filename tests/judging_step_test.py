"""The boundary between devices and a host verifier, with a verifier that is a function."""

import jax
import judged_step
import pytest

from speciarl_jax import judging, sharding


@pytest.fixture
def mesh():
    return sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])


@pytest.mark.parametrize("chunks", [1, 2, 4, 8])
def test_verdicts_come_back_to_their_answers(mesh, chunks):
    judged_step.check(mesh, chunks)


def test_verdicts_come_back_to_their_answers_on_every_mesh(start):
    process = start(judged_step.__file__, devices=8, quick=True)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and printed.count("right") == 4, printed


def test_too_many_answers_without_a_verdict_stop_the_step_before_it_learns(mesh):
    unknown = [f"{t} {t}" for t in (12, 22, 112)]
    verifier = judged_step.FunctionVerifier(unknown)
    share = len(unknown) / 18  # rows that pad the batch do not count
    before, after, _ = judged_step.step(mesh, verifier, limit=share + 1e-6)
    assert int(after.lora) == judged_step.LORA + 1
    said = r"step 7: 16.7% of the answers .*max_unverified is 16.0%. the judge is ill. .* same"
    with pytest.raises(judging.JudgeAway, match=said):
        judged_step.step(mesh, verifier, limit=0.16)
