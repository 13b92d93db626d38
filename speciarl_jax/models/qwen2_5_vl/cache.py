"""Keys and values of a shared prompt, and of the answers that follow it."""

import flax.struct
import jax


@flax.struct.dataclass
class PrefixCache:
    """Keys and values of a prompt; one copy serves all of its answers.

    Attributes:
      k_LBPGK: rotated keys of every layer.
      v_LBPGK: values.
      mask_BP: bool, false at padding.
    """

    k_LBPGK: jax.Array
    v_LBPGK: jax.Array
    mask_BP: jax.Array


@flax.struct.dataclass
class SuffixCache:
    """Keys and values of the answers' own tokens; column t holds token t.

    Attributes:
      k_LBNTGK: rotated keys of every layer.
      v_LBNTGK: values.
    """

    k_LBNTGK: jax.Array
    v_LBNTGK: jax.Array
