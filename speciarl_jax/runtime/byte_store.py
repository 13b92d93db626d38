"""Stores of bytes by key, bounded, least recently used first out: in memory, or in a folder."""

import collections
import hashlib
import os
import pathlib
import uuid

from absl import logging

_DIGEST_BYTES = 16


class HostStore:
    """Keeps values in the memory of this process."""

    def __init__(self, limit: int):
        """Makes an empty store of at most `limit` bytes."""
        self._limit, self._used = limit, 0
        self._values: collections.OrderedDict[str, bytes] = collections.OrderedDict()

    def get(self, key: str) -> bytes | None:
        """Returns the value, which is now the one that was used last; None if there is none."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keeps a value, and drops those that were not used for longest to make room."""
        if len(value) > self._limit:
            return
        self._used += len(value) - len(self._values.pop(key, b""))
        self._values[key] = value
        while self._used > self._limit:
            _, dropped = self._values.popitem(last=False)
            self._used -= len(dropped)


class DiskStore:
    """Keeps values in a folder, which runs and processes may share; it outlives them.

    A file is written under another name and renamed, so nobody reads half of one. It begins with a
    checksum over its key and value: a damaged file is dropped, logged, and counts as none. The time
    of a file is that of its last use. A value that cannot be written is not kept; the first such
    error is logged.
    """

    def __init__(self, folder: str | os.PathLike, limit: int):
        """Makes the folder.

        Args:
          folder: holds nothing else.
          limit: bytes of all files at most. Before one more file would exceed it, the oldest are
            deleted until a tenth of it is free. Files that other processes write meanwhile are seen
            at the next count, at the latest after a fiftieth of the limit was written here.

        Raises:
          ValueError: the folder cannot be written to.
        """
        self._folder, self._limit = pathlib.Path(folder), limit
        self._warned = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            probe = self._folder / f"probe_{uuid.uuid4().hex}"
            _write(probe, b"")
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"the folder {folder} (config.data.vision_cache.path) cannot be written to "
                f"({error.strerror}); choose one that can"
            ) from None
        self._used, self._uncounted = self._make_room(0), 0

    def get(self, key: str) -> bytes | None:
        """Returns the value, whose file is now the one used last; None if there is no sound one."""
        path = self._path(key)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None  # nobody wrote it, or another process deleted it
        value = content[_DIGEST_BYTES:]
        if content[:_DIGEST_BYTES] != _digest(key, value):
            logging.warning("%s is damaged; it is computed anew", path)
            path.unlink(missing_ok=True)
            return None
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keeps a value."""
        size = _DIGEST_BYTES + len(value)
        if size > self._limit:
            return
        if self._used + size > self._limit or self._uncounted > self._limit // 50:
            self._used, self._uncounted = self._make_room(size), 0
        path = self._path(key)
        try:
            path.parent.mkdir(exist_ok=True)
            _write(path, _digest(key, value) + value)
        except OSError as error:
            if not self._warned:
                logging.warning("%s cannot be written (%s); goes on without", path, error.strerror)
            self._warned = True
            return
        self._used += size
        self._uncounted += size

    def _path(self, key: str) -> pathlib.Path:
        return self._folder / key[:2] / key

    def _make_room(self, size: int) -> int:
        """Returns the bytes of all files, after making room for `size` more if there is none."""
        found = []
        for folder, _, names in os.walk(self._folder):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    status = os.stat(path)
                except OSError:
                    continue
                found.append((status.st_mtime_ns, status.st_size, path))
        used = sum(entry[1] for entry in found)
        if used + size <= self._limit:
            return used
        for _, bytes_, path in sorted(found):
            if used + size <= self._limit - self._limit // 10:
                break
            pathlib.Path(path).unlink(missing_ok=True)
            used -= bytes_
        return used


def _write(path: pathlib.Path, content: bytes) -> None:
    draft = path.with_name(f"{path.name}_{uuid.uuid4().hex}.draft")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _digest(key: str, value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=_DIGEST_BYTES, key=key.encode()).digest()
