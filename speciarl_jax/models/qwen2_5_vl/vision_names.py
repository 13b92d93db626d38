"""Where the vision encoder's parameters lie in a checkpoint."""

from speciarl_jax.models.checkpoints.hf_names import Sources, single, stacked, with_bias
from speciarl_jax.models.qwen2_5_vl.config import VisionConfig

# Linear layer of a block -> its published module.
_LINEARS = {"qkv": "attn.qkv", "proj": "attn.proj"} | {
    name: f"mlp.{name}_proj" for name in ("gate", "up", "down")
}


def vision_sources(config: VisionConfig) -> Sources:
    """Lists the tensors of the vision encoder (`visual.*`), whose root in the model is `visual`."""
    found = single("visual.patch_embed", "visual.patch_embed.proj.weight", "patches")
    found |= single("visual.merger_norm", "visual.merger.ln_q.weight")
    for mine, number in (("merger_in", 0), ("merger_out", 2)):
        found |= with_bias(f"visual.{mine}", f"visual.merger.mlp.{number}", "transposed")
    blocks, depth = "visual.blocks.{}.", config.depth
    for mine, theirs in _LINEARS.items():
        found |= with_bias(f"visual.blocks.{mine}", f"{blocks}{theirs}", "transposed", depth)
    for norm in ("norm1", "norm2"):
        found |= stacked(f"visual.blocks.{norm}", f"{blocks}{norm}.weight", depth)
    return found
