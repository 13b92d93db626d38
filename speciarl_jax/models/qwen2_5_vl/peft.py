"""LoRA in the folder layout of Hugging Face PEFT: `adapter_config.json` and safetensors.

Only what this package trains can be written and read: plain LoRA of one rank on every linear layer
of the language model, none on the vision encoder.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from speciarl_jax.models import safetensors_io
from speciarl_jax.models.qwen2_5_vl import hf_checkpoint
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig
from speciarl_jax.models.qwen2_5_vl.hf_names import DECODER_LINEARS
from speciarl_jax.models.qwen2_5_vl.model import Qwen25VL

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# The layers of the language model in `Qwen2_5_VLForConditionalGeneration`, since transformers 4.52
# and before.
_LAYERS, _OLD_LAYERS = "model.language_model.layers.", "model.layers."
# A regular expression over whole module names: the vision encoder has `gate_proj` and others too.
_TARGETS = (
    r"model\.language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
)
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
# Initialisations that leave the base as it was; others change it.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The settings of an adapter in `adapter_config.json`."""

    rank: int  # r
    alpha: float  # the adapters are scaled by alpha / r
    base: str  # path or hub name of the base; may be empty


def abstract_lora(config: ModelConfig, rank: int) -> nnx.State:
    """Returns the abstract adapters of a model: shapes, dtypes and axes, no numbers."""
    model = nnx.eval_shape(lambda: Qwen25VL(config, lora_rank=rank, rngs=nnx.Rngs(0)))
    return nnx.state(model, nnx.LoRAParam)


def save_adapter(
    folder: str | pathlib.Path, config: ModelConfig, adapter: AdapterConfig, lora: nnx.State
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
        for path, names in _names(config).items()
        for name, layer in zip(names, stacked[path], strict=True)
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    alpha = int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": adapter.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _TARGETS,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def read_adapter_config(folder: str | pathlib.Path) -> AdapterConfig:
    """Reads `adapter_config.json`.

    Raises:
      ValueError: it is missing or no JSON, describes no LoRA, or sets an option that changes what
        the adapter computes and is not implemented here.
    """
    path = pathlib.Path(folder) / CONFIG
    settings = safetensors_io.read_json(path, "give the folder of a PEFT adapter")
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{path} describes no LoRA; only peft_type 'LORA' can be read")
    _refuse_options(path, settings)
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise ValueError(
            f"{path} has r {rank!r} and lora_alpha {alpha!r}; r must be a whole number of at least "
            "1 and lora_alpha a number"
        )
    return AdapterConfig(rank, float(alpha), settings.get("base_model_name_or_path") or "")


def _refuse_options(path: pathlib.Path, settings: Mapping[str, Any]) -> None:
    wrong = {name: settings[name] for name in _UNSUPPORTED if settings.get(name)}
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
    folder: str | pathlib.Path, config: ModelConfig
) -> tuple[AdapterConfig, nnx.State]:
    """Reads a PEFT folder into adapters of this package.

    Args:
      folder: holds `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
      Rank, alpha and base, and float32 numpy adapters as `nnx.state(policy, nnx.LoRAParam)`.

    Raises:
      ValueError: an option that is not supported, a file that is missing or damaged, tensors that
        are missing, unexpected or not floating-point, or shapes that belong to another rank or
        another base.
    """
    folder = pathlib.Path(folder)
    adapter = read_adapter_config(folder)
    tensors = _read_tensors(folder)
    names = _names(config)
    safetensors_io.check_names(
        folder / WEIGHTS,
        set(tensors),
        {name for group in names.values() for name in group},
        "adapters must cover every linear layer of the base's language model and nothing else. Was "
        "it trained on another base, or with other target_modules?",
    )
    lora = abstract_lora(config, adapter.rank)
    variables = dict(nnx.to_flat_state(lora))
    for path, variable in variables.items():
        for name in names[path]:
            wanted = variable.shape[:0:-1]
            _check_shape(folder / WEIGHTS, name, tensors[name].shape, wanted, adapter.rank)
        array = np.stack([tensors[name].astype(np.float32).T for name in names[path]])
        variable.set_value(array)
    return adapter, nnx.from_flat_state(list(variables.items()))


def _names(config: ModelConfig) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Maps the path of each stacked half of an adapter to PEFT's name of each layer's tensor."""
    return {
        ("decoder", "lora", f"{linear}_{half.lower()}"): tuple(
            f"{_PREFIX}{_LAYERS}{layer}.{module}.lora_{half}.weight"
            for layer in range(config.text.num_layers)
        )
        for linear, module in DECODER_LINEARS.items()
        for half in "AB"
    }


def _read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads all tensors, by their names since transformers 4.52."""
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():
                hf_checkpoint.check_float(path, name, file.get_slice(name).get_dtype())
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing; adapters are read from safetensors only, so save the adapter "
            "again with a current peft"
        ) from None
    except (SafetensorError, OSError) as error:
        raise ValueError(safetensors_io.damage(path, error, "copy it again")) from None
    old = _PREFIX + _OLD_LAYERS
    return {
        _PREFIX + _LAYERS + name.removeprefix(old) if name.startswith(old) else name: tensor
        for name, tensor in tensors.items()
    }


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
