"""Configurations of earlier versions, as they are read today."""

import ml_collections

from configs import quickstart
from speciarl_jax.evaluation import metrics
from speciarl_jax.runtime import renamed


def test_a_nested_configuration_gets_the_keys_that_it_lacks_and_keeps_its_own():
    now = quickstart.get_config().to_dict()
    old = quickstart.get_config().to_dict()
    del old["evaluation"]["weights"]["preset"], old["verifier"]["cascade"]
    del old["verifier"]["flax_judge"]["calibration"]
    assert renamed.config(old) == now
    old["evaluation"]["weights"] = now["evaluation"]["weights"] | {"preset": "authors"}
    weights = ml_collections.ConfigDict(renamed.config(old)).evaluation.weights
    assert metrics.configured_weights(weights) == metrics.PRESETS["authors"]
    # What has no such section gets none.
    assert renamed.config({"data": {"broken_images": "stop"}}) == {
        "data": {"on_decode_error": "raise"}
    }
    assert old["verifier"].keys() < now["verifier"].keys()  # the argument stays as it was
