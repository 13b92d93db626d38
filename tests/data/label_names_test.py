"""Running numbers of folders, and label paths of all spellings."""

import pytest
from own_images import draw, open_folder

from speciarl_jax.data import label_names, label_paths


@pytest.mark.parametrize(
    "names, said",
    [
        ([f"{i:02}_x{i}" for i in range(1, 12)], [f"x{i}" for i in range(1, 12)]),
        (["01_cat", "10_fox"], ["cat", "fox"]),
        (["1_cat", "2_dog", "10_fox"], None),
        (["1_cat", "2_dog", "3_fox"], ["cat", "dog", "fox"]),
        (["1 cat", "2 dog"], ["cat", "dog"]),
        (["1) cat", "2) dog"], ["cat", "dog"]),
        (
            ["001.Black_footed_Albatross", "tree  swallow"],
            ["Black footed Albatross", "tree swallow"],
        ),
        (["737-200", "747-400"], ["737-200", "747-400"]),
        (["3-series", "5-series"], ["3-series", "5-series"]),
        (["1-series", "2-series"], ["1-series", "2-series"]),
        (["2 door", "4 door"], ["2 door", "4 door"]),
        (["2_seater", "van"], ["2 seater", "van"]),
        (["01_cat", "02_fox", "03_2_door_car"], ["cat", "fox", "2 door car"]),
        (["01cat", "02fox"], ["cat", "fox"]),
        (["4x4", "2x4"], ["4x4", "2x4"]),
        (["(1) cat", "(2) fox"], ["cat", "fox"]),
        (["[01] cat", "[02] fox"], ["cat", "fox"]),
        (["n01440764_tench", "n01443537_goldfish"], ["tench", "goldfish"]),
        (["class_01_cat", "class_02_fox"], ["cat", "fox"]),
        (["2.0 litre engine", "1.5 litre engine"], ["2.0 litre engine", "1.5 litre engine"]),
    ],
)
def test_running_numbers_are_taken_from_all_names_or_from_none(names, said):
    found = list(label_names.clean_siblings(names).values())
    if said is None:
        assert len({name[0].isdigit() for name in found}) == 1
    else:
        assert found == said


def test_labels_that_begin_with_a_number_are_reported(tmp_path, caplog):
    open_folder(draw(tmp_path, "737-200/1.png", "747-400/2.png", "A300/3.png"), group="aircraft")
    assert "2 labels begin with a number ('737-200', '747-400')" in caplog.text


def test_labels_that_are_codes_are_reported(tmp_path, caplog):
    open_folder(draw(tmp_path, "n01440764/1.png", "class_01/2.png", "cat/3.png"), group="thing")
    assert "2 labels are codes and no names ('class 01', 'n01440764')" in caplog.text


def read(*rows, separator=""):
    cells = [label_paths.Cell(f"t, row {i}", *row) for i, row in enumerate(rows)]
    return label_paths.read(cells, separator)


EAGLE = ["animal", "bird", "eagle"]


@pytest.mark.parametrize(
    "value",
    ["animal > bird > eagle", "animal>bird", "animal/bird/eagle", "animal | bird | eagle"]
    + ["animal;bird;eagle", "animal, bird, eagle", "animal\\bird", "animal -> bird -> eagle"]
    + ["animal => bird", "animal → bird", "animal::bird", "['animal', 'bird', 'eagle']"]
    + ['["animal", "bird"]', ["animal", "bird"], ("animal", "bird", "Eagle"), "animal > bird > "]
    + ["animal ⇒ bird", "animal ▸ bird", "animal ＞ bird", "animal\nbird\neagle"]
    + ["animal:bird:eagle", "animal < bird < eagle", "animal • bird • eagle"]
    + ["animal - bird - eagle", "animal.bird.eagle", "animal_bird_eagle"],
)
def test_any_separator_is_found(value):
    assert read(("eagle", value)) == [EAGLE]


@pytest.mark.parametrize(
    "rows, message",
    [
        ([("eagle", "eagle > bird > animal")], "row 0: the label 'eagle' stands in its own"),
        ([("eagle", "animal/eagle/bird")], "row 0: the label 'eagle' stands in its own"),
        ([("eagle", ["eagle", "animal"])], "row 0: the label 'eagle' stands in its own"),
        ([("eagle", "animal/bird")], "row 0: .*several ways.*label_path_separator"),
        ([("tench", "fish, bony")], "row 0: .*several ways"),
        ([("a", "x > y"), ("b", "x/z")], "row 1: the label path 'x/z' may be read"),
        ([("a", "x | y"), ("b", "x ; z")], "row 0: .*may be read in several ways"),
        ([("a", "x > y"), ("b", "y > x")], "row 1: .*the other way round"),
        ([("a", "bird > animal"), ("b", "fish > animal")], "seem to run from the special"),
        ([("a", "['animal' 'bird']")], "row 0: .*without commas"),
        ([("a", 7)], "row 0: the label path is 7"),
        ([("eagle", "animal bird eagle")], "row 0: .*nothing says what separates the names"),
        ([("eagle", "eagle & bird"), ("a", "b")], "row 0: .*holds the label 'eagle', but nothing"),
        ([("eagle", "animal • bird")], "row 0: .*several ways"),
        ([("eagle", "eagle < bird < animal")], "row 0: the label 'eagle' stands in its own"),
        ([("a", ["x", 7])], "row 0: the label path is .'x', 7."),
    ],
)
def test_paths_that_are_unclear_are_refused_with_the_row(rows, message):
    with pytest.raises(ValueError, match=message):
        read(*rows)


def test_names_may_hold_what_separates_elsewhere():
    assert read(("mallard", "duck, wild > mallard")) == [["duck, wild", "mallard"]]
    assert read(("b", "a/c"), separator="/") == [["a", "c", "b"]]
    assert read(("b", "a->c"), separator="->") == [["a", "c", "b"]]
    assert read(("a", "x"), ("b", None), ("c", "")) == [["x", "a"], ["b"], ["c"]]
    assert read(("oak", "oak tree"), ("b", float("nan"))) == [["oak tree", "oak"], ["b"]]
    assert read(("T-shirt", "T-shirt"), ("a", "St. Bernard")) == [["T-shirt"], ["St. Bernard", "a"]]
