"""Checks the values of a parsed `config.json` as they are read."""

from collections.abc import Mapping
from typing import Any

_REQUIRED = object()


class Section:
    """An object of a parsed `config.json`, or of a file beside it: all of it, or one that it holds.

    A missing key without a default is a KeyError, of which the reader of an architecture makes a
    ValueError. `null` is a value like others, and only `get` accepts it.
    """

    def __init__(self, values: Any, name: str = "", file: str = "config.json"):
        """Takes the object; `name` is its key, empty for all of `file`.

        Raises:
          ValueError: it is no object.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{file} has {name} {values!r}, which must be an object {{...}}")
        self._values, self._name, self._file = values, name, file

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a value unchecked."""
        return self._values.get(key, default)

    def section(self, *keys: str) -> "Section":
        """Returns the object of the first of these keys that holds one, or an empty one.

        Raises:
          ValueError: it is no object.
        """
        for key in keys:
            if self._values.get(key) not in (None, {}):
                return Section(self._values[key], self._path(key), self._file)
        return Section({}, self._path(keys[0]), self._file)

    def whole(self, key: str, default: Any = _REQUIRED, *, least: int = 1) -> int:
        """Returns a whole number.

        Raises:
          KeyError: it is not there and has no default.
          ValueError: it is another thing, or below `least`.
        """
        value = self._find(key, default)
        if type(value) is not int or value < least:
            self._refuse(key, f"a whole number of at least {least}")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """Returns a number above 0; raises as `whole` does."""
        value = self._find(key, default)
        if type(value) not in (int, float) or not value > 0:
            self._refuse(key, "a number above 0")
        return float(value)

    def wholes(self, key: str, default: Any = _REQUIRED) -> tuple[int, ...]:
        """Returns a list of whole numbers of at least 0; raises as `whole` does."""
        value = self._find(key, default)
        if not isinstance(value, list | tuple) or any(type(x) is not int or x < 0 for x in value):
            self._refuse(key, "a list of whole numbers of at least 0")
        return tuple(value)

    def _find(self, key: str, default: Any) -> Any:
        return self._values[key] if default is _REQUIRED else self._values.get(key, default)

    def _refuse(self, key: str, wanted: str) -> None:
        raise ValueError(
            f"{self._file} has {self._path(key)} {self._values[key]!r}, which must be {wanted}; "
            "download it again"
        )

    def _path(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key
