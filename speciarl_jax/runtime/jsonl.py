"""JSON files that outlive a kill, in a folder or in a bucket (gs://...): lines, and objects."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

# An object in a bucket is written anew as a whole: at most once in so many seconds, and at most
# once in so many times the seconds that the last writing took.
_REWRITE_EVERY, _REST = 30, 20


class Once(NamedTuple):
    """What may stand in a file once only.

    Attributes:
      name: of what a row is about; None where it does not matter.
      remedy: what to do about two rows.
    """

    name: Callable[[Mapping[str, Any]], str | None]
    remedy: str


def _step_of(row: Mapping[str, Any]) -> str | None:
    """Names the step of a row of metrics; a row of a validation is one of its own."""
    if "step" not in row:
        return None
    validation = any(name.startswith("validation/") for name in row)
    return f"the validation of step {row['step']}" if validation else f"step {row['step']}"


# For rows of metrics.
STEPS = Once(_step_of, "leave one row of each step, and delete the others")


def read(
    path: epath.PathLike, fields: Sequence[str] = (), once: Once | None = None
) -> list[dict[str, Any]]:
    """Reads the rows of a file; none where it is missing. A row that a kill cut short is left out.

    Args:
      path: of the file, or a URL.
      fields: that each row must have.
      once: what no two rows may be about.

    Raises:
      ValueError: a whole line is damaged, or two lines are about the same; names them.
    """
    path = epath.Path(path)
    return parse(path.read_bytes(), path, fields, once) if path.exists() else []


def parse(
    content: bytes, path: epath.Path, fields: Sequence[str] = (), once: Once | None = None
) -> list[dict[str, Any]]:
    """Reads the rows of `content`, which is that of `path`; as `read` does."""
    rows, lines = [], {}
    # Not splitlines: a model may say U+2028, which ends no line of JSON.
    for number, line in enumerate(content.decode("utf-8", "replace").split("\n")[:-1], 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=lambda name: None)
            if not isinstance(row, dict) or not set(fields) <= row.keys():
                raise ValueError(f"it is no object with {list(fields)}")
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is damaged ({error}); delete the file, or this line and "
                "those after it"
            ) from None
        name = None if once is None else once.name(row)
        if name is not None and lines.setdefault(name, number) != number:
            raise ValueError(
                f"{path}, lines {lines[name]} and {number} are both about {name}; two programs "
                f"wrote there at once, and figures from this file would be wrong: {once.remedy}"
            )
        rows.append(row)
    return rows


def line_of(row: Mapping[str, Any]) -> str:
    """Writes a row as a line of JSON, which has no NaN: what is not finite becomes null."""
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def read_object(path: epath.PathLike, remedy: str) -> dict[str, Any]:
    """Reads a file that is one JSON object; empty where it is missing.

    Raises:
      ValueError: it is no JSON; names it, with the remedy.
    """
    path = epath.Path(path)
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); {remedy}") from None


def replace(path: epath.PathLike, text: str) -> None:
    """Writes a file so that a kill leaves the old or the new one."""
    path = epath.Path(path)
    if _in_bucket(path):  # where an object appears when all of it is there
        path.write_text(text, encoding="utf-8")
        return
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


class GrowingFile:
    """A file that lines are added to.

    In a folder they are appended at once. Nothing can be appended to an object in a bucket: it is
    written anew now and then, so that the time for it stays a small share however long it grows.

    Attributes:
      in_bucket: it is such an object.
    """

    def __init__(self, path: epath.PathLike, whole: Callable[[], str]):
        """Writes nothing yet.

        Args:
          path: of the file, or a URL.
          whole: returns the text of all lines, those that were added last included.
        """
        self._path, self._whole = epath.Path(path), whole
        self.in_bucket = _in_bucket(self._path)
        self._waiting, self._next = False, time.monotonic() + _REWRITE_EVERY

    def add(self, text: str) -> None:
        """Adds whole lines, which `whole` has already."""
        if not self.in_bucket:
            with self._path.open("a") as file:
                file.write(text)
            return
        self._waiting = True
        if time.monotonic() >= self._next:
            self.rewrite()

    def flush(self) -> None:
        """Returns when all lines are written."""
        if self._waiting:
            self.rewrite()

    def rewrite(self) -> None:
        """Writes all lines anew."""
        begun = time.monotonic()
        replace(self._path, self._whole())
        ended = time.monotonic()
        self._waiting = False
        self._next = ended + max(_REWRITE_EVERY, _REST * (ended - begun))


class JsonLines:
    """Adds rows that have a `step`; a resumed run goes on with them."""

    def __init__(
        self,
        path: epath.PathLike,
        first_step: int,
        written_again: Callable[[Mapping[str, Any]], bool] = lambda row: False,
        *,
        once: bool = False,
    ):
        """Opens the file.

        Args:
          path: of the file, or a URL (gs://...).
          first_step: rows of this step and later are dropped, and a row that a kill cut short.
          written_again: tells of an earlier row whether it is dropped, too.
          once: there is one row a step.

        Raises:
          ValueError: `once`, and two of the rows that stay are of one step.
        """
        path = epath.Path(path)
        self._lines: list[str] = []
        self._file = GrowingFile(path, lambda: "".join(self._lines))
        if path.exists():
            content = path.read_text()
            for line in content.split("\n"):
                with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
                    row = json.loads(line)
                    if row["step"] < first_step and not written_again(row):
                        self._lines.append(line + "\n")
            if once:
                parse("".join(self._lines).encode(), path, once=STEPS)
            if "".join(self._lines) != content:
                self._file.rewrite()
        self._file.add("")  # the file is there even if no row comes

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds one row."""
        line = line_of(row)
        if self._file.in_bucket:
            self._lines.append(line)
        self._file.add(line)

    def flush(self) -> None:
        """Returns when all rows are written: before a checkpoint, or a killed run loses some."""
        self._file.flush()


def _in_bucket(path: epath.Path) -> bool:
    return "://" in str(path)
