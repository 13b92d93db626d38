"""int8 weights: how far they are off, and products with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from speciarl_jax.models import int8, lora


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("seed", range(3))
def test_a_weight_is_off_by_at_most_half_a_step_of_its_channel(seed, dtype):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(3, 20, 7)) * 10.0 ** rng.integers(-6, 4, (3, 1, 7))
    kernel[1, :, 2] = 0
    kernel = jnp.asarray(kernel, dtype)
    got = int8.quantize(kernel)
    assert got.qvalue.dtype == jnp.int8 and got.qvalue.shape == kernel.shape
    assert got.scale.dtype == jnp.float32 and got.scale.shape == (3, 1, 7)
    kernel = kernel.astype(jnp.float32)
    steps = np.abs(qwix.dequantize(got) - kernel) / got.scale
    assert 0.4 < steps.max() < 0.5001
    largest = np.abs(kernel).max(1, keepdims=True)
    used = largest > 0
    np.testing.assert_allclose(got.scale[used], largest[used] / 127.5, rtol=1e-6)
    assert (got.qvalue[1, :, 2] == 0).all()
    # Layer by layer, as a checkpoint is read, or all at once.
    for i, layer in enumerate(kernel):
        jax.tree.map(np.testing.assert_array_equal, int8.quantize(layer), got[i])


def test_a_product_and_its_gradient_are_those_of_the_rounded_kernel():
    rng = np.random.default_rng(0)
    kernel, x = jnp.asarray(rng.normal(size=(12, 5))), jnp.asarray(rng.normal(size=(2, 3, 12)))
    adapter = (jnp.asarray(rng.normal(size=(12, 2))), jnp.asarray(rng.normal(size=(2, 5))))
    quantized = int8.quantize(kernel)

    def loss(x, adapter, kernel):
        y = lora.linear(x, kernel, None, adapter, 0.5, jnp.float32)
        return jnp.sum(jnp.sin(y)), y

    got = jax.grad(loss, (0, 1), has_aux=True)(x, adapter, quantized)
    want = jax.grad(loss, (0, 1), has_aux=True)(x, adapter, qwix.dequantize(quantized))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    with pytest.raises(ValueError, match="base_weights = 'param_dtype'"):
        lora.merge(quantized, adapter, 0.5)
