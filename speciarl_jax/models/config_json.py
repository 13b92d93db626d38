"""Values of a parsed `config.json`, each checked as it is read."""

from collections.abc import Mapping
from typing import Any

_REQUIRED = object()


class Section:
    """An object of a parsed `config.json`: the whole of it, or one that it holds.

    A key without a default must be there: its absence is a KeyError, of which the reader of an
    architecture makes a ValueError. `null` is a value like others, and right only for `get`.
    """

    def __init__(self, values: Any, name: str = ""):
        """`name` is the key under which it lies, empty for the whole.

        Raises:
          ValueError: it is no object.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"config.json has {name} {values!r}, which must be an object {{...}}")
        self._values, self._name = values, name

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, default: Any = None) -> Any:
        """What stands there, unchecked."""
        return self._values.get(key, default)

    def section(self, *keys: str) -> "Section":
        """The object under the first of these keys that holds something; an empty one if none does.

        Raises:
          ValueError: it is no object.
        """
        for key in keys:
            if self._values.get(key) not in (None, {}):
                return Section(self._values[key], self._path(key))
        return Section({}, self._path(keys[0]))

    def whole(self, key: str, default: Any = _REQUIRED, *, least: int = 1) -> int:
        """A whole number.

        Raises:
          KeyError: it is not there and has no default.
          ValueError: it is another thing, or below `least`.
        """
        value = self._find(key, default)
        if type(value) is not int or value < least:
            self._refuse(key, f"a whole number of at least {least}")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        """A number above 0; raises as `whole` does."""
        value = self._find(key, default)
        if type(value) not in (int, float) or not value > 0:
            self._refuse(key, "a number above 0")
        return float(value)

    def wholes(self, key: str, default: Any = _REQUIRED) -> tuple[int, ...]:
        """A list of whole numbers of at least 0; raises as `whole` does."""
        value = self._find(key, default)
        if not isinstance(value, list | tuple) or any(type(x) is not int or x < 0 for x in value):
            self._refuse(key, "a list of whole numbers of at least 0")
        return tuple(value)

    def _find(self, key: str, default: Any) -> Any:
        return self._values[key] if default is _REQUIRED else self._values.get(key, default)

    def _refuse(self, key: str, wanted: str) -> None:
        raise ValueError(
            f"config.json has {self._path(key)} {self._values[key]!r}, which must be {wanted}; "
            "download it again"
        )

    def _path(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key
