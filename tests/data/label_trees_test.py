"""The shipped label trees: all classes in their order, and names that people say."""

import importlib.util
import json
import pathlib

import pytest

from speciarl_jax.data import fgvc_aircraft, tfds_images
from speciarl_jax.verifiers.taxonomy import Taxonomy

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NAMES = sorted(set(tfds_images.PUBLISHED) - {"fgvc_aircraft"})


def script():
    path = ROOT / "scripts" / "build_label_trees.py"
    spec = importlib.util.spec_from_file_location("build_label_trees", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built():
    module = script()
    return {name: module.text(module.tree(name)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_script_makes_what_is_shipped(built, name):
    # If this fails after a change of the script: python -m scripts.build_label_trees
    assert (tfds_images.TREES / f"{name}.json").read_text() == built[name]


@pytest.mark.parametrize("name", NAMES)
def test_leaves_are_the_classes_in_their_order(name):
    tree = json.loads((tfds_images.TREES / f"{name}.json").read_text())
    ids = [label_id.removeprefix(f"{name}/") for label_id in tree["leaves"]]
    assert len(ids) == tfds_images.PUBLISHED[name].classes
    classes = tfds_images.make_builder(name, None).info.features["label"]
    if name == "caltech_birds2011":
        # TFDS numbers them; the numbers are alphabetical but for a few.
        assert ids[0] == "Black_footed_Albatross" and ids[199] == "Common_Yellowthroat"
        assert (ids[140], ids[142]) == ("Artic_Tern", "Caspian_Tern")
    else:
        assert ids == classes.names


@pytest.mark.parametrize("name", NAMES)
def test_every_tree_fits_the_verifier_and_its_defaults(name):
    taxonomy = Taxonomy.from_file(tfds_images.TREES / f"{name}.json")
    assert max(len(n.encode()) for n in taxonomy.names) <= 64  # config.verifier's max_answer_bytes
    tree = json.loads((tfds_images.TREES / f"{name}.json").read_text())
    for label_id, leaf in tree["leaves"].items():
        assert taxonomy.category(leaf["name"], label_id).name == "SPECIFIC"
        assert taxonomy.category(leaf["generic"], label_id).name == "GENERIC"
        assert "_" not in leaf["name"] and "?" not in leaf["name"]
        # No label's own name is right for another label, but as something more general.
        others = [other for other in tree["leaves"] if other != label_id]
        for other in others[::17]:
            verdict = taxonomy.category(leaf["name"], other).name
            assert verdict in ("WRONG", "LESS_SPECIFIC"), (leaf["name"], other)


SAID = {
    "caltech_birds2011/Brewer_Blackbird": {
        "Brewer's blackbird": "SPECIFIC",
        "Brewer Blackbird": "SPECIFIC",
        "Brewers blackbird": "SPECIFIC",
        "blackbird": "LESS_SPECIFIC",
        "songbird": "GENERIC",
        "bird": "GENERIC",
        "rusty blackbird": "WRONG",
    },
    "caltech_birds2011/Artic_Tern": {
        "Arctic tern": "SPECIFIC",
        "Artic tern": "SPECIFIC",
        "tern": "LESS_SPECIFIC",
        "seabird": "LESS_SPECIFIC",
        "gull": "WRONG",
    },
    "caltech_birds2011/Chuck_will_Widow": {
        "chuck-will's-widow": "SPECIFIC",
        "nightjar": "LESS_SPECIFIC",
    },
    "caltech_birds2011/Gray_Catbird": {"grey catbird": "SPECIFIC", "gray catbird": "SPECIFIC"},
    "caltech_birds2011/Nelson_Sharp_tailed_Sparrow": {"Nelson's sharp-tailed sparrow": "SPECIFIC"},
    "oxford_iiit_pet/yorkshire_terrier": {
        "Yorkie": "SPECIFIC",
        "terrier": "LESS_SPECIFIC",
        "dog": "GENERIC",
        "cat": "WRONG",
    },
    "oxford_iiit_pet/Siamese": {"siamese cat": "SPECIFIC", "cat": "GENERIC", "dog": "WRONG"},
    "oxford_flowers102/pink-yellow dahlia?": {"dahlia": "LESS_SPECIFIC", "flower": "GENERIC"},
    "food101/pancakes": {"pancake": "SPECIFIC", "breakfast": "LESS_SPECIFIC"},
    "food101/waffles": {"pancake": "WRONG", "waffle": "SPECIFIC"},
    "food101/creme_brulee": {"cr\u00e8me br\u00fbl\u00e9e": "SPECIFIC", "dessert": "LESS_SPECIFIC"},
    "cars196/Acura RL Sedan 2012": {
        "2012 Acura RL Sedan": "SPECIFIC",
        "Acura RL": "LESS_SPECIFIC",
        "Acura": "LESS_SPECIFIC",
        "sedan": "LESS_SPECIFIC",
        "car": "GENERIC",
        "Acura TL": "WRONG",
    },
}


@pytest.mark.parametrize("label_id", sorted(SAID))
def test_what_people_say_is_judged_as_they_mean_it(label_id):
    taxonomy = Taxonomy.from_file(tfds_images.TREES / f"{label_id.split('/')[0]}.json")
    for said, verdict in SAID[label_id].items():
        assert taxonomy.category(said, label_id).name == verdict, said


def test_the_aircraft_are_a_hundred():
    assert len(set(fgvc_aircraft.VARIANTS)) == 100
