"""Configurations of earlier versions, as they are read today."""

import pathlib

import ml_collections

from configs import base, quickstart
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


def test_a_new_key_says_how_runs_without_it_behaved():
    """`config_keys.txt` has the keys of old; without an entry in `ADDED` no older run resumes."""
    old = pathlib.Path(__file__).with_name("config_keys.txt").read_text().split()
    config = base.get_config()
    keys = []

    def visit(prefix, section):
        for key, value in section.items():
            if isinstance(value, dict) and value:
                visit(f"{prefix}{key}.", value)
            else:
                keys.append(prefix + key)

    visit("", config.to_dict())
    assert set(keys) - set(old) - set(renamed.ADDED) == set()
    for key in set(keys) & set(renamed.ADDED):
        if ".options." not in key:  # options belong to one source; `base` has another
            section = config
            for part in key.split("."):
                section = section[part]
            was = renamed.ADDED[key]
            assert section == (tuple(was) if isinstance(was, list) else was), key
