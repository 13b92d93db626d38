"""The answers and verdicts of an evaluation on disk, written as they come and kept after a kill.

`predictions.jsonl` has a line for each policy, data set, prompt, decoding and image:

    {... the image's row ..., "index": 0, "policy": "base", "data": "emoji", "prompt": "base",
     "decoding": "greedy", "responses": ["..."], "categories": ["specific"]}

`predictions_facts.json` says what each part was made with; a part of another configuration is
refused. `predictions_configs.json` holds the whole configuration that each data set was asked
about with last. A line that a kill cut short is dropped.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from speciarl_jax.runtime import jsonl, renamed
from speciarl_jax.verifiers.category import Category

LINES, FACTS = "predictions.jsonl", "predictions_facts.json"
CONFIGS = "predictions_configs.json"
GREEDY, SAMPLES = "greedy", "samples"
# Stands for the verdict of an answer that has none.
UNVERIFIED = "unverified"
_BY_NAME = {c.name.lower(): c for c in Category}


class Part(NamedTuple):
    """One pass over a data set. The fields are those of its lines."""

    policy: str
    data: str
    prompt: str
    decoding: str

    def __str__(self) -> str:
        return "/".join(self)


_FIELDS = (*Part._fields, "index", "responses", "categories")  # of a line


def names_of(category_N: np.ndarray, valid_N: np.ndarray) -> list[str]:
    """Lower-case names of categories, `UNVERIFIED` where there is no verdict."""
    return [
        Category(int(c)).name.lower() if known else UNVERIFIED
        for c, known in zip(category_N, valid_N, strict=True)
    ]


def verified(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines all of whose answers have a verdict."""
    return [line for line in lines if UNVERIFIED not in line["categories"]]


def categories(lines: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """int32 [B, N] `Category` of lines with verdicts."""
    rows = [[_BY_NAME[name] for name in line["categories"]] for line in lines]
    return np.array(rows, np.int32).reshape(len(rows), -1)


def part_of(line: Mapping[str, Any]) -> Part:
    """The part that a line belongs to."""
    return Part(*(line[name] for name in Part._fields))


class Predictions:
    """The lines of a folder. One process writes; nobody else may write at the same time.

    Attributes:
      facts: name of a part -> what it was made with.
    """

    def __init__(self, folder: str | os.PathLike):
        """Reads what is there, and cuts off a line that is not whole.

        Args:
          folder: exists; may hold nothing yet. Or a URL (gs://...).

        Raises:
          ValueError: a whole line is damaged; names it.
        """
        self._path = epath.Path(folder) / LINES
        self._facts_path = epath.Path(folder) / FACTS
        self._configs_path = epath.Path(folder) / CONFIGS
        self.facts, self._configs = read_facts(folder), read_configs(folder)
        self._all: list[dict[str, Any]] = []
        self._file = jsonl.GrowingFile(self._path, self._text)
        if self._path.exists():
            content = self._path.read_bytes()
            self._all = jsonl.parse(content, self._path, _FIELDS)
            if content and not content.endswith(b"\n"):
                self.rewrite()
        self._parts = _grouped(self._all)

    def parts(self) -> dict[Part, list[dict[str, Any]]]:
        """The lines of each part, in the order of the file."""
        return self._parts

    def lines(self, part: Part) -> list[dict[str, Any]]:
        """The lines of a part."""
        return self._parts.get(part, [])

    def begin(self, part: Part, facts: Mapping[str, Any], *, overwrite: bool = False) -> int:
        """Opens a part, new or to be gone on with.

        Args:
          part: which.
          facts: what it is made with; JSON-able. "policy" is the same in all parts of a policy.
          overwrite: drop what is there of this part, or of its other decoding, if it was made with
            something else, and what is there of another policy under this name.

        Returns:
          The `index` after its last line.

        Raises:
          ValueError: it, another part of its policy, or the other decoding, which shares a row of
            `metrics.json` with it, was made with something else; says what differs.
        """
        facts = json.loads(json.dumps(facts))
        if stale := [other for other in self._parts if self._differing(other, part, facts)]:
            if not overwrite:
                raise ValueError(self._refusal(stale[0], part, facts))
            self._all = [line for line in self._all if part_of(line) not in stale]
            for other in stale:
                del self._parts[other]
            self.rewrite()
        if self.facts.get(str(part)) != facts:
            self.facts[str(part)] = facts
            jsonl.replace(self._facts_path, json.dumps(self.facts, indent=1, sort_keys=True) + "\n")
        return self.lines(part)[-1]["index"] + 1 if self.lines(part) else 0

    def _differing(self, other: Part, part: Part, facts: Mapping[str, Any]) -> dict[str, tuple]:
        """What of a part of the same policy may not differ from this one, and does."""
        if other.policy != part.policy:
            return {}
        known = self.facts.get(str(other), {})
        if other[:3] != part[:3]:
            known, facts = ({"policy": one.get("policy")} for one in (known, facts))
        found = differing(known, facts)
        if other != part:
            found = {key: both for key, both in found.items() if key.split(".")[0] != "sampling"}
        return found

    def _refusal(self, other: Part, part: Part, facts: Mapping[str, Any]) -> str:
        found = self._differing(other, part, facts).items()
        return (
            f"{self._path} holds answers of {other} that were made with something else (there -> "
            "now):\n"
            + "\n".join(f"  {key}: {was!r} -> {now!r}" for key, (was, now) in found)
            + "\ngive another --workdir, or --overwrite to replace them"
        )

    def keep_config(self, data: str, config: Mapping[str, Any]) -> None:
        """Keeps the configuration that a data set is asked about with, as JSON has it."""
        if self._configs.get(data) != config:
            self._configs.pop(data, None)  # the latest comes last
            self._configs[data] = config
            jsonl.replace(self._configs_path, json.dumps(self._configs, indent=1) + "\n")

    def append(self, part: Part, lines: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines of a part and hands them to the system; they outlive this process.

        In a bucket they do so after a while, or when `flush` returns (`jsonl.GrowingFile`).
        """
        new = [dict(line) | part._asdict() for line in lines]
        # The answers last: a line is read by people, too.
        new = [
            {k: v for k, v in line.items() if k not in ("responses", "categories")}
            | {k: line[k] for k in ("responses", "categories")}
            for line in new
        ]
        self._all += new
        self._parts.setdefault(part, []).extend(new)
        self._file.add("".join(json.dumps(line) + "\n" for line in new))

    def flush(self) -> None:
        """Returns when all lines are written."""
        self._file.flush()

    def rewrite(self) -> None:
        """Writes the file anew, after lines were changed in place."""
        self._file.rewrite()

    def _text(self) -> str:
        return "".join(json.dumps(line) + "\n" for line in self._all)


def read(folder: str | os.PathLike) -> dict[Part, list[dict[str, Any]]]:
    """The lines of each part, for one who only reads; a line that is not whole is left out.

    Raises:
      ValueError: a whole line is damaged; names it.
    """
    return _grouped(jsonl.read(epath.Path(folder) / LINES, _FIELDS))


def read_facts(folder: str | os.PathLike) -> dict[str, Any]:
    """What the parts of a folder were made with; empty where it says nothing.

    Raises:
      ValueError: the file is damaged.
    """
    remedy = f"delete it and {LINES} beside it, and start again"
    return renamed.results(jsonl.read_object(epath.Path(folder) / FACTS, remedy))


def read_configs(folder: str | os.PathLike) -> dict[str, Any]:
    """Data set -> the configuration it was asked about with, the latest last; empty where it says
    nothing.

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


def differing(was: Any, now: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two JSON-able values differ: the way there, its keys joined by dots -> both values."""
    if not (isinstance(was, Mapping) and isinstance(now, Mapping)):
        return {} if was == now else {key: (was, now)}
    found = {}
    for name in sorted(was.keys() | now.keys()):
        way = f"{key}.{name}" if key else name
        found |= differing(was.get(name), now.get(name), way)
    return found
