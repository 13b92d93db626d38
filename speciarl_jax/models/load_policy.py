"""Loads the policy that a configuration names into its shards."""

import pathlib
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_collections

from speciarl_jax.models import safetensors_io
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.models.decoder import attention_kernels
from speciarl_jax.models.policy_config import PolicyConfig
from speciarl_jax.models.vision_language import VisionLanguageModel
from speciarl_jax.runtime import sharding

SHIPPED = pathlib.Path(__file__).parent / "pretrained"


def model_folder(name_or_path: str | None) -> pathlib.Path:
    """Returns the folder of a policy that ships with the package, or of a user's own checkpoint.

    Raises:
      ValueError: neither exists.
    """
    known = shipped()
    if name_or_path in known:
        return SHIPPED / name_or_path
    if not name_or_path or not pathlib.Path(name_or_path).is_dir():
        raise ValueError(
            f"config.model.path is {name_or_path!r}, which is no folder; give the folder of a "
            f"Hugging Face checkpoint, or one of the policies that ship with the package: {known}"
        )
    safetensors_io.refuse_gguf(name_or_path)
    return pathlib.Path(name_or_path)


def shipped() -> list[str]:
    """Lists the names of the policies that ship with the package."""
    return sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()) if SHIPPED.exists() else []


def is_folder(name_or_path: str) -> bool:
    """Says whether this is a folder, or the name of a policy that ships with the package."""
    return name_or_path in shipped() or pathlib.Path(name_or_path).is_dir()


def base_folder(named: str) -> pathlib.Path | None:
    """Returns the folder of the base that an adapter names, or None where it is not on this disk.

    It may name a folder, a policy that ships with the package, or a model of the Hugging Face hub
    that lies in its local cache. Nothing is downloaded.
    """
    if not named:
        return None
    for folder in (pathlib.Path(named), SHIPPED / named):
        if folder.is_dir():
            return folder
    try:
        cached = huggingface_hub.try_to_load_from_cache(named, safetensors_io.CONFIG)
    except ValueError:  # no name that a model of the hub can have
        return None
    return pathlib.Path(cached).parent if isinstance(cached, str) else None


def load(
    config: ml_collections.ConfigDict, folder: pathlib.Path, mesh: jax.sharding.Mesh
) -> tuple[PolicyConfig, VisionLanguageModel]:
    """Reads the policy of the configuration into its shards, with fresh adapters."""
    put = sharding.put_param(mesh)
    return hf_checkpoint.load(folder, **model_options(config, mesh), seed=config.seed, put=put)


def model_options(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Returns the arguments of `VisionLanguageModel` that a configuration chooses."""
    kept = ("lora_rank", "lora_alpha", "lora_targets", "scan_unroll", "base_weights")
    chosen = {name: config.model[name] for name in kept}
    return {**dtypes(config), **chosen, "attention": attention_kind(config, mesh)}


def attention_kind(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> str:
    """Returns the kernel that `config.model.attention` means here, of `attention_kernels.KINDS`.

    A mesh without devices (`jax.sharding.AbstractMesh`) counts as one of CPUs.

    Raises:
      ValueError: an unknown name, or a dtype that the kernel does not compute in.
    """
    name = config.model.attention
    if name not in ("auto", "xla", "blocked", "splash", "cudnn"):
        raise ValueError(
            f"config.model.attention is {name!r}; choose 'auto', 'xla', 'blocked', 'splash' or "
            "'cudnn'"
        )
    abstract = isinstance(mesh, jax.sharding.AbstractMesh)
    platform = "cpu" if abstract else mesh.devices.flat[0].platform
    if name == "auto":
        return attention_kernels.fastest(platform)
    if name == "splash" and platform != "tpu":
        return "splash_interpret"
    if name == "cudnn" and platform != "gpu":
        return "cudnn_by_xla"
    if name == "cudnn" and config.model.dtype != "bfloat16":
        raise ValueError(
            "config.model.attention = 'cudnn' computes in bfloat16 and config.model.dtype is "
            f"{config.model.dtype!r}; set that to 'bfloat16', or the attention to 'xla'"
        )
    return name


def dtypes(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns `dtype` of matrix products and `param_dtype` of frozen weights."""
    return {
        "dtype": _dtype("model.dtype", config.model.dtype),
        "param_dtype": _dtype("model.param_dtype", config.model.param_dtype),
    }


def _dtype(key: str, name: str) -> Any:
    if name not in ("bfloat16", "float32"):
        raise ValueError(f"config.{key} is {name!r}; choose bfloat16 or float32")
    return jnp.dtype(name)
