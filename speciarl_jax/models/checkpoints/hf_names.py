"""Where the parameters lie in a Hugging Face checkpoint: a table of names, and no I/O."""

from typing import NamedTuple

from speciarl_jax.models.decoder.text_config import TextConfig


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


def single(path: str, name: str, layout: str = "same") -> Sources:
    """Says that a parameter is one tensor; `path` has dots, `layout` is that of `Source`."""
    return {tuple(path.split(".")): Source((name,), False, layout)}


def stacked(path: str, pattern: str, count: int, layout: str = "same") -> Sources:
    """Says that a parameter is a stack of `count` tensors, whose number stands in `pattern`."""
    names = tuple(pattern.format(i) for i in range(count))
    return {tuple(path.split(".")): Source(names, True, layout)}


def with_bias(path: str, name: str, layout: str = "same", count: int | None = None) -> Sources:
    """Says that a parameter is NAME.weight, and the one at `path`_bias NAME.bias.

    Args:
      layout: of the weight, as in `Source`; "transposed" for linear layers.
      count: of a stack, whose number stands in `name`; None for one tensor each.
    """
    if count is None:
        found = single(path, f"{name}.weight", layout)
        return found | single(f"{path}_bias", f"{name}.bias")
    found = stacked(path, f"{name}.weight", count, layout)
    return found | stacked(f"{path}_bias", f"{name}.bias", count)


def text_sources(config: TextConfig, prefix: str = "model.") -> Sources:
    """Lists the tensors of the decoder, whose root in the model is `decoder`.

    Args:
      prefix: of their names, but for `lm_head.weight`.
    """
    layers, count = f"{prefix}layers.{{}}.", config.num_layers
    found = {}
    for mine, theirs in DECODER_LINEARS.items():
        pattern = f"{layers}{theirs}.weight"
        found |= stacked(f"decoder.layers.{mine}", pattern, count, "transposed")
        if mine in ("q", "k", "v") and config.qkv_bias:
            found |= stacked(f"decoder.layers.{mine}_bias", f"{layers}{theirs}.bias", count)
    for norm in ("q_norm", "k_norm") if config.qk_norm else ():
        found |= stacked(f"decoder.layers.{norm}", f"{layers}self_attn.{norm}.weight", count)
    found |= stacked("decoder.layers.attention_norm", f"{layers}input_layernorm.weight", count)
    found |= stacked("decoder.layers.mlp_norm", f"{layers}post_attention_layernorm.weight", count)
    found |= single("decoder.embedding", f"{prefix}embed_tokens.weight")
    found |= single("decoder.final_norm", f"{prefix}norm.weight")
    if not config.tie_word_embeddings:
        found |= single("decoder.head", "lm_head.weight", "transposed")
    return found


def short_name(name: str) -> str:
    """Maps the nested layout (`model.visual.*`, `model.language_model.*`) to the flat one."""
    for prefix, short in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if name.startswith(prefix):
            return short + name.removeprefix(prefix)
    return name
