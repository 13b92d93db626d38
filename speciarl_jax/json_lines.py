"""JSON-lines files of a training run, which a resumed run goes on with."""

import json
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

_REWRITE_EVERY = 30  # seconds


class JsonLines:
    """Appends rows that have a `step`.

    Nothing can be appended to an object in a bucket: it is written anew, now and then.
    """

    def __init__(self, path: epath.PathLike, first_step: int):
        """Opens the file.

        Args:
          path: of the file, or a URL (gs://...).
          first_step: rows of this step and later are dropped, and what a kill cut short.
        """
        self._path, self._rows = epath.Path(path), []
        if self._path.exists():
            rows = self._path.read_text().splitlines()
            self._rows = [row for row in rows if _step(row) is not None and _step(row) < first_step]
            self._rewrite()
        self._file = None if "://" in str(path) else self._path.open("a")
        self._written = time.monotonic()

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends one row."""
        line = json.dumps(row)
        if self._file:
            self._file.write(line + "\n")
            self._file.flush()
            return
        self._rows.append(line)
        if time.monotonic() - self._written > _REWRITE_EVERY:
            self._rewrite()

    def flush(self) -> None:
        """Returns when all rows are written: before a checkpoint, or a killed run loses some."""
        if not self._file:
            self._rewrite()

    def close(self) -> None:
        """Flushes."""
        self.flush()
        if self._file:
            self._file.close()

    def _rewrite(self) -> None:
        self._path.write_text("".join(row + "\n" for row in self._rows))
        self._written = time.monotonic()


def _step(row: str) -> int | None:
    """The step of a row, or None for one that a kill cut short."""
    try:
        return json.loads(row)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
