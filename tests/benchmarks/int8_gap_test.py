"""The benchmark of decoding in int8 sees no gap without it, and one with it."""

import numpy as np
import small_run

from benchmarks import int8_gap


def test_the_gap_is_that_of_what_is_rounded(policy_folder):
    run = small_run.small_run(policy_folder)
    found = {name: rest for name, *rest in int8_gap.draw(run, 8)}
    assert found.keys() == int8_gap.SETTINGS.keys()
    plain, greedy, gap = found["nothing in int8"]
    assert abs(gap["sampler_kl"]) < 1e-9 and gap["sampler_gap"] < 1e-5
    assert int8_gap.same(plain, plain) == 1 and int8_gap.same(plain, greedy) < 1
    gaps = [found[name][2]["sampler_gap"] for name in ("weights", "keys and values", "both")]
    assert min(gaps) > 1e-4 and np.argmax(gaps) != 1 and max(gaps) < 0.2
