"""Random small policies with prompts of every kind, and the same model by transformers in torch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_policy
from flax import nnx
from quick_compiler import QUICK

from speciarl_jax.models import family
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.models.decoder.text_config import TextConfig
from speciarl_jax.models.image_tokens import mrope_positions
from speciarl_jax.models.policy_config import PolicyConfig
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.models.qwen2_5_vl import config as qwen2_5_vl
from speciarl_jax.models.qwen3_vl import config as qwen3_vl
from speciarl_jax.models.vision_language import VisionLanguageModel


def quick_jit(function):
    """`nnx.jit` for a pure `function(policy, *arrays)`, quick to compile."""

    @functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
    def run(graphdef, state, *args):
        return function(nnx.merge(graphdef, state), *args)

    return lambda policy, *args: run(*nnx.split(policy), *args)


VOCAB = 64
# Special tokens at the end of the vocabulary; text is drawn from what is before them.
IMAGE, VIDEO, START, END, EOS, PAD = range(VOCAB - 6, VOCAB)
BANNED = np.arange(VOCAB) >= IMAGE
# Family -> one in which no greedy choice of the first 20 seeds is nearly a tie.
STREAMS = {"qwen2_5_vl": 1, "qwen3_vl": 3}
GROUPINGS = ((1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (4, 1), (4, 2), (6, 2), (6, 3))


@dataclasses.dataclass(frozen=True)
class Case:
    """A policy, its twin in torch (both float32), and a batch.

    Attributes:
      grids: for each row of the batch the grids of its images, in patches.
      batch: padded on the left.
    """

    config: PolicyConfig
    policy: VisionLanguageModel
    torch_model: torch.nn.Module
    batch: PromptBatch
    grids: list[list[tuple[int, int]]]

    def padded_right(self) -> PromptBatch:
        """The same rows, padded on the other side."""
        batch, counts = self.batch, self.batch.mask_BP.sum(axis=1)

        def roll(rows):
            return np.stack([np.roll(row, n) for row, n in zip(rows, counts, strict=True)])

        tokens_BP, mask_BP = roll(batch.tokens_BP), roll(batch.mask_BP)
        positions_3BP, following_B = mrope_positions(tokens_BP, mask_BP, self.grids, self.config)
        return batch.replace(
            tokens_BP=tokens_BP,
            mask_BP=mask_BP,
            positions_B3P=positions_3BP.swapaxes(0, 1),
            next_position_B=following_B,
        )

    def torch_inputs(self, batch: PromptBatch) -> dict[str, torch.Tensor]:
        """What the torch model reads; `batch` is `self.batch`, padded on either side."""
        return torch_policy.inputs(batch, IMAGE, self.grids)


# Special tokens of a policy.
TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "eos_token_id": (EOS,),
}


def random_config(rng: np.random.Generator, seed: int, model_type: str) -> PolicyConfig:
    """Dimensions in which every option turns up within a few seeds."""
    return _CONFIGS[model_type](rng, seed)


def _random_section(rng, half: int) -> tuple[int, ...]:
    cuts = np.sort(rng.choice(np.arange(1, half), 2, replace=False))
    return tuple(np.diff([0, *cuts, half]).tolist())


def _qwen2_5_vl(rng: np.random.Generator, seed: int) -> PolicyConfig:
    heads, kv_heads = GROUPINGS[seed % len(GROUPINGS)]
    half = int(rng.integers(3, 9))
    section = _random_section(rng, half)
    depth, vision_heads = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    full = {0: (), 1: tuple(range(depth))}.get(
        seed % 4, tuple(i for i in range(depth) if rng.random() < 0.5)
    )
    patch = int(rng.integers(2, 5))
    return qwen2_5_vl.ModelConfig(
        text=TextConfig(
            vocab_size=VOCAB,
            hidden_size=heads * 2 * half,
            intermediate_size=int(rng.integers(16, 64)),
            num_layers=int(rng.integers(1, 5)),
            num_heads=heads,
            num_kv_heads=kv_heads,
            mrope_section=section,
            rope_theta=float(rng.choice([1e4, 1e6])),
            tie_word_embeddings=bool(seed % 2),
        ),
        vision=qwen2_5_vl.VisionConfig(
            depth=depth,
            hidden_size=vision_heads * 4 * int(rng.integers(2, 5)),
            intermediate_size=int(rng.integers(12, 40)),
            num_heads=vision_heads,
            out_hidden_size=heads * 2 * half,
            patch_size=patch,
            window_size=2 * patch * int(rng.integers(1, 5)),
            full_attention_layers=full,
        ),
        **TOKENS,
    )


def _qwen3_vl(rng: np.random.Generator, seed: int) -> PolicyConfig:
    heads, kv_heads = GROUPINGS[seed % len(GROUPINGS)]
    half, layers = int(rng.integers(3, 9)), int(rng.integers(1, 5))
    # The width is not always heads x head size.
    width = heads * 2 * half + (8 if seed % 3 == 0 else 0)
    depth, vision_heads = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    count = min(seed % 4, depth, layers)
    deepstack = np.sort(rng.choice(depth, count, replace=False)).tolist()
    return qwen3_vl.ModelConfig(
        text=TextConfig(
            vocab_size=VOCAB,
            hidden_size=width,
            intermediate_size=int(rng.integers(16, 64)),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            mrope_section=_random_section(rng, half),
            rope_theta=float(rng.choice([1e4, 5e6])),
            head_dim_override=None if width == heads * 2 * half else 2 * half,
            tie_word_embeddings=bool(seed % 2),
            qkv_bias=False,
            qk_norm=True,
            mrope_interleaved=True,
        ),
        vision=qwen3_vl.VisionConfig(
            depth=depth,
            hidden_size=vision_heads * 4 * int(rng.integers(2, 5)),
            intermediate_size=int(rng.integers(12, 40)),
            num_heads=vision_heads,
            out_hidden_size=width,
            patch_size=int(rng.integers(2, 5)),
            # Smaller and larger than the grids of images.
            num_position_embeddings=int(rng.integers(1, 21)) ** 2,
            deepstack_layers=tuple(deepstack),
        ),
        **TOKENS,
    )


_CONFIGS = {"qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl}


def random_grids(rng: np.random.Generator, rows: int) -> list[list[tuple[int, int]]]:
    """Text-only rows, rows with an image, and rows with several; one row at least has some."""
    counts = [int(rng.integers(0, 4)) for _ in range(rows - 1)] + [int(rng.integers(1, 4))]
    return [
        [tuple(2 * int(side) for side in rng.integers(1, 8, 2)) for _ in range(count)]
        for count in rng.permutation(counts)
    ]


def random_batch(rng, config: PolicyConfig, grids) -> PromptBatch:
    """Text of random length around each image, padded on the left."""
    rows = []
    for row in grids:
        ids = rng.integers(0, IMAGE, rng.integers(2, 12)).tolist()
        for h, w in row:
            ids += [START, *[IMAGE] * (h * w // 4), END]
            ids += rng.integers(0, IMAGE, rng.integers(0, 6)).tolist()
        rows.append([*ids, *rng.integers(0, IMAGE, rng.integers(1, 4)).tolist()])
    length = max(map(len, rows))
    tokens_BP = np.full((len(rows), length), PAD, np.int32)
    mask_BP = np.zeros(tokens_BP.shape, bool)
    patches = max(sum(h * w for h, w in row) for row in grids)
    patches_BSC = np.zeros((len(rows), patches, config.vision.patch_dim), np.float32)
    for b, ids in enumerate(rows):
        tokens_BP[b, length - len(ids) :], mask_BP[b, length - len(ids) :] = ids, True
        count = sum(h * w for h, w in grids[b])
        patches_BSC[b, :count] = rng.normal(size=(count, patches_BSC.shape[2]))
    positions_3BP, following_B = mrope_positions(tokens_BP, mask_BP, grids, config)
    return PromptBatch(
        patches_BSC=patches_BSC,
        layout=family.of(config).vision_layout(grids, config.vision),
        tokens_BP=tokens_BP,
        mask_BP=mask_BP,
        positions_B3P=positions_3BP.swapaxes(0, 1),
        next_position_B=following_B,
        image_id_B=np.arange(len(rows), dtype=np.uint32),
        label_index_B=np.zeros(len(rows), np.int32),
        weight_B=np.ones(len(rows), np.float32),
    )


def make_policy(config: PolicyConfig, dtype=jnp.float32) -> VisionLanguageModel:
    return nnx.eval_shape(
        lambda: VisionLanguageModel(config, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    )


def random_weights(rng, policy: VisionLanguageModel) -> None:
    """Weights that keep activations near 1, with norms and biases that do something.

    Initial weights of a new model would let every logit lie near 0: a greedy choice would then be
    one between near ties. These spread the logits by several units. They are numpy arrays, which
    are cut into a checkpoint without a compiler.
    """
    for path, p in nnx.to_flat_state(nnx.state(policy)):
        if "norm" in path[-1]:
            value = rng.uniform(0.5, 1.5, p.shape)
        elif path[-1].endswith("_bias"):
            value = rng.normal(0, 0.3, p.shape)
        elif path[-1] == "embedding":
            # A head tied to larger ones would repeat the last token for ever.
            value = rng.normal(0, 0.2, p.shape)
        else:
            value = rng.normal(0, 1.2 / np.sqrt(p.shape[-2]), p.shape)
        p.set_value(value.astype(p.dtype))


def draw(seed: int, rows: int = 3, model_type: str = "qwen2_5_vl"):
    """Dimensions, a policy, a batch and its grids; `seed` decides everything."""
    rng = np.random.default_rng([STREAMS[model_type], seed])
    config = random_config(rng, seed, model_type)
    policy = make_policy(config)
    random_weights(rng, policy)
    grids = random_grids(rng, rows)
    return config, policy, random_batch(rng, config, grids), grids


def make_case(seed: int, folder, model_type: str = "qwen2_5_vl") -> Case:
    """Everything of it is decided by `seed`; `folder` is for the checkpoint in between."""
    config, policy, batch, grids = draw(seed, model_type=model_type)
    hf_checkpoint.save(folder, config, policy)
    return Case(config, policy, torch_policy.load(folder), batch, grids)
