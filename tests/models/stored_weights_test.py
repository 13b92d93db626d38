"""What the files of a checkpoint say: whether they hold their own head, and whose weights."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from speciarl_jax.models import safetensors_io, stored_weights
from speciarl_jax.models.checkpoints import hf_checkpoint

RNG = np.random.default_rng(0)
TENSORS = {
    "model.embed_tokens.weight": RNG.normal(size=(700, 300)).astype(ml_dtypes.bfloat16),
    "model.layers.0.mlp.up_proj.weight": RNG.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
    "model.norm.weight": RNG.normal(size=9).astype(ml_dtypes.bfloat16),
    "visual.patch_embed.proj.weight": RNG.normal(size=(4, 3, 2, 2, 2)).astype(ml_dtypes.bfloat16),
}
EMBEDDING, HEAD = stored_weights.EMBEDDING, stored_weights.HEAD


def written(folder, tensors, file=safetensors_io.SINGLE):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / file)
    return folder


def nested(tensors):
    def name_of(name):
        head, _, rest = name.partition(".")
        return {"model": "model.language_model.", "visual": "model.visual."}[head] + rest

    return {name_of(name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "change",
    [
        nested,
        lambda t: {name: x.astype(np.float32) for name, x in t.items()},
        lambda t: t | {HEAD: t[EMBEDDING]},
        lambda t: {HEAD if name == EMBEDDING else name: x for name, x in t.items()},
        lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)},
    ],
    ids=["nested", "float32", "tied twice", "tied by the other name", "buffer"],
)
def test_the_same_weights_have_one_fingerprint(tmp_path, change):
    want = stored_weights.fingerprint(written(tmp_path / "a", TENSORS))
    assert stored_weights.fingerprint(written(tmp_path / "b", change(TENSORS))) == want


def test_the_cut_into_files_does_not_matter(tmp_path):
    want = stored_weights.fingerprint(written(tmp_path / "a", TENSORS))
    files, tensors = {}, list(TENSORS.items())
    for number, part in enumerate((tensors[:1], tensors[1:])):
        files |= {name: f"part{number}.safetensors" for name, _ in part}
        written(tmp_path / "b", dict(part), f"part{number}.safetensors")
    index = json.dumps({"weight_map": files})
    (tmp_path / "b" / safetensors_io.INDEX).write_text(index)
    assert stored_weights.fingerprint(tmp_path / "b") == want


@pytest.mark.parametrize("name", TENSORS)
def test_other_weights_of_the_same_sizes_have_another(tmp_path, name):
    want = stored_weights.fingerprint(written(tmp_path, TENSORS))
    other = TENSORS | {name: (TENSORS[name].astype(np.float32) * 1.02).astype(ml_dtypes.bfloat16)}
    # Also where a file is replaced in its place.
    assert stored_weights.fingerprint(written(tmp_path, other)) != want
    head = TENSORS[EMBEDDING][::-1].copy()
    assert stored_weights.fingerprint(written(tmp_path, TENSORS | {HEAD: head})) != want


def test_a_large_tensor_is_read_in_samples_only(tmp_path, monkeypatch):
    folder, read = written(tmp_path, TENSORS), []
    plain = safetensors_io.Reader.read

    def watched(self, name, index=()):
        found = plain(self, name, index)
        read.append((name, found.nbytes))
        return found

    monkeypatch.setattr(safetensors_io.Reader, "read", watched)
    stored_weights.fingerprint(folder)
    large = sum(size for name, size in read if name == EMBEDDING)
    assert 0.9 * 2**18 < large <= 2**18 < TENSORS[EMBEDDING].nbytes
    assert sum(name == EMBEDDING for name, _ in read) == 4


@pytest.fixture
def tied(policy_folder, tmp_path):
    """(head or None) -> a folder of the small policy, whose head is tied, with a stored head."""

    def tied(head, name=HEAD, folder="tied"):
        config = json.loads((policy_folder / "config.json").read_text())
        assert config["tie_word_embeddings"] and config["text_config"]["tie_word_embeddings"]
        tensors = load_file(policy_folder / safetensors_io.SINGLE)
        assert HEAD not in tensors
        if head is not None:
            tensors[name] = head(tensors[EMBEDDING])
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
        return written(tmp_path / folder, tensors)

    return tied


def load32(folder):
    return hf_checkpoint.load(folder, dtype=jnp.float32, param_dtype=jnp.float32)


@pytest.mark.parametrize("blocks", [2**26, 2000])
def test_a_copy_of_the_tied_head_is_dropped(tied, policy_folder, monkeypatch, blocks):
    monkeypatch.setattr(stored_weights, "_BLOCK_BYTES", blocks)
    config, policy = load32(tied(lambda embedding: embedding.copy()))
    assert config == hf_checkpoint.read_config(policy_folder) and config.text.tie_word_embeddings
    assert not hasattr(policy.decoder, "head")


def last_row(embedding):
    changed = embedding.copy()
    changed[-1, -1] += 0.25
    return changed


@pytest.mark.parametrize("blocks", [2**26, 2000])
@pytest.mark.parametrize("head", [lambda e: np.ascontiguousarray(e[::-1]), last_row])
def test_a_stored_head_that_differs_is_the_head(tied, monkeypatch, head, blocks):
    monkeypatch.setattr(stored_weights, "_BLOCK_BYTES", blocks)
    folder = tied(head)
    config, policy = load32(folder)
    assert not config.text.tie_word_embeddings
    stored = load_file(folder / safetensors_io.SINGLE)
    np.testing.assert_array_equal(policy.decoder.head[...], stored[HEAD].T)
    np.testing.assert_array_equal(policy.decoder.embedding[...], stored[EMBEDDING])


def test_a_tied_head_may_be_stored_under_its_own_name_alone(tied, policy_folder):
    folder = tied(None)
    tensors = load_file(folder / safetensors_io.SINGLE)
    tensors[HEAD] = tensors.pop(EMBEDDING)
    written(folder, tensors)
    _, want = load32(policy_folder)
    config, got = load32(folder)
    assert config.text.tie_word_embeddings
    want, got = (dict(nnx.to_flat_state(nnx.state(policy))) for policy in (want, got))
    assert want.keys() == got.keys()
    for path, variable in want.items():
        np.testing.assert_array_equal(got[path][...], variable[...])


def test_a_head_of_another_size_is_refused(tied):
    folder = tied(lambda embedding: embedding[:-1].copy())
    with pytest.raises(ValueError, match=r"lm_head.weight.*\(399, 48\).*\(400, 48\)"):
        load32(folder)
