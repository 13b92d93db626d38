"""What the writers of a run are made from, and how they are chosen, checked and opened."""

import dataclasses
import inspect

import jax
import ml_collections
from etils import epath

from speciarl_jax.runtime import exit_codes, multihost, plugins
from speciarl_jax.runtime.metric_writer import Writer

_ROOM = "training.writers"


@dataclasses.dataclass(frozen=True)
class Target:
    """Says where a writer writes.

    Attributes:
      workdir: of the run.
      config: the whole configuration.
      first_step: that this process writes; a resumed run writes it and later ones again.
    """

    workdir: epath.Path
    config: ml_collections.ConfigDict
    first_step: int = 1

    @property
    def name(self) -> str:
        """The name of the run: that of its workdir."""
        return self.workdir.name

    @property
    def in_bucket(self) -> bool:
        """Whether the workdir is a URL, where nothing can be appended."""
        return "://" in str(self.workdir)


def check(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Refuses writers that do not exist or cannot work here.

    The first process looks, for it alone writes; all must call it together.

    Raises:
      ValueError: says what to install or to change.
    """
    target, said = Target(epath.Path(workdir), config), None
    if jax.process_index() == 0:
        try:
            for name in config.logging.writers:
                create = plugins.find(_ROOM, name, "create")
                getattr(inspect.getmodule(create), "check", lambda target: None)(target)
        except ValueError as error:
            said = str(error)
    if (said := multihost.allgather(said)[0]) is not None:
        raise exit_codes.RefusedByAll(said)


def open_writers(target: Target) -> list[Writer]:
    """Opens the writers of `config.logging.writers`, which `check` has looked at."""
    names = target.config.logging.writers
    return [plugins.find(_ROOM, name, "create")(target) for name in names]
