"""What a part was made with: all that decides, and nothing else."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from speciarl_jax.evaluation import provenance
from speciarl_jax.models import load_policy


@pytest.fixture(scope="module")
def made(run, small_config):
    """Changes of the configuration -> the provenance of samples."""
    source = run.eval_source

    def made(**changes):
        other = dataclasses.replace(run, config=small_config(**changes))
        return provenance.of_part(other, source, provenance.of_base(other), decoding="samples")

    return made


def test_provenance_names_what_decides_and_nothing_else(made):
    same = made()
    json.dumps(same)
    free = {"evaluation__batch_size": 8, "train__steps": 99, "evaluation__weights__generic": 0.5}
    assert made(**free) == same
    for change in (
        {"evaluation__seed": 2},
        {"evaluation__best_of_temperature": 0.9},
        {"rollout__max_tokens": 9},
        {"evaluation__options__difficulty": "hard"},
        {"verifier__options__max_words": 9},
        {"model__dtype": "bfloat16"},
    ):
        assert made(**change) != same, change


def test_the_base_is_known_by_its_numbers(run):
    """Names and sizes of its files say nothing: a second export has the same."""
    same = provenance.of_base(run)
    leaves, treedef = jax.tree.flatten(run.base)

    def with_leaf(i, change):
        """The same weights with one number changed, on the same devices."""
        value = np.array(leaves[i])
        value.flat[value.size // 2] += change
        value = jax.device_put(value, leaves[i].sharding)
        base = jax.tree.unflatten(treedef, [*leaves[:i], value, *leaves[i + 1 :]])
        return provenance.of_base(dataclasses.replace(run, base=base))

    for i in range(0, len(leaves), 5):
        assert with_leaf(i, 0.0) == same
        found = with_leaf(i, 1e-3)
        assert {key for key in same if same[key] != found[key]} == {"weights"}


def test_the_tokenizer_and_the_size_of_images_belong_to_the_base(run, small_config, tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    for path in load_policy.model_folder(run.config.model.path).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = small_config(model__path=str(folder))
    copy = dataclasses.replace(run, config=config)
    assert provenance.of_base(copy) == provenance.of_base(run)
    path = folder / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"resample": 3', '"resample": 2'))
    assert provenance.of_base(copy) != provenance.of_base(run)


def test_adapters_are_known_by_their_numbers(run):
    assert provenance.of_adapters(run, run.lora) == {"adapters": "none"}
    copy = jax.tree.map(lambda x: x + 0, run.lora)
    moved = jax.tree.map(lambda x: x + 1e-3, run.lora)
    first, again, other = (provenance.of_adapters(run, x) for x in (copy, copy, moved))
    assert first == again != other


def test_a_judge_is_known_by_the_text_of_its_prompt_and_by_its_weights(run, small_config, tmp_path):
    path, moved = tmp_path / "prompt.txt", tmp_path / "moved.txt"

    def of(place, weights=None):
        config = small_config(
            verifier__name="http_judge",
            verifier__http_judge__prompt=str(place),
            verifier__http_judge__cache=str(place),
        )
        verifier = types.SimpleNamespace(**({"scorer": weights} if weights else {}))
        return provenance.of_verifier(dataclasses.replace(run, config=config, verifier=verifier))

    path.write_text("Sort this. {pair}")
    moved.write_text("Sort this. {pair}")
    before = of(path)
    assert before == of(moved) and before["name"] == "http_judge"
    path.write_text("Sort this well. {pair}")
    assert of(path) != before
    one, same, other = ({"x": np.array([1.0, x])} for x in (2, 2, 3))
    assert of(moved, one) == of(moved, same) != of(moved, other)
