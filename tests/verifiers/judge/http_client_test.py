"""What a judge is asked for, and what counts as its reply."""

import judge_server
import numpy as np
import pytest
from judged_pairs import PAIRS, WANT, fails_first, judged

from speciarl_jax.verifiers.category import Category

STRUCTURED = {"response_format", "structured_outputs"}


def knows_only(*names):
    """A script that refuses other fields of structured output."""

    def script(body, number):
        other = sorted(STRUCTURED & body.keys() - set(names))
        return judge_server.unknown(other[0]) if other else None

    return script


@pytest.mark.parametrize("names, first", [(("structured_outputs",), 2), ((), 3)])
def test_a_server_that_does_not_know_structured_output_is_asked_without(
    make, warnings, names, first
):
    script = knows_only(*names)
    with judge_server.JudgeServer(script, probed=script) as server:
        np.testing.assert_array_equal(judged(make(server)).category_BN, WANT)
        # Only the first request of all found it out.
        assert len(server.requests) == len(PAIRS) and len(server.probes) == first
    (said,) = [text for text in warnings() if "structured output" in text]
    assert repr("choice" if names else "none") in said and "'response_format' is not" in said
    with judge_server.JudgeServer(script, probed=script) as server:
        judge = make(server, decoding__structured="json_schema")
        with pytest.raises(ValueError, match="HTTP 400.*'response_format' is not supported"):
            judge.check()


@pytest.mark.parametrize(
    "refusal",
    [
        judge_server.status(400),
        judge_server.status(400, b'{"error": {"message": "this model has too long a context"}}'),
        judge_server.status(422, b"response_format: the grammar took too long"),
        "unconfirmed",
    ],
)
def test_one_refusal_does_not_end_structured_output_for_all(make, warnings, refusal):
    """Not if it is about something else, nor if the request is refused without the field, too."""

    def script(body, number):
        if judge_server.pair_of(body)["truth"] != "car":
            return None
        return judge_server.unknown("response_format") if refusal == "unconfirmed" else refusal

    with judge_server.JudgeServer(script) as server:
        judge = make(server)
        found = judged(judge)
        sick = np.array([[truth == "car"] for truth, _ in PAIRS])
        np.testing.assert_array_equal(found.valid_BN, ~sick)
        later = judged(judge, [("rose", "a plant")])
        assert later.valid_BN.all() and "response_format" in server.requests[-1]
    assert not [text for text in warnings() if "structured output" in text]
    assert "HTTP 4" in judge.errors()


def test_the_fields_of_a_hosted_reasoning_judge(make, config_of):
    options = config_of(
        "--config.verifier.http_judge.decoding.temperature=None",
        "--config.verifier.http_judge.decoding.seed=None",
        "--config.verifier.http_judge.decoding.max_tokens=None",
        "--config.verifier.http_judge.decoding.max_completion_tokens=4000",
    )
    with judge_server.JudgeServer() as server:
        judged(make(server, decoding=options["decoding"]), PAIRS[:1])
    (body,) = server.requests
    assert body["max_completion_tokens"] == 4000
    assert not {"max_tokens", "temperature", "seed"} & body.keys()
    assert "Authorization" not in server.headers
    options = config_of("--config.verifier.http_judge.decoding.temperature=0.5")
    assert options["decoding"]["temperature"] == 0.5 and options["decoding"]["max_tokens"] == 32


@pytest.mark.parametrize("temperature, asked", [(0.0, 2), (0.5, 5), (None, 5)])
def test_a_greedy_reply_that_is_no_verdict_is_asked_for_once_more_at_most(make, temperature, asked):
    with judge_server.JudgeServer(lambda body, number: judge_server.FAULTS["prose"]) as server:
        judge = make(server, decoding__temperature=temperature, server__attempts=5)
        assert not judged(judge, PAIRS[:1]).valid_BN.any()
        assert len(server.requests) == asked
    errors = judge.errors()
    assert f"{asked} x a reply that is no verdict" in errors
    assert "finish_reason 'length'): 'I would say it is specific.'" in errors


def test_a_reply_may_have_thoughts_and_a_fence(make):
    said = '<think>{"verdict": "wrong"}?</think>\n```json\n{"verdict": "Less specific"}\n```\n'
    script = fails_first(judge_server.body(judge_server.completion(said)))
    with judge_server.JudgeServer(script) as server:
        found = judged(make(server), PAIRS[:1])
        assert found.category_BN == Category.LESS_SPECIFIC and len(server.requests) == 1
