"""A folder of folders, as users have them."""

import os

import numpy as np
import pytest
from PIL import Image

from speciarl_jax.data import folder, label_tree
from speciarl_jax.verifiers.taxonomy import Taxonomy


def fill(root, *names, size=(8, 6)):
    """Writes images of one colour each; the path decides the colour."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number, 40, 90)).save(path)
    return root


def open_folder(root, **options):
    return folder.Source(path=str(root), seed=0, **options)


def test_labels_are_the_folders_as_people_say_them(tmp_path):
    names = ["001.Black_footed_Albatross/1.png", "tree  swallow/b.PNG", "tree  swallow/a.jpeg"]
    source = open_folder(fill(tmp_path, *names), group="bird")
    rows = list(source)
    assert [row["label"] for row in rows] == ["Black footed Albatross", *["tree swallow"] * 2]
    assert [row["key"] for row in rows] == sorted(names)
    assert rows[0]["image"].shape == (6, 8, 3)
    np.testing.assert_array_equal(rows[0]["image"][0, 0], [0, 40, 90])
    taxonomy = Taxonomy(source.label_tree)
    assert taxonomy.category("bird", rows[0]["label_id"]).name == "GENERIC"
    assert taxonomy.category("black-footed albatross", rows[0]["label_id"]).name == "SPECIFIC"


@pytest.mark.parametrize(
    "name, said",
    [
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("02_rose", "rose"),
        ("737-200", "737-200"),
        ("3-series", "3-series"),
        ("2.0 litre engine", "2.0 litre engine"),
        (" a  b_c ", "a b c"),
    ],
)
def test_names_are_cleaned(name, said):
    assert label_tree.clean(name) == said


def test_nested_folders_are_a_tree(tmp_path):
    fill(tmp_path, "animal/bird/duck/mallard/1.png", "animal/fish/1.png", "plant/rose/1.png")
    source = open_folder(tmp_path)
    taxonomy = Taxonomy(source.label_tree)
    mallard = "animal/bird/duck/mallard"
    said = {"mallard": "SPECIFIC", "duck": "LESS_SPECIFIC", "bird": "LESS_SPECIFIC"}
    said |= {"animal": "GENERIC", "fish": "WRONG", "plant": "WRONG"}
    for answer, verdict in said.items():
        assert taxonomy.category(answer, mallard).name == verdict, answer
    grouped = Taxonomy(open_folder(tmp_path, group="living thing").label_tree)
    assert grouped.category("animal", mallard).name == "LESS_SPECIFIC"
    assert grouped.category("living thing", mallard).name == "GENERIC"


def test_labels_without_a_group_are_said_to_have_no_levels(tmp_path, caplog):
    source = open_folder(fill(tmp_path, "rose/1.png", "tulip/1.png"))
    assert "2 of 2 labels have no more general name" in caplog.text
    assert "config.data.options.group" in caplog.text and "verifier.options.path" in caplog.text
    taxonomy = Taxonomy(source.label_tree)
    assert taxonomy.category("rose", "rose").name == "SPECIFIC"
    assert taxonomy.category("tulip", "rose").name == "WRONG"


def test_links_are_followed_once_and_other_files_passed_over(tmp_path):
    real = fill(tmp_path / "real", "rose/1.png")
    root = fill(tmp_path / "root", "tulip/1.png", "tulip/.hidden.png", ".git/x/1.png")
    (root / "tulip" / "notes.txt").write_text("x")
    os.symlink(real / "rose", root / "rose")
    os.symlink(root, root / "tulip" / "loop")
    assert [row["key"] for row in open_folder(root)] == ["rose/1.png", "tulip/1.png"]


@pytest.mark.parametrize(
    "names, message",
    [
        ((), "holds no image; images end in one of .jpg"),
        (("1.png", "rose/2.png"), "1 images outside of a label's folder .'1.png'"),
        (("rose/1.png", "___/1.png"), "label '___' .* without any letter or digit"),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        open_folder(fill(tmp_path, *names))


@pytest.mark.parametrize("path", ["", None, "/no/such/folder"])
def test_a_missing_folder_is_named(path):
    with pytest.raises(ValueError, match="config.data.options.path is .*no folder"):
        folder.Source(path=path, seed=0)


def test_the_tree_of_two_sources_holds_the_labels_of_both(tmp_path):
    one = open_folder(fill(tmp_path / "one", "rose/1.png", "tulip/1.png"), group="flower")
    two = open_folder(fill(tmp_path / "two", "rose/1.png", "mallard/1.png"), group="flower")
    path = label_tree.path_of([one, two])
    assert set(Taxonomy.from_file(path).leaf_ids) == {"rose", "tulip", "mallard"}
    other = open_folder(tmp_path / "two", group="bird")
    with pytest.raises(ValueError, match="'rose' stands in two data sets"):
        label_tree.path_of([one, other])
    assert label_tree.path_of([one, [1, 2]]) is None
