"""Which tokens end a completion, from the files of a policy to the text of its answers."""

import json
import shutil

import jax
import numpy as np
import pytest
import small_run

from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.experiment import run as run_lib
from speciarl_jax.runtime import sharding

TEXT_END = "<|endoftext|>"


@pytest.fixture
def policy(policy_folder, tmp_path):
    """(eos_token_id of either file, chat template) -> a policy's folder with these."""

    def policy(config, generation=None, template=None):
        folder = tmp_path / f"policy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(policy_folder, folder)
        settings = json.loads((folder / "config.json").read_text())
        settings["eos_token_id"] = settings["text_config"]["eos_token_id"] = config
        (folder / "config.json").write_text(json.dumps(settings))
        if generation is not None:
            text = json.dumps({"eos_token_id": generation, "temperature": 0.1})
            (folder / "generation_config.json").write_text(text)
        if template:
            (folder / "chat_template.jinja").write_text(template)
        return folder

    return policy


def opened(folder):
    config = small_run.small_config(folder)
    return run_lib.policy_run(config, sharding.make_mesh(**config.mesh))


def greedy(run, batch):
    """Tokens and mask of greedy answers."""
    sample = jax.jit(run.sampler(1, run.config.rollout.max_tokens))
    zero, one = np.float32(0), np.float32(1)
    _, rollout = sample(run.lora, run.base, batch, jax.random.key(0), zero, one)
    return np.asarray(rollout.tokens_BNT), np.asarray(rollout.mask_BNT)


@pytest.mark.slow
def test_a_list_that_begins_with_another_token_changes_no_answer(policy, run):
    """Fine-tuned policies often list the end of text before the end of a turn."""
    (end,) = run.end_ids
    other = run.tokenizer.convert_tokens_to_ids(TEXT_END)
    batch = small_run.batch_of(run)
    tokens, mask = greedy(run, batch)
    assert (tokens[mask] == end).any()
    for listed in (([other, end],), (end, [other, end]), (other,), (None, [other])):
        found = opened(policy(*listed))
        assert found.end_ids == (end, other)
        banned = np.flatnonzero(np.asarray(run.banned_V) != np.asarray(found.banned_V))
        assert banned.tolist() == [other]
        got, got_mask = greedy(found, batch)
        # The other token may be drawn now; until then the answers are the same.
        drawn = (got == other) & got_mask
        before = np.cumsum(drawn, axis=-1) == 0
        np.testing.assert_array_equal(got[before & got_mask], tokens[before & got_mask])
        assert (got_mask.sum(-1) == np.argmax(drawn, axis=-1) + 1)[drawn.any(-1)].all()
        facts = run_lib.fingerprint(found)
        assert facts["model.end_ids"] == [end, other]
    assert "model.end_ids" not in run_lib.fingerprint(run)


def test_text_of_answers_holds_no_token_that_ends_them(policy, run):
    (end,) = run.end_ids
    vocabulary = run.tokenizer.get_vocab()
    other, tag = vocabulary[TEXT_END], vocabulary["</answer>"]
    found = opened(policy([other, tag]))
    assert found.end_ids == (end, other, tag)
    words = run.tokenizer("<answer>eagle", add_special_tokens=False)["input_ids"]
    rows = [[*words, last, end, end] for last in (end, other, tag, words[-1])]
    tokens = np.array(rows)[None]
    mask = np.arange(tokens.shape[-1]) < len(words) + 1
    said = found.answers(tokens, np.broadcast_to(mask, tokens.shape))
    # A listed tag is text that ends the answer, and the verifier must read it.
    last = run.tokenizer.decode([words[-1]])
    texts = [f"<answer>eagle{rest}" for rest in ("", "", "</answer>", last)]
    assert said == [texts]
    spelled = tokenizer_lib.token_bytes(found.tokenizer, 400)
    for row, text in zip(rows, texts, strict=True):
        assert b"".join(spelled[i] for i in row[: len(words) + 1]).decode() == text


def test_a_policy_whose_template_ends_turns_with_no_token_is_refused(policy, run):
    template = run.tokenizer.chat_template.replace("<|im_end|>", "</s>")
    with pytest.raises(ValueError, match="ends an answer with '</s>', which begins with no token"):
        opened(policy(run.end_ids[0], template=template))
