"""Supervised fine-tuning of the policy on true labels: the baseline on the same images.

Everything but the completions is as in reinforcement: adapters, optimizer, prompts, data,
checkpoints, evaluation. The completions are not sampled but written from the labels.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speciarl_jax.experiment.run import Run
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.rl.optimizer import Optimizer
from speciarl_jax.rollout import sample_and_verify
from speciarl_jax.rollout.types import Rollout, UpdateBatch
from speciarl_jax.runtime import activation_sharding
from speciarl_jax.training import update as update_lib
from speciarl_jax.training.state import TrainState


def response(row: Mapping[str, Any], template: str) -> str:
    """Writes what the policy shall say about an image.

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
    batch_size: int,
    tokenizer: Any,
    *,
    template: str,
    max_tokens: int,
    end_id: int,
) -> Rollout:
    """Writes one completion about each image, as if it had been sampled; numpy.

    Rows that pad the batch have no token.

    Raises:
      ValueError: as for `response`, or a completion does not fit into `max_tokens`.
    """
    tokens_BNT = np.full((batch_size, 1, max_tokens), end_id, np.int32)
    mask_BNT = np.zeros(tokens_BNT.shape, bool)
    for b, row in enumerate(rows):
        text = response(row, template)
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], end_id]
        if len(ids) > max_tokens:
            raise ValueError(
                f"the completion {text!r} takes {len(ids)} tokens, config.rollout.max_tokens is "
                f"{max_tokens}; raise it, or shorten config.train.target"
            )
        tokens_BNT[b, 0, : len(ids)] = ids
        mask_BNT[b, 0, : len(ids)] = True
    return Rollout(tokens_BNT, mask_BNT, np.zeros(tokens_BNT.shape, np.float32))


def builder(run: Run) -> Callable[[Sequence[Mapping[str, Any]], int], PromptBatch]:
    """Makes `run.build` with a target for every image.

    Raises:
      ValueError: the template does not fit the data set's first row.
    """
    response(run.train_source[0], run.config.train.target)
    write = functools.partial(
        targets,
        tokenizer=run.tokenizer,
        template=run.config.train.target,
        max_tokens=run.config.rollout.max_tokens,
        end_id=run.end_ids[0],
    )

    def build(rows, batch_size):
        return run.build(rows, batch_size).replace(target=write(rows, batch_size))

    return build


def step_of(
    run: Run, optimizer: Optimizer
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Makes (state, base, verifier, batch, key) -> (state, metrics) for batches with targets.

    The loss is the cross-entropy of the completions' tokens, in nats a token. Traceable.
    """
    algorithm = run.algorithm.supervised()
    update = functools.partial(
        update_lib.update,
        algorithm=algorithm,
        graphdef=run.graphdef,
        banned_V=run.banned_V,
        optimizer=optimizer,
    )

    def step(state, base, verifier, batch, key_data):
        del verifier, key_data
        policy = nnx.merge(run.graphdef, state.lora, base)
        whole = UpdateBatch(
            prompt=batch.replace(target=None),
            features_BMD=sample_and_verify.encode(policy, batch),
            rollout=batch.target,
            advantage_BN=jnp.ones((len(batch.weight_B), 1)),
            valid_BN=batch.weight_B[:, None] > 0,
        )
        state, metrics = update_lib.update_on_all(state, base, whole, update, algorithm)
        # Nothing was sampled.
        return state, {k: v for k, v in metrics.items() if not k.startswith("update/sampler_")}

    return activation_sharding.on_mesh(run.mesh, step)
