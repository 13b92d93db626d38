"""Answers and verdicts of an evaluation on disk, appended as they come and kept after a kill.

`predictions.jsonl` has a line for each policy, data set, prompt, decoding and image:

    {... the image's row ..., "index": 0, "policy": "base", "data": "emoji", "prompt": "base",
     "decoding": "greedy", "responses": ["..."], "categories": ["specific"]}

`predictions_provenance.json` holds the provenance of each part (`evaluation/provenance.py`); a part
of another provenance is refused. `predictions_configs.json` holds the latest whole configuration of
each data set. A line that a kill cut short is dropped.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from speciarl_jax.runtime import fingerprint, jsonl, renamed
from speciarl_jax.verifiers.category import Category

LINES, PROVENANCE = "predictions.jsonl", "predictions_provenance.json"
CONFIGS = "predictions_configs.json"
GREEDY, SAMPLES = "greedy", "samples"
# What a provenance says of the contents of the images. Earlier versions did not record it.
CONTENTS = "image_contents"
# In place of the category of an answer without a verdict.
UNVERIFIED = "unverified"
# In place of the weights in the provenance of a policy whose answers were given in a file: the
# digest of that file.
GIVEN = "answers"
_BY_NAME = {c.name.lower(): c for c in Category}


class Part(NamedTuple):
    """One pass over a data set. Its lines have the same fields."""

    policy: str
    data: str
    prompt: str
    decoding: str

    def __str__(self) -> str:
        return "/".join(self)


_FIELDS = (*Part._fields, "index", "responses", "categories")  # of a line
_ONCE = jsonl.Once(
    lambda line: f"image {line['index']} of {part_of(line)}",
    "delete all lines of that part, or the file, and start what wrote them again; it answers anew",
)


def names_of(category_N: np.ndarray, valid_N: np.ndarray) -> list[str]:
    """Returns lower-case names of categories; `UNVERIFIED` where there is no verdict."""
    return [
        Category(int(c)).name.lower() if known else UNVERIFIED
        for c, known in zip(category_N, valid_N, strict=True)
    ]


def verified(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the lines all of whose answers have a verdict."""
    return [line for line in lines if UNVERIFIED not in line["categories"]]


def categories(lines: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Returns int32 [B, N] `Category` of B lines with N verdicts each."""
    rows = [[_BY_NAME[name] for name in line["categories"]] for line in lines]
    return np.array(rows, np.int32).reshape(len(rows), -1)


def part_of(line: Mapping[str, Any]) -> Part:
    """Returns the part that a line belongs to."""
    return Part(*(line[name] for name in Part._fields))


class Predictions:
    """Lines of a folder. Only one process may write at a time.

    Attributes:
      provenance: name of a part -> its provenance.
    """

    def __init__(self, folder: str | os.PathLike):
        """Reads the folder, and cuts off an incomplete last line.

        Args:
          folder: an existing folder, or a URL (gs://...); may hold nothing yet.

        Raises:
          ValueError: a whole line is damaged, or two are about one image of a part; names them.
        """
        self._folder = epath.Path(folder)
        self.provenance, self._configs = read_provenance(folder), read_configs(folder)
        self._all: list[dict[str, Any]] = []
        path = self._folder / LINES
        self._file = jsonl.GrowingFile(path, self._text)
        if path.exists():
            content = path.read_bytes()
            self._all = jsonl.parse(content, path, _FIELDS, _ONCE)
            if content and not content.endswith(b"\n"):
                self.rewrite()
        self._parts = _grouped(self._all)

    def parts(self) -> dict[Part, list[dict[str, Any]]]:
        """Returns the lines of each part, in the order of the file."""
        return self._parts

    def lines(self, part: Part) -> list[dict[str, Any]]:
        """Returns the lines of a part."""
        return self._parts.get(part, [])

    def begin(
        self,
        part: Part,
        provenance: Mapping[str, Any],
        *,
        overwrite: bool = False,
        anew: bool = False,
    ) -> int:
        """Opens a part, new or to be continued, and returns the `index` after its last line.

        Greedy answers and samples of the same policy, data set and prompt share a row of
        `metrics.json`, so they may differ in nothing but "sampling". Other parts of the same policy
        must have the same "policy".

        Args:
          provenance: of its answers; JSON-able.
          overwrite: whether to drop the lines that conflict with `provenance`.
          anew: whether to drop the lines of this part in any case.

        Raises:
          ValueError: lines conflict with `provenance`, and `overwrite` is not set; says how.
        """
        now = json.loads(json.dumps(provenance))
        stale = {
            other: found for other in self._parts if (found := self._conflict(other, part, now))
        }
        if stale and not overwrite:
            other, found = next(iter(stale.items()))
            raise ValueError(
                f"{self._folder / LINES} holds answers of {other} that were made with something "
                f"else (there -> now):\n{fingerprint.diff(found)}\n"
                "give another --workdir, or --overwrite to replace them"
            )
        if anew and part in self._parts:
            stale[part] = {}
        if stale:
            self._all = [line for line in self._all if part_of(line) not in stale]
            self._parts = _grouped(self._all)
            self.rewrite()
        if self.provenance.get(str(part)) != now:
            self.provenance[str(part)] = now
            text = json.dumps(self.provenance, indent=1, sort_keys=True) + "\n"
            jsonl.replace(self._folder / PROVENANCE, text)
        return self.lines(part)[-1]["index"] + 1 if self.lines(part) else 0

    def _conflict(self, other: Part, part: Part, now: Mapping[str, Any]) -> dict[str, tuple]:
        """Returns how the provenance of `other` differs from what lines beside `part` must have."""
        if other.policy != part.policy:
            return {}
        saved = self.provenance.get(str(other), {})
        if other[:3] != part[:3]:
            return fingerprint.differences(saved.get("policy"), now.get("policy"), "policy")
        if saved and CONTENTS not in saved:
            now = {key: value for key, value in now.items() if key != CONTENTS}
        found = fingerprint.differences(saved, now)
        if other == part:
            return found
        return {key: both for key, both in found.items() if key.split(".")[0] != "sampling"}

    def keep_config(self, data: str, config: Mapping[str, Any]) -> None:
        """Writes the configuration (JSON-able) that a data set is evaluated with."""
        if self._configs.get(data) != config:
            self._configs.pop(data, None)  # the latest comes last
            self._configs[data] = config
            jsonl.replace(self._folder / CONFIGS, json.dumps(self._configs, indent=1) + "\n")

    def append(self, part: Part, lines: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines of a part and hands them to the operating system, so that a kill keeps them.

        In a bucket they are written later, at the latest by `flush` (`jsonl.GrowingFile`).
        """
        last = ("responses", "categories")  # where people look for them
        new = []
        for line in lines:
            first = {key: value for key, value in line.items() if key not in last}
            new.append(first | part._asdict() | {key: line[key] for key in last})
        self._all += new
        self._parts.setdefault(part, []).extend(new)
        self._file.add("".join(map(jsonl.line_of, new)))

    def flush(self) -> None:
        """Waits until all lines are written."""
        self._file.flush()

    def rewrite(self) -> None:
        """Writes the file anew, after lines were changed in place."""
        self._file.rewrite()

    def _text(self) -> str:
        return "".join(map(jsonl.line_of, self._all))


def is_given(provenance: Mapping[str, Any]) -> bool:
    """Whether this is the provenance of answers that were given in a file."""
    policy = provenance.get("policy")
    return isinstance(policy, Mapping) and GIVEN in policy


def read(folder: str | os.PathLike) -> dict[Part, list[dict[str, Any]]]:
    """Reads the lines of each part without writing; an incomplete last line is left out.

    Raises:
      ValueError: a whole line is damaged, or two are about one image of a part; names them.
    """
    return _grouped(jsonl.read(epath.Path(folder) / LINES, _FIELDS, _ONCE))


def read_provenance(folder: str | os.PathLike) -> dict[str, Any]:
    """Reads the provenance of each part of a folder; empty where the folder has none.

    Raises:
      ValueError: the file is damaged.
    """
    path = epath.Path(folder) / PROVENANCE
    if not path.exists():
        path = path.with_name(renamed.FILES[PROVENANCE])
    remedy = f"delete it and {LINES} beside it, and start again"
    return renamed.results(jsonl.read_object(path, remedy))


def read_configs(folder: str | os.PathLike) -> dict[str, Any]:
    """Reads data set -> its latest configuration, the latest last; empty where there is none.

    Raises:
      ValueError: the file is damaged.
    """
    found = jsonl.read_object(epath.Path(folder) / CONFIGS, "delete it, and start again")
    return {data: renamed.config(config) for data, config in found.items()}


def _grouped(lines: Iterable[dict[str, Any]]) -> dict[Part, list[dict[str, Any]]]:
    parts: dict[Part, list[dict[str, Any]]] = {}
    for line in lines:
        parts.setdefault(part_of(line), []).append(line)
    return parts
