"""Answers of other models: how files are read, images found, and answers judged."""

import json

import numpy as np
import pytest
import small_run

from speciarl_jax.data.sources import open_source
from speciarl_jax.evaluation import answer_file, given_answers, image_index, predictions, text_judge
from speciarl_jax.evaluation.predictions import Part, Predictions
from speciarl_jax.verifiers.base import HostVerifier
from speciarl_jax.verifiers.taxonomy import TaxonomyVerifier


def write(path, *lines):
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(one + "\n" for one in text))
    return str(path)


def row(image_id, key):
    return {"image_id": image_id, "label_id": "eagle", "label": "eagle", "key": key}


class Source:
    def __init__(self, *rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def describe(self, index):
        return self.rows[index]


def test_a_file_is_named_and_its_answers_become_responses(tmp_path):
    path = write(
        tmp_path / "intern=vl.jsonl",
        {"image_id": 7.0, "answer": "bald eagle", "seconds": 3},
        "",
        {"path": "eagle/2.jpg", "response": "I see. <answer>eagle</answer>"},
        {"name": "3.jpg", "answer": [""]},
    )
    file, other = answer_file.read([path, f"api={path}"])
    assert (file.name, other.name) == ("intern=vl", "api") and file.digest == other.digest
    assert [line[:3] for line in file.lines] == [
        (1, 7, None),
        (3, None, "eagle/2.jpg"),
        (4, None, "3.jpg"),
    ]
    assert [line.responses for line in file.lines] == [
        ["<think></think><answer>bald eagle</answer>"],
        ["I see. <answer>eagle</answer>"],
        ["<think></think><answer></answer>"],
    ]


ABOUT = {"image_id": 1}


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([], "has no line; write one for each image"),
        (["{'image_id': 1}"], "line 1: no JSON .*write one object a line"),
        ([[ABOUT | {"answer": "x"}]], "line 1: a list instead of an object"),
        ([{"answer": "x"}], "line 1: it does not say which image"),
        ([{"image_id": [1], "answer": "x"}], "line 1: 'image_id' is .1. and .*whole number"),
        ([ABOUT], "line 1: it has none of the fields 'answer' and 'response'"),
        ([ABOUT | {"answer": "x", "response": "x"}], "line 1: it has both of the fields"),
        ([ABOUT | {"answer": None}], "line 1: 'answer' is None; give a text .*leave the line out"),
        ([ABOUT | {"answer": []}], "line 1: 'answer' is ..; give a text"),
        ([ABOUT | {"answer": "<answer>x</answer>"}], "'answer' holds tags .*as 'response'"),
        ([ABOUT | {"response": "x"}], "no response holds <answer>.*into the field 'answer'"),
        (
            [ABOUT | {"answer": "x"}, {"image_id": 2, "answer": ["x", "y"]}],
            "line 2 has 2 answers and line 1 has 1; give the same number",
        ),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, lines, error):
    with pytest.raises(ValueError, match=error):
        answer_file.read([write(tmp_path / "a.jsonl", *lines)])


def test_names_that_do_not_fit_are_refused(tmp_path):
    path = write(tmp_path / "base.jsonl", ABOUT | {"answer": "x"})
    with pytest.raises(ValueError, match="'base' cannot be the name .*write NAME=FILE.jsonl"):
        answer_file.read([path])
    with pytest.raises(ValueError, match="two files of --answers have one name"):
        answer_file.read([f"x={path}", f"x={path}"])
    with pytest.raises(ValueError, match=r"there is no file 'gone.jsonl'"):
        answer_file.read(["x=gone.jsonl"])


def test_images_are_found_by_id_and_by_as_much_of_a_path_as_tells_them_apart():
    rows = [row(1, "eagle/1.jpg"), row(2, "gull/1.jpg"), row(3, "gull/caf\u00e9.png"), row(4, "9")]
    index = image_index.ImageIndex(rows)
    one, two, three, four = (index.place(x) for x in rows)
    for path, place in {
        "eagle/1.jpg": one,
        "./eagle/1.jpg": one,
        "/data/birds/eagle/1.jpg": one,
        "birds\\gull\\1.jpg": two,
        "gull/1": two,
        "gull/1.png": two,
        "cafe\u0301.png": three,
        "9.jpg": four,
        "hawk/1.jpg": None,
        "e/1.jpg": None,
        "": None,
    }.items():
        assert index.find(None, path) == place, path
    assert index.find(2, "eagle/1.jpg") == two and index.find("2", None) == two
    assert index.find("9", None) == four and index.find("eagle/1.jpg", None) == one
    assert index.find(5, None) is None and index.find(5, "eagle/1.jpg") is None
    with pytest.raises(ValueError, match=r"'1.jpg' may be any of 2 images: 'eagle/1.jpg' \(1\)"):
        index.find(None, "1.jpg")
    # Ids are hashes of 31 bits, so two images may share one.
    both = image_index.ImageIndex([row(1, "a.jpg"), row(1, "b.jpg")])
    with pytest.raises(ValueError, match="1 may be any of 2 images"):
        both.find(1, None)
    assert both.find(1, "b.jpg") == (1, "b.jpg")


def test_images_without_a_line_and_lines_without_an_image_are_named(tmp_path, caplog):
    # A mixture shows an image twice.
    source = Source(*(row(i, f"{i}.jpg") for i in (1, 2, 3, 4, 1)))
    lines = [{"path": f"{i}.jpg", "answer": f"name {i}"} for i in (4, 1, 9)]
    files = answer_file.read([write(tmp_path / "m.jsonl", *lines)])
    error = (
        r"2 of the 5 images of 'birds' have no line \(2.jpg, 3.jpg\); 1 of the 3 lines are about "
        r"no image of 'birds' \(line 3: '9.jpg'\). Mend these lines, or give --partial_answers"
    )
    with pytest.raises(ValueError, match=error):
        given_answers.match(files, {"birds": source})
    found = given_answers.match(files, {"birds": source}, partial=True)
    assert [(one.index, one.responses[0][15:-9]) for one in found["m", "birds"]] == [
        (0, "<answer>name 1"),
        (3, "<answer>name 4"),
        (4, "<answer>name 1"),
    ]
    assert "2 of the 5 images" in caplog.text


def test_a_file_about_another_data_set_and_two_lines_about_one_image_are_refused(tmp_path):
    source = Source(row(1, "1.jpg"), row(2, "2.jpg"))
    (file,) = answer_file.read([write(tmp_path / "m.jsonl", {"name": "x", "answer": "y"})])
    with pytest.raises(ValueError, match='such as "image_id": 1 or "path": "1.jpg"'):
        given_answers.match([file], {"birds": source}, partial=True)
    twice = [{"image_id": 1, "answer": "y"}, {"path": "b/1.jpg", "answer": "z"}]
    (file,) = answer_file.read([write(tmp_path / "m.jsonl", *twice)])
    with pytest.raises(ValueError, match="lines 1 and 2 are about the same image"):
        given_answers.match([file], {"birds": source}, partial=True)


def test_text_is_judged_as_tokens_are():
    """The tree on the host, and the in-graph verifier by the tokenizer, give the same verdicts."""
    config = small_run.small_config("emoji_tiny", verifier__options__max_response_bytes=120)
    source = open_source(config, config.evaluation.seed, **config.evaluation.options)
    judge = text_judge.make(config, lambda: [source])
    assert isinstance(judge.verifier, TaxonomyVerifier)
    labels = judge.labels
    tokenizer = text_judge.tokenizer_lib.load(
        text_judge.load_policy.model_folder(config.model.path)
    )
    vocabulary = len(tokenizer.get_vocab())
    verifier = TaxonomyVerifier(
        labels,
        text_judge.tokenizer_lib.token_bytes(tokenizer, vocabulary),
        max_answer_bytes=config.verifier.options.max_answer_bytes,
        max_response_bytes=120,
        tags="think",
    )
    name = labels.leaf_names[0]
    (above, *_) = labels.data["groups"][labels.data["leaves"][labels.leaf_ids[0]]["generic"]]
    said = [name, f"a {name}!", above, "none", "nonsense", "", "\ud800", "<|im_end|>" + name]
    responses = [f"<think>hm</think><answer>{one}</answer>" for one in said]
    responses += [f"<answer>{name}</answer>", name, "", "x" * 200 + responses[0]]
    by_text = judge.on_text.submit([responses], [0]).result()
    by_tokens = text_judge.Encoding(verifier, tokenizer).submit([responses], [0]).result()
    np.testing.assert_array_equal(by_text.category_BN, by_tokens.category_BN)
    assert by_text.category_BN[0, :4].tolist() == [4, 4, 2, 1]
    assert by_text.category_BN[0, 7:].tolist() == [0, -1, -1, -1, -1]
    assert by_text.valid_BN.all() and by_tokens.valid_BN.all()


def test_answers_are_judged_and_stand_in_the_files_as_those_of_a_policy(tmp_path):
    config = small_run.small_config(tmp_path / "there is no policy")
    source = open_source(config, config.evaluation.seed, **config.evaluation.options)
    rows = [given_answers.describe(source, i) for i in range(len(source))]
    lines = [{"image_id": x["image_id"], "answer": [x["label"], "vehicle", "x"]} for x in rows]
    files = answer_file.read([write(tmp_path / "m.jsonl", *lines)])
    matched = given_answers.match(files, {"emoji": source})
    sets = {"emoji": (config, (None, source))}
    (tmp_path / "out").mkdir()

    def judge(files=files):
        store = Predictions(tmp_path / "out")
        return store, given_answers.judge(files, matched, sets, "base", store)

    store, labels = judge()
    greedy, samples = (Part("m", "emoji", "base", one) for one in ("greedy", "samples"))
    assert list(store.parts()) == [greedy, samples] and list(labels) == ["emoji"]
    assert [line["index"] for line in store.lines(greedy)] == list(range(len(source)))
    assert {tuple(line["categories"]) for line in store.lines(greedy)} == {("specific",)}
    assert {tuple(x["categories"]) for x in store.lines(samples)} == {
        ("specific", "generic", "wrong")
    }
    assert store.lines(samples)[0]["label"] == rows[0]["label"]
    made = store.provenance[str(samples)]
    assert made["policy"] == {"answers": files[0].digest} and made["sampling"] == {"answers": 3}
    assert predictions.is_given(made) and not predictions.is_given({"policy": {"weights": "x"}})
    # A second time nothing is judged; a kill goes on; another file of that name is refused.
    path = tmp_path / "out" / predictions.LINES
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 3])
    judge()
    content = sorted(before.splitlines())
    assert sorted(path.read_bytes().splitlines()) == content
    judge()
    assert sorted(path.read_bytes().splitlines()) == content
    with pytest.raises(ValueError, match="policy.answers: .* -> 'other'.*(?s:.)*--overwrite"):
        judge([files[0]._replace(digest="other")])


class Forgetful(HostVerifier):
    """A judge that gives no verdict on every second answer."""

    def __init__(self):
        self.asked = []

    def submit(self, responses, label_index):
        self.asked += responses
        shape = (len(responses), len(responses[0]))
        valid = np.arange(shape[0])[:, None] % 2 == 0
        done = text_judge._done(np.full(shape, 4, np.int32), np.broadcast_to(valid, shape))
        return done

    def errors(self):
        return "it forgets"

    def close(self):
        pass


def test_answers_without_a_verdict_are_judged_again_and_too_many_stop(tmp_path):
    class Labels:
        def leaf_index(self, label_id):
            return 0

    config = small_run.small_config("emoji_tiny", verifier__max_unjudged_fraction=0.3)
    judge = text_judge.TextJudge(config, Labels(), Forgetful(), None)
    judge = text_judge.dataclasses.replace(judge, on_text=judge.verifier)
    answered = [text_judge.Answered(i, row(i, f"{i}"), ["said"]) for i in range(4)]
    part = Part("m", "emoji", "base", "greedy")
    known = {"policy": {"answers": "1"}}
    store = Predictions(tmp_path)
    with pytest.raises(text_judge.host_verification.JudgeUnavailable, match="50.0%.*it forgets"):
        text_judge.judge_part(judge, store, part, known, answered)
    text_judge.judge_part(judge, store, part, known, answered)
    assert len(judge.verifier.asked) == 6
    assert sum(x["categories"] == ["specific"] for x in store.lines(part)) == 3


@pytest.mark.slow
def test_a_language_model_on_the_devices_judges_text_in_the_tokens_of_the_policy(tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Sort.\n{pair}\nReply.")
    config = small_run.small_config(
        "emoji_tiny", verifier__name="flax_judge", verifier__flax_judge__prompt=str(prompt)
    )
    source = open_source(config, config.evaluation.seed, **config.evaluation.options)
    judge = text_judge.make(config, lambda: [source])
    assert isinstance(judge.on_text, text_judge.Encoding)
    rows = [given_answers.describe(source, i) for i in range(2)]
    said = ["<think></think><answer>red thing</answer>", "nothing to be read"]
    answered = [text_judge.Answered(i, rows[i], [said[i]]) for i in range(2)]
    part, store = Part("m", "emoji", "base", "greedy"), Predictions(tmp_path)
    known = given_answers.provenance.of_given(judge, source, "digest")
    text_judge.judge_part(judge, store, part, known, answered)
    asked, unread = store.lines(part)
    assert 1 / 6 < asked["probabilities"][0] <= 1 and asked["categories"] != ["unparsed"]
    assert unread["categories"] == ["unparsed"] and "probabilities" not in unread
    assert known["verifier"]["weights"] and known["verifier"]["name"] == "flax_judge"
