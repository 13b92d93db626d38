"""What the rest of the package needs of a family of policies: one folder of `models`, one object.

`model_type` in a checkpoint's `config.json` is the name of the folder, and its `__init__.py`
defines `FAMILY`. The decoder, LoRA, loading and export are shared; a family brings its dimensions,
its vision encoder and the names of that encoder's tensors. `docs/add_a_family.md` goes through it.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from speciarl_jax.models.checkpoints.hf_names import Sources
from speciarl_jax.models.image_tokens import Grid, mrope_positions
from speciarl_jax.models.policy_config import PolicyConfig

# Sizes without a family's name are sizes of this one.
_FIRST = "qwen2_5_vl"


@dataclasses.dataclass(frozen=True)
class Family:
    """Holds the parts of a family; the arguments `vision` are its `config.vision`."""

    title: str  # its name in messages and tables
    config: type[PolicyConfig]  # reads and writes `config.json`
    # `nnx.Module`: (patches_BSC, layout) -> features [B, M, `vision.feature_size`]. The first D
    # values of a feature take the place of an image token's embedding; each further D are added to
    # the hidden states behind the next decoder layer, from the first on. It has `config`, `dtype`,
    # `attention` and `scan_unroll`.
    encoder: Callable[..., Any]
    # (grids, vision) -> a pytree of numpy arrays, rows first, that the encoder reads. It has
    # `sizes`, `pad(*sizes)`, `patch_index_BS`, `image_BS`, `hw_BS2` and `token_index_BM`.
    vision_layout: Callable[[Sequence[Sequence[Grid]], Any], Any]
    # (grids, vision, growth) -> slots of the encoder's sequence and image tokens, for the largest
    # row: what `sizes` of its layout will be.
    vision_sizes: Callable[..., tuple[int, int]]
    # (vision, slots, tokens) -> FLOPs of a row of images, and bytes moved; for plans.
    encoder_cost: Callable[[Any, int, int], tuple[float, float]]
    # vision -> where the encoder's parameters lie in a checkpoint; their root is `visual`.
    vision_sources: Callable[[Any], Sources]
    text_prefix: str  # of the decoder's tensors in a published checkpoint
    presets: Mapping[str, PolicyConfig]  # published size -> dimensions
    # (tokens_BP, mask_BP, grids, config) -> rotary positions [3, B, P], next position [B].
    positions: Callable[..., Any] = mrope_positions


def names() -> list[str]:
    """Lists the families: the folders of `models` that define `FAMILY`."""
    return [name for name in _folders() if hasattr(_folder(name), "FAMILY")]


def find(model_type: Any) -> Family:
    """Returns the family that `config.json` names.

    Raises:
      ValueError: there is none; lists those that there are.
    """
    found = getattr(_folder(model_type), "FAMILY", None) if model_type in _folders() else None
    if found is None:
        experts = str(model_type).endswith("_moe")
        raise ValueError(
            f"config.json has model_type {model_type!r}; the policies that can be read are "
            f"{names()}" + (", none of them a mixture of experts" if experts else "")
        )
    return found


def of(config: PolicyConfig) -> Family:
    """Returns the family of a policy's dimensions."""
    return _folder(config.model_type).FAMILY


def config_from_hf(config: Mapping[str, Any]) -> PolicyConfig:
    """Reads a parsed `config.json` of any family.

    Raises:
      ValueError: no family has this `model_type`, or the family refuses it.
    """
    return find(config.get("model_type")).config.from_hf(config)


def preset(name: str) -> PolicyConfig:
    """Returns the dimensions of a published size.

    Args:
      name: "qwen3_vl_4b", say, in any case; a size alone is one of Qwen2.5-VL.

    Raises:
      ValueError: no such size; lists those that there are.
    """
    known = {
        f"{family}_{size}".lower(): config
        for family in names()
        for size, config in _folder(family).FAMILY.presets.items()
    }
    for key in (name.lower(), f"{_FIRST}_{name}".lower()):
        if key in known:
            return known[key]
    raise ValueError(f"there is no published size {name!r}; choose one of {sorted(known)}")


def _folders() -> list[str]:
    room = importlib.import_module("speciarl_jax.models")
    return sorted(m.name for m in pkgutil.iter_modules(room.__path__) if m.ispkg)


def _folder(name: str) -> Any:
    return importlib.import_module(f"speciarl_jax.models.{name}")
