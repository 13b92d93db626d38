"""Where the vision encoder's parameters lie in a checkpoint."""

from speciarl_jax.models.checkpoints.hf_names import Sources, single, stacked
from speciarl_jax.models.qwen3_vl.config import VisionConfig

# Linear layer of a block -> its published module.
_LINEARS = {
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "fc1": "mlp.linear_fc1",
    "fc2": "mlp.linear_fc2",
}
# The same of a merger.
_MERGER_LINEARS = {"fc1": "linear_fc1", "fc2": "linear_fc2"}


def vision_sources(config: VisionConfig) -> Sources:
    """Lists the tensors of the encoder (`model.visual.*`), whose root in the model is `visual`."""
    root, depth = "model.visual.", config.depth
    found = single("visual.patch_embed", f"{root}patch_embed.proj.weight", "patches")
    found |= single("visual.patch_embed_bias", f"{root}patch_embed.proj.bias")
    found |= single("visual.positions", f"{root}pos_embed.weight")
    for mine, theirs in _LINEARS.items():
        name = f"{root}blocks.{{}}.{theirs}"
        found |= stacked(f"visual.blocks.{mine}", f"{name}.weight", depth, "transposed")
        found |= stacked(f"visual.blocks.{mine}_bias", f"{name}.bias", depth)
    for norm in ("norm1", "norm2"):
        found |= stacked(f"visual.blocks.{norm}", f"{root}blocks.{{}}.{norm}.weight", depth)
        found |= stacked(f"visual.blocks.{norm}_bias", f"{root}blocks.{{}}.{norm}.bias", depth)
    for mine, theirs in _MERGER_LINEARS.items():
        found |= single(f"visual.merger.{mine}", f"{root}merger.{theirs}.weight", "transposed")
        found |= single(f"visual.merger.{mine}_bias", f"{root}merger.{theirs}.bias")
    found |= single("visual.merger.norm", f"{root}merger.norm.weight")
    found |= single("visual.merger.norm_bias", f"{root}merger.norm.bias")
    return found | _deepstack(config, f"{root}deepstack_merger_list.{{}}.")


def _deepstack(config: VisionConfig, name: str) -> Sources:
    count, found = len(config.deepstack_layers), {}
    if not count:
        return found
    for mine, theirs in _MERGER_LINEARS.items():
        path = f"visual.deepstack.{mine}"
        found |= stacked(path, f"{name}{theirs}.weight", count, "transposed")
        found |= stacked(f"{path}_bias", f"{name}{theirs}.bias", count)
    found |= stacked("visual.deepstack.norm", f"{name}norm.weight", count)
    return found | stacked("visual.deepstack.norm_bias", f"{name}norm.bias", count)
