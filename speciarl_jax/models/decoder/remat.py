"""What of each layer is kept for the backward pass, which computes the rest again."""

from collections.abc import Callable

import jax

# Name -> policy of what is kept. None: all.
KINDS = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    # Results of the linear layers; not the attention scores, which grow with the square.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def policy(name: str) -> Callable | None:
    """Returns the member of `jax.checkpoint_policies` that `KINDS` calls `name`.

    Raises:
      ValueError: no such name.
    """
    if name not in KINDS:
        raise ValueError(f"config.train.remat is {name!r}; choose one of {tuple(KINDS)}")
    return KINDS[name]
