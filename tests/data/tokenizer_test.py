"""A tokenizer that is trained here: text survives it, and its tokens are known as bytes."""

import json
import re
import shutil

import numpy as np
import published
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.pretrain import train_tokenizer
from speciarl_jax.data import tokenizer as tokenizer_lib

VOCABULARY = 320
TEXTS = [
    "<think>It is some animal.</think> <answer>bird of prey</answer>",
    "Which thing does this image show? Reason, then give one label.",
    "a jalape\u00f1o, a pi\u00f1ata and 12 eagles\n",
] * 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer.train(TEXTS, VOCABULARY, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tokenizer_lib.load(folder)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_vocabulary_has_the_size_asked_for(tokenizer):
    assert len(tokenizer) == VOCABULARY
    assert sorted(tokenizer.get_vocab().values()) == list(range(VOCABULARY))


def test_training_is_deterministic(tokenizer, tmp_path):
    train_tokenizer.train(TEXTS, VOCABULARY, tmp_path)
    assert tokenizer_lib.load(tmp_path).get_vocab() == tokenizer.get_vocab()


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(max_size=40), st.text(st.sampled_from("ab e\n\t<>/ 19.'\u00f1"))))
def test_text_survives_and_bytes_of_tokens_spell_it(tokenizer, text):
    ids = encode(tokenizer, text)
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if not any(token in text for token in tokenizer_lib.SPECIAL_TOKENS):
        assert decoded == text
    # A special token that the text spells out has no bytes.
    decoded = "".join(re.split("|".join(map(re.escape, tokenizer_lib.SPECIAL_TOKENS)), decoded))
    table = tokenizer_lib.token_bytes(tokenizer, VOCABULARY)
    assert b"".join(table[i] for i in ids) == decoded.encode()


def test_frequent_words_are_few_tokens(tokenizer):
    text = "<think>It is some animal.</think> <answer>bird of prey</answer>"
    assert len(encode(tokenizer, text)) < len(text) / 2


@pytest.mark.parametrize("tag", train_tokenizer.ANSWER_TAGS)
def test_answer_tags_are_single_tokens_with_bytes(tokenizer, tag):
    ids = encode(tokenizer, f"eagle{tag}eagle")
    token = tokenizer_lib.token_id(tokenizer, tag)
    assert ids.count(token) == 1
    assert tokenizer_lib.token_bytes(tokenizer, VOCABULARY)[token] == tag.encode()
    # Skipping special tokens must not skip what the verifier looks for.
    assert tag in tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("token", tokenizer_lib.SPECIAL_TOKENS)
def test_special_tokens_are_single_tokens_without_bytes(tokenizer, token):
    ids = encode(tokenizer, f"a{token}b")
    found = tokenizer_lib.token_id(tokenizer, token)
    assert ids.count(found) == 1
    assert tokenizer_lib.token_bytes(tokenizer, VOCABULARY)[found] == b""
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"


def test_every_byte_has_a_token(tokenizer):
    table = tokenizer_lib.token_bytes(tokenizer, VOCABULARY)
    assert {bytes([byte]) for byte in range(256)} <= set(table)
    assert table.count(b"") == len(tokenizer_lib.SPECIAL_TOKENS)


def test_a_larger_head_has_empty_rows_at_its_end(tokenizer):
    table = tokenizer_lib.token_bytes(tokenizer, VOCABULARY + 5)
    assert table[:VOCABULARY] == tokenizer_lib.token_bytes(tokenizer, VOCABULARY)
    assert table[VOCABULARY:] == [b""] * 5


def test_answers_may_hold_all_but_special_tokens_and_missing_rows(tokenizer):
    eos = tokenizer_lib.token_id(tokenizer, "<|im_end|>")
    banned = tokenizer_lib.banned_tokens(tokenizer, VOCABULARY + 5, (eos,))
    assert banned.shape == (VOCABULARY + 5,) and banned.dtype == bool
    special = {tokenizer_lib.token_id(tokenizer, t) for t in tokenizer_lib.SPECIAL_TOKENS} - {eos}
    assert set(np.flatnonzero(banned)) == special | set(range(VOCABULARY, VOCABULARY + 5))


def test_the_chat_template_writes_qwens_turns(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}/tokenizer.json is missing; .*model.path"):
        tokenizer_lib.load(tmp_path)


def test_a_tokenizer_without_a_chat_template_is_refused(folder, tmp_path):
    for path in folder.iterdir():
        if path.suffix == ".json":
            settings = json.loads(path.read_text())
            settings.pop("chat_template", None)
            (tmp_path / path.name).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer_lib.load(tmp_path)


@pytest.fixture
def as_published(folder, tmp_path):
    """A tokenizer with the two templates of the published folders."""
    target = tmp_path / "published"
    shutil.copytree(folder, target)
    (target / "chat_template.jinja").unlink()
    path = target / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"chat_template": published.TEXT_TEMPLATE}
    path.write_text(json.dumps(settings))
    (target / "chat_template.json").write_text(
        json.dumps({"chat_template": published.CHAT_TEMPLATE})
    )
    return target


def test_the_template_of_the_processor_comes_before_that_of_the_tokenizer(as_published):
    assert tokenizer_lib.load(as_published).chat_template == published.CHAT_TEMPLATE
    (as_published / "chat_template.jinja").write_text("mine")
    assert tokenizer_lib.load(as_published).chat_template == "mine"
    (as_published / "chat_template.jinja").unlink()
    (as_published / "chat_template.json").unlink()
    assert tokenizer_lib.load(as_published).chat_template == published.TEXT_TEMPLATE


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.json"])
def test_a_file_that_was_cut_short_is_named(as_published, name):
    path = as_published / name
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=f"{path} is no JSON"):
        tokenizer_lib.load(as_published)


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "special_tokens_map.json", "tokenizer.json"]
)
def test_a_pointer_of_git_lfs_is_called_one(as_published, name):
    (as_published / name).write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    with pytest.raises(ValueError, match=f"{name} is a pointer of Git LFS"):
        tokenizer_lib.load(as_published)


def test_json_that_is_no_tokenizer_is_named(as_published):
    (as_published / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json .*make no tokenizer"):
        tokenizer_lib.load(as_published)


def test_unknown_tokens_and_small_heads_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"no token '<\|audio\|>'"):
        tokenizer_lib.token_id(tokenizer, "<|audio|>")
    with pytest.raises(ValueError, match=f"head has {VOCABULARY - 1} rows"):
        tokenizer_lib.token_bytes(tokenizer, VOCABULARY - 1)


def test_a_vocabulary_that_is_not_byte_level_is_refused():
    class Words:
        all_special_ids = ()

        def get_added_vocab(self):
            return {}

        def get_vocab(self):
            return {"eagle": 0, "\u2581bird": 1}

    with pytest.raises(ValueError, match="byte-level"):
        tokenizer_lib.token_bytes(Words(), 2)


END, TEXT_END, ANSWER_END = "<|im_end|>", "<|endoftext|>", "</answer>"


def ends_of(folder, *listed, template=None, rows=VOCABULARY):
    """Loads the tokenizer anew, for its special tokens may change; `listed` are tokens or ids."""
    tokenizer = tokenizer_lib.load(folder)
    tokenizer.chat_template = template or tokenizer.chat_template
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary.get(token, token) for token in listed]
    found = tokenizer_lib.end_ids(tokenizer, ids, rows)
    return tokenizer.convert_ids_to_tokens(list(found)), tokenizer


def turns(end, start="<|im_start|>"):
    """A chat template whose turns end with `end`."""
    return (
        "{% for m in messages %}" + start + "{{ m.role }}\n{{ m.content }}" + end + "{% endfor %}"
    )


@pytest.mark.parametrize(
    "listed, template, ends",
    [
        ((END,), None, [END]),
        ((TEXT_END,), None, [END, TEXT_END]),
        ((TEXT_END, END), None, [END, TEXT_END]),
        ((), None, [END]),
        ((ANSWER_END, END), None, [END, ANSWER_END]),
        # The template decides what is first, whatever the files say.
        ((END,), turns(TEXT_END + "\n"), [TEXT_END, END]),
        ((END,), turns(" \n" + TEXT_END), [TEXT_END, END]),
        ((), turns(ANSWER_END), [ANSWER_END]),
        ((), turns(ANSWER_END + END), [END]),
        # Without an end of its own, the files'.
        ((TEXT_END,), turns("\n"), [TEXT_END]),
        ((TEXT_END, END), turns(""), [TEXT_END, END]),
        ((END,), "{{ raise_exception('prompts only') }}", [END]),
        ((END,), "{{ messages[0].content }}", [END]),
        # Beyond the head: never sampled.
        ((END, 999), None, [END]),
    ],
)
def test_a_completion_ends_as_the_template_and_the_files_say(folder, listed, template, ends):
    found, tokenizer = ends_of(folder, *listed, template=template)
    assert found == ends
    ids = tokenizer.convert_tokens_to_ids(found)
    banned = tokenizer_lib.banned_tokens(tokenizer, VOCABULARY, ids)
    assert not banned[ids].any()
    assert banned[tokenizer.convert_tokens_to_ids("<|image_pad|>")]


def test_a_turn_may_end_with_a_plain_token_that_is_listed(folder):
    newline = tokenizer_lib.load(folder)("\n", add_special_tokens=False)["input_ids"][0]
    found, tokenizer = ends_of(folder, newline, TEXT_END, template=turns("\n"))
    assert tokenizer.convert_tokens_to_ids(found)[0] == newline


def test_an_end_of_turn_that_is_not_special_becomes_so(folder):
    """It is no text of an answer: it must have no bytes, and be decoded as an end."""
    found, tokenizer = ends_of(folder, template=turns(ANSWER_END))
    (index,) = tokenizer.convert_tokens_to_ids(found)
    before = tokenizer_lib.token_bytes(tokenizer_lib.load(folder), VOCABULARY)
    after = tokenizer_lib.token_bytes(tokenizer, VOCABULARY)
    assert (before[index], after[index]) == (ANSWER_END.encode(), b"")
    assert before[:index] == after[:index] and before[index + 1 :] == after[index + 1 :]
    # Listed without being the template's end, it is text that ends the answer.
    _, tokenizer = ends_of(folder, ANSWER_END)
    assert tokenizer_lib.token_bytes(tokenizer, VOCABULARY) == before


@pytest.mark.parametrize(
    "listed, template, rows, said",
    [
        ((END,), turns("</s>"), VOCABULARY, "ends an answer with '</s>', which begins with no tok"),
        ((END,), turns("<|eot_id|>\n"), VOCABULARY, "ends an answer with '<|eot_id|>'"),
        ((0,), None, 300, "ends a turn with token 311, '<|im_end|>', but .* has 300 rows"),
        ((), turns("\n"), VOCABULARY, "nothing says which token ends a completion"),
        ((999,), turns("\n"), VOCABULARY, "nothing says which token ends a completion"),
    ],
)
def test_a_policy_that_cannot_end_its_turn_is_refused(folder, listed, template, rows, said):
    with pytest.raises(ValueError, match=said.replace("|", r"\|")):
        ends_of(folder, *listed, template=template, rows=rows)
