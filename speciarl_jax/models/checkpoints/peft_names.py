"""Names in PEFT's adapters: of their tensors, and of the modules that they are meant for."""

import pathlib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from speciarl_jax.models.checkpoints.hf_names import DECODER_LINEARS

# Layers of the language model, as this package and transformers since 4.52 call them.
PREFIX, LAYERS = "base_model.model.", "model.language_model.layers."
# The same in other versions and classes of transformers.
_SPELLINGS = (
    *(LAYERS, "model.layers.", "language_model.model.layers.", "language_model.layers."),
    "layers.",
)
_MODULES = "|".join(re.escape(module) for module in DECODER_LINEARS.values())
# PEFT's own files have `PREFIX` and end in `.weight`. The state of a model that is being trained
# has the adapter's name (`default`) before that, and those of wrappers in front.
_TENSOR = re.compile(
    r"(?:(?:module|_orig_mod|base_model|model|language_model)\.)*layers\.(?P<layer>\d+)\."
    rf"(?P<module>{_MODULES})\.lora_(?P<half>[AB])(?:\.(?!weight$)\w+)?(?:\.weight)?"
)


def tensor_name(layer: int, module: str, half: str) -> str:
    """Returns PEFT's name of one half, "A" or "B", of a module's adapter."""
    return f"{PREFIX}{LAYERS}{layer}.{module}.lora_{half}.weight"


def published(name: str) -> str:
    """Returns PEFT's name of a tensor of the language model, however it is spelled; else `name`."""
    found = _TENSOR.fullmatch(name)
    return tensor_name(int(found["layer"]), found["module"], found["half"]) if found else name


def check_targets(
    path: pathlib.Path,
    settings: Mapping[str, Any],
    present: Collection[tuple[int, str]],
    every: Iterable[tuple[int, str]],
) -> None:
    """Refuses adapters whose tensors are not those of the modules that their settings name.

    Args:
      path: of the settings.
      settings: parsed `adapter_config.json`; without `target_modules` nothing is compared.
      present: layers and modules that have tensors.
      every: all layers and modules of the language model.

    Raises:
      ValueError: they differ, or the settings are of the wrong kind.
    """
    if settings.get("target_modules") in (None, [], ""):
        return
    try:
        meant = {one for one in every if _is_meant(*one, settings)}
    except (re.error, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} has target_modules {settings['target_modules']!r} or options beside it that "
            f"name no modules ({error}); save the adapter again with a current peft"
        ) from None
    for what, wrong in (
        ("names modules without tensors", meant - set(present)),
        ("does not name modules that have tensors", set(present) - meant),
    ):
        if wrong:
            names = sorted(f"layers.{layer}.{module}" for layer, module in wrong)
            raise ValueError(
                f"{path} and the tensors beside it contradict each other: target_modules "
                f"{settings['target_modules']!r} {what}, {names[:3]} ({len(names)} in all); do the "
                "two files belong together?"
            )


def _is_meant(layer: int, module: str, settings: Mapping[str, Any]) -> bool:
    """Says whether PEFT puts an adapter on a module, under any spelling of its name."""
    keys = [f"{spelling}{layer}.{module}" for spelling in _SPELLINGS]
    excluded = settings.get("exclude_modules")
    if excluded and any(_matches(excluded, key) for key in keys):
        return False
    targets, layers = settings["target_modules"], settings.get("layers_to_transform")
    if targets == "all-linear":
        return True
    # A regular expression already says which layers are meant.
    if not isinstance(targets, str) and layers not in (None, []):
        if layer not in ([layers] if isinstance(layers, int) else layers):
            return False
    return any(_matches(targets, key) for key in keys)


def _matches(targets: str | Iterable[str], key: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, key) is not None
    return any(key == target or key.endswith(f".{target}") for target in targets)
