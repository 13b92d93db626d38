"""A user's own images from the folder to the update: many sizes, damage, resuming, processes."""

import json

import numpy as np
import pytest
from own_images import BATCH, LABELS, fill, own
from PIL import Image

from speciarl_jax import train
from speciarl_jax.data import emoji, pipeline
from speciarl_jax.evaluation import evaluation_sets, evaluator
from speciarl_jax.experiment import run as run_lib
from speciarl_jax.tools import prepare_data
from speciarl_jax.training import train_data

pytestmark = pytest.mark.usefixtures("shared_programs")
BROKEN = "bird/gull/3.png"


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "images")


@pytest.fixture
def damaged(folder):
    (folder / BROKEN).write_bytes((folder / BROKEN).read_bytes()[:60])
    return folder


@pytest.fixture(scope="module")
def prepared(small_config, tmp_path_factory):
    """A run on whole images of many sizes."""
    root = fill(tmp_path_factory.mktemp("whole") / "images")
    return run_lib.prepare(own(small_config, root))


def stream_of(run, process=0, processes=1, build=list):
    first = run.train_source
    return pipeline.training_batches(
        lambda epoch: first.with_seed(epoch),
        build,
        batch_size=BATCH,
        seed=0,
        workers=3,
        process=process,
        processes=processes,
    )


def keys(rows):
    return [row["key"] for row in rows]


def test_images_of_many_sizes_become_batches_of_few_shapes(prepared):
    stream = train_data.training_batches(prepared)
    shapes = set()
    merge = prepared.model_config.vision.spatial_merge_size**2
    for _ in range(9):
        batch = next(stream).batch
        assert np.all(batch.weight_B == 1)
        assert np.all(np.isfinite(batch.patches_BSC))
        image = prepared.model_config.image_token_id
        tokens = (batch.tokens_BP == image).sum(axis=1)
        assert tokens.min() >= 1 and tokens.max() * merge <= batch.patches_BSC.shape[1]
        shapes.add((batch.patches_BSC.shape, batch.tokens_BP.shape))
    assert 1 <= len(shapes) <= 4


def test_two_epochs_show_each_image_twice_whatever_the_workers_and_processes(prepared):
    whole = [keys(next(stream_of(prepared))) for _ in range(1)]
    stream = stream_of(prepared)
    batches = [keys(next(stream)) for _ in range(9)]
    assert batches[0] == whole[0]
    shown = [key for batch in batches for key in batch]
    everything = sorted(entry.key for entry in prepared.train_source.entries)
    assert sorted(shown[:18]) == sorted(shown[18:]) == everything
    assert shown[:18] != shown[18:]
    parts = [stream_of(prepared, process, 2) for process in range(2)]
    for batch in batches:
        mine, other = (keys(next(part)) for part in parts)
        assert sorted(mine + other) == sorted(batch) and not set(mine) & set(other)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("done", [0, 2, 5])
def test_a_resumed_run_sees_exactly_the_images_that_were_left(prepared, processes, done):
    seen, left = [], []
    for process in range(processes):
        stream = stream_of(prepared, process, processes)
        seen += [key for _ in range(done) for key in keys(next(stream))]
        # As it stands in a checkpoint.
        state = json.loads(json.dumps(stream.get_state()))
        resumed = stream_of(prepared, process, processes)
        resumed.set_state(state)
        left += [key for _ in range(9 - done) for key in keys(next(resumed))]
    everything = sorted(entry.key for entry in prepared.train_source.entries)
    assert sorted(seen + left) == sorted(everything * 2)


def test_a_broken_image_stops_the_run_by_name(damaged, small_config):
    run = run_lib.prepare(own(small_config, damaged))
    stream = train_data.training_batches(run)
    with pytest.raises(ValueError, match=f"{BROKEN} cannot be decoded.*skip"):
        for _ in range(9):
            next(stream)


def test_a_missing_image_is_refused_before_the_policy_is_loaded(tmp_path, folder, small_config):
    rows = [{"image": f"{label}/0.png", "label": label.split("/")[-1]} for label in LABELS]
    path = tmp_path / "table.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*rows, *[]]))
    config = own(small_config, folder, data__name="table", train__batch_size=2)
    with config.unlocked():
        config.data.options.path = str(path)
        config.data.options.root = str(folder)
    run_lib.open_sources(config)
    (folder / "car/van/0.png").unlink()
    with pytest.raises(ValueError, match="car/van/0.png is missing .1 such files"):
        run_lib.prepare(config)


def test_rows_without_a_label_are_refused_before_the_policy_is_loaded(small_config, monkeypatch):
    row = emoji.Source.__getitem__
    read = []

    def unnamed(source, index):
        read.append(index)
        return {name: value for name, value in row(source, index).items() if name != "label"}

    monkeypatch.setattr(emoji.Source, "__getitem__", unnamed)
    config = small_config()
    for sources in (run_lib.open_sources, lambda config: evaluation_sets.sources(config, False)):
        with pytest.raises(ValueError, match=r"data set 'emoji' lack \['label'\]"):
            sources(config)
    assert read == [0, 0]


@pytest.mark.slow
def test_a_left_out_image_is_neither_learned_from_nor_scored(
    damaged, small_config, tmp_path, caplog
):
    config = own(small_config, damaged, data__on_decode_error="skip", train__steps=5)
    run = run_lib.prepare(config)
    train.train(run, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    # 20 images of 18: an epoch, in which the broken one is once, and two more.
    assert sum(row["data/skipped"] for row in rows) in (1, 2)
    assert BROKEN in caplog.text
    assert all(np.isfinite(row["update/loss"]) for row in rows)
    judged = evaluator.Evaluator(run)(run.lora)
    assert len(judged.rows) == len(judged.responses) == len(judged.category_BN) == 17
    assert BROKEN not in keys(judged.rows)
    assert keys(judged.rows) == [e.key for e in run.train_source.entries if e.key != BROKEN]


@pytest.mark.slow
def test_a_run_on_other_images_does_not_go_on(folder, small_config, tmp_path):
    config = own(small_config, folder, train__steps=1)
    train.train(run_lib.prepare(config), tmp_path)
    (folder / "bird/gull/5.png").unlink()
    with pytest.raises(ValueError, match="data.images"):
        train.train(run_lib.prepare(config), tmp_path)


def test_unknown_ways_with_broken_images_are_refused(folder, small_config):
    with pytest.raises(ValueError, match="on_decode_error is 'ignore'; choose one of .*skip"):
        run_lib.prepare(own(small_config, folder, data__on_decode_error="ignore"))


@pytest.mark.parametrize(
    "where, every, warned", [("own", 0, True), ("sets", 0, False), ("sets", 5, True)]
)
def test_images_in_both_parts_are_told_where_the_own_ones_are_evaluated(
    folder, small_config, where, every, warned, caplog
):
    config = own(small_config, folder)
    config.data.options.part = config.evaluation.options.part = "all"
    config.evaluation.in_training, config.evaluation.every = where, every
    with caplog.at_level("WARNING"):
        run_lib.open_sources(config)
    assert ("evaluation images are images of training" in caplog.text) == warned


def test_labels_that_only_the_evaluation_has_are_in_the_tree(folder, small_config, tmp_path):
    other = tmp_path / "other"
    (other / "bird/stork").mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(other / "bird/stork/1.png")
    config = own(small_config, folder)
    with config.unlocked():
        config.evaluation.options.path = str(other)
    run = run_lib.prepare(config)
    assert run.labels.leaf_index("bird/stork") != run.labels.leaf_index("car/van")


@pytest.mark.slow
def test_training_on_prepared_records_never_imports_tensorflow(
    policy_folder, start_program, tmp_path
):
    import archives

    archives.write("fgvc_aircraft", tmp_path / "archives")
    prepare_data.prepare("fgvc_aircraft", str(tmp_path / "data"), str(tmp_path / "archives"))
    process = start_program(
        "records_program",
        policy=str(policy_folder),
        workdir=str(tmp_path / "run"),
        data_dir=str(tmp_path / "data"),
    )
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    assert "no tensorflow" in printed
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]
