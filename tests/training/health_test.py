"""What is watched while a run trains: when a warning comes, and that its advice can be followed."""

import collections
import functools
import json
import logging
import re

import numpy as np
import pytest

from configs import base
from speciarl_jax.evaluation import constant_answer, remarks
from speciarl_jax.evaluation.evaluator import Judged
from speciarl_jax.training import health
from speciarl_jax.training.health import RULES, Facts, Health

FACTS = Facts(
    max_tokens=64, end_ids=[3], random_entropy=6.0, images=32, reward="mine", verifier="taxonomy"
)
# Name -> values of its metrics for which a rule is silent, and for which it is not.
CASES = {
    "truncated": ([0.49], [0.5]),
    "unparsed": ([0.49], [1.0]),
    "no_signal": ([0.99], [1.0]),
    "no_signal_sampled": ([0.01], [0.0]),
    "entropy_low": ([0.002], [0.0]),
    "entropy_high": ([2.9], [5.9]),
    "kl": ([0.9], [1.1]),
    "sampler_apart": ([0.005], [0.02]),
    "unjudged": ([0.1], [0.15]),
    "unjudged_sampled": ([0.1], [1.0]),
    "one_answer": ([0.75, 0.6], [0.75, 0.5]),
    "reward_not_finite": ([0.0], [0.001]),
    "reward_not_finite_sampled": ([0.0], [1.0]),
    "gradient_not_finite": ([0.0], [1.0]),
    "images_skipped": ([3.0], [4.0]),
}


def row_of(name, values):
    return dict(zip(RULES[name].reads, values, strict=True))


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def watched(name):
    """Steps in a row that are counted for a rule, after a step with these values."""

    def count(values):
        return Health(FACTS).after_step(1, row_of(name, values))[f"health/{name}"]

    return count


@pytest.mark.parametrize("name", RULES)
def test_a_rule_holds_beyond_its_bound_and_not_before(name):
    calm, bad = CASES[name]
    assert [watched(name)(values) for values in (calm, bad)] == [0.0, 1.0]


@pytest.mark.parametrize("name", RULES)
def test_a_warning_comes_after_the_patience_and_names_keys_that_exist(name, caplog):
    watch, row = Health(FACTS), row_of(name, CASES[name][1])
    for step in range(1, RULES[name].patience + 1):
        assert not warnings(caplog)
        watch.after_step(step, row)
    (said,) = warnings(caplog)
    assert said.startswith(f"step {step}, health/{name}: ")
    keys = re.findall(r"(?<!_)config\.([a-z_.]+[a-z])", said)
    for key in keys:
        functools.reduce(lambda part, one: part[one], key.split("."), base.get_config())
    assert keys or "check_data" in said


def test_warnings_about_one_thing_come_at_growing_intervals(caplog):
    watch, steps = Health(FACTS), []
    for step in range(1, 161):
        before = len(warnings(caplog))
        # One good step in between resets the count, not the interval.
        watch.after_step(step, row_of("kl", [0.0 if step == 5 else 9.0]))
        steps += [step] * (len(warnings(caplog)) - before)
    assert steps == [3, 13, 33, 73, 153]


def test_a_run_that_was_interrupted_warns_as_one_that_was_not(caplog):
    rows = [row_of("truncated", [float(step % 7 > 1)]) for step in range(40)]
    scores = [{"validation/all/correctness": 0.9 - step / 40} for step in range(40)]

    def warned(restart):
        watch, counts = Health(FACTS), []
        caplog.clear()
        for step, (row, score) in enumerate(zip(rows, scores, strict=True)):
            if restart:
                watch = Health(FACTS, json.loads(json.dumps(watch.get_state())))
            counts.append(watch.after_step(step, row) | watch.after_validation(step, score))
        return counts, warnings(caplog)

    whole = warned(restart=False)
    assert whole == warned(restart=True) and len(whole[1]) > 3


def test_rules_whose_metrics_are_missing_say_nothing(caplog):
    assert Health(FACTS).after_step(1, {"update/loss": 0.5}) == {"health/metrics_not_finite": 0.0}
    assert not warnings(caplog)


def test_metrics_that_are_not_finite_are_named(caplog):
    row = {"update/loss": float("nan"), "reward/mine": float("inf"), "update/kl": 0.0}
    found = Health(FACTS).after_step(7, row)
    assert found["health/metrics_not_finite"] == 1.0
    assert warnings(caplog) == [
        "step 7, health/metrics_not_finite: not finite, so null in metrics.jsonl: reward/mine, "
        "update/loss"
    ]


def test_a_validation_that_falls_below_the_first_one_is_named_with_its_set(caplog):
    watch = Health(FACTS)

    def validated(step, animals, others):
        row = {"validation/animals/correctness": animals, "validation/others/correctness": others}
        found = watch.after_validation(step, row | {"time/validation": 3.0})
        return found["health/validation_fallen"]

    assert validated(0, 0.6, 0.6) == 0.0
    assert validated(10, 0.9, 0.51) == 0.0
    assert validated(20, 0.9, 0.4) == 1.0
    (said,) = warnings(caplog)
    assert "others from 0.600 to 0.400:" in said and "animals" not in said
    assert validated(30, 0.9, 0.6) == 0.0


def test_a_set_without_verdicts_has_no_first_score(caplog):
    watch = Health(FACTS)
    watch.after_validation(0, {"validation/all/unverified": 9.0})
    watch.after_validation(5, {"validation/all/correctness": 0.8})
    assert watch.after_validation(9, {"validation/all/correctness": 0.6}) == {
        "health/validation_fallen": 1.0,
        "health/validation_one_answer": 0.0,
    }


def judged(answers, labels):
    rows = [{"label_id": label} for label in labels]
    said = [[f"<think>it {i}</think><answer>{a}</answer>"] for i, a in enumerate(answers)]
    return Judged(rows, said, *[np.zeros((len(rows), 1))] * 3)


def test_one_answer_about_images_of_many_labels_is_named(caplog):
    parts = [judged(["Animal", "an animal!", "Dog"], "abc"), judged(["animal"], "d")]
    shares = constant_answer.shares(parts)
    assert shares == {"most_common_answer": 0.75, "most_common_label": 0.25}
    row = {f"validation/all/{name}": share for name, share in shares.items()}
    assert Health(FACTS).after_validation(3, row)["health/validation_one_answer"] == 1.0
    (said,) = warnings(caplog)
    assert "all: 75% of the answers are one and the same, though no label has more than 25%" in said
    # Where nearly all images show the same, so may the answers say.
    same = constant_answer.shares([judged(["dog"] * 9 + ["cat"], "d" * 8 + "cc")])
    row = {f"validation/all/{name}": share for name, share in same.items()}
    assert Health(FACTS).after_validation(3, row)["health/validation_one_answer"] == 0.0


def test_a_report_says_what_was_watched_and_when_it_was_last():
    history = [
        {"step": step, "health/kl": float(step in (2, 3)), "health/truncated": 0.0}
        for step in range(1, 6)
    ]
    (said,) = remarks.warned(history)
    assert "health/kl" in said and "2 of 5 rows" in said and "after step 3;" in said


def test_every_rule_has_a_case():
    assert CASES.keys() == RULES.keys()
    names = collections.Counter(key for rule in RULES.values() for key in rule.reads)
    assert all(key.count("/") == 1 for key in names)
    assert set(health.REWARD_NOT_FINITE) < RULES.keys()
