"""A tiny Qwen3-VL names image files, and its own text encoder judges it; both beside torch."""

import json
import types

import jax
import numpy as np
import pytest
import small_run
import text_judge
import torch
import torch_policy
from PIL import Image

from speciarl_jax import predict, train
from speciarl_jax.data import emoji
from speciarl_jax.experiment.run import prepare
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.judge import verdict_logprobs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_programs")]
# Few tokens, so that torch stays quick.
PROMPT = 'Sort the prediction.\n{pair}\nReply with {"verdict": "CLASS"}.'
# No name of the label tree, so that a judge is asked.
UNKNOWN = ("red thing", "old boat house", "zzz")


@pytest.fixture
def config(qwen3_folder, tmp_path):
    """section__key=value, ... -> a run that its own text encoder judges."""
    (tmp_path / "prompt.txt").write_text(PROMPT)
    defaults = {
        "verifier__name": "flax_judge",
        "verifier__flax_judge__prompt": str(tmp_path / "prompt.txt"),
        "train__batch_size": 4,
        "train__steps": 2,
    }
    return lambda **changes: small_run.small_config(qwen3_folder, **defaults | changes)


def written(run, words):
    """Tokens and mask [1, N, T] of answers with these words, and `label_index_B` of one image."""
    said = [f"<think>so</think><answer>{word}</answer>" for word in words]
    ids = [run.tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]
    tokens = np.zeros((1, len(ids), max(map(len, ids))), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for n, one in enumerate(ids):
        tokens[0, n, : len(one)], mask[0, n, : len(one)] = one, True
    return tokens, mask, np.array([3], np.int32)


def torch_probabilities(scorer, tokenizer, folder, label, word):
    """Probability of each verdict by the text encoder in torch, from the whole prompt."""
    model = torch_policy.load(folder)
    truth = scorer.truth_FC[label, : scorer.truth_length_F[label]]
    own = verdict_logprobs.encode(tokenizer, word)
    context = [*map(int, [*scorer.prefix_P, *truth, *own, *scorer.tail_C])]
    verdicts = zip(scorer.verdict_KS, scorer.verdict_length_K, strict=True)
    logp = [text_judge.torch_logp(model, context, [int(t) for t in v[:n]]) for v, n in verdicts]
    return np.exp(logp - np.logaddexp.reduce(logp))


def test_the_text_of_the_policy_judges_as_it_does_in_torch(config, qwen3_folder):
    run = prepare(config())
    judge = run.verifier
    category, valid, probability = jax.jit(judge.judge)(*written(run, UNKNOWN))
    assert np.asarray(valid).all()
    for n, word in enumerate(UNKNOWN):
        want = torch_probabilities(judge.scorer, run.tokenizer, qwen3_folder, 3, word)
        np.testing.assert_allclose(probability[0, n], want, atol=1e-4)
        assert category[0, n] == np.argmax(want)
    assert np.ptp(np.asarray(probability)[0], axis=0).max() > 1e-3, "the words changed nothing"


@pytest.mark.parametrize("name", ["flax_judge", "cascade"])
def test_a_run_that_judges_itself_trains(config, name, tmp_path):
    run = prepare(config(verifier__name=name, verifier__cascade__judge="flax_judge"))
    alone = prepare(config())
    tokens, mask, label = written(run, (*UNKNOWN, alone.labels.names[3]))
    category, valid = jax.jit(run.verifier.verify)(tokens, mask, label)
    by_judge, _ = jax.jit(alone.verifier.verify)(tokens, mask, label)
    assert np.asarray(valid).all()
    np.testing.assert_array_equal(category[0, :3], by_judge[0, :3])
    if name == "cascade":  # the tree knows the label
        assert category[0, 3] == Category.SPECIFIC
    train.train(run, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["verify/unjudged"] == 0 and row["update/skipped_in_a_row"] == 0
        assert all(np.isfinite(value) for value in row.values())


@pytest.fixture
def photos(tmp_path):
    """Files of several sizes and kinds, smaller and larger than the processor's limits."""
    folder = tmp_path / "photos"
    folder.mkdir()
    source = emoji.Source(split="held_out", difficulty="easy", image_size=64, seed=1)
    image = Image.fromarray(source[5]["image"])
    image.save(folder / "a.png")
    image.resize((90, 60)).save(folder / "b.jpg")
    image.convert("L").resize((30, 40)).save(folder / "c.png")
    image.convert("RGBA").resize((5, 3)).save(folder / "d.png")
    return folder


def test_greedy_answers_about_files_are_those_of_torch(qwen3_folder, photos, capsys):
    config = small_run.small_config(qwen3_folder, rollout__max_tokens=12)
    config.evaluation.best_of_temperature = 0.0
    given = types.SimpleNamespace(
        **{"workdir": "", "model": str(qwen3_folder), "base": None, "config": config, "step": None},
        **{"prompt": None, "max_pixels": None, "max_tokens": None, "samples": 2, "batch_size": 4},
        **{"seed": 0, "tree": str(emoji.TAXONOMY_PATH), "json": True, "confidence": 0.5},
    )
    paths, wrong = predict.find_images([str(photos)])
    run, lora, _ = predict.open_policy(given)
    predictor = predict.Predictor(run, lora, samples=1, batch_size=4)
    rows = [row for _, row in predict.read_images(paths, wrong)]
    batch = run.builder(rows, 4)
    counts = (np.asarray(batch.layout.token_index_BM) >= 0).sum(axis=1)
    assert len(set(counts.tolist())) > 1 and not wrong
    grids = [[tuple(map(int, grid[0]))] for grid in batch.layout.grid_BS2]
    with torch.no_grad():
        found = torch_policy.load(qwen3_folder).generate(
            **torch_policy.inputs(batch, run.model_config.image_token_id, grids),
            max_new_tokens=12,
            do_sample=False,
            suppress_tokens=np.flatnonzero(run.banned_V).tolist(),
            eos_token_id=list(run.end_ids),
            pad_token_id=run.end_ids[0],
        )
    want = found[:, batch.tokens_BP.shape[1] :].numpy()
    want = run.tokenizer.batch_decode([row[~np.isin(row, run.end_ids)] for row in want])
    assert [said for (said,) in predictor(rows)] == want and len(set(want)) > 1
    predict.name_all(given, paths, wrong)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == paths
    for line in lines:
        assert sum(line["answers"].values()) + line["declined"] + line["unread"] == 2
