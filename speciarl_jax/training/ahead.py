"""Samples the batch of the next step while the judge still reads this one's.

    devices   sample 2 | update 1 | sample 3 | update 2 | ...
    judge     1 ------ |          2 ------- |          3 ...

So a batch is sampled by the adapters of one update earlier than in turn. The policy loss takes its
ratio against them (`config.loss.old_logprobs` "rollout"), or weighs by it (`tis_cap`), and
`update/sampler_gap` and `update/sampler_kl` measure how far the two are apart.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from speciarl_jax.training.host_verified_step import HostVerdicts, Judge, Pending
from speciarl_jax.training.state import AheadState, TrainState


class Step:
    """Takes training steps with one batch of rollouts on its way."""

    def __init__(
        self,
        judge: Judge,
        update_program: Callable[..., tuple[TrainState, dict[str, Any]]],
        summarise: Callable[[Sequence[HostVerdicts]], dict[str, Any]],
        steps: int,
    ):
        """Samples nothing yet.

        Args:
          update_program: (state, base, groups) -> (state, metrics).
          summarise: verdicts -> metrics.
          steps: number of the last step, after which nothing is sampled.
        """
        self._judge, self._update, self._summarise = judge, update_program, summarise
        self._steps = steps
        self._pending: Pending | None = None

    def __call__(
        self,
        state: AheadState,
        base: Any,
        verifier: Any,
        next_batch: Callable[[], Any],
        number: Any,
    ) -> tuple[AheadState, dict[str, Any]]:
        """Takes a step.

        Args:
          state: after the step before.
          next_batch: gives the next batch; the first of a process gives that of this step.
          number: of the step.

        Raises:
          host_verification.JudgeUnavailable: too many rollouts have no verdict; `state` is whole.
        """
        del verifier
        pending = self._pending
        if pending is None:
            # A run that goes on samples again what was on its way, from the same adapters.
            pending = self._judge.send(state.behaviour, base, next_batch(), number)
        self._pending = None
        if number < self._steps:
            self._pending = self._judge.send(state.lora, base, next_batch(), number + 1)
        groups, verdicts = self._judge.collect(pending)
        behaviour = jax.tree.map(jnp.copy, state.lora)  # the update may take its buffers
        learned, metrics = self._update(state.without_behaviour(), base, groups)
        return learned.with_behaviour(behaviour), metrics | self._summarise([verdicts])
