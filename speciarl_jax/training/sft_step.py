"""Supervised fine-tuning of the policy on true labels: the baseline on the same images.

Everything but the answers is as in reinforcement: adapters, optimizer, prompts, data, checkpoints,
evaluation. The answers are not sampled but written from the labels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speciarl_jax.experiment.run import Run
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.rl.losses import likelihood, token_weights
from speciarl_jax.rollout import sample_and_verify
from speciarl_jax.rollout.types import Rollout, UpdateBatch
from speciarl_jax.runtime import sharding
from speciarl_jax.training import build_update, rl_step
from speciarl_jax.training.state import TrainState


def response(row: Mapping[str, Any], template: str) -> str:
    """What the policy shall say about an image.

    Args:
      row: of the data set; `label` is the name of what the image shows.
      template: with fields of the row in braces; `{label}` must be one.

    Raises:
      ValueError: the template has no label, or a field that the row lacks.
    """
    if "{label}" not in template:
        raise ValueError(
            f"config.train.target is {template!r}; put {{label}} where the answer names the label"
        )
    try:
        return template.format_map(row)
    except KeyError as error:
        fields = sorted(key for key in row if key != "image")
        raise ValueError(
            f"config.train.target {template!r} asks for {error}, which the data set's rows lack; "
            f"they have {fields}"
        ) from None


def targets(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    template: str,
    max_tokens: int,
    eos_id: int,
) -> Rollout:
    """One answer about each image, as if it had been sampled; numpy.

    Raises:
      ValueError: as for `response`, or an answer does not fit into `max_tokens`.
    """
    tokens_BNT = np.full((len(rows), 1, max_tokens), eos_id, np.int32)
    mask_BNT = np.zeros(tokens_BNT.shape, bool)
    for b, row in enumerate(rows):
        text = response(row, template)
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], eos_id]
        if len(ids) > max_tokens:
            raise ValueError(
                f"the answer {text!r} takes {len(ids)} tokens, config.rollout.max_tokens is "
                f"{max_tokens}; raise it, or shorten config.train.target"
            )
        tokens_BNT[b, 0, : len(ids)] = ids
        mask_BNT[b, 0, : len(ids)] = True
    return Rollout(tokens_BNT, mask_BNT, np.zeros(tokens_BNT.shape, np.float32))


def builder(run: Run) -> Callable[[Sequence[Mapping[str, Any]], int], PromptBatch]:
    """`run.build`, with a target for every image.

    Raises:
      ValueError: the template does not fit the data set's first row.
    """
    response(run.source(run.config.seed)[0], run.config.train.target)
    options = {
        "template": run.config.train.target,
        "max_tokens": run.config.rollout.max_tokens,
        "eos_id": run.model_config.eos_token_id,
    }

    def build(rows, batch_size):
        padded = [*rows, *[rows[-1]] * (batch_size - len(rows))]
        target = targets(padded, run.tokenizer, **options)
        return run.build(rows, batch_size).replace(target=target)

    return build


def build_step(
    run: Run, optimizer: Any, where: TrainState
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """(state, base, verifier, batch, step) -> (state, metrics), on batches of `builder`.

    The loss is the cross-entropy of the answers' tokens, in nats a token.
    """
    train = run.config.train
    update = build_update.update_of(
        run,
        optimizer,
        policy_loss=likelihood.policy_loss,
        token_weights=token_weights.token_mean,
        temperature=1.0,
        old_logprobs="recomputed",
        tis_cap=0.0,
    )

    def program(state, base, verifier, batch, number):
        del verifier, number
        policy = nnx.merge(run.graphdef, state.lora, base)
        whole = UpdateBatch(
            prompt=batch.replace(target=None),
            features_BMD=sample_and_verify.encode(policy, batch),
            rollout=batch.target,
            advantage_BN=jnp.ones((len(batch.weight_B), 1)),
            valid_BN=batch.weight_B[:, None] > 0,
        )
        state, metrics = rl_step.run_updates(
            state, base, whole, update, train.mini_batches, train.ppo_epochs
        )
        # Nothing was sampled.
        return state, {k: v for k, v in metrics.items() if not k.startswith("update/sampler_")}

    copies = sharding.replicated(run.mesh)
    return jax.jit(program, donate_argnums=0, out_shardings=(where, copies))
