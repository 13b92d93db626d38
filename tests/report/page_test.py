"""The page as text: well-formed, complete, and nothing that a model says is markup."""

import html.parser
import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest
import report_folder

from speciarl_jax import report
from speciarl_jax.report import charts, folder, page, page_data, thumbnails

VOID = {"meta", "input", "br", "img"}


class Page(html.parser.HTMLParser):
    """Tags of a page; raises where one is not closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.scripts, self.text = [], [], [], [], []
        self.attributes = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        (self.scripts if self.open[-1:] == ["script"] else self.text).append(data)


@pytest.fixture
def workdir(tmp_path):
    report_folder.make(tmp_path)
    return tmp_path


@pytest.fixture
def text(workdir):
    return page.render(folder.read(workdir), {1003: "data:image/webp;base64,AAAA"})


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
    for drawing in re.findall(r"<svg.*?</svg>", text, re.S):
        xml.etree.ElementTree.fromstring(drawing)


def test_nothing_that_a_model_says_is_markup(text):
    found = Page(text)
    assert "img" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    block = re.search(r'id="data">(.*?)</script>', text, re.S).group(1)
    assert not set("<>&") & set(block) and block.isascii()
    # Nothing unseen is left: it is written as its code point.
    assert not set("\u202e\u200b\u2060\ufeff\u2028\u2029\x00\x1b") & set(text)
    answers = [g[1] for p in data_of(text)["pictures"] for g in p["greedy"].values()]
    assert any("‹U+202E›" in a for a in answers) and any("‹U+200B›" in a for a in answers)
    assert any("<script>window.broken = 1</script>" in a for a in answers)
    assert max(map(len, answers)) < 1000 and any("more characters" in a for a in answers)


def test_the_data_are_complete(text, workdir):
    found = data_of(text)
    assert found["runs"] == ["base", "trained"] and len(found["pictures"]) == 60
    rows = folder.read_lines(workdir / "predictions.jsonl")
    greedy = {(r["image_id"], r["policy"]): r for r in rows if r["decoding"] == "greedy"}
    for entry in found["pictures"]:
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
    reward = page_data.reward_of(config)
    got = reward([["generic", "wrong", "unparsed", "generic", "unverified"]])
    assert got == [[1.0, 0.0, -1.0, 1.0, None]]
    # Groups of different sizes keep their places.
    assert reward([["wrong"], ["generic", "specific"], ["abstain"]]) == [[0.0], [0.0, 1.0], [1.0]]
    assert page_data.reward_of({}) is None


def test_the_headline_says_what_happened(workdir):
    def headline(correctness, specificity):
        content = folder.read(workdir)
        base, trained = content.metrics["runs"]
        trained["score"] |= {
            "correctness": base["score"]["correctness"] + correctness,
            "specificity": base["score"]["specificity"] + specificity,
        }
        return re.search("<h1>(.*?)</h1>", page.render(content)).group(1)

    assert headline(0.1, 0.1) == "More specific, and more often right"
    assert headline(-0.1, 0.1) == "More specific, but less often right"
    assert headline(0.001, -0.1) == "Less specific, and as often right"


def test_runs_are_named_by_what_tells_them_apart():
    keys = [("base", "emoji", "base"), ("base", "birds", "base")]
    assert page_data.names_of(keys) == ["base · emoji", "base · birds"]
    assert page_data.names_of(keys[:1]) == ["base"] and page_data.names_of([]) == []


def test_changes_are_counted_over_pictures_that_both_answered():
    def entry(*categories):
        return {"greedy": {i: ["", "", c] for i, c in enumerate(categories) if c}}

    entries = [entry("wrong", "specific"), entry("wrong", "specific"), entry("wrong", None)]
    assert page_data.changes(entries, 0, 1) == {("wrong", "specific"): 2}


def test_a_band_is_as_high_as_its_share():
    drawing = charts.shift({("wrong", "specific"): 3, ("wrong", "wrong"): 1}, "a", "b")
    heights = [float(h) for h in re.findall(r'd="M[\d. ]+C[\d. -]+v([\d.]+)C', drawing)]
    assert len(heights) == 2 and heights[0] == pytest.approx(3 * heights[1], rel=0.01)


def test_a_point_of_the_trade_off_lies_where_its_numbers_say(workdir):
    runs = folder.read(workdir).metrics["runs"]
    for run, xy in zip(runs, [(0.5, 0.4), (0.7, 0.8)], strict=True):
        run["score"] |= dict(zip(("correctness", "specificity"), xy, strict=True))
    drawing = charts.trade_off(runs, ["one", "two"])
    assert "one: correctness 0.500, specificity 0.400" in drawing
    tree = xml.etree.ElementTree.fromstring(drawing)
    dots = [e for e in tree.iter() if e.get("class") == "dot"]
    square_x = float(dots[1].get("x")) + float(dots[1].get("width")) / 2
    assert square_x > float(dots[0].get("cx"))
    assert float(dots[1].get("y")) < float(dots[0].get("cy"))


def test_a_folder_without_metrics_has_a_page_with_the_same_scores(workdir):
    rows = folder.read_lines(workdir / "predictions.jsonl")
    greedy = [row for row in rows if row["decoding"] == "greedy"]
    want = json.loads((workdir / "metrics.json").read_text())
    for name in ("metrics.json", "rollout_samples.jsonl"):
        (workdir / name).unlink()
    lines = "".join(json.dumps(row) + "\n" for row in greedy)
    (workdir / "predictions.jsonl").write_text(lines)
    config = {
        "data": {"name": "elsewhere", "prompt": "base", "options": {}},
        "evaluation": {"weights": report_folder.WEIGHTS, "seed": 0, "options": {}},
    }
    (workdir / "config.json").write_text(json.dumps(config))
    content = folder.read(workdir)
    for got, run in zip(content.metrics["runs"], want["runs"], strict=True):
        for key, value in run["score"].items():
            assert got["score"][key] == pytest.approx(value), key
    path = report.write_page(workdir)
    assert path == workdir / "report.html"
    found = data_of(path.read_text())
    # The data set cannot be opened: the page is there, its pictures are not.
    assert len(found["pictures"]) == 60 and not any("thumb" in p for p in found["pictures"])
    assert "samples" not in Page(path.read_text()).ids


def test_an_empty_or_damaged_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds nothing to report on; give the --workdir"):
        folder.read(tmp_path)
    report_folder.make(tmp_path)
    lines = (tmp_path / "predictions.jsonl").read_text()
    (tmp_path / "predictions.jsonl").write_text(lines[:-40])
    assert len(folder.read(tmp_path).predictions) == 4 * 60 - 1
    (tmp_path / "predictions.jsonl").write_text("{\n" + lines)
    with pytest.raises(ValueError, match="predictions.jsonl: row 1 is no JSON"):
        folder.read(tmp_path)


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


def test_thumbnails_are_read_from_the_data_set_of_the_run(tmp_path):
    from configs import quickstart
    from speciarl_jax.data import emoji

    config = quickstart.get_config()
    config.data.options.domains = ("vehicle",)
    source = emoji.Source(
        seed=config.evaluation.seed,
        **{**config.data.options, **config.evaluation.options, "domains": ("vehicle",)},
    )
    rows = []
    for index in (0, 5):
        row = source[index]
        answer = {"policy": "base", "data": "emoji", "prompt": "base", "decoding": "greedy"}
        said = {"responses": ["<answer>car</answer>"], "categories": ["wrong"]}
        rows.append({k: v for k, v in row.items() if k != "image"} | answer | said)
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "config.json").write_text(config.to_json())
    found = data_of(report.write_page(tmp_path).read_text())
    thumbs = [entry["thumb"] for entry in found["pictures"]]
    assert thumbs == [thumbnails.data_uri(source[i]["image"]) for i in (0, 5)]
    assert "thumb" not in data_of(report.write_page(tmp_path, 0).read_text())["pictures"][0]
