"""Checks what a user's own reward, policy loss or verifier returns while its program is traced.

A wrong shape would broadcast, and a wrong dtype would be converted, without a word.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.verifiers.base import InGraphVerdicts, Verdicts
from speciarl_jax.verifiers.category import Category

_KINDS = {"float": jnp.floating, "int": jnp.integer, "bool": jnp.bool_}


def reward(function: Callable[..., Any], name: str) -> Callable[..., jax.Array]:
    """Returns `function`, whose result must be float [B, N] and becomes float32.

    Args:
      function: (category_BN, valid_BN) -> reward_BN.
      name: `config.reward.name`.

    Raises:
      TypeError: when the result is traced: its type, shape or dtype is another.
    """
    where = f"`reward` of speciarl_jax/rl/rewards/{name}.py (config.reward.name)"

    @functools.wraps(function)
    def checked(category_BN, valid_BN):
        found = function(category_BN, valid_BN)
        _check(where, "a reward for each completion", found, "float", category_BN.shape)
        return found.astype(jnp.float32)

    return checked


def policy_loss(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Returns `function`, whose result must be a float loss [B, N, T] and a dict of such metrics.

    Args:
      function: (logp_BNT, old_logp_BNT, advantage_BN, mask_BNT) -> (loss_BNT, metrics).
      name: `config.loss.name`.

    Raises:
      TypeError: when the result is traced: it is no such pair, or a type, shape or dtype is
        another.
    """
    where = f"`policy_loss` of speciarl_jax/rl/losses/{name}.py (config.loss.name)"

    @functools.wraps(function)
    def checked(logp_BNT, old_logp_BNT, advantage_BN, mask_BNT):
        found = function(logp_BNT, old_logp_BNT, advantage_BN, mask_BNT)
        pair = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)
        if not pair:
            raise TypeError(
                f"{where} returned {_described(found)}; return the loss of each token and a dict "
                "of the metrics of each token: loss_BNT, {}"
            )
        loss_BNT, metrics = found
        _check(where, "the loss of each token", loss_BNT, "float", logp_BNT.shape)
        for key, value in metrics.items():
            _check(where, f"the metric {key!r} of each token", value, None, logp_BNT.shape)
        return loss_BNT, metrics

    return checked


def verdicts(found: Any, verifier: Any, shape: tuple[int, int]) -> InGraphVerdicts:
    """Returns what an in-graph verifier returned, after a check of every field.

    Args:
      found: `InGraphVerdicts`, or a pair of category and validity.
      verifier: the verifier, for the message.
      shape: (B, N).

    Raises:
      TypeError: it is neither, or a type, shape or dtype of a field is another.
    """
    where = f"the verifier {type(verifier).__module__}.{type(verifier).__qualname__}"
    if not isinstance(found, tuple) or not 2 <= len(found) <= len(InGraphVerdicts._fields):
        raise TypeError(
            f"{where} returned {_described(found)}; return category_BN and valid_BN, or "
            "InGraphVerdicts (speciarl_jax/verifiers/base.py)"
        )
    found = InGraphVerdicts(*found)
    kinds = ("int", "bool", "float", "bool", "int", "float")
    for field, value, kind in zip(found._fields, found, kinds, strict=False):
        if value is not None or field not in found._field_defaults:
            _check(where, field, value, kind, shape)
    if (of_labels := found.category_BNF) is not None:
        labels = of_labels.shape[-1:] if hasattr(of_labels, "shape") else ()
        _check(where, "category_BNF", of_labels, "int", (*shape, *labels), "BNF")
    return found


def host_verdicts(found: Any, shape: tuple[int, int]) -> Verdicts:
    """Returns what a host verifier's future gave, after a check of every field.

    A category that does not exist counts as no verdict.

    Args:
      found: `Verdicts`.
      shape: (B, N) of the responses that were submitted.

    Raises:
      TypeError: it is something else, or a type, shape or dtype of a field is another.
    """
    where = "the host verifier's future (config.verifier.name)"
    if not isinstance(found, Verdicts):
        raise TypeError(
            f"{where} gave {_described(found)}; give Verdicts (speciarl_jax/verifiers/base.py)"
        )
    kinds = {"category_BN": "int", "valid_BN": "bool", "cached_BN": "bool", "matched_BN": "bool"}
    for field in dataclasses.fields(Verdicts):
        value = getattr(found, field.name)
        if value is not None:
            _check(where, field.name, value, kinds.get(field.name), shape)
    exists_BN = np.isin(found.category_BN, [int(category) for category in Category])
    if exists_BN.all():
        return found
    category_BN = np.where(exists_BN, found.category_BN, int(Category.UNPARSED))
    valid_BN = found.valid_BN & exists_BN
    return dataclasses.replace(found, category_BN=category_BN, valid_BN=valid_BN)


def _check(
    where: str,
    what: str,
    value: Any,
    kind: str | None,
    shape: tuple[int, ...],
    names: str = "BNT",
) -> None:
    """Refuses a value that is no array of this shape and kind; of any number if None.

    Args:
      names: of the axes, for the message.
    """
    array = isinstance(value, jax.Array | np.ndarray)
    right = array and (kind is None or jnp.issubdtype(value.dtype, _KINDS[kind]))
    if not right or value.shape != shape:
        axes = f"[{', '.join(names[: len(shape)])}] = {list(shape)}"
        raise TypeError(
            f"{where} returned {_described(value)} as {what}; return {kind or 'numbers'} {axes}"
        )


def _described(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"a {type(value).__name__}"
