"""Hugging Face checkpoints of Qwen2.5-VL: read into the model, and written back."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speciarl_jax.models import safetensors_io
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, TextConfig, VisionConfig
from speciarl_jax.models.qwen2_5_vl.model import Qwen25VL

# (path, array, logical axes) -> array on its devices.
Put = Callable[[tuple[str, ...], np.ndarray, tuple[str | None, ...]], jax.Array]


class Source(NamedTuple):
    """Where a parameter lies in a checkpoint: one tensor, or one a layer to be stacked."""

    names: tuple[str, ...]
    stacked: bool
    layout: str  # "same", "transposed" (torch keeps [out, in]) or "patches" (a Conv3d)


# Path of a parameter in the model -> where it lies.
Sources = dict[tuple[str, ...], Source]


def _single(path: str, name: str, layout: str = "same") -> Sources:
    return {tuple(path.split(".")): Source((name,), False, layout)}


def _stacked(path: str, pattern: str, count: int, layout: str = "same") -> Sources:
    names = tuple(pattern.format(i) for i in range(count))
    return {tuple(path.split(".")): Source(names, True, layout)}


def vision_sources(config: VisionConfig) -> Sources:
    """Published names (`visual.*`) of the tensors of the vision tower, whose root is `visual`."""
    found = _single("visual.patch_embed", "visual.patch_embed.proj.weight", "patches")
    found |= _single("visual.merger_norm", "visual.merger.ln_q.weight")
    for mine, number in (("merger_in", 0), ("merger_out", 2)):
        found |= _single(f"visual.{mine}", f"visual.merger.mlp.{number}.weight", "transposed")
        found |= _single(f"visual.{mine}_bias", f"visual.merger.mlp.{number}.bias")
    blocks, depth = "visual.blocks.{}.", config.depth
    for mine, theirs in {
        "qkv": "attn.qkv",
        "proj": "attn.proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }.items():
        found |= _stacked(f"visual.blocks.{mine}", f"{blocks}{theirs}.weight", depth, "transposed")
        found |= _stacked(f"visual.blocks.{mine}_bias", f"{blocks}{theirs}.bias", depth)
    for norm in ("norm1", "norm2"):
        found |= _stacked(f"visual.blocks.{norm}", f"{blocks}{norm}.weight", depth)
    return found


def text_sources(config: TextConfig) -> Sources:
    """Published names (`model.*`, `lm_head.weight`) of the decoder's, whose root is `decoder`."""
    layers, count = "model.layers.{}.", config.num_layers
    found = {}
    for mine in ("q", "k", "v", "o"):
        theirs = f"{layers}self_attn.{mine}_proj"
        found |= _stacked(f"decoder.layers.{mine}", f"{theirs}.weight", count, "transposed")
        if mine != "o" and config.qkv_bias:
            found |= _stacked(f"decoder.layers.{mine}_bias", f"{theirs}.bias", count)
    for norm in ("q_norm", "k_norm") if config.qk_norm else ():
        found |= _stacked(f"decoder.layers.{norm}", f"{layers}self_attn.{norm}.weight", count)
    for mine in ("gate", "up", "down"):
        theirs = f"{layers}mlp.{mine}_proj.weight"
        found |= _stacked(f"decoder.layers.{mine}", theirs, count, "transposed")
    found |= _stacked("decoder.layers.attention_norm", f"{layers}input_layernorm.weight", count)
    found |= _stacked("decoder.layers.mlp_norm", f"{layers}post_attention_layernorm.weight", count)
    found |= _single("decoder.embedding", "model.embed_tokens.weight")
    found |= _single("decoder.final_norm", "model.norm.weight")
    if not config.tie_word_embeddings:
        found |= _single("decoder.head", "lm_head.weight", "transposed")
    return found


def _sources(config: ModelConfig) -> Sources:
    return vision_sources(config.vision) | text_sources(config.text)


def _published_name(name: str) -> str:
    """Maps the nested layout (`model.visual.*`, `model.language_model.*`) to the published one."""
    for prefix, short in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if name.startswith(prefix):
            return short + name.removeprefix(prefix)
    return name


def read_config(
    folder: str | pathlib.Path, parse: Callable[[Any], Any] = ModelConfig.from_hf
) -> ModelConfig:
    """Reads `config.json`; `parse` makes dimensions of what it holds.

    Raises:
      ValueError: it is missing, no JSON, or describes another model.
    """
    path = pathlib.Path(folder) / "config.json"
    try:
        return parse(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; point config.model.path at a checkpoint") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def load(
    folder: str | pathlib.Path,
    *,
    dtype: Any = jnp.bfloat16,
    param_dtype: Any = jnp.bfloat16,
    lora_rank: int = 0,
    lora_alpha: float = 1.0,
    scan_unroll: int = 1,
    seed: int = 0,
    put: Put | None = None,
) -> tuple[ModelConfig, Qwen25VL]:
    """Reads a checkpoint folder into a model with fresh LoRA.

    Args:
      folder: holds `config.json` and safetensors, in either layout of names in circulation.
      dtype: of the matrix products.
      param_dtype: of the frozen weights.
      lora_rank: r, 0 for none.
      lora_alpha: the adapters are scaled by alpha / r.
      scan_unroll: layers a turn of the loop over layers.
      seed: of LoRA.
      put: places a parameter on its devices; the default device when None.

    Raises:
      ValueError: a tensor is missing, unexpected or of the wrong shape, or a file is damaged.
    """
    config = read_config(folder)
    reader = safetensors_io.Reader(folder)
    put = put or (lambda path, array, axes: jnp.asarray(array))

    def make():
        return Qwen25VL(
            config,
            dtype=dtype,
            param_dtype=param_dtype,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            scan_unroll=scan_unroll,
            rngs=nnx.Rngs(seed),
        )

    model = nnx.eval_shape(make)
    state = dict(nnx.to_flat_state(nnx.state(model)))
    frozen = {
        p: variable for p, variable in state.items() if not isinstance(variable, nnx.LoRAParam)
    }
    fill(frozen, reader, _sources(config), param_dtype, put)
    if lora_rank:
        fresh = dict(nnx.to_flat_state(_fresh_lora(config, lora_rank, lora_alpha, seed)))
        for path, variable in state.items():
            if isinstance(variable, nnx.LoRAParam):
                variable.set_value(put(path, np.asarray(fresh[path][...]), variable.axes))
    nnx.update(model, nnx.from_flat_state(list(state.items())))
    return config, model


def fill(
    state: dict[tuple[str, ...], nnx.Variable],
    reader: safetensors_io.Reader,
    sources: Sources,
    param_dtype: Any,
    put: Put,
) -> None:
    """Sets every parameter of a flat abstract state to what a checkpoint holds.

    Raises:
      ValueError: a tensor is missing, unexpected or of the wrong shape, or a file is damaged.
    """
    _check_names(reader, sources)
    stored = {_published_name(name): name for name in reader}
    for path, variable in state.items():
        array = _read(reader, stored, sources[path], variable.shape).astype(param_dtype)
        variable.set_value(put(path, array, variable.axes))


def _fresh_lora(config: ModelConfig, rank: int, alpha: float, seed: int) -> nnx.State:
    """LoRA of a new model. Under jit the base, which nobody reads, is never computed."""

    def make():
        model = Qwen25VL(config, lora_rank=rank, lora_alpha=alpha, rngs=nnx.Rngs(seed))
        return nnx.state(model, nnx.LoRAParam)

    return jax.jit(make)()


def _check_names(reader, sources) -> None:
    wanted = {name for source in sources.values() for name in source.names}
    present = {_published_name(name) for name in reader}
    if ("decoder", "head") not in sources:
        # Some writers store the tied head a second time.
        present.discard("lm_head.weight")
    for what, names in (("lacks", wanted - present), ("has unexpected", present - wanted)):
        if names:
            raise ValueError(
                f"{reader.folder} {what} tensors {sorted(names)[:5]} ({len(names)} in all); do "
                "config.json and the weights belong together?"
            )


def _read(reader, stored, source: Source, shape: tuple[int, ...]) -> np.ndarray:
    """One parameter, its layers stacked, in this package's layout."""
    expected = shape[1:] if source.stacked else shape
    parts = []
    for published in source.names:
        name = stored[published]
        try:
            tensor = reader.read(name)
        except Exception as error:  # safetensors raises its own kinds for short files
            raise ValueError(
                f"tensor {name!r} in {reader.folder} cannot be read: {error}"
            ) from None
        found = tensor.shape
        if source.layout == "patches":
            tensor = tensor.reshape(tensor.shape[0], -1)
        if source.layout != "same":
            tensor = tensor.T
        if tensor.shape != expected:
            raise ValueError(
                f"tensor {name!r} in {reader.folder} has shape {found}, config.json asks for "
                f"{expected} ({source.layout})"
            )
        parts.append(tensor)
    return np.stack(parts) if source.stacked else parts[0]


def save(
    folder: str | pathlib.Path, config: ModelConfig, model: Qwen25VL, *, dtype: Any = None
) -> None:
    """Writes `config.json` and `model.safetensors`, LoRA merged in, as the published ones are.

    Args:
      folder: made if needed.
      config: dimensions.
      model: its frozen weights and, if it has any, adapters.
      dtype: of the tensors written; the model's own when None.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {path: v[...] for path, v in nnx.to_flat_state(nnx.state(model))}
    for name, kernel in model.merged_kernels().items():
        state["decoder", "layers", name] = kernel
    vision = config.vision
    conv = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    tensors = {}
    for path, source in _sources(config).items():
        array = np.asarray(state[path] if dtype is None else state[path].astype(dtype))
        for name, part in zip(source.names, array if source.stacked else [array], strict=True):
            part = part if source.layout == "same" else part.T
            tensors[name] = part.reshape(-1, *conv) if source.layout == "patches" else part
    safetensors_io.write(folder, tensors)
    dtype = str(next(iter(tensors.values())).dtype)
    text = json.dumps(config.to_hf() | {"dtype": dtype}, indent=2)
    (folder / "config.json").write_text(text + "\n")
