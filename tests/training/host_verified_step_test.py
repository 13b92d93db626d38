"""The boundary between devices and a host verifier, with a verifier that is a function."""

import concurrent.futures

import jax
import judged_step
import numpy as np
import pytest

from speciarl_jax.experiment import host_verification
from speciarl_jax.runtime import sharding
from speciarl_jax.verifiers.base import Verdicts


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
    said = (
        r"step 7: 16.7% of the answers .*max_unjudged_fraction is 16.0%. the judge is ill. .* same"
    )
    with pytest.raises(host_verification.JudgeUnavailable, match=said):
        judged_step.step(mesh, verifier, limit=0.16)


def test_a_process_may_have_nothing_to_judge():
    none = np.zeros((0, 0))
    future = concurrent.futures.Future()
    future.set_result(Verdicts(none.astype(np.int32), none.astype(bool), none.astype(bool), none))
    verdicts, sent_B = host_verification.collect(
        [host_verification.Sent((4, 3), np.zeros(0, int), np.zeros((0, 3)), future)]
    )
    assert verdicts.category_BN.shape == (4, 3) and not verdicts.valid_BN.any()
    assert not sent_B.any() and np.isnan(verdicts.seconds_BN).all()
