"""Label trees from CSV files and from WordNet's noun files, and what is refused."""

import json

import pytest

from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.label_tree import build
from speciarl_jax.verifiers.label_tree.wordnet import Nouns
from speciarl_jax.verifiers.taxonomy import Taxonomy

W, A, G, L, S, M = (Category(i) for i in range(6))

CSV = """animal|creature,bird,bird of prey|raptor,eagle|bird of Jove
animal,bird,bird of prey,eagle,bald eagle|American eagle
animal,bird,bird of prey,hawk

animal,rodent,mouse,,
thing,"device, electronic",mouse
"""

# Synsets in WordNet's format, made for this test.
DATA = """  1 This line stands for the licence.
00000100 03 n 01 entity 0 002 ~ 00000200 n 0000 ~ 00000900 n 0000 | that which exists
00000200 03 n 03 animal 0 creature 0 beast 1 003 @ 00000100 n 0000 ~ 00000300 n 0000 ~ 00000700 n 0000 | a living thing; "an animal | or so"
00000300 05 n 01 bird 0 002 @ 00000200 n 0000 ~ 00000400 n 0000 | with feathers
00000400 05 n 02 bird_of_prey 0 raptor 0 003 @ 00000300 n 0000 ~ 00000500 n 0000 ~ 00000600 n 0000 | hunts
00000500 05 n 02 eagle 0 bird_of_Jove 0 004 @ 00000400 n 0000 @ 00000800 n 0000 ~ 00000510 n 0000 + 00012345 v 0101 | large
00000510 05 n 02 bald_eagle 0 American_eagle 0 001 @ 00000500 n 0000 | of North America
00000600 05 n 0a hawk 0 w1 0 w2 0 w3 0 w4 0 w5 0 w6 0 w7 0 w8 0 z_b_c_d_e_f_g_h_i 0 001 @ 00000400 n 0000 | smaller
00000700 05 n 01 mouse 0 002 @ 00000200 n 0000 %p 00000900 n 0000 | gnaws
00000800 06 n 01 emblem 0 002 @ 00000100 n 0000 ~ 00000500 n 0000 | a sign
00000900 06 n 02 device 0 gadget 0 002 @ 00000100 n 0000 ~ 00000910 n 0000 | for a purpose
00000910 06 n 02 mouse 3 computer_mouse 0 001 @ 00000900 n 0000 | moves a cursor
00000920 06 n 01 mickey 0 001 @i 00000700 n 0000 | one of a kind
"""  # noqa: E501
INDEX = """  1 This line stands for the licence.
entity n 1 1 ~ 1 1 00000100
animal n 1 2 @ ~ 1 1 00000200
bird n 1 2 @ ~ 1 1 00000300
bird_of_prey n 1 2 @ ~ 1 0 00000400
eagle n 1 3 @ ~ + 1 1 00000500
hawk n 1 1 @ 1 0 00000600
mouse n 2 2 @ %p 2 1 00000700 00000910
device n 1 2 @ ~ 1 1 00000900
emblem n 1 2 @ ~ 1 0 00000800
mickey n 1 1 @i 1 0 00000920
"""


@pytest.fixture
def csv_file(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(CSV)
    return path


@pytest.fixture
def wordnet(tmp_path):
    (tmp_path / "data.noun").write_text(DATA)
    (tmp_path / "index.noun").write_text(INDEX)
    return tmp_path


def test_rows_of_a_csv_become_leaves_ancestors_and_hyponyms(csv_file):
    tree = build.from_csv(csv_file, max_words=8)
    assert tree["groups"] == {"animal": ["animal", "creature"], "thing": ["thing"]}
    assert list(tree["leaves"]) == [
        "eagle",
        "bald eagle",
        "hawk",
        "animal / rodent / mouse",
        "thing / device, electronic / mouse",
    ]
    assert tree["leaves"]["eagle"] == {
        "name": "eagle",
        "synonyms": ["bird of Jove"],
        "ancestors": [["bird of prey", "raptor"], ["bird"]],
        "hyponyms": ["bald eagle", "American eagle"],
        "generic": "animal",
    }
    taxonomy = Taxonomy(tree)
    for said, leaf, want in (
        ("American eagles", "eagle", M),
        ("bird of Jove", "eagle", S),
        ("raptor", "bald eagle", L),
        ("eagle", "bald eagle", L),
        ("creature", "hawk", G),
        ("eagle", "hawk", W),
        ("none", "hawk", A),
        ("rodent", "thing / device, electronic / mouse", W),
    ):
        assert taxonomy.category(said, leaf) is want, said


@pytest.mark.parametrize(
    "text, message",
    [
        ("animal\n", "line 1.*a group and a label"),
        ("animal,,eagle\n", "line 1.*each cell a name"),
        ("animal,?\n", "line 1.*letter or digit"),
        ("animal,eagle\nAnimal,Eagles\nanimal,EAGLE\n", "line 3: this path stands above"),
        ("animal|beast,eagle\nanimal|creature,hawk\n", r"line 2: the node 'animal'.*'beast'"),
        ("animal,unknown\n", "label 'unknown' declines"),
        ("animal,a b c d e f g h i j\n", "more than 8 words"),
    ],
)
def test_a_csv_that_is_no_tree_is_refused_by_its_line(tmp_path, text, message):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        build.from_csv(path, max_words=8)


def test_wordnet_gives_synonyms_hyponyms_and_the_ancestors_below_the_group(wordnet):
    labels = [("eagle", "eagle"), ("hawk", "hawk"), ("m1", "mouse"), ("m2", "mouse#2")]
    tree = build.from_wordnet(Nouns(wordnet), labels, ["animal", "device"], max_words=8)
    assert tree["groups"] == {
        "animal": ["animal", "creature", "beast"],
        "device": ["device", "gadget"],
    }
    assert tree["leaves"]["eagle"] == {
        "name": "eagle",
        "synonyms": ["bird of Jove"],
        # Neither the emblem, which is no animal, nor the entity above the group.
        "ancestors": [["bird of prey", "raptor"], ["bird"]],
        "hyponyms": ["bald eagle", "American eagle"],
        "generic": "animal",
    }
    assert tree["leaves"]["hawk"]["synonyms"] == [f"w{i}" for i in range(1, 9)]  # not the longest
    assert tree["leaves"]["m1"]["generic"] == "animal"
    assert tree["leaves"]["m2"]["synonyms"] == ["computer mouse"]
    taxonomy = Taxonomy(tree)
    assert taxonomy.category("raptors", "eagle") is L
    assert taxonomy.category("emblem", "eagle") is W
    assert taxonomy.category("computer mouse", "m1") is W


def test_instances_have_hypernyms_too(wordnet):
    tree = build.from_wordnet(Nouns(wordnet), [("mickey", "mickey")], ["animal"], max_words=8)
    assert tree["leaves"]["mickey"]["ancestors"] == [["mouse"]]


@pytest.mark.parametrize(
    "labels, groups, message",
    [
        ([("x", "unicorn")], ["animal"], "0 noun senses of 'unicorn'"),
        ([("x", "mouse#3")], ["animal"], "2 noun senses of 'mouse'.*sense 3"),
        ([("x", "mouse#b")], ["animal"], "number of a sense"),
        ([("x", "mouse#2")], ["animal"], "no group lies above the label 'x'.*'device', 'entity'"),
        ([("x", "eagle"), ("x", "hawk")], ["animal"], "'x' is given twice"),
        ([("x", "eagle")], ["plant"], "0 noun senses of 'plant'"),
    ],
)
def test_labels_that_wordnet_cannot_place_are_refused(wordnet, labels, groups, message):
    with pytest.raises(ValueError, match=message):
        build.from_wordnet(Nouns(wordnet), labels, groups, max_words=8)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("data.noun", "00000100 03 n 01 entity 0 002 ~ 00000200 n 0000 | x", "data.noun, line 1"),
        ("data.noun", "00000100 03 n 02 entity 0 000 | x", "data.noun, line 1"),
        ("data.noun", "00000100 03 v 01 be 0 000 | x", "data.noun, line 1"),
        ("index.noun", "  x\nentity n 2 1 ~ 1 1 00000100", "index.noun, line 2"),
    ],
)
def test_a_damaged_line_is_refused_by_its_number(wordnet, name, text, message):
    (wordnet / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Nouns(wordnet)


def test_files_of_different_versions_are_refused(wordnet):
    (wordnet / "index.noun").write_text("lost n 1 0 1 0 00000999\n")
    with pytest.raises(ValueError, match="no synset 00000999.*one version"):
        Nouns(wordnet).synset("lost")
    (wordnet / "index.noun").unlink()
    with pytest.raises(ValueError, match="index.noun: cannot be read"):
        Nouns(wordnet)


def test_the_commands_write_a_tree_that_is_read_back(start, csv_file, wordnet, tmp_path):
    (tmp_path / "labels.txt").write_text("eagle\n\nm2\tmouse#2\n")
    module = ("-m", "speciarl_jax.tools.build_label_tree")
    running = {
        "a/csv.json": start(*module, f"--csv={csv_file}", f"--out={tmp_path / 'a/csv.json'}"),
        "wn.json": start(
            *module,
            f"--wordnet={wordnet}",
            f"--labels={tmp_path / 'labels.txt'}",
            "--groups=animal,device",
            f"--out={tmp_path / 'wn.json'}",
        ),
        "": start(*module, f"--csv={csv_file}", f"--wordnet={wordnet}"),
    }
    printed = {name: process.communicate(timeout=300)[0] for name, process in running.items()}
    assert "5 labels in 2 groups" in printed["a/csv.json"], printed
    assert "2 labels in 2 groups" in printed["wn.json"], printed
    assert "give --out=FILE" in printed[""] and running[""].returncode != 0
    assert json.loads((tmp_path / "wn.json").read_text())["leaves"]["m2"]["generic"] == "device"
    assert Taxonomy.from_file(tmp_path / "a/csv.json").category("raptor", "hawk") is L
