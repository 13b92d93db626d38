"""The other side of parity tests: batches of this package given to torch models of transformers."""

import math

import numpy as np
import torch
from flax import nnx
from transformers import AutoModelForImageTextToText


def load(folder):
    """A checkpoint folder as transformers reads it, in float32."""
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True)
    return model.float().eval()


def inputs(batch, image_token_id, grids=None):
    """A `PromptBatch` as what the torch model reads.

    `grids`: for each row those of its images, in patches; None for a square image a row.
    """
    patches_BSC = np.asarray(batch.patches_BSC)
    if grids is None:
        side = math.isqrt(patches_BSC.shape[1])
        grids = [[(side, side)]] * len(patches_BSC)
    tokens = torch.tensor(np.asarray(batch.tokens_BP)).long()
    found = {
        "input_ids": tokens,
        "attention_mask": torch.tensor(np.asarray(batch.mask_BP)).long(),
        "mm_token_type_ids": (tokens == image_token_id).int(),
    }
    if any(grids):
        counts = [sum(h * w for h, w in row) for row in grids]
        rows = [row[:count] for row, count in zip(patches_BSC, counts, strict=True)]
        found["pixel_values"] = torch.tensor(np.concatenate(rows))
        found["image_grid_thw"] = torch.tensor([(1, h, w) for row in grids for h, w in row])
    return found


def logits(model, batch, image_token_id):
    """float32 logits [B, P, V] of the prompts by the torch model."""
    with torch.no_grad():
        return model(**inputs(batch, image_token_id)).logits.numpy()


def our_logits(policy, batch):
    """The same by ours."""

    @nnx.jit
    def run(policy, batch):
        features = policy.encode_images(batch.patches_BSC, batch.layout)
        positions = batch.positions_B3P.swapaxes(0, 1)
        return policy(batch.tokens_BP, positions, batch.mask_BP, features)

    return np.asarray(run(policy, batch))


def assert_close(got, want):
    """Within 1e-4 of the largest logit."""
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
