"""Where the parameters lie in a Hugging Face checkpoint: a table of names, and no I/O."""

from typing import NamedTuple

from speciarl_jax.models.qwen2_5_vl.config import TextConfig, VisionConfig


class Source(NamedTuple):
    """Where a parameter lies in a checkpoint: one tensor, or one a layer to be stacked."""

    names: tuple[str, ...]
    stacked: bool
    layout: str  # "same", "transposed" (torch keeps [out, in]) or "patches" (a Conv3d)


# Path of a parameter in the model -> where it lies.
Sources = dict[tuple[str, ...], Source]

# Linear layer of a decoder layer -> its published module.
DECODER_LINEARS = {name: f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")} | {
    name: f"mlp.{name}_proj" for name in ("gate", "up", "down")
}
_VISION_LINEARS = {"qkv": "attn.qkv", "proj": "attn.proj"} | {
    name: f"mlp.{name}_proj" for name in ("gate", "up", "down")
}


def _single(path: str, name: str, layout: str = "same") -> Sources:
    return {tuple(path.split(".")): Source((name,), False, layout)}


def _stacked(path: str, pattern: str, count: int, layout: str = "same") -> Sources:
    names = tuple(pattern.format(i) for i in range(count))
    return {tuple(path.split(".")): Source(names, True, layout)}


def vision_sources(config: VisionConfig) -> Sources:
    """Lists the tensors of the vision encoder (`visual.*`), whose root in the model is `visual`."""
    found = _single("visual.patch_embed", "visual.patch_embed.proj.weight", "patches")
    found |= _single("visual.merger_norm", "visual.merger.ln_q.weight")
    for mine, number in (("merger_in", 0), ("merger_out", 2)):
        found |= _single(f"visual.{mine}", f"visual.merger.mlp.{number}.weight", "transposed")
        found |= _single(f"visual.{mine}_bias", f"visual.merger.mlp.{number}.bias")
    blocks, depth = "visual.blocks.{}.", config.depth
    for mine, theirs in _VISION_LINEARS.items():
        found |= _stacked(f"visual.blocks.{mine}", f"{blocks}{theirs}.weight", depth, "transposed")
        found |= _stacked(f"visual.blocks.{mine}_bias", f"{blocks}{theirs}.bias", depth)
    for norm in ("norm1", "norm2"):
        found |= _stacked(f"visual.blocks.{norm}", f"{blocks}{norm}.weight", depth)
    return found


def text_sources(config: TextConfig) -> Sources:
    """Lists the tensors of the decoder (`model.*`, `lm_head.weight`), whose root is `decoder`."""
    layers, count = "model.layers.{}.", config.num_layers
    found = {}
    for mine, theirs in DECODER_LINEARS.items():
        pattern = f"{layers}{theirs}.weight"
        found |= _stacked(f"decoder.layers.{mine}", pattern, count, "transposed")
        if mine in ("q", "k", "v") and config.qkv_bias:
            found |= _stacked(f"decoder.layers.{mine}_bias", f"{layers}{theirs}.bias", count)
    for norm in ("q_norm", "k_norm") if config.qk_norm else ():
        found |= _stacked(f"decoder.layers.{norm}", f"{layers}self_attn.{norm}.weight", count)
    found |= _stacked("decoder.layers.attention_norm", f"{layers}input_layernorm.weight", count)
    found |= _stacked("decoder.layers.mlp_norm", f"{layers}post_attention_layernorm.weight", count)
    found |= _single("decoder.embedding", "model.embed_tokens.weight")
    found |= _single("decoder.final_norm", "model.norm.weight")
    if not config.tie_word_embeddings:
        found |= _single("decoder.head", "lm_head.weight", "transposed")
    return found


def published_name(name: str) -> str:
    """Maps the nested layout (`model.visual.*`, `model.language_model.*`) to the published one."""
    for prefix, short in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if name.startswith(prefix):
            return short + name.removeprefix(prefix)
    return name
