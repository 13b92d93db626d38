"""The runs of a study: configuration, folder and commands of each, without running any."""

import ast
import dataclasses
import functools
import hashlib
import json
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags
from etils import epath
from ml_collections import config_flags

from speciarl_jax.evaluation.predictions import GREEDY, SAMPLES, Part
from speciarl_jax.runtime import fingerprint
from speciarl_jax.tools.study.definition import Row, Study, folder_of, settings

# Number of the evaluation of the base, which no setting is tried in.
BASE_TRIAL = -1
# Name of the images of `Search.images` in results.
VALIDATION = "validation"
# Keys, or beginnings of keys, that change no result: a finished run stays valid with others.
_FREE = (
    *("compilation_cache", "logging.", "evaluation.report", "data.workers", "data.vision_cache."),
    *("checkpoint.save_every", "checkpoint.keep", "train.log_every", "train.profile_steps"),
    *("train.samples_", "train.num_logged_images", "train.num_length_buckets", "mesh."),
    *("rollout.cache_bytes", "rollout.max_images_per_chunk", "evaluation.before"),
    *("verifier.http_judge.cache", "verifier.http_judge.server."),
    *("evaluation.verifier.http_judge.cache", "evaluation.verifier.http_judge.server."),
)


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run: of a row with a seed, or a trial of the search."""

    row: str
    seed: int | None  # None for a row that is not trained
    trial: int | None  # of the search; None for what is reported
    folder: str  # its workdir, relative to the folder of the study
    commands: tuple[tuple[str, ...], ...]  # programs with flags, one after the other
    config: Mapping[str, Any]  # all keys that decide about its results, "train.steps" -> value
    parts: tuple[Part, ...]  # of its predictions
    overrides: Mapping[str, Any]  # of the row and the trial

    @property
    def name(self) -> str:
        """Returns the name, for people."""
        if self.trial == BASE_TRIAL:
            return f"{self.row} on the images of the search"
        if self.trial is not None:
            return f"{self.row}, trial {self.trial}"
        return self.row if self.seed is None else f"{self.row}, seed {self.seed}"

    @property
    def digest(self) -> str:
        """Returns a checksum of `config`."""
        text = json.dumps(self.config, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def shown(self) -> list[str]:
        """Returns the commands as a person would type them."""
        return [f"python -m speciarl_jax.{' '.join(map(_quoted, one))}" for one in self.commands]


class Planner:
    """Makes the runs of a study in a folder."""

    def __init__(self, study: Study, folder: pathlib.Path):
        """Resolves the image sets.

        Raises:
          ValueError: the configuration of the base does not exist, or an override does not fit.
        """
        self.study, self.folder = study, folder
        base = study.row(study.base)
        config, _ = resolve(base.config, {**study.overrides, **base.overrides})
        self._own = (
            config.data.name,
            {**config.data.options.to_dict(), **config.evaluation.options.to_dict()},
        )
        self.sets = {name: self._images(part) for name, part in study.sets.items()}

    def _images(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """Returns an entry of `config.evaluation.sets`."""
        if set(part) == {"name", "options"}:
            return {"name": part["name"], "options": dict(part["options"])}
        name, options = self._own
        return {"name": name, "options": {**options, **part}}

    def reported(self, row: Row, chosen: Mapping[str, Any] | None = None) -> Iterator[Planned]:
        """Yields the runs of a row: one for each seed, or one where nothing is trained.

        Args:
          chosen: setting that the search chose.
        """
        for seed in self.study.seeds if row.train else (None,):
            place = "evaluation" if seed is None else f"seed_{seed}"
            yield self._planned(
                row, dict(chosen or {}), self.sets, seed, f"runs/{folder_of(row.name)}/{place}"
            )

    def trials(self, row: Row) -> Iterator[Planned]:
        """Yields the trials of a row."""
        search = self.study.search
        sets = {VALIDATION: self._images(search.images)}
        for number, setting in enumerate(settings(row, search)):
            place = f"search/{folder_of(row.name)}/trial_{number}"
            bare = dataclasses.replace(row, best_of=0)
            yield self._planned(bare, setting, sets, search.seed, place, number)

    def validated_base(self) -> Planned:
        """Returns the evaluation of the base on the images of the search."""
        row = dataclasses.replace(self.study.row(self.study.base), best_of=0)
        sets = {VALIDATION: self._images(self.study.search.images)}
        return self._planned(
            row, {}, sets, None, f"search/{folder_of(row.name)}/evaluation", BASE_TRIAL
        )

    def _planned(
        self,
        row: Row,
        setting: Mapping[str, Any],
        sets: Mapping[str, Any],
        seed: int | None,
        place: str,
        trial: int | None = None,
    ) -> Planned:
        overrides = {**self.study.overrides, **row.overrides, **setting}
        own: dict[str, Any] = {"evaluation.sets": sets}
        if row.train:
            own |= {"seed": seed, "evaluation.before": False, "evaluation.in_training": "sets"}
            own |= {"evaluation.report": False}
        try:
            config, arguments = resolve(row.config, {**overrides, **own})
        except ValueError as error:
            raise ValueError(f"row {row.name!r}: {error}") from None
        workdir = f"--workdir={self.folder / place}"
        samples = [f"--best_of={row.best_of}"] if row.best_of else []
        commands = [("train" if row.train else "evaluate", *arguments, workdir)]
        if row.train and samples:
            commands.append(("evaluate", workdir, "--policies=trained", *samples))
        elif samples:
            commands[0] += tuple(samples)
        prompt = epath.Path(config.data.prompt).stem
        policy = "trained" if row.train else "base"
        decodings = (GREEDY, SAMPLES) if samples else (GREEDY,)
        parts = tuple(Part(policy, name, prompt, how) for name in sets for how in decodings)
        return Planned(
            row=row.name,
            seed=seed,
            trial=trial,
            folder=place,
            commands=tuple(commands),
            config=flat(config) | ({"best_of": row.best_of} if row.best_of else {}),
            parts=parts,
            overrides={**row.overrides, **setting},
        )


def _quoted(text: str) -> str:
    """Quotes an argument for a shell so that a mapping with quotes in it stays legible."""
    is_plain = "'" in text and not set(text) & set('"$`\\!')
    return f'"{text}"' if is_plain else shlex.quote(text)


def flat(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the keys that decide about results, "section.key" -> JSON-able value."""
    found: dict[str, Any] = {}

    def visit(prefix, value):
        # Sections whose keys are free, such as `options`, may be empty.
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                visit(f"{prefix}.{key}" if prefix else key, inner)
        elif not prefix.startswith(_FREE):
            found[prefix] = value

    visit("", json.loads(config.to_json()))
    return found


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Writes how two results of `flat` differ, one key a line; "" where they do not."""
    return fingerprint.diff(fingerprint.differences(dict(was), dict(now)))


def resolve(
    path: str, overrides: Mapping[str, Any]
) -> tuple[ml_collections.ConfigDict, tuple[str, ...]]:
    """Reads a configuration with overrides as the programs do, from a command line.

    Args:
      path: as after `--config=`.
      overrides: key -> value. A section of free keys (`options`, `evaluation.sets`) is replaced as
        a whole by a mapping.

    Returns:
      The configuration, and the flags.

    Raises:
      ValueError: the file or a key does not exist, or a value cannot be given on a command line.
    """
    key = json.dumps([path, {k: repr(v) for k, v in overrides.items()}])
    return _resolve(path, key, _Box(overrides))


class _Box:
    """Hands a value to a cached function without being part of its key."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Box)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=4096)
def _resolve(path: str, key: str, box: _Box) -> tuple[Any, tuple[str, ...]]:
    bare = _parse((f"--config={path}",))
    # What has the value already needs no flag; None has none.
    wanted = {k: v for k, v in box.value.items() if not _has(bare, k, v)}
    arguments = (f"--config={path}", *(f"--config.{k}={_text(v)}" for k, v in wanted.items()))
    config = _parse(arguments)
    for name, value in wanted.items():
        if not _has(config, name, value):
            raise ValueError(
                f"{name}={value!r} cannot be given on a command line; write it into a "
                "configuration file"
            )
    return config, arguments


def _parse(arguments: Sequence[str]) -> ml_collections.ConfigDict:
    values, argv = flags.FlagValues(), ["study", *arguments]
    config_flags.DEFINE_config_file(
        "config", None, "", flag_values=values, lock_config=True, sys_argv=argv
    )
    try:
        values(argv)
        return values.config
    except (flags.Error, AttributeError, KeyError, OSError, ImportError, TypeError) as error:
        raise ValueError(f"{shlex.join(arguments)}: {error}") from None


def _text(value: Any) -> str:
    if isinstance(value, str | int | float):
        return str(value)
    text = repr(value)
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(
            f"{value!r} is no plain value; use numbers, texts, tuples, dicts"
        ) from None
    return text


def _has(config: ml_collections.ConfigDict, key: str, value: Any) -> bool:
    found: Any = config
    for part in key.split("."):
        if not isinstance(found, ml_collections.ConfigDict) or part not in found:
            return False
        found = found[part]
    if isinstance(found, ml_collections.ConfigDict):
        found = found.to_dict()
    return _plain(found) == _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
