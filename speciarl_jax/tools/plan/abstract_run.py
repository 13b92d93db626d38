"""A run, and batches for it, of shapes and shardings: no weight, tokenizer or image is read."""

import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from speciarl_jax.data import emoji, tfds_images
from speciarl_jax.experiment import algorithm, validate_config
from speciarl_jax.experiment.make_verifier import verifier_options
from speciarl_jax.experiment.run import Run
from speciarl_jax.models import family, load_policy
from speciarl_jax.models.image_tokens import Grid
from speciarl_jax.models.policy_config import PolicyConfig
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.models.vision_language import VisionLanguageModel
from speciarl_jax.rollout.types import Rollout
from speciarl_jax.runtime import sharding
from speciarl_jax.verifiers import taxonomy

# Where there is no tokenizer to ask: the longest token of Qwen's has so many bytes.
_LONGEST_TOKEN = 128


def make_run(
    config: ml_collections.ConfigDict, model_config: PolicyConfig, mesh: jax.sharding.Mesh
) -> Run:
    """Makes what `experiment.run.prepare` makes, without checkpoint, tokenizer and images.

    Args:
      model_config: of a checkpoint, or of `family.preset`.
      mesh: of any devices, or a `jax.sharding.AbstractMesh`.

    Returns:
      A run that has programs and no data. The taxonomy verifier has the tables of the emoji's label
      tree; of another one, which needs weights or a server, there is none.

    Raises:
      ValueError: numbers that do not fit.
    """
    validate_config.check(config, mesh)
    algorithm.check(config)
    options = load_policy.model_options(config, mesh)
    policy = nnx.eval_shape(lambda: VisionLanguageModel(model_config, **options, rngs=nnx.Rngs(0)))
    graphdef, lora, base = nnx.split(policy, nnx.LoRAParam, ...)
    vocabulary = model_config.text.vocab_size
    labels = verifier = None
    if is_tree_alone(config):
        labels, verifier = taxonomy.create(
            [b"x" * _LONGEST_TOKEN] * vocabulary,
            tree_of(config) or emoji.TAXONOMY_PATH,
            **verifier_options(config, "taxonomy") | {"path": ""},
        )
        if config.reward.information.strength:
            labels_F = len(labels.leaf_ids)
            verifier = verifier.with_label_shares(np.full(labels_F, 1 / labels_F))
        if config.reward.consensus_confidence:
            verifier = verifier.with_every_label()
        verifier = sharding.placed(verifier, sharding.replicated(mesh))
    return Run(
        config=config,
        mesh=mesh,
        model_config=model_config,
        graphdef=graphdef,
        lora=sharding.placed(lora, sharding.shardings_of(mesh, lora)),
        base=sharding.placed(base, sharding.shardings_of(mesh, base)),
        tokenizer=None,
        builder=None,
        banned_V=np.zeros(vocabulary, bool),
        end_ids=model_config.eos_token_id or (0,),  # whichever it is, the programs are these
        labels=labels,
        verifier=verifier,
    )


def is_tree_alone(config: ml_collections.ConfigDict) -> bool:
    """Says whether the verifier is a label tree without a judge."""
    name = config.verifier.name
    return name == "taxonomy" or (name == "cascade" and not config.verifier.cascade.judge)


def tree_of(config: ml_collections.ConfigDict) -> pathlib.Path | None:
    """Returns the label tree of a published data set, which needs no download; else None."""
    path = tfds_images.TREES / f"{config.data.options.get('dataset', '')}.json"
    return path if config.data.name == "tfds_images" and path.exists() else None


def make_batch(
    run: Run,
    batch_size: int,
    grid: Grid,
    prompt_tokens: int,
    padded: tuple[int, int] | None = None,
) -> PromptBatch:
    """Makes the shapes of a batch whose largest image and prompt are these.

    Args:
      batch_size: B.
      grid: (height, width) of an image, in patches.
      prompt_tokens: P, the image's tokens included.
      padded: slots and image tokens that the image is padded to; None for as many as it has.

    Raises:
      ValueError: a grid that does not divide into merged tokens.
    """
    vision = run.model_config.vision
    layout = family.of(run.model_config).vision_layout([[grid]], vision)
    if padded is not None:
        layout = layout.pad(*padded)
    patches = layout.token_index_BM.shape[1] * vision.spatial_merge_size**2
    one = PromptBatch(
        patches_BSC=np.zeros((1, patches, vision.patch_dim), np.float32),
        layout=layout,
        tokens_BP=np.zeros((1, prompt_tokens), np.int32),
        mask_BP=np.zeros((1, prompt_tokens), bool),
        positions_B3P=np.zeros((1, 3, prompt_tokens), np.int32),
        next_position_B=np.zeros(1, np.int32),
        image_id_B=np.zeros(1, np.uint32),
        label_index_B=np.zeros(1, np.int32),
        weight_B=np.zeros(1, np.float32),
    )
    if run.config.data.vision_cache.place != "none":
        # The encoder is a program of its own.
        shape = (1, layout.token_index_BM.shape[1], vision.feature_size)
        features_BMD = np.zeros(shape, load_policy.dtypes(run.config)["dtype"])
        one = one.without_images(features_BMD)
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), one)
    return sharding.placed(many, sharding.batch_sharding(run.mesh))


def given_completions(run: Run, batch: PromptBatch) -> Rollout:
    """Makes the shapes of one completion about each image, as supervised training has them."""
    shape = (*batch.weight_B.shape, 1, run.config.rollout.max_tokens)
    dtypes = {"tokens_BNT": jnp.int32, "mask_BNT": bool, "logp_BNT": jnp.float32}
    shapes = Rollout(**{k: jax.ShapeDtypeStruct(shape, dtype) for k, dtype in dtypes.items()})
    return sharding.placed(shapes, sharding.batch_sharding(run.mesh))
