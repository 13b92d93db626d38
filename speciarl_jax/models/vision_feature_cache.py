"""Caches features of images: the frozen vision encoder runs once an image, not once an epoch.

The key of a feature is a hash of the encoder's fingerprint and of what it reads: patches and grids.
With the cache the encoder is a program of its own, and the other programs take features as input.
It runs for a whole batch when one of its images is missing, in the shape that it has without the
cache; or for the missing images, a fixed number at a time. So no number of missing images needs a
new compilation. A feature that was computed in a batch of the same shape has the bits that it has
without the cache; from another shape (another bucket of sizes, another number of images at a time)
its last bits may differ.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.runtime import activation_sharding, checksum, multihost, sharding
from speciarl_jax.runtime.byte_store import DiskStore, HostStore

PLACES = ("none", "host", "disk")


class VisionCache:
    """Brings batches to the devices, with features in place of their images.

    Every process keeps the features of its own rows. Processes run the encoder together, as often
    as the one with the most missing images needs.
    """

    def __init__(self, store: HostStore | DiskStore, encoder: nnx.Module, mesh: Any, images: int):
        """Computes the fingerprint of the encoder.

        Args:
          encoder: its weights lie on the mesh, and never change.
          images: per call of the encoder and device that the batch is cut over; 0 for the whole
            batch.
        """
        self._store, self._mesh = store, mesh
        graphdef, self._weights = nnx.split(encoder)
        self._fingerprint = fingerprint(encoder)
        self._dtype, self._width = np.dtype(encoder.dtype), encoder.config.feature_size
        self._rows = images * sharding.batch_parts(mesh) // jax.process_count()

        def encode(weights, patches_BSC, layout):
            return nnx.merge(graphdef, weights)(patches_BSC, layout)

        self._encode = jax.jit(
            activation_sharding.on_mesh(mesh, encode), out_shardings=sharding.batch_sharding(mesh)
        )
        self._found = self._asked = 0

    def place(self, batch: PromptBatch) -> PromptBatch:
        """Brings this process's rows, numpy, to the global batch on the devices, with features.

        All processes must call it together, from their main threads.
        """
        keys = [self._key(batch, row) for row in range(len(batch.weight_B))]
        known = {key: self._store.get(key) for key in dict.fromkeys(keys)}
        missing = {key: row for row, key in enumerate(keys) if known[key] is None}
        kept_B = batch.weight_B > 0
        found = sum(known[key] is not None for key, kept in zip(keys, kept_B, strict=True) if kept)
        counts = multihost.allgather((len(missing), found, int(kept_B.sum())))
        missed, found, asked = zip(*counts, strict=True)
        self._found += sum(found)
        self._asked += sum(asked)
        known |= self._compute(batch, missing, max(missed))
        features_BMD = np.zeros(
            (len(keys), batch.layout.token_index_BM.shape[1], self._width), self._dtype
        )
        for row, key in enumerate(keys):
            value = np.frombuffer(known[key], self._dtype).reshape(-1, self._width)
            features_BMD[row, : len(value)] = value
        return sharding.put_batch(self._mesh, batch.without_images(features_BMD))

    def metrics(self) -> dict[str, float]:
        """Returns the share of the images that were known, since the last call."""
        share = self._found / max(self._asked, 1)
        self._found = self._asked = 0
        return {"data/vision_cache_hits": share}

    def _compute(self, batch: PromptBatch, missing: dict[str, int], most: int) -> dict[str, bytes]:
        """Runs the encoder for rows of the batch, and keeps the features.

        Args:
          batch: numpy.
          missing: key -> row.
          most: number of rows that the process with the most misses.
        """
        whole = np.arange(len(batch.weight_B))
        share = self._rows or len(whole)
        tokens_B = np.sum(batch.layout.token_index_BM >= 0, axis=1)
        images = batch.patches_BSC, batch.layout
        calls = []
        for start in range(0, most, share):
            keys = list(missing)[start : start + share]
            wanted = [missing[key] for key in keys]
            rows = np.resize(wanted or [0], share) if self._rows else whole
            part = jax.tree.map(lambda x, rows=rows: x[rows], images)
            part = sharding.put_batch(self._mesh, part)
            calls.append((keys, self._encode(self._weights, *part)))
        computed = {}
        for keys, features_BMD in calls:
            features_BMD = sharding.local_rows(features_BMD)
            for i, key in enumerate(keys):
                row = missing[key]
                found = features_BMD[i if self._rows else row]
                computed[key] = found[: tokens_B[row]].tobytes()
                self._store.put(key, computed[key])
        return computed

    def _key(self, batch: PromptBatch, row: int) -> str:
        """Hashes the fingerprint and an image, without what pads its row."""
        layout, patches_SC = batch.layout, batch.patches_BSC[row]
        index_S = layout.patch_index_BS[row]
        order = np.argsort(index_S, kind="stable")[np.sum(index_S < 0) :]
        key = hashlib.blake2b(self._fingerprint, digest_size=20)
        key.update(np.ascontiguousarray(patches_SC[: len(order)]))
        key.update(np.ascontiguousarray(layout.hw_BS2[row][order], np.int32))
        key.update(np.ascontiguousarray(layout.image_BS[row][order], np.int32))
        return key.hexdigest()


def fingerprint(encoder: nnx.Module) -> bytes:
    """Hashes weights, dimensions, precision, kernels and kind of device of an encoder; 32 bytes.

    It is the same on any mesh.
    """
    _, weights = nnx.split(encoder)
    parts = (
        encoder.config,
        encoder.attention,
        encoder.scan_unroll,
        str(jnp.dtype(encoder.dtype)),
        [(x.shape, str(x.dtype)) for x in jax.tree.leaves(weights)],
        [int(x) for x in checksum.of_arrays(weights)],
        jax.devices()[0].device_kind,
        str(jax.config.jax_default_matmul_precision),
    )
    return hashlib.blake2b(repr(parts).encode(), digest_size=32).digest()


def make(options: ml_collections.ConfigDict, encoder: nnx.Module, mesh: Any) -> VisionCache | None:
    """Makes the cache of `config.data.vision_cache`; None where there is none.

    Raises:
      ValueError: a value that is not allowed, or a folder that cannot be written to.
    """
    if options.place not in PLACES:
        raise ValueError(
            f"config.data.vision_cache.place is {options.place!r}; choose one of {PLACES}"
        )
    if options.place == "none":
        return None
    for key, least in (("bytes", 1), ("images_per_device", 0)):
        if options[key] < least:
            raise ValueError(
                f"config.data.vision_cache.{key} is {options[key]}; it must be at least {least}"
            )
    host = options.place == "host"
    store = HostStore(options.bytes) if host else DiskStore(options.path, options.bytes)
    return VisionCache(store, encoder, mesh, options.images_per_device)
