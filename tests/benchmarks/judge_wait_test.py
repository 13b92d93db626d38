"""The benchmark of the wait for a judge tells a batch ahead from steps in turn."""

import pytest

from benchmarks import judge_wait


@pytest.mark.slow
def test_a_batch_ahead_hides_what_steps_in_turn_wait_for():
    latency = 0.5
    in_turn, ahead = (judge_wait.share_waited(ahead, latency, 5, 48) for ahead in (0, 1))
    waited = [one["time/verify"] + one["time/device_idle"] for one in (in_turn, ahead)]
    assert waited[0] > 0.9 * latency > 2 * waited[1]
    assert 0 <= ahead["share"] < in_turn["share"] < 1
    # Samples of the policy one step behind.
    assert ahead["update/sampler_kl"] > in_turn["update/sampler_kl"]
