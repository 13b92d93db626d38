"""The page as text: well-formed, complete, and nothing that a model says is markup."""

import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest
import report_folder
from html_page import Page

from speciarl_jax.data import thumbnails
from speciarl_jax.evaluation import pairs, predictions, report
from speciarl_jax.evaluation.report import folder, page, page_data, palette
from speciarl_jax.runtime import jsonl
from speciarl_jax.verifiers import taxonomy


@pytest.fixture
def workdir(tmp_path):
    report_folder.make(tmp_path)
    return tmp_path


@pytest.fixture
def text(workdir):
    return page.render(folder.read(workdir), {("emoji", 1003): "data:image/webp;base64,AAAA"})


def data_of(text):
    return json.loads(Page(text).scripts[0])


def test_the_page_is_well_formed_and_asks_for_nothing(text):
    found = Page(text)
    assert len(found.ids) == len(set(found.ids))
    assert found.tags.count("script") == 2 and found.tags.count("section") == 8
    links = {value for name, value in found.attributes if name in ("href", "src")}
    assert links and all(link.startswith("#") and link[1:] in found.ids for link in links)
    assert not re.search(r"https?://|@import|url\(", text)
    labelled = {value for name, value in found.attributes if name == "for"}
    controls = [i for i in found.ids if i.startswith(("f-", "run-"))]
    assert labelled == set(controls) and len(controls) >= 9
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawings) == 3 + 3 + 1 + 5
    for drawing in drawings:
        root = xml.etree.ElementTree.fromstring(drawing)
        assert root.get("role") == "img" and root.get("aria-label")
        # Colours that differ on a dark page are variables, and its style sheet is the page's.
        assert not set(re.findall("#[0-9a-f]{6}", drawing)) & set(
            map(palette.LIGHT.get, palette.DARK)
        )
        assert "<style" not in drawing and "font-family" not in drawing


def test_the_same_folder_gives_the_same_page(workdir):
    assert page.render(folder.read(workdir)) == page.render(folder.read(workdir))


def test_nothing_that_a_model_says_is_markup(text):
    found = Page(text)
    assert "img" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    block = re.search(r'id="data">(.*?)</script>', text, re.S).group(1)
    assert not set("<>&") & set(block) and block.isascii()
    # Nothing unseen is left: it is written as its code point.
    assert not set("\u202e\u200b\u2060\ufeff\u2028\u2029\x00\x1b") & set(text)
    answers = [g[1] for p in data_of(text)["images"] for g in p["greedy"].values()]
    assert any("‹U+202E›" in a for a in answers) and any("‹U+200B›" in a for a in answers)
    assert any("<script>window.broken = 1</script>" in a for a in answers)
    assert max(map(len, answers)) < 1000 and any("more characters" in a for a in answers)


def test_the_data_are_complete(text, workdir):
    found = data_of(text)
    assert found["runs"] == ["base", "trained"] and len(found["images"]) == 60
    rows = jsonl.read(workdir / "predictions.jsonl")
    greedy = {(r["image_id"], r["policy"]): r for r in rows if r["decoding"] == "greedy"}
    for entry in found["images"]:
        assert ("thumb" in entry) == (entry["id"] == 1003)
        assert entry["level"] in ("easy", "hard") and entry["group"] == "animal"
        for number, policy in enumerate(("base", "trained")):
            want = greedy[entry["id"], policy]["categories"][0]
            assert entry["greedy"][str(number)][2] == want
            samples = entry["samples"][str(number)]
            assert samples["of"] == 8
            assert sum(answer[3] for answer in samples["answers"]) + samples["more"] == 8
    assert [row["step"] for row in found["rollouts"]] == [1, 10, 20, 30]
    assert [a[3] for a in found["rollouts"][0]["answers"]] == [1.0, 0.0, None, -1.0]


def test_rewards_of_samples_are_those_of_the_configuration():
    config = {"reward": {"name": "best_prediction", "options": {"unparsed_reward": -1.0}}}
    reward = page_data.reward_of({"emoji": config})
    got = reward([["generic", "wrong", "unparsed", "generic", "unverified"]])
    assert got == [[1.0, 0.0, -1.0, 1.0, None]]
    # Groups of different sizes keep their places.
    assert reward([["wrong"], ["generic", "specific"], ["abstain"]]) == [[0.0], [0.0, 1.0], [1.0]]
    assert page_data.reward_of({}) is None


def test_names_of_predict_and_what_is_not_compared_are_shown(workdir):
    found = json.loads((workdir / "metrics.json").read_text())
    assert "choices" not in Page(page.render(folder.read(workdir))).ids
    worth = {"confidence": 0.7, "named": 0.25, "agreement": 0.812, "correctness": None}
    found["runs"][1]["choices"] = [worth | {"specificity": None}]
    sides = {side: {"policy": "<b>", "data": "emoji", "prompt": "base"} for side in "ab"}
    found["not_compared"] = [sides | {"because": {"verifier.weights": ["a", "b"]}}]
    (workdir / "metrics.json").write_text(json.dumps(found))
    shown = Page(page.render(folder.read(workdir)))
    text = " ".join(shown.text)
    assert "choices" in shown.ids and "python -m speciarl_jax.predict --confidence" in text
    assert re.search(r"trained\s+0\.7\s+0\.250\s+0\.812", text)
    assert "<b>/emoji/base are not compared: verifier.weights ('a' and 'b')" in text
    assert "each base judges itself" in text


def test_the_page_says_why_an_answer_got_its_category(workdir):
    report_folder.know_more(workdir)
    report_folder.explain(workdir)
    trees = {"emoji": taxonomy.Taxonomy(report_folder.TREE)}
    found = data_of(page.render(folder.read(workdir), {}, trees))
    entries = found["images"][-len(report_folder.REASONS) :]
    for entry, (_, category, reason) in zip(entries, report_folder.REASONS, strict=True):
        for number in "01":
            (sample,) = entry["samples"][number]["answers"]
            greedy = entry["greedy"][number]
            assert greedy[2] == sample[1] == category and sample[3] == 8
            for place in (greedy[3], sample[4]):
                assert (None if place is None else found["reasons"][place]) == reason
    # Each is written once; of other labels, and without a tree, none is known.
    assert len(found["reasons"]) == len(set(found["reasons"])) == len(report_folder.REASONS) - 1
    assert found["images"][0]["greedy"]["0"][3] is None
    found = data_of(page.render(folder.read(workdir)))
    assert found["reasons"] == [] and found["images"][-1]["greedy"]["0"][3] is None


def test_a_tree_alone_has_no_judge_that_decided(workdir):
    report_folder.explain(workdir)
    trees = {"emoji": taxonomy.Taxonomy(report_folder.TREE)}
    # "spuggy" was judged specific, the tree says wrong, and no judge is known.
    assert not any(
        "judge" in reason
        for reason in data_of(page.render(folder.read(workdir), {}, trees))["reasons"]
    )


def test_runs_are_named_by_what_tells_them_apart():
    keys = [("base", "emoji", "base"), ("base", "birds", "base")]
    assert page_data.names_of(keys) == ["base · emoji", "base · birds"]
    assert page_data.names_of(keys[:1]) == ["base"] and page_data.names_of([]) == []


def test_changes_are_counted_over_images_that_both_answered():
    def entry(*categories):
        return {"greedy": {i: ["", "", c] for i, c in enumerate(categories) if c}}

    entries = [entry("wrong", "specific"), entry("wrong", "specific"), entry("wrong", None)]
    assert page_data.changes(entries, 0, 1) == {("wrong", "specific"): 2}


def test_a_folder_without_metrics_has_a_page_with_the_same_scores(workdir):
    rows = jsonl.read(workdir / "predictions.jsonl")
    greedy = [row for row in rows if row["decoding"] == "greedy"]
    want = json.loads((workdir / "metrics.json").read_text())
    for name in ("metrics.json", "rollout_samples.jsonl"):
        (workdir / name).unlink()
    lines = "".join(json.dumps(row) + "\n" for row in greedy)
    (workdir / "predictions.jsonl").write_text(lines)
    config = {
        "data": {"name": "elsewhere", "prompt": "base", "options": {}},
        "reward": {"name": "best_prediction", "options": {"unparsed_reward": -1.0}},
        "evaluation": {"weights": report_folder.WEIGHTS, "seed": 0, "options": {}},
    }
    (workdir / "config.json").write_text(json.dumps(config))
    content = folder.read(workdir)
    for got, run in zip(content.metrics["runs"], want["runs"], strict=True):
        for key, value in run["score"].items():
            assert got["score"][key] == pytest.approx(value), key
    paths = report.write(workdir)
    assert paths[1] == workdir / "report.html" and all(path.exists() for path in paths)
    found = data_of(paths[1].read_text())
    # The data set cannot be opened: the page is there, its images are not.
    assert len(found["images"]) == 60 and not any("thumb" in p for p in found["images"])
    assert "samples" not in Page(paths[1].read_text()).ids


def test_an_empty_or_damaged_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds nothing to report on; give the --workdir"):
        folder.read(tmp_path)
    report_folder.make(tmp_path)
    lines = (tmp_path / "predictions.jsonl").read_text()
    (tmp_path / "predictions.jsonl").write_text(lines[:-40])
    assert len(folder.read(tmp_path).predictions) == 4 * 60 - 1
    (tmp_path / "predictions.jsonl").write_text("{\n" + lines)
    with pytest.raises(ValueError, match="predictions.jsonl, line 1 is damaged"):
        folder.read(tmp_path)
    (tmp_path / "predictions.jsonl").write_text(lines)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n[2]\n{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2 is damaged"):
        folder.read(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 1}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, lines 1 and 2 are both about step 1"):
        folder.read(tmp_path)


ODD_ROWS = """\
{"step": 1, "reward/mean": NaN, "update/kl": null, "update/loss": Infinity, "verify/wrong": 0.5}
{"step": 2, "reward/mean": null, "mine": "a text", "own": [1, 2], "update/grad_norm": 1e300}
{"step": 3, "reward/mean": -1e300, "update/grad_norm": 1e-300, "update/entropy": -0.0}
{"step": 3, "validation/all/hm": 0.5, "validation/all/correctness": NaN}
{"step": 4, "verify/specific": 0.25, "health/kl": 2.0, "health/truncated": null}
{"step": null, "reward/mean": 1.0}
{"reward/mean": 1.0}
{"step": 5}
"""


@pytest.mark.parametrize("rows", [ODD_ROWS, '{"step": 1, "reward/mean": NaN}\n', '{"step": 1}\n'])
def test_a_report_is_written_whatever_the_metrics_are(workdir, rows):
    (workdir / "metrics.jsonl").write_text(rows)
    paths = report.write(workdir)
    text = (workdir / "report.html").read_text()
    assert all(path.exists() for path in paths) and data_of(text)["images"]
    assert "training" in Page(text).ids and not re.search(r"\bnan\b", text, re.I)
    written = (workdir / "report.md").read_text()
    assert "## Training" in written and not re.search(r"\b(NaN|nan|None)\b", written)
    warned = "Watch health/kl: something was wrong in 1 of 1 rows of metrics.jsonl"
    assert (warned in text) == (rows == ODD_ROWS)


def test_thumbnails_stay_within_their_budget_and_the_important_ones_come_first():
    rng = np.random.default_rng(0)
    images = {i: rng.integers(0, 255, (80, 60, 3), np.uint8) for i in range(40)}
    order = sorted(images, reverse=True)
    sizes = []
    for budget in (400_000, 60_000, 20_000):
        found = thumbnails.fitting(images, order, budget)
        sizes.append(sum(map(len, found.values())))
        assert sizes[-1] <= budget
        assert list(found) == order[: len(found)]
    assert len(thumbnails.fitting(images, order, 400_000)) == 40
    assert 0 < len(thumbnails.fitting(images, order, 20_000)) < 40
    assert sizes == sorted(sizes, reverse=True)
    assert thumbnails.fitting({}, [], 1000) == {}


def emoji_of(level):
    """A configuration that asks about vehicles of one difficulty, and its images."""
    from configs import quickstart
    from speciarl_jax.data import emoji

    config = quickstart.get_config()
    with config.unlocked():
        config.data.options.domains = ("vehicle",)
        config.evaluation.options.difficulty = level
    options = {**config.data.options, **config.evaluation.options}
    return config, emoji.Source(seed=config.evaluation.seed, **options)


def asked(store, data, source, decoding="greedy", answers=1):
    """Answers about two images of a source."""
    part = predictions.Part("base", data, "base", decoding)
    store.begin(part, {})
    said = {"responses": ["<answer>car</answer>"] * answers, "categories": ["wrong"] * answers}
    rows = [{k: v for k, v in source[i].items() if k != "image"} | said for i in (0, 5)]
    store.append(part, [row | {"index": i} for i, row in enumerate(rows)])


def thumbs_of(workdir):
    report.write(workdir)
    found = data_of((workdir / "report.html").read_text())
    return {(p["data"], p["id"]): p.get("thumb") for p in found["images"]}


def test_an_evaluation_that_was_killed_has_a_page_with_the_images_of_each_data_set(tmp_path):
    store = predictions.Predictions(tmp_path)
    want = {}
    for level in ("easy", "hard"):
        config, source = emoji_of(level)
        store.keep_config(level, json.loads(config.to_json()))
        asked(store, level, source)
        asked(store, level, source, "samples", 3)
        want |= {(level, source[i]["image_id"]): source[i]["image"] for i in (0, 5)}
    assert len({image_id for _, image_id in want}) == 2  # the same images, but for difficulty
    want = {name: thumbnails.data_uri(image) for name, image in want.items()}
    assert len(set(want.values())) == 4
    # No metrics.json and no config.json: it was evaluated with --config, and did not end.
    assert thumbs_of(tmp_path) == want
    found = data_of((tmp_path / "report.html").read_text())
    # The reward is known, too: three wrong answers earn nothing.
    assert [a[2:] for a in found["images"][0]["samples"]["0"]["answers"]] == [[0.0, 3, None]]
    assert (tmp_path / "report.md").exists() and (tmp_path / "figures" / "best_of.png").exists()
    report.write(tmp_path, 0)
    found = data_of((tmp_path / "report.html").read_text())
    assert not any("thumb" in entry for entry in found["images"])


def test_a_report_made_anew_finds_the_label_tree_of_its_configuration(tmp_path):
    store = predictions.Predictions(tmp_path)
    config, source = emoji_of("easy")
    store.keep_config("emoji", json.loads(config.to_json()))
    part = predictions.Part("base", "emoji", "base", "greedy")
    store.begin(part, {})
    rows = [{k: v for k, v in source[i].items() if k != "image"} for i in (0, 5)]
    for i, row in enumerate(rows):
        said = {"responses": [f"<answer>{row['label']}</answer>"], "categories": ["specific"]}
        store.append(part, [row | said | {"index": i}])
    report.write(tmp_path)
    found = data_of((tmp_path / "report.html").read_text())
    for entry, row in zip(found["images"], rows, strict=True):
        assert found["reasons"][entry["greedy"]["0"][3]] == f"name {row['label']!r}"
    # A judge alone has no tree.
    config.verifier.name = "http_judge"
    store.keep_config("emoji", json.loads(config.to_json()))
    report.write(tmp_path)
    assert data_of((tmp_path / "report.html").read_text())["reasons"] == []


def test_a_data_set_that_is_gone_costs_only_its_own_images(tmp_path):
    store = predictions.Predictions(tmp_path)
    for level in ("easy", "hard"):
        config, source = emoji_of(level)
        if level == "easy":
            config.data.name = "elsewhere"
        store.keep_config(level, json.loads(config.to_json()))
        asked(store, level, source)
    thumbs = thumbs_of(tmp_path)
    assert [thumbs[name] is None for name in thumbs] == [True, True, False, False]


def test_a_training_run_of_old_keeps_its_images_when_more_is_evaluated(tmp_path):
    store, want = predictions.Predictions(tmp_path), {}
    for data, level in (("emoji", "easy"), ("hard", "hard")):
        config, source = emoji_of(level)
        asked(store, data, source)
        if data == "emoji":
            (tmp_path / "config.json").write_text(config.to_json())
        else:
            store.keep_config(data, json.loads(config.to_json()))
        want |= {(data, source[i]["image_id"]): source[i]["image"] for i in (0, 5)}
        assert thumbs_of(tmp_path) == {k: thumbnails.data_uri(v) for k, v in want.items()}


def test_a_page_opens_with_the_last_run_that_has_a_base():
    def run(policy, data, prompt="base"):
        return {"policy": policy, "data": data, "prompt": prompt}

    base, trained = run("base", "a"), run("trained", "a")
    far, other = run("base", "b"), run("copy", "b")
    assert pairs.opening([base, trained, far, other]) == (far, other)
    # Here the last one has none.
    assert pairs.opening([base, trained, other]) == (base, trained)
    assert pairs.opening([trained, other, run("more", "b")]) == (other, run("more", "b"))
    assert pairs.opening([trained]) == (trained, trained)
    # Another prompt has another base.
    assert pairs.base_of(run("trained", "a", "specific"), [base, trained]) is None
    both = [base, trained, run("later", "a"), far, other]
    assert pairs.last_of_each(both) == [(base, run("later", "a")), (far, other)]
