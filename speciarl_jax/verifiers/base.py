"""The two kinds of verifiers, and the contract of those that live outside of compiled programs.

An *in-graph* verifier is a pytree with a traceable `verify(tokens_BNT, mask_BNT, label_index_B)`.
If it knows more than the verdicts, it also has `verify_in_detail`, which returns `InGraphVerdicts`.
A *host* verifier is an instance of `HostVerifier`: it is handed text and answers later. Callers
tell them apart by this type and by nothing else.
"""

import abc
import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np


class InGraphVerdicts(NamedTuple):
    """Verdicts of a verifier inside a program; arrays on the devices.

    Attributes:
      category_BN: int32 `Category`.
      valid_BN: bool, a verdict exists.
      probability_BN: float32 probability of the likeliest verdict; NaN where no judge was asked.
        None if this verifier has no probabilities.
      matched_BN: bool, a label tree decided: the answer equals one of its names, declines, or
        cannot be read. None if no tree was asked.
      answer_BN: uint32, equal for answers that say the same; 0 where none can be read. None if this
        verifier does not tell; then completions are compared as they are.
      base_rate_BN: float32, the share of the training images for which the answer would be right,
        whatever this image shows. None if the verifier was not told the labels of training.
      category_BNF: int8 `Category` if label F were the true one, for rows without a label as well.
        None if the verifier was not told to judge for all labels.
    """

    category_BN: jax.Array
    valid_BN: jax.Array
    probability_BN: jax.Array | None = None
    matched_BN: jax.Array | None = None
    answer_BN: jax.Array | None = None
    base_rate_BN: jax.Array | None = None
    category_BNF: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """Verdicts on N responses about each of B images; numpy arrays.

    Attributes:
      category_BN: int32 `Category`; `UNPARSED` where there is no verdict.
      valid_BN: bool, a verdict exists.
      cached_BN: bool, it was in the cache.
      seconds_BN: float32, from the first request to the verdict, retries and waits included; NaN
        where nothing was asked for this answer. Failures are no requests that count here.
      probability_BN: float32 probability of the likeliest verdict; NaN where the judge was not
        asked. None if this verifier has no probabilities.
      matched_BN: bool, a label tree decided, as in `InGraphVerdicts`. None if no tree was asked.
      answer_BN: uint32, `parsing.answer_number`; verifiers leave it None.
    """

    category_BN: np.ndarray
    valid_BN: np.ndarray
    cached_BN: np.ndarray
    seconds_BN: np.ndarray
    probability_BN: np.ndarray | None = None
    matched_BN: np.ndarray | None = None
    answer_BN: np.ndarray | None = None


class HostVerifier(abc.ABC):
    """A verifier outside of compiled programs; for instance, a judge behind HTTP."""

    @abc.abstractmethod
    def submit(
        self, responses: Sequence[Sequence[str]], label_index: Sequence[int]
    ) -> concurrent.futures.Future[Verdicts]:
        """Starts judging and returns at once.

        Args:
          responses: N texts about each of B images; whole responses, tags included.
          label_index: of the true label of each image.

        Returns:
          A future. What cannot be judged is not valid; a judge's failure raises nothing.
        """

    def check(self) -> None:  # noqa: B027
        """Makes sure that the verifier can be asked, before anything is computed.

        Raises:
          ValueError: its configuration does not fit; says how to mend it.
        """

    @abc.abstractmethod
    def errors(self) -> str:
        """What went wrong since the last call, for people; "" for nothing."""

    @abc.abstractmethod
    def close(self) -> None:
        """Frees threads, connections and files."""
