"""Static rewards against the paper's table, read from the configurations that state it."""

import numpy as np
import pytest

import configs
from speciarl_jax.experiment import algorithm
from speciarl_jax.verifiers.category import Category

# more specific & specific / less specific / generic / abstain / wrong
TABLE = {
    "binary": (1, 0, 0, 0, 0),
    "static_map:1": (1, 0.75, 0.5, 0.25, 0),
    "static_map:2": (1, 0.75, 0.5, 0, 0),
    "static_map:3": (1, 0.75, 0, 0, 0),
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_table_of_the_paper(name, seed):
    rng = np.random.default_rng(seed)
    category = rng.integers(-1, 6, (200, 7)).astype(np.int32)
    valid = rng.random(category.shape) < 0.8
    best, less, generic, abstain, wrong = TABLE[name]
    value = {
        Category.MORE_SPECIFIC: best,
        Category.SPECIFIC: best,
        Category.LESS_SPECIFIC: less,
        Category.GENERIC: generic,
        Category.ABSTAIN: abstain,
        Category.WRONG: wrong,
        Category.UNPARSED: -1,
    }
    got = algorithm.from_config(configs.load(name)).reward(category, valid)
    want = [[float(value[Category(c)]) for c in row] for row in category]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.where(valid, want, 0).astype(np.float32))
