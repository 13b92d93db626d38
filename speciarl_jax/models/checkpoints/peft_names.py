"""Names in PEFT's adapters: of their tensors, and of the modules that they are meant for."""

import pathlib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from speciarl_jax.models import lora
from speciarl_jax.models.checkpoints.hf_names import DECODER_LINEARS

# Roots of the modules, as this package and transformers since 4.52 call them.
PREFIX, LAYERS, VISUAL = "base_model.model.", "model.language_model.layers.", "model.visual."
# The same in other versions and classes of transformers.
_SPELLINGS = {
    LAYERS: (
        *(LAYERS, "model.layers.", "language_model.model.layers.", "language_model.layers."),
        "layers.",
    ),
    VISUAL: (VISUAL, "visual."),
}
_MODULES = "|".join(re.escape(module) for module in DECODER_LINEARS.values())
# PEFT's own files have `PREFIX` and end in `.weight`. The state of a model that is being trained
# has the adapter's name (`default`) before that, and those of wrappers in front.
_HALF = r"\.lora_(?P<half>[AB])(?:\.(?!weight$)\w+)?(?:\.weight)?"
_TENSORS = {
    LAYERS: re.compile(
        r"(?:(?:module|_orig_mod|base_model|model|language_model)\.)*layers\."
        rf"(?P<module>\d+\.(?:{_MODULES})){_HALF}"
    ),
    VISUAL: re.compile(
        rf"(?:(?:module|_orig_mod|base_model|model)\.)*visual\.(?P<module>[\w.]+?){_HALF}"
    ),
}


def decoder_module(layer: int, linear: str) -> str:
    """Returns the name of a linear layer of the language model, one of `DECODER_LINEARS`."""
    return f"{LAYERS}{layer}.{DECODER_LINEARS[linear]}"


def tensor_name(module: str, half: str) -> str:
    """Returns PEFT's name of one half, "A" or "B", of a module's adapter."""
    return f"{PREFIX}{module}.lora_{half}.weight"


def published(name: str) -> str:
    """Returns PEFT's name of the half of an adapter, however it is spelled; else `name`."""
    for root, pattern in _TENSORS.items():
        if found := pattern.fullmatch(name):
            return tensor_name(f"{root}{found['module']}", found["half"])
    return name


def targets(modules: Iterable[str]) -> str:
    """Writes a regular expression over whole module names; numbers of layers may be any.

    A list of last parts would not do: both halves of a model have a `gate_proj`, for instance.
    """
    forms = {re.sub(r"\.\d+\.", ".N.", module) for module in modules}
    return "|".join(re.escape(form).replace(r"\.N\.", r"\.\d+\.") for form in sorted(forms))


def targets_of(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the parts of a policy, as in `lora.TARGETS`, that tensors of these names adapt."""
    visual = f"{PREFIX}{VISUAL}"
    found = {
        "decoder" if not name.startswith(visual) else "encoder" if ".blocks." in name else "merger"
        for name in map(published, names)
    }
    return tuple(target for target in lora.TARGETS if target in found)


def check_targets(
    path: pathlib.Path,
    settings: Mapping[str, Any],
    present: Collection[str],
    every: Iterable[str],
) -> None:
    """Refuses adapters whose tensors are not those of the modules that their settings name.

    Args:
      path: of the settings.
      settings: parsed `adapter_config.json`; without `target_modules` nothing is compared.
      present: names of the modules that have tensors.
      every: names of all modules of the parts that have some.

    Raises:
      ValueError: they differ, or the settings are of the wrong kind.
    """
    if settings.get("target_modules") in (None, [], ""):
        return
    try:
        meant = {one for one in every if _is_meant(one, settings)}
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
            names = sorted(one.removeprefix("model.language_model.") for one in wrong)
            raise ValueError(
                f"{path} and the tensors beside it contradict each other: target_modules "
                f"{settings['target_modules']!r} {what}, {names[:3]} ({len(names)} in all); do the "
                "two files belong together?"
            )


def _is_meant(module: str, settings: Mapping[str, Any]) -> bool:
    """Says whether PEFT puts an adapter on a module, under any spelling of its name."""
    root = next(root for root in _SPELLINGS if module.startswith(root))
    keys = [f"{spelling}{module.removeprefix(root)}" for spelling in _SPELLINGS[root]]
    excluded = settings.get("exclude_modules")
    if excluded and any(_matches(excluded, key) for key in keys):
        return False
    targets, layers = settings["target_modules"], settings.get("layers_to_transform")
    if targets == "all-linear":
        return True
    # A regular expression already says which layers are meant.
    if not isinstance(targets, str) and layers not in (None, []):
        number = re.search(r"\.(\d+)\.", module)
        if not number or int(number[1]) not in ([layers] if isinstance(layers, int) else layers):
            return False
    return any(_matches(targets, key) for key in keys)


def _matches(targets: str | Iterable[str], key: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, key) is not None
    return any(key == target or key.endswith(f".{target}") for target in targets)
