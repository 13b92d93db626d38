"""Pairs of a label and an answer, and what the scripted judge says about them."""

import judge_server
import numpy as np

from speciarl_jax.verifiers.judge import judge_prompt

KEY = "sk-very-secret-1234567890"
NAMES = ["eagle", "car", "guitar", "rose"]
SAID = ["bird", "vehicle", "thing", "flower", "red rose"]
PAIRS = [(truth, said) for truth in NAMES for said in SAID]


def respond(said):
    return f"<think>x</think><answer>{said}</answer>"


def judged(judge, pairs=PAIRS):
    """Verdicts on one answer about each of some images."""
    responses = [[respond(said)] for _, said in pairs]
    labels = [NAMES.index(truth) for truth, _ in pairs]
    return judge.submit(responses, labels).result(timeout=120)


def opinion(truth, said):
    return judge_prompt.LABELS[judge_server.verdict({"truth": truth, "prediction": said})]


WANT = np.array([[opinion(*pair)] for pair in PAIRS])


def limit(fault):
    """Seconds of an attempt: little only where it has to run out."""
    return 1.5 if fault == "hang" else 20.0


def fails_first(fault, times=1):
    return lambda body, number: fault if number < times else None
