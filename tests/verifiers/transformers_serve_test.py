"""A training run judged by `transformers serve`, a server that nobody here wrote."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time

import httpx2
import pytest
import small_run
from judged_run import judged_config

from speciarl_jax import train
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.experiment.run import prepare
from speciarl_jax.models import load_policy
from speciarl_jax.verifiers.judge import judge_prompt

PROMPT = "Compare the two.\n{pair}"
WORDS = "vehicle car bus train boat ship plane rocket bicycle truck thing wheel".split()


def make_judge(folder):
    """A language model that has learned to reply with one of the six, by the prediction's words."""
    import torch
    import transformers

    source = load_policy.model_folder("emoji_tiny")
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, folder)
    tokenizer = tokenizer_lib.load(folder)
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    (folder / "prompt.txt").write_text(PROMPT)
    prompt, rng = judge_prompt.load(str(folder / "prompt.txt")), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        rows, targets = [], []
        for _ in range(16):
            said = rng.choices(WORDS, k=rng.randint(1, 2))
            label = list(judge_prompt.LABELS)[len("".join(said)) % 6]
            asked = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt.fill(rng.choice(WORDS), " ".join(said))}],
                add_generation_prompt=True,
                tokenize=False,
            )
            before = tokenizer(asked, add_special_tokens=False)["input_ids"]
            after = tokenizer(judge_prompt.reply(label), add_special_tokens=False)["input_ids"]
            after.append(tokenizer.eos_token_id)
            rows.append(before + after)
            targets.append([-100] * len(before) + after)
        size = max(map(len, rows))
        tokens = torch.tensor([r + [tokenizer.eos_token_id] * (size - len(r)) for r in rows])
        wanted = torch.tensor([t + [-100] * (size - len(t)) for t in targets])
        loss = model(input_ids=tokens, labels=wanted).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """(folder of the model, URL of a server of it, its process)."""
    folder = tmp_path_factory.mktemp("judge") / "model"
    make_judge(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdout=log,
            stderr=log,
        )
    url, until = f"http://127.0.0.1:{port}/v1", time.monotonic() + 300
    message = {"role": "user", "content": "hello"}
    body = {"model": str(folder), "messages": [message], "max_tokens": 1}
    while True:
        assert server.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < until, "the server does not answer"
        try:
            reply = httpx2.post(
                f"{url}/chat/completions", json=body | {"max_tokens": 1}, timeout=60
            )
            if reply.status_code == 200:
                break
        except httpx2.HTTPError:
            pass
        time.sleep(1)
    yield folder, url, server
    server.kill()


@pytest.mark.slow
@pytest.mark.nightly
def test_the_training_command_works_end_to_end(judge, start, tmp_path):
    folder, url, _ = judge
    config, workdir = tmp_path / "judged.py", tmp_path / "run"
    config.write_text(
        "from judged_run import judged_config\n\n\ndef get_config():\n"
        f"    return judged_config('http://127.0.0.1:1/v1', {str(tmp_path / 'cache.sqlite')!r})\n"
    )
    process = start(
        *("-m", "speciarl_jax.train", f"--config={config}", f"--workdir={workdir}"),
        f"--config.verifier.http_judge.server.url={url}",
        f"--config.verifier.http_judge.model={folder}",
        f"--config.verifier.http_judge.prompt={folder / 'prompt.txt'}",
        "--config.verifier.http_judge.server.concurrency=2",
        "--config.verifier.http_judge.server.attempts=3",
        quick=True,
    )
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0, printed
    assert "| trained" in printed and (workdir / "report.md").is_file()
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["verify/unjudged"] == 0 for row in rows)
    assert sum(row["verify/asked"] for row in rows) > 0
    assert all(row["update/grad_norm"] > 0 for row in rows)
    summary = json.loads((workdir / "summary.json").read_text())
    lines = (workdir / "predictions.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    for name in ("base", "trained"):
        said = [line["categories"][0] for line in answers if line["policy"] == name]
        assert len(said) == sum(summary[name]["histogram"].values()) and "unverified" not in said
        # Categories that no rule states come from the judge alone.
        assert {"generic", "less_specific", "specific", "more_specific"} & set(said)


@pytest.mark.slow
@pytest.mark.nightly
def test_the_audit_asks_the_server(judge, start, tmp_path):
    folder, url, _ = judge
    rows = "truth,prediction,category\n" + "".join(
        f"{truth},{said},wrong\n" for truth in WORDS[:2] for said in [*WORDS, "car or bus", "none"]
    )
    (tmp_path / "pairs.csv").write_text(rows)
    process = start(
        *("-m", "speciarl_jax.tools.audit_verifier", "--config=configs/quickstart.py"),
        *(f"--pairs={tmp_path / 'pairs.csv'}", f"--out={tmp_path / 'audit'}"),
        *("--verifiers=http_judge", f"--config.verifier.http_judge.server.url={url}"),
        f"--config.verifier.http_judge.model={folder}",
        f"--config.verifier.http_judge.prompt={folder / 'prompt.txt'}",
        "--config.verifier.http_judge.server.concurrency=2",
        "--config.verifier.http_judge.cache=",
    )
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "Cohen's kappa" in printed, printed
    figures = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert figures["verifiers"]["http_judge"]["unverified"] == 0
    matrix = figures["verifiers"]["http_judge"]["matrix"]
    # The judge has learned to tell most of the six apart; two of each truth are not for it.
    assert sum(map(sum, matrix)) == 2 * (len(WORDS) + 2)
    assert sum(any(row[i] for row in matrix) for i in range(len(matrix))) >= 4


@pytest.mark.slow
@pytest.mark.nightly
def test_a_policy_learns_from_a_judge_behind_transformers_serve(judge, compilation_cache, tmp_path):
    folder, url, server = judge

    def trained(name):
        (tmp_path / name).mkdir()
        config = judged_config(
            url,
            tmp_path / "verdicts.sqlite",
            verifier__http_judge__model=str(folder),
            verifier__http_judge__prompt=str(folder / "prompt.txt"),
            verifier__http_judge__server__concurrency=2,
            verifier__http_judge__server__attempts=3,
        )
        run = prepare(config)
        lora, _ = train.train(run, tmp_path / name)
        run.verifier.close()
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines], small_run.arrays(lora)

    rows, lora = trained("first")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["verify/asked"] > 0 and rows[0]["verify/latency_p50"] > 0
    assert all(row["verify/unjudged"] == 0 for row in rows)
    assert any(row["update/grad_norm"] > 0 for row in rows)
    # What was judged once is known for good.
    server.kill()
    again, same = trained("second")
    assert all(row["verify/asked"] == 0 and row["verify/unjudged"] == 0 for row in again)
    for name, value in lora.items():
        assert (same[name] == value).all()
