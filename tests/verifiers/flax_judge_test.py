"""The judge on the devices: transformers' numbers, the policy's tokens, and no way to sway it."""

import dataclasses
import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import text_judge
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import speciarl_jax
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.models import qwen_text
from speciarl_jax.tools import audit_verifier
from speciarl_jax.verifiers import flax_judge, label_mentions, parsing, parsing_on_device, prefilter
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.judge import judge_prompt, verdict_logprobs
from speciarl_jax.verifiers.judge.retokenizing_judge import ReencodingJudge
from speciarl_jax.verifiers.judge.token_reuse import Reuse

TINY = pathlib.Path(speciarl_jax.__file__).parent / "models" / "pretrained" / "emoji_tiny"
NAMES = ["tiger", "golden retriever", "salt and pepper", "jalape\u00f1o", "fox"]
LABELS = label_mentions.index(NAMES)
# The pair stands in front of a few words here, so that models in torch stay quick.
PROMPT = judge_prompt.JudgePrompt("Sort the prediction.\n", "\nReply in JSON.")
OPTIONS = {
    "path": "",
    "prompt": "v1",
    "weights": "policy_base",
    "calibration": "",
    "max_words": 4,
    "max_answer_bytes": 48,
    "max_response_bytes": 96,
    "max_answer_tokens": 16,
    "rollouts_at_once": 2,
    "judge_batch_size": 8,
    "min_probability": 0.0,
    "tags": "answer",
}


@functools.cache
def policy_tokenizer():
    return tokenizer_lib.load(TINY)


@functools.cache
def policy_bytes():
    return tokenizer_lib.token_bytes(policy_tokenizer(), 768)


every_family = pytest.mark.parametrize(
    "judge", sorted(text_judge.FAMILIES), indirect=True, scope="module"
)


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def judge(request, tmp_path_factory):
    """The model in torch, and the scorer that was read from its checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    model = text_judge.make_judge(folder, request.param, TINY)
    _, decoder = qwen_text.load(folder, dtype=jnp.float32, param_dtype=jnp.float32)
    return model, verdict_logprobs.make_scorer(decoder, policy_tokenizer(), PROMPT, NAMES)


@pytest.fixture(scope="module")
def in_graph(judge):
    reuse, agree = Reuse.create(policy_bytes(), policy_bytes())
    assert agree
    limits = {k: OPTIONS[k] for k in ("max_words", "max_answer_bytes", "tags")}
    return flax_judge.FlaxJudge(
        scorer=judge[1],
        tokens=parsing_on_device.TokenBytes.create(policy_bytes()),
        screen=prefilter.Screen.create(NAMES, labels=LABELS, **limits),
        reuse=reuse,
        **{k: OPTIONS[k] for k in ("max_answer_tokens", "max_response_bytes")},
        **{k: OPTIONS[k] for k in ("rollouts_at_once", "min_probability")},
    )


def pairs_of(texts, size=16):
    ids = [verdict_logprobs.encode(policy_tokenizer(), text) for text in texts]
    tokens = np.zeros((len(ids), size), np.int32)
    for row, one in zip(tokens, ids, strict=True):
        row[: len(one)] = one
    return tokens, np.array([len(one) for one in ids], np.int32)


def whole(scorer, label, ids):
    """The prompt of a pair as one sequence."""
    truth = scorer.truth_FC[label, : scorer.truth_length_F[label]]
    return [*map(int, [*scorer.prefix_P, *truth, *ids, *scorer.tail_C])]


def verdicts_of(scorer):
    pairs = zip(scorer.verdict_KS, scorer.verdict_length_K, strict=True)
    return [[int(t) for t in row[:length]] for row, length in pairs]


PAIRS = [("tiger", 0), ("dog", 1), ("a spice mix-up", 2), ("chili", 3), ("animal", 4), ("x", 0)]


@every_family
def test_log_likelihoods_of_the_verdicts_are_those_of_transformers(judge):
    model, scorer = judge
    tokens, length = pairs_of([text for text, _ in PAIRS])
    label = np.array([label for _, label in PAIRS], np.int32)
    got = jax.jit(lambda s, *pair: s.logp_of_pairs(*pair))(scorer, label, tokens, length)
    assert got.dtype == jnp.float32
    assert len(set(scorer.verdict_length_K.tolist())) > 1  # verdicts of several lengths
    for row, (pair, ids, count) in enumerate(zip(PAIRS, tokens, length, strict=True)):
        context = whole(scorer, pair[1], ids[:count])
        want = [text_judge.torch_logp(model, context, v) for v in verdicts_of(scorer)]
        np.testing.assert_allclose(got[row], want, rtol=0, atol=1e-4, err_msg=pair[0])


@every_family
def test_the_shared_prefix_equals_full_prompts(judge):
    _, scorer = judge
    decoder, _ = scorer.prefill()
    tokens, length = pairs_of([text for text, _ in PAIRS])
    label = np.array([label for _, label in PAIRS], np.int32)
    got = np.asarray(scorer.logp_of_pairs(label, tokens, length))
    verdicts = verdicts_of(scorer)
    full = [
        whole(scorer, pair[1], ids[:count]) + verdict
        for pair, ids, count in zip(PAIRS, tokens, length, strict=True)
        for verdict in verdicts
    ]
    width = max(map(len, full))
    batch, mask = np.zeros((len(full), width), np.int32), np.zeros((len(full), width), bool)
    for row, ids in enumerate(full):
        batch[row, width - len(ids) :], mask[row, width - len(ids) :] = ids, True
    logp = jax.nn.log_softmax(jax.jit(qwen_text.logits)(decoder, batch, mask), axis=-1)
    own = np.take_along_axis(np.asarray(logp)[:, :-1], batch[:, 1:, None], axis=-1)[..., 0]
    want = [own[i, -len(verdicts[i % 6]) :].sum() for i in range(len(full))]
    np.testing.assert_allclose(got.ravel(), want, rtol=0, atol=1e-4)


def test_a_bare_reply_and_a_system_message_are_the_chat_too(judge):
    _, scorer = judge
    prompt = judge_prompt.JudgePrompt("Pair: ", "", "Sort.", ("ground_truth", "said"), True)
    decoder = nnx.merge(scorer.graphdef, scorer.weights)
    bare = verdict_logprobs.make_scorer(decoder, policy_tokenizer(), prompt, NAMES)
    ids = whole(bare, 0, verdict_logprobs.encode(policy_tokenizer(), "dog"))
    chat = policy_tokenizer().apply_chat_template(
        prompt.messages(NAMES[0], "dog"), tokenize=False, add_generation_prompt=True
    )
    assert "Sort." in chat and policy_tokenizer().decode(ids) == chat


def test_the_prompt_is_the_chat_of_the_judge(judge):
    _, scorer = judge
    for text, label in PAIRS:
        ids = whole(scorer, label, verdict_logprobs.encode(policy_tokenizer(), text))
        message = [{"role": "user", "content": PROMPT.fill(NAMES[label], text)}]
        chat = policy_tokenizer().apply_chat_template(
            message, tokenize=False, add_generation_prompt=True
        )
        assert policy_tokenizer().decode(ids) == chat + '{"verdict": "'


# --- the policy's tokens --------------------------------------------------------------------------

WORDS = ["Golden", "retriever", "TIGER", "fox", "a", "\u00e9t\u00e9", "mix-up", "none", "747", "b"]
WORDS += [" ", "  ", ". ", "'", "\t", "-", "_"]


@functools.cache
def by_first_bytes():
    return [(i, spelt) for i, spelt in enumerate(policy_bytes()) if spelt]


def in_pieces(text, rng):
    """A random segmentation of a text into the policy's tokens."""
    raw, ids = text.encode(), []
    while raw:
        fits = [i for i, spelt in by_first_bytes() if raw.startswith(spelt)]
        ids.append(int(rng.choice(fits)))
        raw = raw[len(policy_bytes()[ids[-1]]) :]
    return ids


def batch_of(rows, width=96):
    tokens = np.full((1, len(rows), width), 5, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for n, ids in enumerate(rows):
        tokens[0, n, : len(ids)], mask[0, n, : len(ids)] = ids, True
    return tokens, mask


def reader(names, max_answer_tokens):
    """A judge without a model: the true label is one token, or two for the label 0."""
    length = jnp.array([2] + [1] * (len(names) - 1))
    truths = jnp.tile(jnp.array([[1, 2]]), (len(names), 1))
    scorer = verdict_logprobs.Scorer(*[None] * 2, truths, length, jnp.array([3]), *[None] * 4)
    return flax_judge.FlaxJudge(
        scorer=scorer,
        tokens=parsing_on_device.TokenBytes.create(policy_bytes()),
        screen=prefilter.Screen.create(
            NAMES, labels=LABELS, max_words=4, max_answer_bytes=48, tags="answer"
        ),
        reuse=Reuse.create(policy_bytes(), policy_bytes())[0],
        max_answer_tokens=max_answer_tokens,
        max_response_bytes=160,
        rollouts_at_once=1,
        min_probability=0.0,
    )


@functools.cache
def reading(max_answer_tokens=48):
    """(tokens, mask, labels) -> stated verdicts, what is compared as the answers, tokens of the
    pairs and their masks."""
    judge = reader(NAMES, max_answer_tokens)
    return jax.jit(jax.vmap(jax.vmap(judge._read, in_axes=(0, 0, None))))


def assert_read_in_normal_form(rows, texts, label):
    tokens, mask = batch_of(rows)
    stated, said, pair, is_token = (x[0] for x in reading()(tokens, mask, np.array([label])))
    numbers: dict[str, int] = {}
    for n, text in enumerate(texts):
        content = parsing.extract(text)
        shown = "" if content is None else parsing.normalize(content)
        # Equal answers have equal numbers; 0 where none is read.
        assert (int(said[n]) > 0) == (int(stated[n]) != int(Category.UNPARSED)), text
        assert not int(said[n]) or numbers.setdefault(shown, int(said[n])) == int(said[n]), text
        want = prefilter.screen(
            content, NAMES[label], labels=LABELS, max_words=4, max_answer_bytes=48
        )
        assert int(stated[n]) == (prefilter.ASK if want is None else want), text
        if want is None:
            ids = np.asarray(pair[n])[np.asarray(is_token[n])]
            truth = 1 if label else 2
            shown = b"".join(policy_bytes()[i] for i in ids[truth:-1])
            assert shown == parsing.normalize(content).encode(), text
            assert ids[:truth].tolist() == [1, 2][:truth] and ids[-1] == 3


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, len(NAMES) - 1))
def test_the_judge_is_shown_the_normal_form_whatever_the_tokens(seed, label):
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(16):
        content = "".join(rng.choice(WORDS) for _ in range(rng.integers(0, 7)))
        texts.append(f"<answer>{content}</answer>")
    assert_read_in_normal_form([in_pieces(text, rng) for text in texts], texts, label)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=16, max_size=16), st.integers(0, len(NAMES) - 1))
def test_no_text_reaches_the_judge_but_in_normal_form(contents, label):
    texts = [f"<answer>{text}</answer>".encode(errors="replace").decode() for text in contents]
    rows = [verdict_logprobs.encode(policy_tokenizer(), text) for text in texts]
    assert_read_in_normal_form(rows, texts, label)


def test_whole_tokens_of_the_policy_are_used_again():
    texts = ["<answer>Golden Retriever</answer>", "<answer> tiger</answer>"]
    words = ["golden retriever", "tiger"]
    rows = [verdict_logprobs.encode(policy_tokenizer(), text) for text in texts]
    *_, pair, is_token = reading()(*batch_of(rows), np.array([0]))
    lower = [verdict_logprobs.encode(policy_tokenizer(), text.lower()) for text in texts]
    for n, word in enumerate(words):
        ids = np.asarray(pair[0, n])[np.asarray(is_token[0, n])][2:-1]
        assert len(ids) < len(word)  # not spelt in bytes
        assert b"".join(policy_bytes()[i] for i in ids) == word.encode()
    # What was written in lower case already is taken over token by token.
    *_, pair, is_token = reading()(*batch_of(lower[:1]), np.array([0]))
    ids = np.asarray(pair[0, 0])[np.asarray(is_token[0, 0])][2:-1].tolist()
    start = lower[0].index(ids[0])
    assert lower[0][start : start + len(ids)] == ids


def test_an_answer_of_too_many_tokens_is_wrong_and_never_asked():
    text = "<answer>qzqzqzqz</answer>"
    row = in_bytes(text)
    stated, *_ = reading(max_answer_tokens=7)(*batch_of([row]), np.array([0]))
    assert int(stated[0, 0]) == Category.WRONG
    stated, *_ = reading(max_answer_tokens=8)(*batch_of([row]), np.array([0]))
    assert int(stated[0, 0]) == prefilter.ASK


def in_bytes(text):
    single = {spelt: i for i, spelt in reversed(by_first_bytes())}
    return [single[bytes([b])] for b in text.encode()]


def test_every_attempt_to_sway_is_refused_or_shown_as_plain_words():
    rows = audit_verifier.read_pairs("adversarial")
    names = [row["truth"] for row in rows]
    limits = {"max_words": 8, "max_answer_bytes": 64, "tags": "answer"}
    judge = dataclasses.replace(
        reader(names, max_answer_tokens=64),
        screen=prefilter.Screen.create(names, labels=label_mentions.index(names), **limits),
        max_response_bytes=4096,
    )
    ids = [verdict_logprobs.encode(policy_tokenizer(), row["response"]) for row in rows]
    tokens, mask = batch_of(ids, max(map(len, ids)))
    label = np.arange(len(rows), dtype=np.int32)
    stated, _, pair, is_token = jax.jit(jax.vmap(judge._read))(tokens[0], mask[0], label)
    # The first row has a label of two tokens, and is no row for the judge to decide.
    assert rows[0]["judge"] != "ask"
    for row, got, shown, seen in zip(rows, *map(np.asarray, (stated, pair, is_token)), strict=True):
        want = row["judge"]
        assert got == (prefilter.ASK if want == "ask" else Category[want.upper()]), row
        if want == "ask":
            spelt = b"".join(policy_bytes()[i] for i in shown[seen][1:-1]).decode()
            assert all(c.isalnum() or c in " -" for c in spelt) and spelt == spelt.lower()


# --- verdicts -------------------------------------------------------------------------------------

RESPONSES = ["<answer>Big Cats</answer>", "<answer>tiger or fox</answer>", "<answer>none</answer>"]
RESPONSES += ["tiger", "<answer>fox</answer>", "<answer>an animal</answer>"]


def reencoding(judge_scorer, **changes):
    options = {k: OPTIONS[k] for k in ("max_words", "max_answer_bytes", "max_answer_tokens")}
    options |= {k: OPTIONS[k] for k in ("judge_batch_size", "min_probability", "tags")}
    options |= {"labels": LABELS} | changes
    return ReencodingJudge(judge_scorer, NAMES, policy_tokenizer(), **options)


@pytest.mark.slow
def test_in_graph_and_on_the_host_the_verdicts_are_the_same(judge, in_graph):
    groups = [RESPONSES] * len(NAMES)
    labels = np.arange(len(NAMES), dtype=np.int32)
    host = reencoding(judge[1], judge_batch_size=4)
    want, want_probability = host.judge(groups, labels)
    assert host.submit(groups, labels).result().valid_BN.all() and host.errors() == ""
    host.close()
    # The same bytes in the same tokens.
    canonical = [t.lower() for t in RESPONSES]
    rows = [verdict_logprobs.encode(policy_tokenizer(), text) for text in canonical]
    tokens, mask = (np.repeat(x, len(NAMES), axis=0) for x in batch_of(rows, 32))
    program = jax.jit(lambda judge, *batch: judge.judge(*batch))
    category, valid, probability = program(in_graph, tokens, mask, labels)
    assert valid.all() and want.valid_BN.all()
    np.testing.assert_array_equal(category, want.category_BN)
    np.testing.assert_array_equal(category[:, 1:4], [[0, 1, -1]] * len(NAMES))
    np.testing.assert_allclose(probability, want_probability, atol=2e-4)
    np.testing.assert_allclose(probability.sum(-1)[:, [0, 1, 2, 4]], 1, atol=1e-5)
    # A row that is no label has no verdict.
    category, valid, _ = program(in_graph, tokens, mask, np.array([0, 1, 2, -1, 9], np.int32))
    assert valid[:3].all() and not valid[3:].any()
    assert (category[3:] == Category.UNPARSED).all()
    verdict = in_graph.verify(tokens, mask, labels)
    np.testing.assert_array_equal(verdict[0], want.category_BN)


def test_equal_pairs_are_judged_once(judge, monkeypatch):
    host, calls = reencoding(judge[1]), []
    program = host._program
    monkeypatch.setattr(host, "_program", lambda *a: calls.append(1) or program(*a))
    verdicts, _ = host.judge([["<answer>Fox.</answer>"] * 50] * 4, [0, 0, 0, 0])
    assert len(calls) == 1 and len(np.unique(verdicts.category_BN)) == 1
    host.close()


def test_a_verdict_is_the_likeliest_and_doubt_or_a_fault_is_none():
    logp = jnp.log(jnp.array([[0.1, 0.1, 0.1, 0.1, 0.1, 0.5], [0.4, 0.4, 0.1, 0.1, 0, 0]]) + 1e-9)
    ask = jnp.full(2, prefilter.ASK)
    category, valid, probability = verdict_logprobs.decide(ask, logp, 0.0)
    assert category.tolist() == [5, 0] and valid.all()  # a tie goes to the lower verdict
    np.testing.assert_allclose(probability, jnp.exp(logp), atol=1e-5)
    category, valid, _ = verdict_logprobs.decide(ask, logp, 0.45)
    assert category.tolist() == [5, -1] and valid.tolist() == [True, False]
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        category, valid, probability = verdict_logprobs.decide(ask, logp.at[0, 4].set(bad), 0.0)
        assert category.tolist() == [-1, 0] and valid.tolist() == [False, True]
        assert np.isfinite(probability).all()
        stated = jnp.array([int(Category.WRONG), prefilter.ASK])
        category, valid, _ = verdict_logprobs.decide(stated, logp.at[0, 4].set(bad), 0.0)
        assert category.tolist() == [0, 0] and valid.all()


# --- building -------------------------------------------------------------------------------------


def policy_of(run):
    policy = nnx.merge(run.graphdef, run.lora, run.base)
    float32 = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    return policy, flax_judge.Policy(policy.decoder, run.tokenizer, None, None, float32)


def build(run, names, **changes):
    vocabulary = tokenizer_lib.token_bytes(run.tokenizer, run.model_config.text.vocab_size)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(names))
        file.flush()
        options = OPTIONS | {"path": file.name} | changes
        return flax_judge.create(vocabulary, None, policy=policy_of(run)[1], **options)


def test_the_policys_own_language_model_judges_at_no_extra_memory(run):
    labels, judge = build(run, NAMES)
    assert isinstance(judge, flax_judge.FlaxJudge) and labels.names == tuple(NAMES)
    buffers = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(run.base)}
    mine = jax.tree.leaves(judge.scorer.weights)
    assert mine and {x.unsafe_buffer_pointer() for x in mine} <= buffers
    # The encoder is the reference policy's: LoRA is off.
    policy, _ = policy_of(run)
    decoder, _ = judge.scorer.prefill()
    tokens, mask = np.arange(12, dtype=np.int32)[None], np.ones((1, 12), bool)
    want = policy(tokens, qwen_text.positions(mask), mask, use_lora=False)
    np.testing.assert_allclose(qwen_text.logits(decoder, tokens, mask), want, atol=1e-5)


def test_another_vocabulary_is_encoded_anew_on_the_host(run, tmp_path):
    # The tokenizer of the shipped policy has words that the small one lacks, and the reverse.
    text_judge.make_judge(tmp_path, "qwen2", TINY)
    _, judge = build(run, NAMES, weights=str(tmp_path))
    assert isinstance(judge, ReencodingJudge)
    verdicts, probability = judge.judge([RESPONSES], [0])
    assert verdicts.valid_BN.all() and verdicts.category_BN[0, 1:4].tolist() == [0, 1, -1]
    assert 0 < probability[0, 0].max() < 1
    judge.close()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"weights": "/no/where"}, "weights is '/no/where', which is no folder.*'policy_base'"),
        ({"prompt": "riddle"}, "no judge prompt 'riddle'"),
        ({"max_answer_tokens": 0}, "max_answer_tokens is 0; it must be at least 1"),
        ({"rollouts_at_once": 0}, "rollouts_at_once is 0; it must be at least 1"),
        ({"min_probability": 2.0}, "config.verifier.flax_judge.min_probability is 2.0; it must"),
        ({"max_words": 2}, "'salt and pepper' has 3 words, and max_words is 2"),
    ],
)
def test_options_that_do_not_fit_are_refused(run, changes, message):
    with pytest.raises(ValueError, match=message):
        build(run, NAMES, **changes)
    with pytest.raises(
        ValueError, match="brings no label tree; set config.verifier.flax_judge.path"
    ):
        flax_judge.create([], None, policy=None, **OPTIONS)


def test_verdicts_that_cannot_be_told_apart_are_refused(judge, monkeypatch):
    decoder, _ = judge[1].prefill()
    labels = {"wrong": Category.WRONG, "wronger": Category.ABSTAIN}
    monkeypatch.setattr(verdict_logprobs, "VERDICTS", tuple(labels))
    monkeypatch.setattr(verdict_logprobs, "encode", lambda tokenizer, text: list(text.encode()))
    with pytest.raises(ValueError, match="verdict 'wrong' begins another one"):
        verdict_logprobs.make_scorer(decoder, policy_tokenizer(), PROMPT, NAMES)


def test_a_tokenizer_without_single_bytes_is_refused():
    with pytest.raises(ValueError, match="no token for the single bytes"):
        Reuse.create(policy_bytes(), [b"tiger", b" fox"])
