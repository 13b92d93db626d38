"""One step around a host verifier, without a model: every value tells where it comes from.

`python judged_step.py` checks it on several meshes of eight devices.
"""

import concurrent.futures
import types

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.rollout.types import Rollout
from speciarl_jax.runtime import sharding, step_timer
from speciarl_jax.training import host_verified_step
from speciarl_jax.verifiers.base import HostVerifier, Verdicts
from speciarl_jax.verifiers.category import Category

IMAGES, ANSWERS, TOKENS, PADDED, STEP, LORA = 8, 3, 4, 2, 7, 5


def opinion(text, label):
    """Some category."""
    return (sum(map(ord, text)) + label) % 7 - 1


class FunctionVerifier(HostVerifier):
    """Has an opinion at once, and on some texts none."""

    def __init__(self, unknown=()):
        self.unknown, self.texts = unknown, []

    def submit(self, responses, label_index):
        self.texts += [text for group in responses for text in group]
        shape = (len(responses), ANSWERS)
        rows = zip(responses, label_index, strict=True)
        category = [[opinion(text, label) for text in group] for group, label in rows]
        category = np.array(category, np.int32).reshape(shape)
        valid = [text not in self.unknown for group in responses for text in group]
        future = concurrent.futures.Future()
        # High categories were in the cache, the others took half a second.
        seconds = np.where(category > 2, np.nan, 0.5)
        found = Verdicts(category, np.array(valid, bool).reshape(shape), category > 2, seconds)
        future.set_result(found)
        return future

    def errors(self):
        return "the judge is ill"

    def close(self):
        pass


@flax.struct.dataclass
class State:
    """A state whose adapters are one number."""

    lora: jax.Array


def rollout_of(lora, base, batch, number):
    """Tokens that tell the image, the answer, the step and the adapters."""
    image = batch.image_id_B[:, None, None].astype(jnp.int32)
    token = image * 100 + jnp.arange(ANSWERS)[:, None] * 10 + number.astype(jnp.int32) + lora
    tokens_BNT = jnp.broadcast_to(token, (image.shape[0], ANSWERS, TOKENS))
    mask_BNT = jnp.broadcast_to(jnp.arange(TOKENS) < 2, tokens_BNT.shape)
    rollout = Rollout(tokens_BNT=tokens_BNT, mask_BNT=mask_BNT, logp_BNT=tokens_BNT * 0.5)
    return tokens_BNT[..., 0] * 2.0, rollout


def learn(state, base, groups):
    """Hands back all that it was given, as metrics."""
    rollout = groups.rollout
    given = {"features": groups.features_BMD, "tokens": rollout.tokens_BNT}
    given |= {"logp": rollout.logp_BNT, "category": groups.category_BN, "valid": groups.valid_BN}
    return State(state.lora + 1), given


def answers(tokens_BNT, mask_BNT):
    """Numbers as text."""
    return [
        [" ".join(map(str, tokens[mask])) for tokens, mask in zip(*group, strict=True)]
        for group in zip(tokens_BNT, mask_BNT, strict=True)
    ]


def batch_of(image_ids):
    """A batch of these images; the last `PADDED` rows pad it."""
    number = np.arange(len(image_ids))
    fields = dict.fromkeys(PromptBatch.__dataclass_fields__)
    fields |= {
        "image_id_B": np.asarray(image_ids, np.uint32),
        "label_index_B": (number % 3).astype(np.int32),
        "weight_B": (number < len(number) - PADDED).astype(np.float32),
    }
    return PromptBatch(**fields)


def step(mesh, verifier, *, chunks=1, limit=1.0):
    """State before, state after, metrics."""
    options = types.SimpleNamespace(num_chunks=chunks, max_unjudged_fraction=limit)
    fixed = types.SimpleNamespace(dynamic_sampling=types.SimpleNamespace(max_rounds=0))
    config = types.SimpleNamespace(verifier=options, train=fixed)
    run = types.SimpleNamespace(mesh=mesh, verifier=verifier, answers=answers, config=config)
    replicated = sharding.replicated(mesh)
    rollout_program = jax.jit(rollout_of, out_shardings=sharding.batch_sharding(mesh))
    judge = host_verified_step.Judge(run, rollout_program, step_timer.ignore)
    update = jax.jit(learn, donate_argnums=0, out_shardings=(State(replicated), replicated))
    batch = sharding.put_batch(mesh, batch_of(np.arange(IMAGES)))
    before = State(jax.device_put(jnp.int32(LORA), replicated))
    # Before the update: the state is as it was if the judge is unavailable.
    groups, verdicts = judge(before, None, verifier, batch, np.uint32(STEP))
    state, metrics = update(before, None, groups)
    return before, state, metrics | host_verified_step.describe([verdicts])


def check(mesh, chunks):
    """A step on this mesh gives what a count by hand gives."""
    token = np.arange(IMAGES)[:, None] * 100 + np.arange(ANSWERS) * 10 + STEP + LORA
    texts = [[f"{t} {t}" for t in row] for row in token]
    category = np.array([[opinion(text, b % 3) for text in row] for b, row in enumerate(texts)])
    valid = np.ones_like(category, bool)
    real = IMAGES - PADDED
    category[real:], valid[real:], valid[2, 1] = Category.UNPARSED, False, False
    verifier = FunctionVerifier(unknown=(texts[2][1],))
    _, state, metrics = step(mesh, verifier, chunks=chunks)
    want = {"category": category, "valid": valid, "features": token * 2.0}
    for name, value in want.items():
        np.testing.assert_array_equal(np.asarray(metrics[name]), value, err_msg=name)
    np.testing.assert_array_equal(np.asarray(metrics["tokens"][..., 3]), token)
    assert sorted(verifier.texts) == sorted(text for row in texts[:real] for text in row)
    assert int(state.lora) == LORA + 1
    asked = int((category[:real] <= 2).sum())
    assert 0 < asked < real * ANSWERS and metrics["verify/asked"] == asked
    np.testing.assert_allclose(metrics["verify/cache_hits"], 1 - asked / (real * ANSWERS))
    assert metrics["verify/latency_p50"] == metrics["verify/latency_p95"] == 0.5


if __name__ == "__main__":
    for (data, fsdp, tensor), chunks in (
        ((2, 2, 2), 1),
        ((2, 2, 2), 2),
        ((1, 1, 8), 4),
        ((8, 1, 1), 1),
    ):
        check(sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor), chunks)
        print("right", data, fsdp, tensor, chunks)
