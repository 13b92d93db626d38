"""Hugging Face checkpoints of policies: read into the model, and written back."""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
import tqdm
from flax import nnx

from speciarl_jax.models import family, int8, lora, safetensors_io, stored_weights
from speciarl_jax.models.checkpoints.hf_names import (
    Source,
    Sources,
    short_name,
    text_sources,
)
from speciarl_jax.models.config_json import Section
from speciarl_jax.models.policy_config import PolicyConfig, end_tokens
from speciarl_jax.models.vision_language import VisionLanguageModel

# (path, array, logical axes) -> array on its devices. Parameters of a checkpoint come as `Stored`,
# whose `place` reads them; adapters come as numpy arrays.
Put = Callable[[tuple[str, ...], "np.ndarray | Stored", tuple[str | None, ...]], jax.Array]

# Dtypes of weights, as safetensors spells them.
_FLOATS = ("BF16", "F16", "F32", "F64")
# Layers of a parameter are read together up to this size: small ones are not worth the calls.
STACK_BYTES = 2**26


def sources(config: PolicyConfig) -> Sources:
    """Returns where every parameter of the frozen model lies in a checkpoint."""
    own = family.of(config)
    return own.vision_sources(config.vision) | text_sources(config.text, own.text_prefix)


def read_config(
    folder: str | pathlib.Path, parse: Callable[[Any], Any] = family.config_from_hf
) -> PolicyConfig:
    """Reads the dimensions in `config.json` with `parse`.

    The end-of-sequence tokens of a policy are those of `generation_config.json` as well. The
    head is not tied where the weights hold another one (`stored_weights.untied_if_stored`).

    Raises:
      ValueError: it is missing, no JSON, or describes another model.
    """
    folder = pathlib.Path(folder)
    config = parse(safetensors_io.read_json(folder / safetensors_io.CONFIG))
    path = folder / safetensors_io.GENERATION
    if isinstance(config, PolicyConfig) and path.is_file():
        listed = end_tokens(Section(safetensors_io.read_json(path), file=path.name))
        ends = tuple(dict.fromkeys(config.eos_token_id + listed))
        config = dataclasses.replace(config, eos_token_id=ends)
    return stored_weights.untied_if_stored(config, folder)


def load(
    folder: str | pathlib.Path,
    *,
    param_dtype: Any = jnp.bfloat16,
    lora_rank: int = 0,
    lora_alpha: float = 1.0,
    lora_targets: Sequence[str] = ("decoder",),
    seed: int = 0,
    put: Put | None = None,
    **of_model: Any,
) -> tuple[PolicyConfig, VisionLanguageModel]:
    """Reads a checkpoint folder into a model with fresh LoRA.

    Args:
      folder: holds `config.json` and safetensors, in either layout of names in circulation.
      lora_rank: r, 0 for none.
      lora_alpha: the adapters are scaled by alpha / r.
      lora_targets: what has adapters, some of `lora.TARGETS`.
      put: places a parameter on its devices (`Put`); the default device when None.
      **of_model: `dtype`, `scan_unroll`, `attention` and `base_weights` of `VisionLanguageModel`.

    Raises:
      ValueError: `config.json` describes another model, a tensor is missing, unexpected, of the
        wrong shape or not floating-point, or a file is damaged; nearly always before any weight is
        read.
    """
    config = read_config(folder)
    reader = safetensors_io.Reader(folder)
    lora = {"lora_rank": lora_rank, "lora_alpha": lora_alpha, "lora_targets": lora_targets}
    model = nnx.eval_shape(
        lambda: VisionLanguageModel(
            config, param_dtype=param_dtype, rngs=nnx.Rngs(seed), **lora, **of_model
        )
    )
    state = dict(nnx.to_flat_state(nnx.state(model)))
    adapters = {path: x for path, x in state.items() if isinstance(x, nnx.LoRAParam)}
    frozen = {path: x for path, x in state.items() if path not in adapters}
    fill(frozen, reader, sources(config), param_dtype, put)
    if adapters:
        # Under jit the base, which nobody reads here, is never computed.
        fresh = jax.jit(
            lambda: nnx.state(
                VisionLanguageModel(config, rngs=nnx.Rngs(seed), **lora), nnx.LoRAParam
            )
        )()
        fresh = dict(nnx.to_flat_state(fresh))
        for path, variable in adapters.items():
            array = np.asarray(fresh[path][...])
            variable.set_value(put(path, array, variable.axes) if put else jnp.asarray(array))
    nnx.update(model, nnx.from_flat_state(list(state.items())))
    return config, model


def fill(
    state: dict[tuple[str, ...], nnx.Variable],
    reader: safetensors_io.Reader,
    sources: Sources,
    param_dtype: Any,
    put: Put | None = None,
) -> None:
    """Sets every parameter of a flat abstract state to what a checkpoint holds.

    Names, shapes and dtypes of all tensors are checked before the first of them is read.

    Args:
      state: path of a parameter, as in `sources` -> a variable with its shape and axes.
      sources: where the parameters lie in it.
      put: places a parameter (`Put`); the default device when None.

    Raises:
      ValueError: a tensor is missing, unexpected, of the wrong shape or not floating-point, or a
        file is damaged.
    """
    put = put or (lambda path, array, axes: array.place(None))
    stored = _checked_names(reader, sources)
    nbytes = sum(reader.header(stored[name]).nbytes for s in sources.values() for name in s.names)
    with tqdm.tqdm(
        total=nbytes,
        desc=f"reading {reader.folder.name}",
        unit="B",
        unit_scale=True,
        delay=2.0,  # seconds; a small checkpoint needs no bar
        disable=jax.process_index() != 0,
    ) as bar:
        found = {}
        for path, variable in state.items():
            names = tuple(stored[name] for name in sources[path].names)
            source = sources[path]._replace(names=names)
            dtype = jnp.dtype(param_dtype)
            is_int8 = isinstance(variable.get_value(), qwix.QArray)
            found[path] = Stored(reader, source, variable.shape, dtype, is_int8, bar.update)
            found[path].check_shape()
        for path, variable in state.items():
            variable.set_value(put(path, found[path], variable.axes))


def _checked_names(reader: safetensors_io.Reader, sources: Sources) -> dict[str, str]:
    """Maps the names in `sources` to those in this checkpoint, which has exactly these tensors.

    Either may have the flat or the nested layout of names.
    """
    wanted = {name for source in sources.values() for name in source.names}
    spelled, stored = {short_name(name): name for name in wanted}, {}
    for name in reader:
        header, short = reader.header(name), short_name(name)
        published = spelled.get(short, short)
        if published in stored:
            raise ValueError(
                f"{reader.folder} has {name!r} and {stored[published]!r}, which are the same "
                "tensor; delete one of them"
            )
        check_float(reader.folder / header.file, name, header.dtype)
        stored[published] = name
    present = set(stored)
    if ("decoder", "head") not in sources and stored_weights.HEAD in present:
        # Some writers store the tied head a second time, and some under its own name alone.
        embedding = spelled[stored_weights.EMBEDDING]
        stored.setdefault(embedding, stored[stored_weights.HEAD])
        present = present - {stored_weights.HEAD} | {embedding}
    question = "do config.json and the weights belong together?"
    safetensors_io.check_names(reader.folder, present, wanted, question)
    return stored


def check_float(path: pathlib.Path, name: str, dtype: str) -> None:
    """Refuses a tensor that holds no floating-point weights; `dtype` as safetensors spells it.

    Raises:
      ValueError: names file, tensor and dtype.
    """
    if dtype not in _FLOATS:
        raise ValueError(
            f"tensor {name!r} in {path} holds {dtype}, but weights must be one of {_FLOATS}; "
            "quantized checkpoints cannot be read, give the one they were made from"
        )


@dataclasses.dataclass(frozen=True)
class Stored:
    """A parameter that is still in its checkpoint."""

    reader: safetensors_io.Reader
    source: Source  # its tensors, by their names in this checkpoint
    shape: tuple[int, ...]  # of the parameter, layers first if it is stacked
    dtype: np.dtype  # of the parameter; tensors in another one are cast
    is_int8: bool  # the devices keep it by `int8.quantize`, layers stacked
    # Called with the number of bytes in the checkpoint whenever some more were placed.
    done: Callable[[int], Any]

    def check_shape(self) -> None:
        """Compares the headers of its tensors with its shape (ValueError)."""
        one = self.shape[1:] if self.source.stacked else self.shape
        if self.source.layout != "same":
            one = one[::-1]
        for name in self.source.names:
            found = flat = self.reader.header(name).shape
            if self.source.layout == "patches" and found:
                flat = (found[0], math.prod(found[1:]))
            if flat != one:
                raise ValueError(
                    f"tensor {name!r} in {self.reader.folder} has shape {found}, config.json asks "
                    f"for {one}; do config.json and the weights belong together?"
                )

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads the part of the parameter at `index`, a slice for each axis, and no more."""
        layers, inner = (index[0], index[1:]) if self.source.stacked else (slice(None), index)
        cut = {"same": inner, "transposed": inner[::-1], "patches": inner[1:]}[self.source.layout]
        tensors = [self.reader.read(name, cut) for name in self.source.names[layers]]
        array = np.stack(tensors) if len(tensors) > 1 else tensors[0][None]
        del tensors  # the stack is a copy
        if self.source.layout == "patches":
            array = array.reshape(*array.shape[:2], -1)[..., inner[0]]
        if self.source.layout != "same":
            array = array.swapaxes(-1, -2)
        return (array if self.source.stacked else array[0]).astype(self.dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.read((slice(None),) * len(self.shape))
        self.done(self._stored_bytes(self.source.names))
        return array if dtype is None else array.astype(dtype, copy=False)

    def place(self, sharding: jax.sharding.Sharding | None) -> jax.Array | qwix.QArray:
        """Reads the parameter into its shards; each process reads only those of its devices.

        A stacked parameter is written into its place on the devices a few layers at a time, so the
        host never holds all of it.

        Args:
          sharding: must not cut the layers; the default device when None.
        """
        count = len(self.source.names)
        at_once = max(1, STACK_BYTES * count // max(1, self._stored_bytes(self.source.names)))
        if not self.is_int8 and (not self.source.stacked or at_once >= count):
            return self._place_layers(slice(0, count), sharding)
        dtype = jnp.int8 if self.is_int8 else self.dtype
        stack, scales = jnp.zeros(self.shape, dtype, device=sharding), []
        for first in range(0, count, at_once):
            part = self._place_layers(slice(first, min(first + at_once, count)), sharding)
            if self.is_int8:
                part, scale = _quantize(part)
                scales.append(scale)
            # One part at a time: without waiting, those that were read would queue up on the host.
            stack = jax.block_until_ready(_set_layers(stack, part, np.int32(first), sharding))
        if self.is_int8:
            return qwix.QArray(stack, jnp.concatenate(scales), qtype=jnp.int8)
        return stack

    def _place_layers(self, layers: slice, sharding: jax.sharding.Sharding | None) -> jax.Array:
        shape = self.shape
        if self.source.stacked:
            shape = (layers.stop - layers.start, *shape[1:])
        parts = {}

        def part(index):
            # Devices that hold copies of the same part share one reading of it.
            key = tuple((cut.start, cut.stop) for cut in index)
            if key not in parts:
                parts[key] = self.read((layers, *index[1:]) if self.source.stacked else index)
            return parts[key]

        if sharding is None:
            array = jnp.asarray(part((slice(None),) * len(shape)))
        else:
            array = jax.make_array_from_callback(shape, sharding, part, dtype=self.dtype)
        array.block_until_ready()
        self.done(self._stored_bytes(self.source.names[layers]))
        return array

    def _stored_bytes(self, names: Sequence[str]) -> int:
        return sum(self.reader.header(name).nbytes for name in names)


@jax.jit
def _quantize(part):
    part = int8.quantize(part)
    return part.qvalue, part.scale


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _set_layers(stack, part, first, sharding):
    stack = jax.lax.dynamic_update_slice_in_dim(stack, part, first, axis=0)
    return stack if sharding is None else jax.lax.with_sharding_constraint(stack, sharding)


def save(
    folder: str | pathlib.Path,
    config: PolicyConfig,
    model: VisionLanguageModel,
    *,
    dtype: Any = None,
    max_shard_bytes: int = safetensors_io.MAX_SHARD_BYTES,
) -> None:
    """Writes `config.json` and safetensors, LoRA merged in, as the published checkpoints are.

    The host holds one file's weights at a time. Until all is written, a checkpoint that was in the
    folder stays, and a new one does not load.

    Args:
      folder: made if needed.
      dtype: of the tensors written; the model's own when None.
      max_shard_bytes: above this there are several files and an index.

    Raises:
      ValueError: `max_shard_bytes` is not positive, or the model has int8 weights.
    """
    tensors, state = {}, {path: v[...] for path, v in nnx.to_flat_state(nnx.state(model))}
    for path, source in sources(config).items():
        stack = state[path]
        int8.check_exportable(stack)
        kind = jnp.dtype(stack.dtype if dtype is None else dtype)
        adapter = lora.pair_of(state, path), model.lora_scale
        for layer, name in enumerate(source.names):
            make = functools.partial(_export, config, source, layer, stack, adapter, kind)
            count = stack.size // len(source.names)
            tensors[name] = safetensors_io.Pending(count * kind.itemsize, make)
    safetensors_io.write(
        folder,
        {name: tensors[name] for name in sorted(tensors, key=_natural)},
        config=json.dumps(config.to_hf() | {"dtype": str(kind)}, indent=2) + "\n",
        max_shard_bytes=max_shard_bytes,
    )


def _natural(name: str) -> list[str | int]:
    """Sorts layer 10 behind layer 9, so that a layer's tensors are written side by side."""
    return [int(part) if part.isdigit() else part for part in name.split(".")]


def _export(config, source, layer, stack, adapter, dtype) -> np.ndarray:
    """Returns one tensor as it is published; `adapter` is a pair of stacks or None, and a scale."""
    tensor = stack[layer] if source.stacked else stack
    pair, scale = adapter
    if pair is not None:
        tensor = lora.merge(tensor[None], [half[layer][None] for half in pair], scale)[0]
    tensor = tensor.astype(dtype)
    if source.layout != "same":
        tensor = tensor.T  # on the device, which is quicker
    elif not source.stacked:
        # An array keeps the numpy array that is made of it; the model's own must not.
        tensor = jnp.copy(tensor)
    array = np.asarray(tensor)
    if source.layout == "patches":
        vision = config.vision
        sides = (vision.temporal_patch_size, vision.patch_size, vision.patch_size)
        array = array.reshape(-1, vision.in_channels, *sides)
    return array
