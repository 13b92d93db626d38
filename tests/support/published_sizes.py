"""Abstract parameters of published sizes, and where a mesh wants them."""

import functools
import math

from flax import nnx
from jax.sharding import AbstractMesh

from speciarl_jax.models.vision_language import VisionLanguageModel
from speciarl_jax.runtime import sharding


@functools.cache
def parameters(config, lora_rank=0):
    """Path -> abstract parameter of a policy with these dimensions."""

    def make():
        return VisionLanguageModel(config, lora_rank=lora_rank, rngs=nnx.Rngs(0))

    return dict(nnx.to_flat_state(nnx.state(nnx.eval_shape(make))))


def size_of(variable):
    return math.prod(variable.shape)


def adapter_size(config, lora_rank):
    """Number of values in all adapters, which must be float32."""
    adapters = [p for p in parameters(config, lora_rank).values() if isinstance(p, nnx.LoRAParam)]
    assert {str(p.dtype) for p in adapters} == {"float32"}
    return sum(map(size_of, adapters))


def whole_and_share(config, sizes):
    """Frozen parameters of a policy, and those on one device of a mesh of these sizes."""
    mesh, whole, on_a_chip = AbstractMesh(sizes, sharding.AXES), 0, 0
    for path, variable in parameters(config, 64).items():
        name = ".".join(map(str, path))
        where = sharding.param_sharding(mesh, name, variable.shape, variable.axes)
        if not isinstance(variable, nnx.LoRAParam):
            whole += size_of(variable)
            on_a_chip += math.prod(where.shard_shape(variable.shape))
    return whole, on_a_chip
