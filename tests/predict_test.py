"""Naming images from files of every kind, as somebody would who has just installed this."""

import copy
import dataclasses
import io
import json
import types

import numpy as np
import pytest
from PIL import Image

from speciarl_jax import predict
from speciarl_jax.data import emoji, image_processor
from speciarl_jax.evaluation import consensus
from speciarl_jax.models import load_policy
from speciarl_jax.runtime import exit_codes
from speciarl_jax.training import policy_sources

GOOD = ["animated.gif", "deep.png", "grey.png", "huge.jpg", "palette.png", "photo.jpg"]
GOOD += ["plain.png", "rgba.png", "rotated.jpg", "sub/inner.bmp", "tiny.png", "web.webp"]
BROKEN = {
    "cut.jpg": "cannot be decoded",
    "empty.webp": "is empty",
    "text.png": "is no image",
    "thin.png": "is 900 x 3 px, too long and thin",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images of all kinds; some are broken."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    source = emoji.Source(split="held_out", difficulty="easy", image_size=64, seed=1)
    image = Image.fromarray(source[5]["image"])
    image.save(folder / "plain.png")
    image.save(folder / "sub" / "inner.bmp")
    image.save(folder / "web.webp", lossless=True)
    image.resize((200, 150)).save(folder / "photo.jpg")
    image.resize((3000, 2000)).save(folder / "huge.jpg")
    image.convert("L").save(folder / "grey.png")
    image.quantize().save(folder / "palette.png", transparency=0)
    rgba = image.convert("RGBA")
    rgba.putalpha(128)
    rgba.save(folder / "rgba.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(
        folder / "deep.png"
    )
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by a quarter
    image.transpose(Image.Transpose.ROTATE_90).save(
        folder / "rotated.jpg", exif=exif, quality=100, subsampling=0
    )
    image.save(folder / "animated.gif", save_all=True, append_images=[image.rotate(90)])
    Image.new("RGB", (1, 1), "red").save(folder / "tiny.png")
    Image.new("RGB", (900, 3), "blue").save(folder / "thin.png")
    whole = io.BytesIO()
    image.resize((200, 200)).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:700])
    (folder / "text.png").write_text("no image")
    (folder / "empty.webp").write_bytes(b"")
    (folder / "notes.txt").write_text("passed over")
    return folder


def test_folders_are_searched_and_files_taken_as_they_are_each_once(photos, tmp_path):
    one = str(photos / "plain.png")
    found, wrong = predict.find_images([one, str(photos), str(photos / "notes.txt"), one])
    assert found[0] == one and found[-1].endswith("notes.txt") and not wrong
    names = sorted(name[len(str(photos)) + 1 :] for name in found[:-1])
    assert names == sorted([*GOOD, *BROKEN])
    assert predict.find_images([str(tmp_path)])[1][0].startswith(f"{tmp_path} holds no image")
    for url in ("https://example.org/a.jpg", "file:///a.jpg"):
        with pytest.raises(ValueError, match=f"{url} is a URL; download the image"):
            predict.find_images([one, url])


def test_images_that_cannot_be_read_are_told_apart_from_the_others(photos):
    paths, wrong = predict.find_images([str(photos), str(photos / "missing.png")])
    rows = {path[len(str(photos)) + 1 :]: row for path, row in predict.read_images(paths, wrong)}
    assert sorted(rows) == GOOD
    reasons = BROKEN | {"missing.png": "cannot be read (No such file or directory)"}
    for (name, reason), said in zip(sorted(reasons.items()), sorted(wrong), strict=True):
        assert said.startswith(f"{photos / name} {reason}") and "config." not in said
    # Upright, all of 16 bits, on white, the first frame: what a person sees.
    plain = rows["plain.png"]["image"].astype(int)
    for name, tolerance in (("rotated.jpg", 12), ("animated.gif", 30), ("web.webp", 0)):
        assert np.abs(rows[name]["image"] - plain).mean() <= tolerance, name
    grey = np.asarray(Image.fromarray(plain.astype(np.uint8)).convert("L")).astype(int)
    for name in ("grey.png", "deep.png"):
        assert np.abs(rows[name]["image"][..., 0] - grey).max() <= 1, name
    assert np.abs(rows["rgba.png"]["image"] - (plain + 255) / 2).max() <= 2
    assert rows["plain.png"]["image_id"] == rows["sub/inner.bmp"]["image_id"]


@pytest.fixture(scope="module")
def predictor(run):
    return predict.Predictor(run, run.lora, samples=3, batch_size=4)


def test_answers_depend_on_the_image_and_not_on_its_neighbours(photos, predictor):
    names = [str(photos / name) for name in ("plain.png", "grey.png", "deep.png", "rgba.png")]
    tree, wrong = consensus.NameTree(), []

    def answers(paths):
        rows = [row for _, row in predict.read_images(paths, wrong)]
        return predictor(rows)

    together = answers(names)
    assert [len(group) for group in together] == [3] * 4
    assert together[0] != together[1] and together[1] == together[2]
    for name, said in zip(names, together, strict=True):
        assert answers([name]) == [said]
    five = [*names, str(photos / "text.png"), str(photos / "web.webp")]
    found = list(predict.predict(predictor, five, tree, 0.5, wrong))
    assert [path for path, _ in found] == [*names, five[-1]]
    assert [reason.split(" ", 1)[1] for reason in wrong] == ["is no image"]
    assert found[0][1].answers == found[-1][1].answers


@pytest.fixture
def fitted(run, small_config, tmp_path):
    """(room for an image in tokens, --max_pixels) -> `fit_images` of a run whose image processor
    leaves photographs as they are."""
    name = "preprocessor_config.json"
    folder = load_policy.model_folder(run.config.model.path)
    settings = json.loads((folder / name).read_text())
    settings["size"]["longest_edge"] = 10**7
    (tmp_path / name).write_text(json.dumps(settings))

    def fitted(room, asked=None):
        tokens = len(run.builder.prompt_ids(0)) + room
        config = small_config(data__max_prompt_tokens=tokens, model__path=str(tmp_path))
        builder = copy.copy(run.builder)
        builder.max_prompt_tokens = tokens
        builder.image_processor = image_processor.load(tmp_path, asked)
        return predict.fit_images(dataclasses.replace(run, config=config, builder=builder), asked)

    return fitted


@pytest.mark.parametrize("room", [250, 100])
def test_images_are_shrunk_as_far_as_the_longest_prompt_asks(fitted, room):
    """A photograph that is larger than the prompt has room for ends nothing."""
    builder = fitted(room).builder
    sizes = []
    for shape in ((3000, 2000), (2000, 2000), (200, 1), (20, 4000), (64, 64)):
        row = {"image": np.zeros((*shape, 3), np.uint8), "image_id": 1, "label_index": 0}
        # Refuses what is too long.
        sizes.append(builder([row], 1).layout.token_index_BM.shape[1])
    assert max(sizes) > 0.8 * room


def test_more_pixels_than_a_prompt_has_room_for_are_refused(fitted, run):
    vision = run.model_config.vision
    unit = vision.patch_size * vision.spatial_merge_size
    most = 250 * unit**2
    with pytest.raises(ValueError, match=f"--max_pixels is {most + 1}, and at most {most} fit"):
        fitted(250, asked=most + 1)
    assert fitted(250, asked=most).builder.image_processor.size["longest_edge"] == most
    with pytest.raises(ValueError, match="max_prompt_tokens is .* too little for any image"):
        fitted(1)


def test_broken_files_are_told_whatever_ends_the_command(photos, monkeypatch, capsys):
    def fail(given, paths, wrong):
        list(predict.read_images(paths, wrong))
        raise ValueError("something else")

    monkeypatch.setattr(predict, "name_all", fail)
    given = types.SimpleNamespace(workdir="", model="emoji_tiny", confidence=0.7)
    monkeypatch.setattr(predict.flags, "FLAGS", given)
    with pytest.raises(ValueError, match="something else"):
        predict.main(["predict", str(photos)])
    assert capsys.readouterr().err.count("passed over") == len(BROKEN)


def test_the_workdir_may_lie_in_a_bucket(monkeypatch):
    def read(workdir):
        assert str(workdir / "config.json") == "gs://bucket/run/config.json"
        raise ValueError("read")

    monkeypatch.setattr(predict.policy_sources, "read_config", read)
    with pytest.raises(ValueError, match="read"):
        predict.open_policy(types.SimpleNamespace(workdir="gs://bucket/run"))


def test_compiled_programs_are_kept_where_the_configuration_says(
    policy_folder, small_config, monkeypatch
):
    asked = []

    def stop(config, mesh):
        raise ValueError(f"compiles into {asked}")

    monkeypatch.setattr(predict.compilation_cache, "enable", asked.append)
    monkeypatch.setattr(predict, "policy_run", stop)
    given = types.SimpleNamespace(
        **{"workdir": "", "model": str(policy_folder), "prompt": None, "max_pixels": None},
        **{"max_tokens": None, "config": small_config(compilation_cache="kept/here")},
    )
    with pytest.raises(ValueError, match="compiles into .'kept/here'"):
        predict.open_policy(given)


def test_a_line_and_a_row_say_the_same():
    choice = consensus.Choice(
        "bird", 0.95, [("eagle", 0.7), ("bird", 0.95)], {"eagle": 14, "bird": 5, "": 1}
    )
    assert json.loads(predict.as_json("a b.png", choice)) == {
        "image": "a b.png",
        "name": "bird",
        "agreement": 0.95,
        "path": [{"name": "eagle", "agreement": 0.7}, {"name": "bird", "agreement": 0.95}],
        "answers": {"eagle": 14, "bird": 5},
        "declined": 1,
        "unread": 0,
    }
    row = predict.as_row("a b.png", choice)
    assert row.split() == "bird 0.95 a b.png (eagle 0.70, bird 0.95)".split()
    none = consensus.Choice(None, 0.0, [], {None: 2})
    assert predict.as_row("x\x1b[2J\n.png", none).startswith("?") and "no name" in (
        predict.as_row("x", none)
    )
    assert predict.as_row("x\x1b[2J\n.png", none).isprintable()
    assert json.loads(predict.as_json("x", none))["unread"] == 2


def test_a_policy_is_found_by_what_its_folder_holds(policy_folder, tmp_path):
    (model,) = policy_sources.named([f"mine={policy_folder}"], tmp_path)
    assert model.name == "mine" and model.model == {"path": str(policy_folder)}
    base, trained = policy_sources.named(["base", "trained"], tmp_path, 20)
    assert (base.name, trained.name) == ("base", "step_20")
    for spec, said in (
        (["nowhere"], "'nowhere' is no policy: neither 'base', 'trained'"),
        (["runs/a@x"], "behind @ stands the step"),
        (["base", "base=emoji_tiny"], "two policies have one name"),
    ):
        with pytest.raises(ValueError, match=said):
            policy_sources.named(spec, tmp_path)


def test_the_command_names_what_it_can_and_fails_for_the_rest(photos, start):
    """With the policy and the tree that ship."""
    command = ("-m", "speciarl_jax.predict", photos, "--model=emoji_tiny", "--samples=8", "--json")
    process = start(*command, "--confidence=0.6", quick=True)
    printed, _ = process.communicate(timeout=500)
    assert process.returncode == 1, printed
    rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert [row["image"][len(str(photos)) + 1 :] for row in rows] == GOOD
    for row in rows:
        shares = [step["agreement"] for step in row["path"]]
        assert shares == sorted(shares)
        if row["name"]:
            assert row["agreement"] >= 0.6 and row["name"] in [s["name"] for s in row["path"]]
        assert sum(row["answers"].values()) + row["declined"] + row["unread"] == 8
    # The shipped tree knows groups.
    assert {row["path"][-1]["name"] for row in rows if row["path"]} & {"animal", "food"}
    assert printed.count("; passed over") == len(BROKEN)
    assert "passed over 1 .txt" in printed


def test_a_wrong_command_line_says_what_is_wrong(photos, start):
    process = start("-m", "speciarl_jax.predict", photos / "plain.png", "--model=/nowhere")
    printed, _ = process.communicate(timeout=500)
    assert process.returncode == exit_codes.REFUSED, printed
    assert "predict: '/nowhere' is no policy" in printed
    assert "Traceback" not in printed
