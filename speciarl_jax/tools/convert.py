"""Exports a trained policy to Hugging Face layouts, or makes a run from PEFT adapters.

    python -m speciarl_jax.tools.convert --workdir=runs/quickstart --to=merged --out=exports/merged
    python -m speciarl_jax.tools.convert --workdir=runs/quickstart --to=peft --out=exports/adapter
    python -m speciarl_jax.tools.convert --adapter=exports/adapter --to=run --out=runs/warm \\
        --config=configs/quickstart.py

The input is a run of `speciarl_jax.train` (`--workdir`; its trained policy, `--step` or `--best`),
or a folder of Hugging Face PEFT (`--adapter`). The output, `--to`, is

  merged  a Hugging Face checkpoint folder: the weights with the adapters added, the base's
          tokenizer, processor and chat template, and of its generation settings the special
          tokens alone: none that changes how text is sampled;
  peft    the adapters alone, in PEFT's layout;
  run     a workdir with the adapters as checkpoint 0: `train` continues from it with a fresh
          optimizer, and `evaluate` scores it.

The output is read back and compared bit for bit before it gets its name. With `--push=OWNER/NAME`
it goes to the Hugging Face hub as well, with a model card; `--dry_run` only says what would.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags
from etils import epath
from flax import nnx
from ml_collections import config_flags
from transformers import GenerationConfig

from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.experiment.run import fingerprint, prepare
from speciarl_jax.models import load_policy, safetensors_io, stored_weights
from speciarl_jax.models import lora as lora_lib
from speciarl_jax.models.checkpoints import hf_checkpoint, peft
from speciarl_jax.models.policy_config import PolicyConfig, one_or_all
from speciarl_jax.models.vision_language import VisionLanguageModel
from speciarl_jax.runtime import exit_codes, sharding
from speciarl_jax.runtime.checkpoint import Checkpoints, quieten_orbax
from speciarl_jax.runtime.fingerprint import BASE_WEIGHTS
from speciarl_jax.runtime.new_folder import new_folder
from speciarl_jax.tools import hub_push, model_card
from speciarl_jax.training import policy_sources, train_data
from speciarl_jax.training import state as state_lib

# Files of the base that are copied.
_COMPANIONS = (
    *("tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template*", "*processor_config.json", "LICENSE*", "NOTICE*"),
)
# Generation settings that are kept. Training sampled without all others, so a server must not use
# them. The tokens that end a completion are written anew.
_GENERATION_KEPT = ("bos_token_id", "pad_token_id", "transformers_version")
# Old checkpoints have generation settings in config.json, among those of the model. These of them
# say nothing about what is sampled.
_MODEL_TOO = {*_GENERATION_KEPT, "eos_token_id", "use_cache", "decoder_start_token_id"}


@dataclasses.dataclass(frozen=True)
class Trained:
    """Holds adapters and describes the base that they belong to."""

    base: pathlib.Path
    model_config: PolicyConfig
    adapter: peft.AdapterConfig
    lora: nnx.State  # float32 adapters, as `nnx.state(policy, nnx.LoRAParam)`
    param_dtype: str  # dtype of the frozen weights in training; "bfloat16" if unknown


def read_run(
    workdir: pathlib.Path, *, step: int | str | None = None, model: str | None = None
) -> Trained:
    """Reads the adapters of a training run; needs neither its data nor its devices.

    Args:
      step: of the checkpoint; `BEST` or None as for `policy_sources.trained`.
      model: folder of the base; None for the one in the run's configuration.

    Raises:
      ValueError: there is no run or no such checkpoint, or the base has other dimensions.
    """
    config = policy_sources.read_config(workdir)
    base = _base_folder(model or config.model.path, workdir)
    model_config = hf_checkpoint.read_config(base)
    targets = lora_lib.check_targets(tuple(config.model.lora_targets))
    adapter = peft.AdapterConfig(
        config.model.lora_rank, config.model.lora_alpha, str(base.resolve()), targets=targets
    )
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.local_devices()[:1])
    fresh = peft.abstract_lora(model_config, adapter.rank, targets)
    lora = policy_sources.trained(mesh, fresh, epath.Path(workdir), step, base)
    adapter = dataclasses.replace(adapter, base_weights=stored_weights.fingerprint(base))
    return Trained(base, model_config, adapter, lora, config.model.param_dtype)


def read_adapter(folder: pathlib.Path, *, model: str | None = None) -> Trained:
    """Reads the adapters of a PEFT folder.

    Args:
      folder: as `peft.load_adapter` reads it.
      model: folder of the base; None for the one that the adapter names.

    Raises:
      ValueError: `peft.load_adapter` refuses the folder, or the base is not on this disk.
    """
    base = _base_folder(model or peft.read_adapter_config(folder).base, folder)
    model_config = hf_checkpoint.read_config(base)
    adapter, lora = peft.load_adapter(folder, model_config)
    peft.warn_of_other_base(adapter, folder, base)
    adapter = dataclasses.replace(adapter, base_weights=stored_weights.fingerprint(base))
    return Trained(base, model_config, adapter, lora, "bfloat16")


def _base_folder(named: str, source: pathlib.Path) -> pathlib.Path:
    """Finds the folder of the base that a run or an adapter names."""
    found = load_policy.base_folder(named)
    if found is None:
        raise ValueError(
            f"the base {named!r} of {source} is no folder on this disk; give --model=FOLDER, a "
            "Hugging Face checkpoint"
        )
    return load_policy.model_folder(str(found))


def write_peft(out: pathlib.Path, trained: Trained, *, base_name: str | None = None) -> None:
    """Writes the adapters for `peft.PeftModel.from_pretrained`.

    Args:
      base_name: name of the base in the adapter's configuration, for instance its name on the
        hub; None for the path of its folder.

    Raises:
      ValueError: `out` is not empty.
      RuntimeError: the written files read back differently.
    """
    adapter = dataclasses.replace(trained.adapter, base=base_name or str(trained.base.resolve()))
    with new_folder(out) as folder:
        peft.save_adapter(folder, trained.model_config, adapter, trained.lora)
        found, lora = peft.load_adapter(folder, trained.model_config)
        if found != adapter:
            raise RuntimeError(f"{adapter} was written to {out} and reads back as {found}")
        _check_adapters(lora, trained.lora)


def write_merged(out: pathlib.Path, trained: Trained, *, dtype: str | None = None) -> None:
    """Writes a whole checkpoint with the adapters added to the weights.

    Args:
      dtype: "float32" (exact) or "bfloat16" (half the size; the sums are rounded); None for the
        dtype of training.

    Raises:
      ValueError: `out` is not empty, or the base cannot be read.
      RuntimeError: the written files read back differently.
    """
    dtype = dtype or trained.param_dtype
    with new_folder(out) as folder:
        config, policy = hf_checkpoint.load(
            trained.base,
            param_dtype=jnp.dtype(dtype),
            lora_rank=trained.adapter.rank,
            lora_alpha=trained.adapter.alpha,
            lora_targets=trained.adapter.targets,
        )
        nnx.update(policy, trained.lora)
        hf_checkpoint.save(folder, config, policy)
        settings = _exported(safetensors_io.read_json(trained.base / "config.json"), config, dtype)
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        for pattern in _COMPANIONS:
            for path in trained.base.glob(pattern):
                shutil.copyfile(path, folder / path.name)
        ends = _write_generation(folder, trained.base, config)
        _check_merged(folder, dataclasses.replace(config, eos_token_id=ends), policy)


def _check_merged(folder: pathlib.Path, config: PolicyConfig, policy: VisionLanguageModel) -> None:
    """Reads a merged checkpoint back, one layer at a time, and compares it with base + adapters."""
    weights = {path: v[...] for path, v in nnx.to_flat_state(nnx.state(policy))}
    different = []

    def merged(path, layers):
        kernels, pair = weights[path][layers], lora_lib.pair_of(weights, path)
        if pair is None:
            return kernels
        pair = tuple(half[layers] for half in pair)
        if kernels.ndim == 3:
            return lora_lib.merge(kernels, pair, policy.lora_scale)
        return lora_lib.merge(kernels[None], pair, policy.lora_scale)[0]

    def compare(path, stored, axes):
        stacked = axes[0] == "layers"
        for i in range(len(weights[path]) if stacked else 1):
            layers = slice(i, i + 1) if stacked else slice(None)
            found = stored.read((layers, *[slice(None)] * (weights[path].ndim - 1)))
            stored.done(found.nbytes)
            if not _same_bits(found, merged(path, layers)):
                different.append(path)
                break
        return weights[path]

    dtype = policy.decoder.embedding.dtype
    found, _ = hf_checkpoint.load(folder, param_dtype=dtype, put=compare)
    if dataclasses.replace(found, eos_token_id=config.eos_token_id) != config:
        raise RuntimeError(f"{config} was written and reads back as {found}")
    if set(found.eos_token_id) != set(config.eos_token_id):
        raise RuntimeError(
            f"completions end with tokens {config.eos_token_id}, and with {found.eos_token_id} in "
            "what was written"
        )
    _refuse_differences(different)


def _write_generation(
    folder: pathlib.Path, base: pathlib.Path, config: PolicyConfig
) -> tuple[int, ...]:
    """Writes the `generation_config.json` of a merged checkpoint; returns what ends completions.

    These are the tokens that ended them in training: those of the base's files, and the chat
    template's own. A base without the file gets one where its `config.json` does not name them all.
    """
    path, ends = base / safetensors_io.GENERATION, config.eos_token_id
    if (base / "tokenizer.json").is_file():
        ends = tokenizer_lib.end_ids(tokenizer_lib.load(base), ends, config.text.vocab_size)
    if path.exists() or set(ends) != set(config.eos_token_id):
        settings = safetensors_io.read_json(path) if path.exists() else {}
        kept = {key: settings[key] for key in _GENERATION_KEPT if key in settings}
        kept["eos_token_id"] = one_or_all(ends)
        (folder / safetensors_io.GENERATION).write_text(json.dumps(kept, indent=2) + "\n")
    return tuple(dict.fromkeys(ends + config.eos_token_id))


def _exported(settings: dict[str, Any], config: PolicyConfig, dtype: str) -> dict[str, Any]:
    """Changes the base's parsed `config.json` to that of a merged checkpoint.

    It says the dtype of the stored weights and whether they hold a head, and nothing about how text
    is sampled.
    """
    sampling = set(GenerationConfig().to_dict()) - _MODEL_TOO
    for part in (settings, settings.get("text_config") or {}, settings.get("vision_config") or {}):
        part.update({key: dtype for key in ("dtype", "torch_dtype") if key in part})
        if not config.text.tie_word_embeddings and part.get("tie_word_embeddings"):
            part["tie_word_embeddings"] = False
    for part in (settings, settings.get("text_config") or {}):
        for key in sampling & part.keys():
            del part[key]
    if "torch_dtype" not in settings:
        settings["dtype"] = dtype
    return settings


def write_run(out: pathlib.Path, trained: Trained, config: ml_collections.ConfigDict) -> None:
    """Writes a workdir whose checkpoint 0 holds the adapters and a fresh optimizer.

    Args:
      config: of the run that will continue from it; `train` compares it with its own.

    Raises:
      ValueError: `out` is not empty, or the adapters do not fit the policy of `config`.
      RuntimeError: the written checkpoint reads back differently.
    """
    for key in ("rank", "alpha", "targets"):
        here, there = getattr(trained.adapter, key), config.model[f"lora_{key}"]
        if here != (lora_lib.check_targets(there) if key == "targets" else there):
            raise ValueError(
                f"the adapters have lora_{key} {here}, the configuration says {there}; give "
                f"--config.model.lora_{key}={here}"
            )
    with new_folder(out) as workdir:
        run = prepare(config)
        if run.model_config != trained.model_config:
            raise ValueError(
                f"the adapters were made for {trained.base}, whose dimensions differ from those of "
                f"config.model.path={config.model.path!r}; choose the same base"
            )
        facts = fingerprint(run)
        if trained.adapter.base_weights not in ("", facts[BASE_WEIGHTS]):
            raise ValueError(
                f"the adapters were made for {trained.base}, whose weights are not those of "
                f"config.model.path={config.model.path!r}; choose the same base"
            )
        lora = policy_sources.put_like(peft.trainable(trained.lora, run.lora), run.lora)
        _, state, _ = state_lib.start(dataclasses.replace(run, lora=lora))
        position = {"stream": train_data.training_batches(run).get_state(), "seconds": 0.0}
        (workdir / "config.json").write_text(config.to_json(indent=2) + "\n")
        with Checkpoints(workdir / "checkpoints", save_every=1, keep=1) as checkpoints:
            checkpoints.save(0, state, position, facts, force=True)
            checkpoints.wait()
            found, _ = checkpoints.restore(state, facts)
        _check_adapters(found.lora, lora)


def _check_adapters(found: nnx.State, wanted: nnx.State) -> None:
    """Compares all arrays of two trees bit for bit."""
    found, wanted = (
        {path: v[...] for path, v in nnx.to_flat_state(state)} for state in (found, wanted)
    )
    paths = found.keys() | wanted.keys()
    _refuse_differences([p for p in paths if not _same_bits(found.get(p), wanted.get(p))])


def _same_bits(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _refuse_differences(paths: Sequence[tuple[str, ...]]) -> None:
    if paths:
        names = sorted(".".join(map(str, path)) for path in paths)
        raise RuntimeError(
            f"{names[:3]} ({len(names)} in all) read back differently from what was written; check "
            "the disk"
        )


def check_usage(given: Any) -> None:
    """Refuses flags that do not go together (app.UsageError)."""
    if not given.to or not given.out:
        raise app.UsageError("give --to=merged|peft|run and --out=FOLDER")
    if bool(given.workdir) == bool(given.adapter):
        raise app.UsageError("give either --workdir of a training run or --adapter, a PEFT folder")
    if given.best and (given.step is not None or not given.workdir):
        raise app.UsageError("--best goes with --workdir, and without --step")
    for name, needs, fits in (
        ("step", "--workdir", bool(given.workdir)),
        ("dtype", "--to=merged", given.to == "merged"),
        ("base_name", "--to=peft or --push", given.to == "peft" or bool(given.push)),
        ("push", "--to=merged or peft", given.to in ("merged", "peft")),
        ("config", "--to=run", given.to == "run"),
    ):
        if getattr(given, name) is not None and not fits:
            raise app.UsageError(f"--{name} goes with {needs}")
    if (given.dry_run or given.public) and not given.push:
        raise app.UsageError("--dry_run and --public go with --push")
    if given.to == "run" and given.config is None:
        raise app.UsageError("--to=run needs --config=FILE, the configuration of the new run")


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1:
        raise app.UsageError(f"give flags only, not {argv[1:]}")
    check_usage(given)
    quieten_orbax()
    out, api = pathlib.Path(given.out), None if given.dry_run else huggingface_hub.HfApi()
    if given.push:
        hub_push.check_before(given.push, api)
    if given.workdir:
        step = policy_sources.BEST if given.best else given.step
        trained = read_run(pathlib.Path(given.workdir), step=step, model=given.model)
    else:
        trained = read_adapter(pathlib.Path(given.adapter), model=given.model)
    if given.to == "merged":
        write_merged(out, trained, dtype=given.dtype)
    elif given.to == "peft":
        write_peft(out, trained, base_name=given.base_name)
    else:
        write_run(out, trained, given.config)
    print(f"{out}: {given.to}, LoRA r={trained.adapter.rank} on {trained.base}")
    if given.push:
        adapter = trained.adapter
        workdir = pathlib.Path(given.workdir) if given.workdir else None
        export = model_card.Export(
            *(given.push, given.to, trained.base, given.base_name),
            *(trained.lora, adapter.rank, adapter.alpha, workdir),
        )
        hub_push.write_card_and_push(out, export, private=not given.public, api=api)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Training run to read.")
    flags.DEFINE_integer("step", None, "Checkpoint of the run; default: that of `trained`.")
    flags.DEFINE_bool("best", False, "Take the best checkpoint (config.checkpoint.keep_best).")
    flags.DEFINE_string("adapter", None, "PEFT folder to read.")
    flags.DEFINE_string("model", None, "Folder of the base, if it has moved.")
    flags.DEFINE_enum("to", None, ["merged", "peft", "run"], "Kind of the output.")
    flags.DEFINE_string("out", None, "New folder.")
    flags.DEFINE_enum(
        "dtype",
        None,
        ["bfloat16", "float32"],
        "Of the merged weights; float32 is exact. Default: the run's, bfloat16 for an adapter.",
    )
    flags.DEFINE_string("base_name", None, "Name of the base, as on the hub; default: its path.")
    config_flags.DEFINE_config_file("config", None, "Of the new run.", lock_config=True)
    flags.DEFINE_string("push", None, "OWNER/NAME on the Hugging Face hub to upload to; private.")
    flags.DEFINE_bool("public", False, "A new repository is public.")
    flags.DEFINE_bool("dry_run", False, "Write folder and card, upload nothing.")
    exit_codes.run_tool("convert", main)
