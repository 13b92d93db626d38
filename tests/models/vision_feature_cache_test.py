"""Features of images that were seen before: the same bits, whatever was known already."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small_run
from flax import nnx
from own_images import fill, own

from speciarl_jax import train
from speciarl_jax.data import prompt_builder
from speciarl_jax.models import load_policy, vision_feature_cache
from speciarl_jax.rollout import sample_and_verify
from speciarl_jax.runtime import sharding
from speciarl_jax.runtime.byte_store import HostStore

SIZES = [(24, 24), (40, 20), (20, 40), (36, 36), (24, 40), (24, 24), (30, 20), (40, 40)]


@pytest.fixture(scope="module")
def encoder(run, policy_folder):
    return load_policy.load(run.config, policy_folder, run.mesh)[1].visual


def options_of(small_config, **changes):
    options = small_config().data.vision_cache
    with options.unlocked():
        options.update({"place": "host", "bytes": 2**20, "images_per_device": 0} | changes)
    return options


def with_buckets(run, small_config, growth=1.5):
    """The run with bucket sizes."""
    data = run.config.data
    builder = prompt_builder.PromptBuilder(
        run.model_config,
        run.tokenizer,
        run.builder.image_processor,
        prompt_builder.read_prompt(data.prompt),
        max_prompt_tokens=data.max_prompt_tokens,
        bucket_growth=growth,
    )
    return dataclasses.replace(run, builder=builder)


def batch_of(run, sizes, seeds, rows=8):
    """Random images, numpy; a seed decides about the pixels."""
    images = [
        np.random.default_rng([*size, seed]).integers(0, 256, (*size, 3), np.uint8)
        for size, seed in zip(sizes, seeds, strict=True)
    ]
    examples = [{"image": x, "image_id": i, "label_index": 0} for i, x in enumerate(images)]
    return run.builder(examples, rows)


@pytest.fixture(scope="module")
def plain(run):
    """Features by the encoder of the whole batch, as without a cache."""
    encode = jax.jit(
        lambda base, batch: sample_and_verify.encode(nnx.merge(run.graphdef, run.lora, base), batch)
    )
    return lambda batch: np.asarray(encode(run.base, sharding.put_batch(run.mesh, batch)))


class Counted:
    """A store that remembers what it was asked for and given."""

    def __init__(self, store):
        self.store, self.put_keys = store, []

    def get(self, key):
        return self.store.get(key)

    def put(self, key, value):
        self.put_keys.append(key)
        self.store.put(key, value)


def assert_features(got, want, exact):
    """The same bits where the encoder ran in the shape of this batch."""
    if exact:
        np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("images", [0, 3])
def test_features_are_the_same_whatever_is_known(run, small_config, encoder, plain, images):
    bucketed = with_buckets(run, small_config)
    store = Counted(HostStore(2**20))
    cache = vision_feature_cache.VisionCache(store, encoder, run.mesh, images)
    rounds = [
        (SIZES, range(8), 0.0, 8),
        (SIZES, range(8), 1.0, 0),
        (SIZES[::-1], range(8)[::-1], 1.0, 0),  # in other places
        (SIZES, [0, 1, 2, 3, 4, 5, 90, 91], 6 / 8, 2),
        (SIZES[:1] * 8, [0, 70, 70, 70, 0, 0, 71, 0], 0.5, 2),  # in another shape, some twice
    ]
    sizes = set()
    for sizes_, seeds, share, computed in rounds:
        builds = bucketed if sizes_ is not rounds[-1][0] else run
        batch, before = batch_of(builds, sizes_, seeds), len(store.put_keys)
        placed = cache.place(batch)
        assert placed.patches_BSC is None and placed.layout is None
        exact = builds is bucketed and not images
        assert_features(placed.features_BMD, plain(batch), exact)
        assert np.any(np.asarray(placed.features_BMD))
        assert cache.metrics() == {"data/vision_cache_hits": share}
        assert len(store.put_keys) - before == computed
        sizes.add(prompt_builder.batch_sizes(batch))
    assert len(sizes) == 2


@pytest.mark.parametrize("place", ["host", "disk"])
def test_bfloat16_features_keep_their_bits(run, small_config, policy_folder, tmp_path, place):
    config = small_config(model__dtype="bfloat16", model__param_dtype="bfloat16")
    encoder = load_policy.load(config, policy_folder, run.mesh)[1].visual
    graphdef, weights = nnx.split(encoder)
    batch = batch_of(with_buckets(run, small_config), SIZES, range(8))
    encode = jax.jit(lambda weights, *images: nnx.merge(graphdef, weights)(*images))
    want = np.asarray(encode(weights, batch.patches_BSC, batch.layout))
    cache = vision_feature_cache.make(
        options_of(small_config, place=place, path=str(tmp_path)), encoder, run.mesh
    )
    for share in (0.0, 1.0):
        got = np.asarray(cache.place(batch).features_BMD)
        assert got.dtype == want.dtype == jax.numpy.bfloat16
        np.testing.assert_array_equal(got.view(np.uint16), want.view(np.uint16))
        assert cache.metrics() == {"data/vision_cache_hits": share}


def test_rows_that_pad_a_batch_count_neither_as_known_nor_as_unknown(
    run, small_config, encoder, plain
):
    cache = vision_feature_cache.make(options_of(small_config), encoder, run.mesh)
    batch = batch_of(run, SIZES[:1] * 3, range(3))
    for share in (0.0, 1.0):
        placed = cache.place(batch)
        np.testing.assert_array_equal(placed.features_BMD, plain(batch))
        assert cache.metrics()["data/vision_cache_hits"] == share


def test_a_full_store_computes_again_and_changes_nothing(run, small_config, encoder, plain):
    batch = batch_of(run, SIZES[:1] * 8, range(8))
    row = plain(batch)[0].nbytes
    cache = vision_feature_cache.make(options_of(small_config, bytes=3 * row), encoder, run.mesh)
    for share in (0, 3 / 8):
        np.testing.assert_array_equal(cache.place(batch).features_BMD, plain(batch))
        assert cache.metrics()["data/vision_cache_hits"] == share
    # The last three are there, wherever they stand.
    order = [7, 6, 5, 0, 1, 2, 3, 4]
    cache.place(jax.tree.map(lambda x: x[np.array(order)], batch))
    assert cache.metrics()["data/vision_cache_hits"] == 3 / 8


def test_damaged_files_are_computed_again_and_other_processes_files_are_read(
    run, small_config, encoder, plain, tmp_path
):
    options = options_of(small_config, place="disk", path=str(tmp_path))
    batch = batch_of(run, SIZES[:1] * 8, range(8))
    vision_feature_cache.make(options, encoder, run.mesh).place(batch)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 8
    for path in files[:3]:
        content = bytearray(path.read_bytes())
        content[-1] ^= 4
        path.write_bytes(content)
    other = vision_feature_cache.make(options, encoder, run.mesh)
    np.testing.assert_array_equal(other.place(batch).features_BMD, plain(batch))
    assert other.metrics()["data/vision_cache_hits"] == 5 / 8
    other.place(batch)
    assert other.metrics()["data/vision_cache_hits"] == 1


def test_the_key_knows_pixels_shape_and_encoder(run, small_config, encoder):
    cache = vision_feature_cache.make(options_of(small_config), encoder, run.mesh)
    bucketed = with_buckets(run, small_config)
    key = cache._key
    batch = batch_of(bucketed, SIZES, range(8))
    keys = [key(batch, row) for row in range(8)]
    assert len(set(keys)) == 8
    alone = batch_of(run, SIZES[:1], [0], rows=1)  # without padding
    assert key(alone, 0) == keys[0]
    patches = alone.patches_BSC.copy()
    patches[0, -1, -1] += 1e-3
    assert key(alone.replace(patches_BSC=patches), 0) != keys[0]
    # The same patches as an image of another shape.
    hw = alone.layout.hw_BS2[..., ::-1] + 1
    assert key(alone.replace(layout=alone.layout.replace(hw_BS2=hw)), 0) != keys[0]
    before = vision_feature_cache.fingerprint(encoder)
    bias = encoder.merger_out_bias
    saved = bias[...]
    bias.set_value(saved.at[3].add(1e-6))
    assert vision_feature_cache.fingerprint(encoder) != before
    bias.set_value(saved)
    assert vision_feature_cache.fingerprint(encoder) == before


@pytest.mark.parametrize("changes", [{"attention": "splash"}, {"scan_unroll": 2}])
def test_features_by_another_program_are_not_served(encoder, changes):
    other = nnx.clone(encoder)
    assert vision_feature_cache.fingerprint(other) == vision_feature_cache.fingerprint(encoder)
    for name, value in changes.items():
        setattr(other, name, value)
    assert vision_feature_cache.fingerprint(other) != vision_feature_cache.fingerprint(encoder)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"place": "cloud"}, "vision_cache.place is 'cloud'; choose one of"),
        ({"bytes": 0}, "vision_cache.bytes is 0; it must be at least 1"),
        ({"images_per_device": -1}, "vision_cache.images_per_device is -1; it must be at least 0"),
    ],
)
def test_a_bad_option_is_refused(run, small_config, encoder, changes, said):
    with pytest.raises(ValueError, match=said):
        vision_feature_cache.make(options_of(small_config, **changes), encoder, run.mesh)


def rows_of(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time")} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["rl", "sft"])
def test_training_gives_the_same_bits_and_finds_the_second_epoch(small_config, tmp_path, objective):
    """A folder of images, in one program a step; an image is missing only in its first epoch."""
    folder = fill(tmp_path / "images", 24, 24)
    found = {}
    for place in ("none", "host"):
        config = own(
            small_config,
            folder,
            train__objective=objective,
            train__target="<answer>{label}</answer>",
            train__steps=9,  # two epochs of 18 images, 4 a step
            rollout__max_tokens=16,
            data__vision_cache__place=place,
        )
        run = small_run.prepared(config)
        workdir = tmp_path / place
        workdir.mkdir()
        lora, _ = train.train(run, workdir)
        found[place] = rows_of(workdir), small_run.arrays(lora)
    (want_rows, want), (rows, lora) = found["none"], found["host"]
    hits = [row.pop("data/vision_cache_hits") for row in rows]
    assert rows == want_rows
    for name, value in want.items():
        np.testing.assert_array_equal(lora[name], value, err_msg=name)
    assert hits[:4] == [0, 0, 0, 0] and hits[4] == 0.5 and hits[5:] == [1, 1, 1, 1]
