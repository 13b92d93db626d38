"""LoRA in the folder layout of Hugging Face PEFT: `adapter_config.json` and safetensors.

Plain LoRA of one rank on linear layers of the language model, the merger and the vision encoder's
blocks can be read; what is written is on all such layers of the parts that have adapters.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from absl import logging
from flax import nnx
from safetensors import SafetensorError, safe_open

from speciarl_jax.models import family, load_policy, safetensors_io, stored_weights
from speciarl_jax.models import lora as lora_lib
from speciarl_jax.models.checkpoints import hf_checkpoint, peft_names
from speciarl_jax.models.checkpoints.hf_names import DECODER_LINEARS, short_name
from speciarl_jax.models.policy_config import PolicyConfig
from speciarl_jax.models.vision_language import VisionLanguageModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Key of the fingerprint of the base's weights in the metadata of the file with the tensors.
_BASE = "base_weights"
# Options that change what an adapter computes, unless they are unset or empty.
_UNSUPPORTED = (
    "use_rslora",
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
# Options that change nothing in what an adapter computes, or that are read or checked by name.
_HARMLESS = {
    *("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "lora_alpha", "lora_dropout", "bias", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_config", "megatron_core", "runtime_config", "qalora_group_size", "loftq_config"),
    *("eva_config", "corda_config", "lora_ga_config", "velora_config", "ensure_weight_tying"),
}
# Initialisations that leave the base as it was; others change it.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The settings of an adapter in `adapter_config.json`."""

    rank: int  # r
    alpha: float  # the adapters are scaled by alpha / r
    base: str  # path or hub name of the base; may be empty
    # Fingerprint of the base (`stored_weights`); empty if unknown.
    base_weights: str = dataclasses.field(default="", compare=False)
    targets: tuple[str, ...] = ("decoder",)  # what has adapters, some of `lora.TARGETS`


def abstract_lora(
    config: PolicyConfig, rank: int, targets: Sequence[str] = ("decoder",)
) -> nnx.State:
    """Returns the abstract adapters of a model: shapes, dtypes and axes, no numbers."""
    model = nnx.eval_shape(
        lambda: VisionLanguageModel(config, lora_rank=rank, lora_targets=targets, rngs=nnx.Rngs(0))
    )
    return nnx.state(model, nnx.LoRAParam)


def save_adapter(
    folder: str | pathlib.Path, config: PolicyConfig, adapter: AdapterConfig, lora: nnx.State
) -> None:
    """Writes adapters so that `peft` puts them onto the base with the same logits.

    Args:
      folder: made if needed.
      lora: float32 adapters, as `nnx.state(policy, nnx.LoRAParam)`.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stacked = {path: np.asarray(v[...]) for path, v in nnx.to_flat_state(lora)}
    tensors = {
        name: np.ascontiguousarray(layer.T)
        for path, names in _names(config, adapter.targets).items()
        for name, layer in zip(names, stacked[path], strict=True)
    }
    known = {_BASE: adapter.base_weights} if adapter.base_weights else {}
    safetensors_io.save(tensors, folder / WEIGHTS, **known)
    alpha = int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": adapter.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": peft_names.targets(
            name for names in modules_of(config, adapter.targets).values() for name in names
        ),
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def read_adapter_config(folder: str | pathlib.Path) -> AdapterConfig:
    """Reads `adapter_config.json`, and from the names of the tensors which parts are adapted.

    Raises:
      ValueError: it is missing or no JSON, describes no LoRA, or sets an option that changes what
        the adapter computes and is not implemented here.
    """
    folder = pathlib.Path(folder)
    adapter = _read_settings(folder)[0]
    try:
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            targets = peft_names.targets_of(file.keys())
    except (SafetensorError, OSError):
        return adapter  # the tensors are refused when they are read
    return dataclasses.replace(adapter, targets=targets or adapter.targets)


def _read_settings(folder: pathlib.Path) -> tuple[AdapterConfig, dict[str, Any]]:
    path = folder / CONFIG
    settings = safetensors_io.read_json(path, "give the folder of a PEFT adapter")
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{path} describes no LoRA; only peft_type 'LORA' can be read")
    _refuse_options(path, settings)
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    numbers = type(rank) is int and type(alpha) in (int, float)
    if not numbers or rank < 1 or not 0 < alpha < math.inf:
        raise ValueError(
            f"{path} has r {rank!r} and lora_alpha {alpha!r}; r must be a whole number of at least "
            "1 and lora_alpha a finite number above 0"
        )
    base = settings.get("base_model_name_or_path") or ""
    if not isinstance(base, str):
        raise ValueError(f"{path} has base_model_name_or_path {base!r}, which must be text")
    return AdapterConfig(rank, float(alpha), base), settings


def _refuse_options(path: pathlib.Path, settings: Mapping[str, Any]) -> None:
    wrong = {name: settings[name] for name in _UNSUPPORTED if settings.get(name)}
    unknown = {n for n in settings if settings[n] and n not in {*_HARMLESS, *_UNSUPPORTED}}
    wrong |= {name: settings[name] for name in unknown if settings[name] is True}
    if unknown := sorted(unknown - wrong.keys()):
        logging.warning(
            "%s sets %s, which is not known here; if it changes what the adapter computes, merge "
            "the adapter into its base with peft first",
            *(path, unknown),
        )
    if settings.get("bias", "none") != "none":
        wrong["bias"] = settings["bias"]
    if settings.get("init_lora_weights") not in _PLAIN_INITS:
        wrong["init_lora_weights"] = settings["init_lora_weights"]
    if wrong:
        said = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
        raise ValueError(
            f"{path} sets {said}, which is not supported: only plain LoRA of one rank, scaled by "
            "lora_alpha / r, can be read. Merge the adapter into its base with peft "
            "(merge_and_unload), and give the merged folder as the model"
        )


def load_adapter(
    folder: str | pathlib.Path, config: PolicyConfig
) -> tuple[AdapterConfig, nnx.State]:
    """Reads a PEFT folder into adapters of this package.

    Args:
      folder: holds `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
      Rank, alpha and base, and float32 numpy adapters as `nnx.state(policy, nnx.LoRAParam)`. Both
      halves are zero for the layers that the adapter leaves alone.

    Raises:
      ValueError: an option that is not supported, a file that is missing or damaged, tensors that
        are unexpected, not finite, not floating-point or not those of `target_modules`, half an
        adapter, or shapes that belong to another rank or another base.
    """
    folder = pathlib.Path(folder)
    adapter, settings = _read_settings(folder)
    tensors, metadata = _read_tensors(folder)
    targets = _check_modules(folder, settings, set(tensors), config)
    adapter = dataclasses.replace(adapter, targets=targets)
    names = _names(config, adapter.targets)
    lora = abstract_lora(config, adapter.rank, adapter.targets)
    variables = dict(nnx.to_flat_state(lora))
    for path, variable in variables.items():
        array = np.zeros(variable.shape, np.float32)
        for layer, name in enumerate(names[path]):
            if name in tensors:
                wanted = variable.shape[:0:-1]
                _check_shape(folder / WEIGHTS, name, tensors[name].shape, wanted, adapter.rank)
                array[layer] = tensors[name].T
        variable.set_value(array)
    adapter = dataclasses.replace(adapter, base_weights=metadata.get(_BASE, ""))
    return adapter, nnx.from_flat_state(list(variables.items()))


def trainable(lora: nnx.State, fresh: nnx.State) -> nnx.State:
    """Returns adapters that can be trained: layers without an adapter get a fresh half A.

    They compute the same as before. Where both halves are zero, no gradient would ever change them.
    """
    new = {path: np.asarray(v[...]) for path, v in nnx.to_flat_state(fresh)}
    found = []
    for path, variable in nnx.to_flat_state(lora):
        array = np.asarray(variable[...])
        if path[-1].endswith("_a"):
            empty = ~array.any(axis=(1, 2), keepdims=True)
            array = np.where(empty, new[path], array)
        found.append((path, variable.replace(array)))
    return nnx.from_flat_state(found)


def warn_of_other_base(adapter: AdapterConfig, source: pathlib.Path, base: pathlib.Path) -> None:
    """Warns where adapters of `source` were trained on another base than that of the folder `base`.

    Weights are compared where the adapter or the disk holds something to compare, and else the
    last parts of the names.
    """
    named = load_policy.base_folder(adapter.base)
    wanted = adapter.base_weights
    if not wanted and named is not None and named.resolve() != base.resolve():
        wanted = stored_weights.fingerprint(named)
    if wanted:
        if wanted != stored_weights.fingerprint(base):
            logging.warning(
                "the adapter %s was trained on %r, whose weights are not those of %s: its answers "
                "mean little on this base",
                *(source, adapter.base, base),
            )
    elif adapter.base and named is None:
        last = pathlib.PurePath(adapter.base).name.lower()
        parts = {part.lower().rpartition("--")[2] for part in base.resolve().parts}
        if last not in parts:
            logging.warning(
                "the adapter %s names the base %r, and is put on %s; make sure that they are the "
                "same weights",
                *(source, adapter.base, base),
            )


def modules_of(
    config: PolicyConfig, targets: Sequence[str] = lora_lib.TARGETS
) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Maps the path of an adapter, without its half, to the names of its modules in PEFT.

    Args:
      targets: parts of the policy, some of `lora.TARGETS`.
    """
    found = {}
    if "decoder" in targets:
        for linear in DECODER_LINEARS:
            layers = range(config.text.num_layers)
            names = tuple(peft_names.decoder_module(layer, linear) for layer in layers)
            found["decoder", "lora", linear] = names
    for path, source in family.of(config).vision_sources(config.vision).items():
        if source.layout == "transposed" and lora_lib.target_of(path) in targets:
            names = (short_name(name).removesuffix(".weight") for name in source.names)
            found[lora_lib.path_of(path)] = tuple(f"model.{name}" for name in names)
    return found


def _names(config: PolicyConfig, targets: Sequence[str]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Maps the path of each stacked half of an adapter to PEFT's name of each layer's tensor."""
    return {
        (*root, f"{name}_{half.lower()}"): tuple(
            peft_names.tensor_name(module, half) for module in modules
        )
        for (*root, name), modules in modules_of(config, targets).items()
        for half in "AB"
    }


def _check_modules(
    folder: pathlib.Path, settings: Mapping[str, Any], found: set[str], config: PolicyConfig
) -> tuple[str, ...]:
    """Refuses tensors that belong to no layer, halves without their other half, and no tensors.

    Returns:
      The parts of the policy that have adapters, as in `lora.TARGETS`.
    """
    modules = {
        target: {name for names in modules_of(config, (target,)).values() for name in names}
        for target in lora_lib.TARGETS
    }
    halves = {
        one: {peft_names.tensor_name(one, half) for half in "AB"}
        for names in modules.values()
        for one in names
    }
    present = {one for one, names in halves.items() if names & found}
    safetensors_io.check_names(
        folder / WEIGHTS,
        found,
        {name for one in present or modules["decoder"] for name in halves[one]},
        "adapters must lie on linear layers of the base's language model, of its merger or of its "
        "vision encoder's blocks, and nowhere else. Was it trained on another base?",
    )
    targets = tuple(target for target, names in modules.items() if names & present)
    every = set().union(*(modules[target] for target in targets))
    peft_names.check_targets(folder / CONFIG, settings, present, every)
    return targets


def _read_tensors(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads all tensors, by PEFT's names since transformers 4.52, and the metadata."""
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():
                hf_checkpoint.check_float(path, name, file.get_slice(name).get_dtype())
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing; adapters are read from safetensors only, so save the adapter "
            "again with a current peft"
        ) from None
    except (SafetensorError, OSError) as error:
        raise ValueError(safetensors_io.damage(path, error, "copy it again")) from None
    found = {}
    for name, tensor in tensors.items():
        if (known := peft_names.published(name)) in found:
            raise ValueError(
                f"{path} holds {known!r} under two names, {name!r} among them; delete one of them"
            )
        if not np.isfinite(tensor.astype(np.float32)).all():
            raise ValueError(
                f"tensor {name!r} in {path} holds NaN or infinite numbers: its training diverged; "
                "give an earlier checkpoint of it"
            )
        found[known] = tensor
    return found, metadata


def _check_shape(
    path: pathlib.Path, name: str, found: tuple[int, ...], wanted: tuple[int, ...], rank: int
) -> None:
    """Refuses a tensor of another shape than torch's [out, in]: A [r, in], B [out, r]."""
    if found == wanted:
        return
    axis = 0 if "lora_A" in name else 1
    if len(found) == 2 and found[axis] != rank:
        raise ValueError(
            f"tensor {name!r} in {path} has shape {found}, which is rank {found[axis]}, but "
            f"{CONFIG} says r={rank}; do the two files belong together?"
        )
    raise ValueError(
        f"tensor {name!r} in {path} has shape {found}, the base needs {wanted}; the adapter was "
        "trained on a base of other dimensions"
    )
