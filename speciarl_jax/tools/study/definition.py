"""What a study is: rows (methods), seeds, image sets, and an optional search for settings.

A study is a Python file with a function `get_study` that returns a `Study`
(configs/studies/quickstart.py is one). As for configurations, text after a colon is its argument
(configs/studies/cifar100.py:narrow).
"""

import ast
import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speciarl_jax.evaluation.metrics import MEASURES
from speciarl_jax.runtime import plugins

Overrides = Mapping[str, Any]  # key of the configuration, "train.steps" for instance -> value
# What the study itself sets.
_OWN = ("seed", "evaluation.sets", "evaluation.in_training", "evaluation.before")


@dataclasses.dataclass(frozen=True)
class Row:
    """A method: a row of the table."""

    name: str
    config: str  # as after --config=: "configs/binary.py:quickstart"
    overrides: Overrides = dataclasses.field(default_factory=dict)
    # False: nothing is trained, and the policy of `config.model.path` is evaluated once, without
    # seeds. With {"data.prompt": "specific"} in `overrides` it is a prompting baseline.
    train: bool = True
    # N samples an image, whose best answer is a row of its own; 0 for none.
    best_of: int = 0
    # Values that are tried: key of the configuration -> its values; all combinations. Needs
    # `Study.search`. Empty: the row is trained as it is.
    search: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Search:
    """How settings are chosen, before the runs that are reported, for all rows that ask for it."""

    trials: int  # runs of each method: the same budget for all
    # Images that decide, like an entry of `Study.sets`; no reported set.
    images: Mapping[str, Any]
    metric: str = "hm"  # or "correctness", "specificity"; larger is better
    # A setting whose share of correct answers is below the base's by more than this is not chosen,
    # unless all are. None: not watched.
    max_correctness_drop: float | None = None
    seed: int = 0  # of the training of trials, and of drawing them from all combinations


@dataclasses.dataclass(frozen=True)
class Study:
    """Methods, each trained with all seeds, and evaluated on all image sets."""

    rows: Sequence[Row]
    seeds: Sequence[int]
    # Name -> differences from `data.options` and `evaluation.options` of the base row ({} for its
    # evaluation images), or "name" and "options" of another data set.
    sets: Mapping[str, Mapping[str, Any]]
    base: str  # row that is not trained: what all others began as
    reference: str  # row that the others are tested against, on the same images and seeds
    overrides: Overrides = dataclasses.field(default_factory=dict)  # of all rows
    search: Search | None = None

    def row(self, name: str) -> Row:
        """Returns the row of this name. ValueError: there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"there is no row {name!r}; rows: {[row.name for row in self.rows]}")


def load(path: str) -> Study:
    """Reads a study from a file, and checks it.

    Raises:
      ValueError: there is no such file, or something in it does not fit; says what.
    """
    name, _, argument = path.partition(":")
    get_study = plugins.from_file(name, "get_study", "study")
    study = get_study(argument) if argument else get_study()
    if not isinstance(study, Study):
        raise ValueError(
            f"get_study of {path} returned a {type(study).__name__}, but must return a Study "
            "(speciarl_jax/tools/study/definition.py)"
        )
    check(study)
    return study


def with_overrides(study: Study, given: Sequence[str]) -> Study:
    """Returns the study with keys of all its configurations changed.

    Args:
      given: "key=value"; a value that is no Python literal is text.

    Raises:
      ValueError: a text without "=", or the study does not fit together any more.
    """
    changes = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ValueError(f"--override={text} is not KEY=VALUE; write data.options.path=FOLDER")
        try:
            changes[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            changes[key] = value
    study = dataclasses.replace(study, overrides={**study.overrides, **changes})
    check(study)
    return study


def folder_of(name: str) -> str:
    """Returns the name of a row as a folder."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("_.")


def check(study: Study) -> None:
    """Refuses a study that does not fit together (ValueError)."""
    names = [row.name for row in study.rows]
    folders = [folder_of(name) for name in names]
    if len(set(folders)) < len(names) or not all(folders):
        raise ValueError(f"two rows have one folder, or a row has none: {folders}")
    if study.row(study.base).train:
        raise ValueError(f"the base {study.base!r} is trained; set train=False in its row")
    study.row(study.reference)
    seeds = list(study.seeds)
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(s, int) for s in seeds):
        raise ValueError(f"seeds are {seeds}; give at least one whole number, each once")
    if not study.sets or not all(re.fullmatch(r"[\w.+-]+", name) for name in study.sets):
        raise ValueError(
            f"sets are {list(study.sets)}; give at least one, named with letters, digits and _.+-"
        )
    for name, overrides in (
        ("the study", study.overrides),
        *((r.name, r.overrides) for r in study.rows),
    ):
        if own := sorted(set(overrides) & set(_OWN)):
            raise ValueError(
                f"{name} overrides {own}, which a study sets itself; give `seeds` and `sets`"
            )
    for row in study.rows:
        if row.search and (study.search is None or not row.train):
            raise ValueError(
                f"row {row.name!r} has values to search, but "
                + ("it is not trained" if not row.train else "the study has no `search`")
            )
    if study.search is not None:
        _check_search(study)


def _check_search(study: Study) -> None:
    search = study.search
    if search.metric not in MEASURES:
        raise ValueError(f"search.metric is {search.metric!r}; choose one of {list(MEASURES)}")
    if same := [name for name, part in study.sets.items() if dict(part) == dict(search.images)]:
        raise ValueError(
            f"search.images are those of the reported set {same[0]!r}; what is reported must not "
            "choose the settings, so give other images"
        )
    for row in study.rows:
        if row.search:
            settings(row, search)


def settings(row: Row, search: Search) -> list[dict[str, Any]]:
    """Lists the settings that are tried for a row: `search.trials` of all combinations.

    Where there are more combinations, they are drawn without replacement by `search.seed`, and
    stand in the order of the combinations.

    Raises:
      ValueError: there are fewer combinations than trials.
    """
    values = [list(values) for values in row.search.values()]
    total = math.prod(map(len, values))
    if total < search.trials:
        raise ValueError(
            f"row {row.name!r} has {total} combinations of {list(row.search)}, but all methods get "
            f"{search.trials} trials; give more values, or fewer trials"
        )
    rng = np.random.default_rng(search.seed)
    drawn = set(rng.choice(total, search.trials, replace=False).tolist())
    every = itertools.product(*values)
    return [dict(zip(row.search, one, strict=True)) for i, one in enumerate(every) if i in drawn]
