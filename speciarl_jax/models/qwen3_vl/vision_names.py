"""Where the vision encoder's parameters lie in a checkpoint."""

from speciarl_jax.models.checkpoints.hf_names import Sources, single, with_bias
from speciarl_jax.models.qwen3_vl.config import VisionConfig

# Linear layer of a block -> its published module.
_LINEARS = {
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "fc1": "mlp.linear_fc1",
    "fc2": "mlp.linear_fc2",
}


def vision_sources(config: VisionConfig) -> Sources:
    """Lists the tensors of the encoder (`model.visual.*`), whose root in the model is `visual`."""
    root, depth = "model.visual.", config.depth
    found = with_bias("visual.patch_embed", f"{root}patch_embed.proj", "patches")
    found |= single("visual.positions", f"{root}pos_embed.weight")
    blocks = f"{root}blocks.{{}}."
    for mine, theirs in _LINEARS.items():
        found |= with_bias(f"visual.blocks.{mine}", f"{blocks}{theirs}", "transposed", depth)
    for norm in ("norm1", "norm2"):
        found |= with_bias(f"visual.blocks.{norm}", f"{blocks}{norm}", count=depth)
    found |= _merger("visual.merger", f"{root}merger.")
    if count := len(config.deepstack_layers):
        found |= _merger("visual.deepstack", f"{root}deepstack_merger_list.{{}}.", count)
    return found


def _merger(path: str, name: str, count: int | None = None) -> Sources:
    """Lists a merger, or a stack of them."""
    found = with_bias(f"{path}.norm", f"{name}norm", count=count)
    for linear in ("fc1", "fc2"):
        found |= with_bias(f"{path}.{linear}", f"{name}linear_{linear}", "transposed", count)
    return found
