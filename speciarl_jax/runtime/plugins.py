"""Finds the part that a configuration names: the name is the module's, no registry is kept."""

import importlib
import importlib.util
import os
import pathlib
import pkgutil
from typing import Any


def find(room: str, name: str, attribute: str) -> Any:
    """Returns `attribute` of the module `speciarl_jax.<room>.<name>`.

    A new verifier, reward, data set or policy loss is one file in its room with that attribute.

    Args:
      room: a package inside `speciarl_jax` ("verifiers", "rl.rewards", "data", "rl.losses").
      attribute: what the module must define.

    Raises:
      ValueError: there is no such module, or it does not define `attribute`; lists those that do.
    """
    package = importlib.import_module(f"speciarl_jax.{room}")
    modules = {m.name for m in pkgutil.iter_modules(package.__path__)}
    if name in modules:
        found = getattr(importlib.import_module(f"speciarl_jax.{room}.{name}"), attribute, None)
        if found is not None:
            return found
    able = [
        module
        for module in sorted(modules)
        if hasattr(importlib.import_module(f"speciarl_jax.{room}.{module}"), attribute)
    ]
    raise ValueError(
        f"{name!r} is no choice for {room}; choose one of {able}, or add the file "
        f"speciarl_jax/{room.replace('.', '/')}/{name}.py with {attribute!r} in it"
    )


def from_file(path: str | os.PathLike, attribute: str, what: str) -> Any:
    """Runs a Python file, and returns what it defines as `attribute`.

    Args:
      what: the file should be, for messages: "configuration", "study".

    Raises:
      ValueError: there is no such file, or it does not define `attribute`.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"there is no {what} {path}")
    spec = importlib.util.spec_from_file_location(f"{what}_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        raise ValueError(f"{path} is no {what}; it needs a function {attribute}")
    return getattr(module, attribute)
