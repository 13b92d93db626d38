"""The check of a user's images: what is counted, what is odd, and what ends it with an error."""

import collections
import json

import numpy as np
import pytest
from PIL import Image

from configs import own_folder, own_table
from speciarl_jax.data import folder as folder_source
from speciarl_jax.tools import check_data


def fill(root, counts):
    """`counts` images of each label, all different."""
    number = 0
    for label, count in counts.items():
        (root / label).mkdir(parents=True)
        for i in range(count):
            number += 1
            pixels = np.full((10 + i, 20, 3), number, np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    return root


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "images", {"bird/eagle": 7, "bird/gull": 6, "car/van": 8})


def test_what_is_there_is_counted(folder):
    (folder / "bird/eagle/0.png").write_bytes(b"not an image")
    (folder / "car/van/1.png").write_bytes((folder / "car/van/2.png").read_bytes())
    source = folder_source.Source(path=str(folder), seed=0)
    found = check_data.look("training", source, workers=3)
    assert found.counts == {"eagle": 6, "gull": 6, "van": 8}
    assert list(found.broken) == ["bird/eagle/0.png"]
    assert len(found.sizes) == 20 and set(found.sizes) <= {(20, 10 + i) for i in range(8)}
    report = "\n".join(check_data.describe(found, 8))
    assert "20 images of 3 labels; 1 unreadable" in report
    assert "Images of a label: 6 to 8, median 6" in report
    assert "bird/eagle/0.png is no image" in report
    assert "car/van/1.png = car/van/2.png" in report
    assert "Odd labels" not in report


def test_equal_images_with_different_labels_come_first_and_name_them(folder):
    (folder / "car/van/1.png").write_bytes((folder / "car/van/2.png").read_bytes())
    (folder / "car/van/5.png").write_bytes((folder / "bird/gull/0.png").read_bytes())
    found = check_data.look("x", folder_source.Source(path=str(folder), seed=0), workers=2)
    twice = [line for line in check_data.describe(found, 8) if " = " in line]
    assert twice == [
        "- bird/gull/0.png = car/van/5.png, labels 'gull' and 'van'",
        "- car/van/1.png = car/van/2.png",
    ]


def test_images_in_both_parts_and_new_labels_are_told(folder, tmp_path):
    other = fill(tmp_path / "other", {"bird/eagle": 1, "bird/owl": 1})
    (other / "bird/eagle/0.png").write_bytes((folder / "bird/gull/3.png").read_bytes())
    one, two = (
        check_data.look(name, folder_source.Source(path=str(path), seed=0), 1)
        for name, path in (("training", folder), ("evaluation", other))
    )
    report = "\n".join(check_data.compare(one, two))
    assert "bird/gull/3.png = bird/eagle/0.png" in report
    # The owl has one colour and size with none of the others' but the first.
    assert "1 of 2 evaluation labels are not in training" in report


@pytest.mark.parametrize(
    "label, reason",
    [
        ("cat_dog", "underscore"),
        ("42", "no letters"),
        ("cat, dog", "lists several things"),
        ("cat or dog", "offers several things"),
        ("one two three four five six seven eight nine", "more than 8 words"),
        ("dahlia?", "ends in a punctuation mark"),
        ("misc", "catch-all"),
        ("unknown", "no answer"),
        ("Eagles", "is 'Eagles' but for case"),
        ("EAGLE", "is 'EAGLE' but for case"),
        ("rare", "fewer than 5 images"),
    ],
)
def test_odd_labels_are_told_with_the_reason(label, reason):
    counts = {
        "eagle": 9,
        "bald eagle": 9,
        "McDonnell (F-15)": 9,
        label: 4 if label == "rare" else 9,
    }
    odd = check_data.odd_labels(counts, 8)
    assert len(odd) == 1 and reason in odd[0][1]
    assert odd[0][0] == ("eagle" if label in ("Eagles", "EAGLE") else label)


def test_the_sheet_shows_every_label(folder, tmp_path):
    found = check_data.look("training", folder_source.Source(path=str(folder), seed=0), 2)
    check_data.contact_sheet(found, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert sheet.shape == (3 * 144, 1280, 3)  # 21 images, ten in a row
    shown = {tuple(colour) for colour in sheet.reshape(-1, 3)}
    assert {(n, n, n) for n in range(1, 22)} <= shown


def test_a_sheet_of_many_labels_is_spread_over_them(tmp_path):
    found = check_data.Findings("training")
    for n in range(300):
        found.samples[f"label {n:03}"] += [Image.new("RGB", (8, 8), (n % 256, n // 256, 99))] * 2
    check_data.contact_sheet(found, tmp_path / "sheet.png", rows=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 144, 1280, 3)
    spots = sheet[64::144, 64::128].reshape(-1, 3)
    numbers = [int(red) + 256 * int(green) for red, green, blue in spots if blue == 99]
    assert len(numbers) == 20 and max(numbers) > 270 and min(numbers) < 20


def run_check(config, out, monkeypatch):
    given = collections.namedtuple("Flags", "config out")(config, str(out))
    monkeypatch.setattr(check_data.flags, "FLAGS", given)
    check_data.main(["data_check"])


def test_the_program_passes_what_is_whole(folder, tmp_path, monkeypatch, capsys):
    config = own_folder.get_config()
    config.train.batch_size = 4
    config.data.options.path = str(folder)
    config.data.options.held_out_share = 0.3
    run_check(config, tmp_path / "out", monkeypatch)
    printed = capsys.readouterr().out
    assert "3 labels" in printed and "0 unreadable" in printed
    assert (tmp_path / "out" / "data_check.md").read_text().strip() in printed
    assert (tmp_path / "out" / "contact_sheet.png").exists()
    assert "number of their labels: 'bird' (2), 'car' (1)." in printed


def test_the_tree_is_written_and_serves_as_one_of_the_users_own(
    folder, tmp_path, monkeypatch, capsys
):
    config = own_folder.get_config()
    config.data.options.path = str(folder)
    run_check(config, tmp_path / "out", monkeypatch)
    path = tmp_path / "out" / "label_tree.json"
    tree = json.loads(path.read_text())
    assert tree["leaves"]["bird/gull"]["generic"] == "bird"
    tree["leaves"]["bird/gull"]["synonyms"] = ["seagull"]
    path.write_text(json.dumps(tree))
    config.verifier.options.path = str(path)
    run_check(config, tmp_path / "again", monkeypatch)
    assert not (tmp_path / "again" / "label_tree.json").exists()
    # One whose ids are not those of the folder is refused with what to do.
    tree["leaves"] = {leaf["name"]: leaf for leaf in tree["leaves"].values()}
    path.write_text(json.dumps(tree))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_check(config, tmp_path / "again", monkeypatch)
    assert "'bird/eagle' is not among the 3 leaves (such as 'eagle')" in capsys.readouterr().out


def test_evaluation_images_may_lie_in_another_folder(folder, tmp_path, monkeypatch, capsys):
    other = fill(tmp_path / "other", {"bird/eagle": 3})
    config = own_folder.get_config()
    config.data.options.path = str(folder)
    assert config.evaluation.options.path == str(folder)
    config.evaluation.options.path = str(other)
    config.evaluation.options.part = config.data.options.part = "all"
    assert config.data.options.path == str(folder)
    run_check(config, tmp_path / "out", monkeypatch)
    printed = capsys.readouterr().out
    assert "21 images of 3 labels" in printed and "3 images of 1 labels" in printed


def test_the_program_fails_with_a_broken_image(folder, tmp_path, monkeypatch, capsys):
    (folder / "car/van/1.png").write_bytes(b"")
    config = own_folder.get_config()
    config.data.options.path = str(folder)
    config.data.options.held_out_share = 0.3
    config.data.on_decode_error = "skip"
    with pytest.raises(SystemExit) as error:
        run_check(config, tmp_path / "out", monkeypatch)
    assert error.value.code == 1
    assert "car/van/1.png is empty" in capsys.readouterr().out


def test_the_program_fails_where_labels_do_not_fit_the_verifier(
    folder, tmp_path, monkeypatch, capsys
):
    table = tmp_path / "table.csv"
    table.write_text(
        "image,label\n" + "".join(f"car/van/{i}.png,none\n" for i in range(8)), "utf-8"
    )
    config = own_table.get_config()
    config.data.options.path = str(table)
    config.data.options.root = str(folder)
    config.data.options.part = config.evaluation.options.part = "all"
    with pytest.raises(SystemExit):
        run_check(config, tmp_path / "out", monkeypatch)
    assert "'none' is also an abstention" in capsys.readouterr().out


def test_labels_may_have_as_many_words_as_the_verifier_takes(folder, tmp_path, monkeypatch, capsys):
    (folder / "car/van").rename(folder / "car/delivery van of the old town by the sea")
    config = own_folder.get_config()
    config.train.batch_size = 4
    config.data.options.path = str(folder)
    config.data.options.held_out_share = 0.3
    config.verifier.options.max_words = 9
    run_check(config, tmp_path / "out", monkeypatch)
    assert "words" not in capsys.readouterr().out
    config.verifier.options.max_words = 8
    with pytest.raises(SystemExit):
        run_check(config, tmp_path / "out", monkeypatch)
    printed = capsys.readouterr().out
    assert "'delivery van of the old town by the sea' has more than 8 words" in printed
    assert "has 9 words, and max_words is 8" in printed


def test_captions_are_cut_where_it_shows_and_never_boxes():
    font = check_data.ImageFont.load_default(11)
    assert check_data._caption("green woodpecker", font) == "green woodpecker"
    assert check_data._caption("真鴨", font) == "<771f><9d28>"
    cut = check_data._caption("a name that is much longer than an image is wide", font)
    assert cut.startswith("a name that") and cut.endswith("...")
    assert font.getlength(cut) <= 124


def test_images_of_any_shape_are_seen_on_the_sheet(tmp_path):
    found = check_data.Findings("training")
    for n, size in enumerate([(1, 1), (60, 1), (1, 60), (48, 48)]):
        found.samples[f"label {n}"].append(Image.new("RGB", size, (200, 0, n)))
    check_data.contact_sheet(found, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    for n, (width, height) in enumerate([(120, 120), (120, 2), (2, 120), (120, 120)]):
        rows, columns = np.nonzero((sheet == (200, 0, n)).all(axis=-1))
        assert np.ptp(columns) + 1 == width and np.ptp(rows) + 1 == height
        assert 128 * n < columns.min() and columns.max() < 128 * (n + 1)
