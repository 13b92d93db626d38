"""Folders of safetensors: what is refused and why, and that a checkpoint is whole or not there."""

import json
import os
import stat
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from speciarl_jax.models import safetensors_io
from speciarl_jax.models.safetensors_io import CONFIG, INDEX, SINGLE

TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16),
    "b": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "c": np.array([1, 2], np.int8),
}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path):
    """Two shards and an index, not written by this package."""
    save_file({"a": TENSORS["a"], "c": TENSORS["c"]}, tmp_path / FIRST)
    save_file({"b": TENSORS["b"]}, tmp_path / SECOND)
    write_index(tmp_path, {"a": FIRST, "b": SECOND, "c": FIRST})
    return tmp_path


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def pending(tensors, seen=None):
    def one(name, tensor):
        def make():
            if seen is not None:
                seen.append(name)
            return tensor

        return safetensors_io.Pending(tensor.nbytes, make)

    return {name: one(name, tensor) for name, tensor in tensors.items()}


def contents(folder):
    reader = safetensors_io.Reader(folder)
    return {name: reader.read(name) for name in reader}


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype
        np.testing.assert_array_equal(got[name], tensor)


def test_tensors_of_several_files_are_read_whole_and_in_parts(folder):
    reader = safetensors_io.Reader(folder)
    assert_same({name: reader.read(name) for name in reader}, TENSORS)
    np.testing.assert_array_equal(
        reader.read("b", (slice(1, 2), slice(None), slice(1, 3))), TENSORS["b"][1:2, :, 1:3]
    )
    np.testing.assert_array_equal(reader.read("a", (slice(0, 2),)), TENSORS["a"][:2])
    assert reader.header("a") == (FIRST, "BF16", (3, 4), 24)
    assert reader.header("b") == (SECOND, "F32", (2, 3, 4), 96)
    assert reader.header("c") == (FIRST, "I8", (2,), 2)


def no_weight_map(folder):
    (folder / INDEX).write_text('{"metadata": {}}')


def list_as_index(folder):
    (folder / INDEX).write_text("[]")


def cut_index(folder):
    (folder / INDEX).write_text((folder / INDEX).read_text()[:-5])


def binary_index(folder):
    (folder / INDEX).write_bytes(b"\x80\xff\x00")


def map_of_lists(folder):
    write_index(folder, {"a": [FIRST]})


def outside(folder):
    save_file({"a": TENSORS["a"]}, folder.parent / "elsewhere.safetensors")
    write_index(folder, {"a": "../elsewhere.safetensors"})


def missing_shard(folder):
    (folder / SECOND).unlink()


def one_too_many(folder):
    write_index(folder, {"a": FIRST, "b": SECOND, "c": FIRST, "ghost": SECOND})


def one_too_few(folder):
    write_index(folder, {"a": FIRST, "b": SECOND})


def wrong_file(folder):
    write_index(folder, {"a": FIRST, "b": FIRST, "c": FIRST})


def twice(folder):
    save_file(TENSORS, folder / FIRST)


def truncated(folder):
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-1])


def longer(folder):
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes() + b"\0" * 8)


def empty(folder):
    (folder / SECOND).write_bytes(b"")


def web_page(folder):
    (folder / SECOND).write_text("<html>404 not found</html>" * 20)


def huge_header(folder):
    (folder / SECOND).write_bytes(struct.pack("<Q", 2**62) + b"{}")


def pickle(folder):
    (folder / SECOND).write_bytes(b"\x80\x02}q\x00." * 9)


def folder_as_file(folder):
    (folder / SECOND).unlink()
    (folder / SECOND).mkdir()


def stale_single(folder):
    save_file(TENSORS, folder / SINGLE)


def nothing(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    "damage, said",
    [
        (no_weight_map, "index.json lacks a weight_map"),
        (list_as_index, "index.json is no JSON object"),
        (cut_index, "index.json is no JSON"),
        (binary_index, "index.json is no JSON"),
        (map_of_lists, "'a' is in .*which is no name of a file"),
        (outside, r"'a' is in '../elsewhere.safetensors', which is no name of a file"),
        (missing_shard, f"{SECOND} is named in the index but missing"),
        (one_too_many, r"disagrees with its files about \['ghost'\]"),
        (one_too_few, r"disagrees with its files about \['c'\]"),
        (wrong_file, r"disagrees with its files about \['b'\]"),
        (twice, f"'b' is in both {FIRST} and {SECOND}"),
        (truncated, f"{SECOND} is damaged .*cut short at .* tensor 'b', which ends"),
        (longer, f"{SECOND} is damaged"),
        (empty, f"{SECOND} is damaged"),
        (web_page, f"{SECOND} is damaged"),
        (huge_header, f"{SECOND} is damaged"),
        (pickle, f"{SECOND} is damaged"),
        (folder_as_file, f"{SECOND} is damaged"),
        (stale_single, "out of date"),
        (nothing, f"holds neither {SINGLE} nor {INDEX}"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_before_anything_is_read(folder, damage, said):
    damage(folder)
    with pytest.raises(ValueError, match=said):
        safetensors_io.Reader(folder)


def test_a_file_that_was_cut_short_names_the_first_tensor_that_is_not_whole(tmp_path):
    tensors = {name: np.full(100, i, np.float32) for i, name in enumerate("abcd")}
    path = tmp_path / SINGLE
    save_file(tensors, path, metadata={"format": "pt"})
    content = path.read_bytes()
    for left, name in ((1, "d"), (400, "d"), (401, "c"), (1600, "a")):
        path.write_bytes(content[:-left])
        with pytest.raises(ValueError, match=f"{SINGLE} is damaged .* before tensor '{name}'"):
            safetensors_io.Reader(tmp_path)


def test_a_file_that_vanishes_is_named_with_the_tensor(folder):
    reader = safetensors_io.Reader(folder)
    truncated(folder)
    with pytest.raises(ValueError, match=f"'b' in .*{SECOND} cannot be read"):
        reader.read("b")


@pytest.mark.parametrize(
    "limit, want",
    [
        (10, [["a"], ["b"], ["c"], ["d"]]),
        (12, [["a", "b"], ["c"], ["d"]]),
        (26, [["a", "b", "c"], ["d"]]),
        (10**9, [["a", "b", "c", "d"]]),
        (1, [["a"], ["b"], ["c"], ["d"]]),
    ],
)
def test_shards_are_filled_in_order_up_to_the_limit(limit, want):
    assert safetensors_io.plan_shards({"a": 4, "b": 8, "c": 14, "d": 20}, limit) == want


def test_one_file_or_an_index_by_size_and_nothing_stale_stays(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    for limit, files in ((100, 2), (10**6, 1), (24, 3), (96, 3)):
        safetensors_io.write(tmp_path, pending(TENSORS), config="{}", max_shard_bytes=limit)
        assert_same(contents(tmp_path), TENSORS)
        names = {path.name for path in tmp_path.iterdir()} - {"tokenizer.json", CONFIG}
        shards = {f"model-{i + 1:05}-of-{files:05}.safetensors" for i in range(files)}
        assert names == ({SINGLE} if files == 1 else {*shards, INDEX})
        if files > 1:
            index = json.loads((tmp_path / INDEX).read_text())
            assert index["metadata"]["total_size"] == 24 + 96 + 2
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


def test_a_file_is_made_only_after_the_one_before_is_on_disk(tmp_path):
    seen, sizes = [], {}

    def watch(name, tensor):
        def make():
            seen.append(name)
            sizes[name] = len(list(tmp_path.rglob("*.safetensors")))
            return tensor

        return safetensors_io.Pending(tensor.nbytes, make)

    tensors = {name: watch(name, tensor) for name, tensor in TENSORS.items()}
    safetensors_io.write(tmp_path, tensors, config="{}", max_shard_bytes=24)
    assert seen == ["a", "b", "c"] and sizes == {"a": 0, "b": 1, "c": 2}


def test_a_failure_leaves_the_checkpoint_that_was_there(tmp_path):
    def broken():
        raise MemoryError("no more")

    safetensors_io.write(tmp_path, pending(TENSORS), config="old", max_shard_bytes=100)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = pending({name: tensor + 1 for name, tensor in TENSORS.items()})
    changed["c"] = safetensors_io.Pending(2, broken)
    with pytest.raises(MemoryError):
        safetensors_io.write(tmp_path, changed, config="new", max_shard_bytes=24)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("moved", range(4))
def test_a_kill_while_files_are_replaced_leaves_nothing_that_loads(tmp_path, monkeypatch, moved):
    safetensors_io.write(tmp_path, pending(TENSORS), config="old", max_shard_bytes=24)
    replace, calls = safetensors_io.os.replace, []

    def killed(*args):
        if len(calls) == moved:
            raise KeyboardInterrupt
        calls.append(args)
        replace(*args)

    # As a kill does, leave the folder of what is not finished yet.
    monkeypatch.setattr(safetensors_io.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        safetensors_io.write(tmp_path, pending(TENSORS), config="new", max_shard_bytes=100)
    assert not (tmp_path / CONFIG).exists()
    monkeypatch.undo()
    safetensors_io.write(tmp_path, pending(TENSORS), config="new", max_shard_bytes=100)
    assert (tmp_path / CONFIG).read_text() == "new"
    assert_same(contents(tmp_path), TENSORS)


def test_leftovers_of_a_killed_run_do_not_get_in(tmp_path):
    leftover = tmp_path / ".incomplete"
    leftover.mkdir()
    (leftover / "model-00009-of-00009.safetensors").write_bytes(b"half")
    safetensors_io.write(tmp_path, pending(TENSORS), config="{}")
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, SINGLE}
    assert_same(load_file(tmp_path / SINGLE), TENSORS)


def test_tensors_that_are_no_block_of_memory_are_written_right(tmp_path):
    turned = {"t": np.arange(12, dtype=np.float32).reshape(3, 4).T}
    safetensors_io.write(tmp_path, pending(turned), config="{}")
    assert_same(contents(tmp_path), turned)


@pytest.mark.parametrize("tensors, limit", [({}, 10), (TENSORS, 0), (TENSORS, -1)])
def test_nothing_and_no_size_are_refused_before_anything_is_written(tmp_path, tensors, limit):
    with pytest.raises(ValueError, match="max_shard_bytes must be positive"):
        safetensors_io.write(tmp_path / "new", pending(tensors), config="{}", max_shard_bytes=limit)
    assert not (tmp_path / "new").exists()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 3953840768\n"


@pytest.mark.parametrize("file", [FIRST, SECOND, INDEX])
def test_a_pointer_of_git_lfs_is_called_one(folder, file):
    (folder / file).write_text(POINTER)
    with pytest.raises(ValueError, match=f"{file} is a pointer of Git LFS.* git lfs pull") as said:
        safetensors_io.Reader(folder)
    assert "damaged" not in str(said.value)


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "x.position_ids"]
)
def test_an_index_may_list_what_a_model_does_not_need(folder, name):
    write_index(folder, {"a": FIRST, "b": SECOND, "c": FIRST, name: SECOND})
    assert_same(contents(folder), TENSORS)


def test_a_head_that_only_its_file_knows_is_read(folder):
    head = {"lm_head.weight": np.ones((2, 3), np.float32)}
    save_file({"b": TENSORS["b"]} | head, folder / SECOND)
    assert_same(contents(folder), TENSORS | head)


def test_buffers_that_models_compute_anew_are_passed_over(folder):
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32),
        "visual.rotary_pos_emb.inv_freq": np.ones(3, np.float32),
        "embeddings.position_ids": np.arange(4),
        "visual.relative_position_index": np.arange(4, dtype=np.int32),
    }
    save_file({"b": TENSORS["b"]} | buffers, folder / SECOND)
    index = {"a": FIRST, "b": SECOND, "c": FIRST} | dict.fromkeys(buffers, SECOND)
    write_index(folder, index)
    assert_same(contents(folder), TENSORS)
    # An index may not know those whose names say what they are.
    del index["embeddings.position_ids"], index["visual.rotary_pos_emb.inv_freq"]
    write_index(folder, index)
    assert_same(contents(folder), TENSORS)
    # Integers that say nothing about positions, and a table of positions that was learned, stay.
    kept = {"d": np.arange(4), "visual.position_embedding.weight": np.ones(2, np.float32)}
    save_file(kept, folder / SINGLE)
    for file in (INDEX, FIRST, SECOND):
        (folder / file).unlink()
    assert_same(contents(folder), kept)


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_are_for_whom_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        safetensors_io.write(tmp_path / "out", pending(TENSORS), config="{}", max_shard_bytes=60)
    finally:
        os.umask(before)
    files = list((tmp_path / "out").iterdir())
    assert len(files) > 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}
