"""From a run to merged checkpoints and PEFT adapters and back: the same numbers everywhere."""

import dataclasses
import json
import os
import re
import shutil
import stat
import types

import jax
import jax.numpy as jnp
import numpy as np
import peft as hf_peft
import published
import pytest
import small_run
import torch
import torch_policy
from absl import app
from flax import nnx
from safetensors.numpy import load_file, save_file

from configs import quickstart
from speciarl_jax import train
from speciarl_jax.experiment.run import prepare
from speciarl_jax.models import load_policy
from speciarl_jax.models.checkpoints import hf_checkpoint, peft
from speciarl_jax.tools import convert
from speciarl_jax.training import policy_sources

STEPS = (2, 5)
# Generation settings that change what a server says: of sampling, length, and what is forbidden.
CHANGES = (
    *("temperature", "top_k", "max_new_tokens", "min_new_tokens", "max_length", "stop_strings"),
    *("suppress_tokens", "bad_words_ids", "encoder_no_repeat_ngram_size", "sequence_bias"),
    *("forced_eos_token_id", "guidance_scale", "an_option_of_tomorrow"),
)


def random_adapters(like, seed, size=0.2):
    """Adapters that change every layer, where and as `like` is."""
    rng = np.random.default_rng(seed)

    def some(x):
        value = rng.normal(0, size, x.shape).astype(np.float32)
        return jax.device_put(value, x.sharding)

    return jax.tree.map(some, like)


def assert_same_bits(got, want):
    got, want = small_run.arrays(got), small_run.arrays(want)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == value.dtype and got[name].tobytes() == value.tobytes(), name


@pytest.fixture(scope="module")
def adapters(run):
    """Step -> the adapters of that checkpoint."""
    return {step: random_adapters(run.lora, seed=step) for step in STEPS}


@pytest.fixture(scope="module")
def workdir(run, adapters, tmp_path_factory):
    """What a training run leaves behind, with adapters that are far from the start."""
    folder = tmp_path_factory.mktemp("run")
    small_run.leave_checkpoints(folder, run, adapters)
    return folder


@pytest.fixture(scope="module")
def batch(run):
    return small_run.batch_of(run)


@pytest.fixture(scope="module")
def logits(run, adapters, batch):
    """Of the latest checkpoint, by the trained policy itself."""
    policy = nnx.merge(run.graphdef, adapters[STEPS[-1]], run.base)
    return torch_policy.our_logits(policy, batch)


def test_a_merged_run_gives_the_same_logits_in_transformers_and_here(
    workdir, run, batch, logits, policy_folder, tmp_path
):
    convert.write_merged(tmp_path / "merged", convert.read_run(workdir))
    image = run.model_config.image_token_id
    base = torch_policy.logits(torch_policy.load(policy_folder), batch, image)
    assert np.abs(logits - base).max() > 0.1 * np.abs(base).max(), "the adapters changed nothing"
    theirs = torch_policy.load(tmp_path / "merged")
    torch_policy.assert_close(torch_policy.logits(theirs, batch, image), logits)
    config, ours = hf_checkpoint.load(
        tmp_path / "merged", dtype=jnp.float32, param_dtype=jnp.float32
    )
    assert config == run.model_config
    torch_policy.assert_close(torch_policy.our_logits(ours, batch), logits)
    # A policy of its own: it can be trained on like any other.
    assert prepare(small_run.small_config(tmp_path / "merged")).model_config == config


def test_an_exported_adapter_gives_the_same_logits_in_peft(
    workdir, run, batch, logits, policy_folder, tmp_path
):
    convert.write_peft(tmp_path / "adapter", convert.read_run(workdir))
    base = torch_policy.load(policy_folder)
    theirs = hf_peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    image = run.model_config.image_token_id
    torch_policy.assert_close(torch_policy.logits(theirs, batch, image), logits)
    assert theirs.peft_config["default"].base_model_name_or_path == str(policy_folder)
    # peft and this package agree about the merged weights, too.
    convert.write_merged(
        tmp_path / "merged", convert.read_adapter(tmp_path / "adapter"), dtype="float32"
    )
    ours = torch_policy.load(tmp_path / "merged").state_dict()
    for name, weight in theirs.merge_and_unload().state_dict().items():
        np.testing.assert_allclose(ours[name].numpy(), weight.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", [*STEPS, None])
def test_the_asked_checkpoint_is_read_bit_for_bit(workdir, adapters, step, policy_folder):
    trained = convert.read_run(workdir, step=step)
    assert_same_bits(trained.lora, adapters[step or STEPS[-1]])
    assert trained.adapter == peft.AdapterConfig(3, 6.0, str(policy_folder))
    assert trained.param_dtype == "float32"


@pytest.mark.slow
def test_a_run_goes_to_peft_and_back_to_a_run_that_trains_on(
    workdir, run, adapters, small_config, tmp_path
):
    convert.write_peft(tmp_path / "adapter", convert.read_run(workdir, step=2))
    config = small_config(train__steps=1)
    convert.write_run(tmp_path / "again", convert.read_adapter(tmp_path / "adapter"), config)
    again = convert.read_run(tmp_path / "again")
    assert_same_bits(again.lora, adapters[2])
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(
        config.to_json()
    )
    train.train(dataclasses.replace(run, config=config), tmp_path / "again")
    row = json.loads((tmp_path / "again" / "metrics.jsonl").read_text())
    # From the first step on it is not the base that answers.
    assert row["step"] == 1 and row["update/kl"] > 1e-2
    learned = small_run.arrays(convert.read_run(tmp_path / "again", step=1).lora)
    for name, before in small_run.arrays(adapters[2]).items():
        # AdamW's first update moves a number by about the learning rate.
        assert 0 < np.abs(learned[name] - before).max() < 5 * config.optimizer.learning_rate


def test_merged_weights_can_be_halved(workdir, logits, run, batch, tmp_path):
    trained = convert.read_run(workdir)
    for dtype in ("bfloat16", "float32"):
        convert.write_merged(tmp_path / dtype, trained, dtype=dtype)
        tensors = load_file(tmp_path / dtype / "model.safetensors")
        assert {str(t.dtype) for t in tensors.values()} == {dtype}
        assert json.loads((tmp_path / dtype / "config.json").read_text())["dtype"] == dtype
    theirs = torch_policy.load(tmp_path / "bfloat16")
    rounded = torch_policy.logits(theirs, batch, run.model_config.image_token_id)
    error = np.abs(rounded - logits).max() / np.abs(logits).max()
    assert 1e-4 < error < 0.2


def test_everything_else_of_the_base_comes_along(workdir, run, policy_folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(policy_folder, base)
    settings = json.loads((base / "config.json").read_text())
    settings["text_config"]["torch_dtype"] = "bfloat16"
    settings["vision_config"]["tokens_per_second"] = 2
    (base / "config.json").write_text(json.dumps(settings | {"pad_token_id": 7}))
    ends = [run.end_ids[0], run.end_ids[0] - 2]
    generation = published.GENERATION | dict.fromkeys(CHANGES, 3) | {"eos_token_id": ends}
    (base / "generation_config.json").write_text(json.dumps(generation))
    (base / "chat_template.json").write_text(json.dumps({"chat_template": published.CHAT_TEMPLATE}))
    (base / "notes.txt").write_text("mine")
    trained = convert.read_run(workdir, model=str(base))
    convert.write_merged(tmp_path / "merged", trained)
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names == {path.name for path in base.iterdir()} - {"notes.txt"}
    for name in names - {"config.json", "generation_config.json", "model.safetensors"}:
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes(), name
    got = json.loads((tmp_path / "merged" / "config.json").read_text())
    settings["text_config"]["torch_dtype"] = "float32"
    assert got == settings | {"pad_token_id": 7, "dtype": "float32"}
    kept = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert kept == {
        **{key: published.GENERATION[key] for key in ("bos_token_id", "pad_token_id")},
        **{"transformers_version": "4.49.0", "eos_token_id": ends},
    }
    # Greedy, unless a server is told otherwise, and nothing that the policy was not trained with.
    generation = torch_policy.load(tmp_path / "merged").generation_config
    assert generation.eos_token_id == ends
    assert not generation.do_sample and not generation.temperature
    assert not generation.repetition_penalty


def copy_of(base, target, **changes):
    """A base with these keys of its configuration changed; None removes one."""
    shutil.copytree(base, target)
    settings = json.loads((target / "config.json").read_text()) | changes
    settings = {key: value for key, value in settings.items() if value is not None}
    settings["text_config"] |= {"eos_token_id": settings.get("eos_token_id")}
    (target / "config.json").write_text(json.dumps(settings))
    return target


def test_settings_of_sampling_in_an_old_config_stay_behind(workdir, policy_folder, tmp_path):
    changes = dict.fromkeys(("temperature", "repetition_penalty", "max_length"), 3)
    base = copy_of(policy_folder, tmp_path / "base", use_cache=True, **changes)
    convert.write_merged(tmp_path / "merged", convert.read_run(workdir, model=str(base)))
    got = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert not changes.keys() & got.keys() and got["use_cache"] is True
    assert not (tmp_path / "merged" / "generation_config.json").exists()


def test_a_server_is_told_all_tokens_that_ended_completions(workdir, run, policy_folder, tmp_path):
    """The base's configuration names another than the chat template's."""
    (end,) = run.end_ids
    other = run.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    base = copy_of(policy_folder, tmp_path / "base", eos_token_id=other)
    convert.write_merged(tmp_path / "merged", convert.read_run(workdir, model=str(base)))
    generation = torch_policy.load(tmp_path / "merged").generation_config
    assert generation.eos_token_id == [end, other]
    assert prepare(small_run.small_config(tmp_path / "merged")).end_ids == (end, other)


def test_a_head_of_its_own_is_exported_though_the_flag_ties_it(
    workdir, run, batch, policy_folder, tmp_path
):
    base = copy_of(policy_folder, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = np.ascontiguousarray(tensors["model.embed_tokens.weight"][::-1])
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    convert.write_merged(tmp_path / "merged", convert.read_run(workdir, model=str(base)))
    settings = json.loads((tmp_path / "merged" / "config.json").read_text())
    for part in (settings, settings["text_config"]):
        assert part["tie_word_embeddings"] is False
    _, ours = hf_checkpoint.load(tmp_path / "merged", dtype=jnp.float32, param_dtype=jnp.float32)
    np.testing.assert_array_equal(ours.decoder.head[...], tensors["lm_head.weight"].T)
    theirs = torch_policy.load(tmp_path / "merged")
    image = run.model_config.image_token_id
    want = torch_policy.logits(theirs, batch, image)
    torch_policy.assert_close(torch_policy.our_logits(ours, batch), want)


def other_base(source, target):
    """A base of the same sizes with other weights."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    save_file({name: 1.01 * t for name, t in tensors.items()}, target / "model.safetensors")
    return target


def test_a_run_on_another_base_of_the_same_sizes_is_refused(
    workdir, adapters, small_config, policy_folder, tmp_path, caplog
):
    convert.write_peft(tmp_path / "adapter", convert.read_run(workdir, step=2))
    config = small_config(train__steps=1)
    trained = convert.read_adapter(tmp_path / "adapter")
    convert.write_run(tmp_path / "run", trained, config)  # keeps the fingerprint, as `train` does
    assert "other weights" not in caplog.text
    other = other_base(policy_folder, tmp_path / "other")
    with pytest.raises(ValueError, match="run were trained on other weights than those of .*other"):
        convert.read_run(tmp_path / "run", model=str(other))
    moved = shutil.copytree(policy_folder, tmp_path / "moved")
    assert_same_bits(convert.read_run(tmp_path / "run", model=str(moved)).lora, adapters[2])
    # Its own base, replaced in its place: training does not go on, nor does evaluation.
    config.model.path = str(moved)
    convert.write_run(tmp_path / "again", trained, config)
    shutil.copyfile(other / "model.safetensors", moved / "model.safetensors")
    run = prepare(config)
    with pytest.raises(ValueError, match="model.base_fingerprint: '.*' -> '"):
        train.train(run, tmp_path / "again")
    (policy,) = policy_sources.named([str(tmp_path / "again")], tmp_path)
    with pytest.raises(ValueError, match="again were trained on other weights"):
        policy.adapters(run)
    config.model.path = str(other)
    with pytest.raises(ValueError, match="whose weights are not those of config.model.path"):
        convert.write_run(tmp_path / "third", trained, config)
    # An adapter is put on another base, and that is said.
    with caplog.at_level("WARNING"):
        convert.read_adapter(tmp_path / "adapter", model=str(other))
    assert "whose weights are not those of" in caplog.text


def test_a_run_that_keeps_no_fingerprint_of_its_base_goes_on(workdir, policy_folder, tmp_path):
    other = other_base(policy_folder, tmp_path / "other")
    assert convert.read_run(workdir, model=str(other)).base == other


def test_exports_are_for_whom_the_umask_says(workdir, tmp_path):
    before = os.umask(0o022)
    try:
        convert.write_merged(tmp_path / "merged", convert.read_run(workdir))
        convert.write_peft(tmp_path / "adapter", convert.read_run(workdir))
    finally:
        os.umask(before)
    for folder in ("merged", "adapter"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o755
        files = {path.name: path for path in (tmp_path / folder).iterdir()}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o644}, files


@pytest.mark.parametrize("write", [convert.write_merged, convert.write_peft])
def test_nothing_is_overwritten(workdir, tmp_path, write):
    trained = convert.read_run(workdir)
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", trained)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="out exists already and is not empty"):
        write(tmp_path / "out", trained)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file exists already"):
        write(tmp_path / "file", trained)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def flip_last_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("to", ["merged", "peft"])
def test_what_reads_back_differently_never_gets_its_name(workdir, tmp_path, monkeypatch, to):
    if to == "merged":
        module, save, file = hf_checkpoint, hf_checkpoint.save, "model.safetensors"
    else:
        module, save, file = peft, peft.save_adapter, peft.WEIGHTS

    def damaged(folder, *args, **options):
        save(folder, *args, **options)
        flip_last_bit(folder / file)

    monkeypatch.setattr(module, save.__name__, damaged)
    write = {"merged": convert.write_merged, "peft": convert.write_peft}[to]
    with pytest.raises(RuntimeError, match=r"\(1 in all\) read back differently"):
        write(tmp_path / "out", convert.read_run(workdir))
    assert not list(tmp_path.iterdir())


def test_adapters_that_do_not_fit_the_new_run_are_refused(
    workdir, small_config, policy_folder, tmp_path
):
    trained, out = convert.read_run(workdir), tmp_path / "out"
    for key, value, message in (
        ("model__lora_rank", 4, "lora_rank 3, the configuration says 4; give --config.model"),
        ("model__lora_alpha", 9.0, "lora_alpha 6.0, the configuration says 9.0"),
        ("model__path", "emoji_tiny", "whose dimensions differ .*model.path='emoji_tiny'"),
    ):
        with pytest.raises(ValueError, match=message):
            convert.write_run(out, trained, small_config(**{key: value}))
    assert not list(tmp_path.iterdir())


def test_a_base_that_is_not_there_or_another_is_refused(workdir, tmp_path):
    trained = convert.read_run(workdir)
    convert.write_peft(tmp_path / "hub", trained, base_name="Qwen/Qwen2.5-VL-7B-Instruct")
    with pytest.raises(ValueError, match="'Qwen/Qwen2.5-VL-7B-Instruct' .* give --model"):
        convert.read_adapter(tmp_path / "hub")
    assert_same_bits(
        convert.read_adapter(tmp_path / "hub", model=str(trained.base)).lora, trained.lora
    )
    with pytest.raises(
        ValueError, match="unexpected|lacks|the base needs|names modules without tensors"
    ):
        convert.read_adapter(tmp_path / "hub", model="emoji_tiny")


def test_a_run_that_is_not_there_is_refused(workdir, tmp_path):
    with pytest.raises(ValueError, match="config.json is missing; give the --workdir"):
        convert.read_run(tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint of step 3, only \[2, 5\]"):
        convert.read_run(workdir, step=3)


def test_a_run_whose_base_has_moved_is_refused_with_the_flag_that_helps(run, tmp_path):
    config = json.loads(run.config.to_json())
    config["model"]["path"] = "/gone"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the base '/gone' of .* give --model"):
        convert.read_run(tmp_path)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"workdir": "x", "out": "x"}, "give --to=merged|peft|run and --out"),
        ({"workdir": "x", "to": "peft"}, "give --to=merged|peft|run and --out"),
        ({"to": "peft", "out": "x"}, "either --workdir of a training run or --adapter"),
        ({"workdir": "x", "adapter": "x", "to": "peft", "out": "x"}, "either --workdir"),
        ({"adapter": "x", "step": 2, "to": "merged", "out": "x"}, "--step goes with --workdir"),
        ({"adapter": "x", "best": True, "to": "merged", "out": "x"}, "--best goes with --workdir"),
        ({"workdir": "x", "dtype": "float32", "to": "peft", "out": "x"}, "with --to=merged"),
        (
            {"workdir": "x", "base_name": "x", "to": "merged", "out": "x"},
            "with --to=peft or --push",
        ),
        ({"adapter": "x", "push": "a/b", "to": "run", "out": "x"}, "--push goes with --to=merged"),
        ({"adapter": "x", "dry_run": True, "to": "peft", "out": "x"}, "go with --push"),
        ({"workdir": "x", "config": {}, "to": "peft", "out": "x"}, "--config goes with --to=run"),
        ({"adapter": "x", "to": "run", "out": "x"}, "--to=run needs --config=FILE"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(given, message):
    names = ("workdir", "step", "best", "adapter", "model", "to", "out", "dtype", "base_name")
    names += ("config", "push", "public", "dry_run")
    with pytest.raises(app.UsageError, match=re.escape(message)):
        convert.check_usage(types.SimpleNamespace(**dict.fromkeys(names) | given))


def test_the_command_line(start, workdir, adapters, policy_folder, tmp_path):
    target = tmp_path / "adapter"
    process = start(
        "-m",
        "speciarl_jax.tools.convert",
        f"--workdir={workdir}",
        "--step=2",
        "--to=peft",
        f"--out={target}",
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert f"{target}: peft, LoRA r=3 on {policy_folder}" in output
    assert_same_bits(convert.read_adapter(target).lora, adapters[2])


def rollout_tokens(run, lora, batch):
    """Greedy answers [B, T] by this package, padded with the token that ends them."""
    config = run.config.rollout
    sample = jax.jit(run.sampler(1, config.max_tokens))
    zero, one = np.float32(0), np.float32(1)
    _, rollout = sample(lora, run.base, batch, jax.random.key(0), zero, one)
    return np.asarray(rollout.tokens_BNT)[:, 0]


def generated_tokens(run, model, batch):
    """Greedy answers [B, T] by the `generate` of transformers, padded alike."""
    length, end = run.config.rollout.max_tokens, run.end_ids[0]
    prompt = torch_policy.inputs(batch, run.model_config.image_token_id)
    with torch.no_grad():
        tokens = model.generate(
            **prompt,
            do_sample=False,
            max_new_tokens=length,
            eos_token_id=end,
            pad_token_id=end,
            suppress_tokens=np.flatnonzero(run.banned_V).tolist(),
        )
    answers = tokens[:, prompt["input_ids"].shape[1] :].numpy()
    return np.pad(answers, ((0, 0), (0, length - answers.shape[1])), constant_values=end)


@pytest.mark.slow
def test_the_shipped_policy_answers_alike_here_in_transformers_and_in_peft(tmp_path):
    run = prepare(quickstart.get_config())
    source = run.eval_source
    rows = [source[i * len(source) // 50] for i in range(50)]
    batch = run.build(rows, 50)
    lora = random_adapters(run.lora, seed=0, size=0.12)
    base = load_policy.model_folder("emoji_tiny")
    adapter = peft.AdapterConfig(run.config.model.lora_rank, run.config.model.lora_alpha, "")
    trained = convert.Trained(base, run.model_config, adapter, lora, "float32")
    convert.write_merged(tmp_path / "merged", trained)
    convert.write_peft(tmp_path / "adapter", trained)
    want = rollout_tokens(run, lora, batch)
    merged = torch_policy.load(tmp_path / "merged")
    np.testing.assert_array_equal(generated_tokens(run, merged, batch), want)
    theirs = hf_peft.PeftModel.from_pretrained(torch_policy.load(base), tmp_path / "adapter")
    np.testing.assert_array_equal(generated_tokens(run, theirs, batch), want)
    # The adapters have a say, and so has the image.
    assert (rollout_tokens(run, run.lora, batch) != want).any(axis=1).sum() >= 25
    assert len(np.unique(want, axis=0)) >= 5
