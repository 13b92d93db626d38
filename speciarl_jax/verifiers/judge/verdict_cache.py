"""Verdicts that outlive a run and are shared by processes: SQLite in a file, or Redis by URL.

A verdict is found by what decided it: the pair of names as the judge saw it, the text of the
prompt, the model with what tells it from others of its name, and the decoding settings; never by
the prompt's name or the server's address.
The first verdict on a pair stays; who comes later is given that one. Failures are not kept.
"""

import dataclasses
import hashlib
import json
import pathlib
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from speciarl_jax.verifiers.category import Category


class Unavailable(Exception):
    """The cache could not be read or written just now."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One verdict.

    Attributes:
      key: see `key`.
      truth: as the judge saw it.
      prediction: as the judge saw it.
      category: a `Category` that is a verdict.
      model: who judged.
      prompt: SHA-256 of the prompt's text.
      settings: decoding settings, JSON.
      created: seconds since 1970.
    """

    key: str
    truth: str
    prediction: str
    category: int
    model: str
    prompt: str
    settings: str
    created: float


_FIELDS = tuple(field.name for field in dataclasses.fields(Row))
# What else a cache may hold, after damage or by another's hand, counts as absent.
_KNOWN = {int(category) for category in Category if category >= Category.WRONG}


@dataclasses.dataclass(frozen=True)
class Judge:
    """All that decides about a verdict but for the pair.

    Attributes:
      model: name of the model.
      prompt: the whole text.
      settings: decoding settings, and what tells the judge from others of its name (`identity`).
    """

    model: str
    prompt: str
    settings: Mapping[str, Any]

    def row(self, truth: str, prediction: str, category: Category) -> Row:
        """The row of a verdict that was just given."""
        return Row(
            key=self.key(truth, prediction),
            truth=_storable(truth),
            prediction=_storable(prediction),
            category=int(category),
            model=self.model,
            prompt=hashlib.sha256(self.prompt.encode()).hexdigest(),
            settings=json.dumps(self.settings, sort_keys=True),
            created=time.time(),
        )

    def key(self, truth: str, prediction: str) -> str:
        """SHA-256 of the pair and of everything here."""
        settings = json.dumps(self.settings, sort_keys=True)
        parts = json.dumps([truth, prediction, self.prompt, self.model, settings])
        return hashlib.sha256(parts.encode()).hexdigest()


def last_identity(cache: "VerdictCache", judge: Judge) -> str | None:
    """Returns what told the judge from others when it last gave a verdict; None if it never did.

    Args:
      cache: of verdicts.
      judge: without `identity` in its settings.
    """
    prompt = hashlib.sha256(judge.prompt.encode()).hexdigest()
    for row in reversed(list(cache.rows())):
        settings = json.loads(row.settings)
        identity = settings.pop("identity", None)
        if identity and (row.model, row.prompt, settings) == (judge.model, prompt, judge.settings):
            return identity
    return None


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _read_row(value: str | None) -> Row | None:
    """A row that was kept as JSON; None for anything else."""
    try:
        row = Row(**json.loads(value or ""))
    except (ValueError, TypeError):
        return None
    return row if row.category in _KNOWN else None


class VerdictCache(Protocol):
    """What both kinds can do. Any method may raise `Unavailable`."""

    def get(self, keys: Sequence[str]) -> dict[str, Category]:
        """The verdicts that are there, by key."""

    def put(self, row: Row) -> Category:
        """Keeps a verdict unless there is one; returns the one that is kept."""

    def rows(self) -> Iterator[Row]:
        """All verdicts, the oldest first."""

    def delete(self, keys: Iterable[str]) -> int:
        """Removes verdicts; how many there were."""

    def close(self) -> None:
        """Frees files and connections."""


def open_cache(where: str, *, create: bool = True) -> VerdictCache:
    """A cache by its path or URL.

    Args:
      where: path of an SQLite file; `redis://` or `rediss://` URL; or "" for one in memory.
      create: make a file that does not exist.

    Raises:
      ValueError: it cannot be opened; says why.
    """
    if where.startswith(("redis://", "rediss://", "unix://")):
        return RedisCache(where)
    if "://" in where:
        raise ValueError(
            f"a verdict cache is the path of a file or a redis:// URL, and {where!r} is neither"
        )
    return SqliteCache(where or ":memory:", create=create)


def _use_wal(base: sqlite3.Connection, *, patience: float = 60.0) -> None:
    """Turns WAL mode on; waits while another process does, for which SQLite itself has no patience.

    Raises:
      sqlite3.OperationalError: the file stayed locked for `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            base.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


class SqliteCache:
    """Verdicts in an SQLite file in WAL mode; any number of processes of one machine."""

    def __init__(self, path: str, *, create: bool = True):
        """Opens or makes the file. See `open_cache`."""
        if path != ":memory:" and not create and not pathlib.Path(path).is_file():
            raise ValueError(f"there is no verdict cache {path}")
        self._lock = threading.Lock()
        try:
            if path != ":memory:":
                pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=60, check_same_thread=False)
            _use_wal(self._base)
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.execute(
                "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, truth TEXT NOT NULL, "
                "prediction TEXT NOT NULL, category INTEGER NOT NULL, model TEXT NOT NULL, "
                "prompt TEXT NOT NULL, settings TEXT NOT NULL, created REAL NOT NULL)"
            )
            self._base.execute(f"SELECT {', '.join(_FIELDS)} FROM verdicts LIMIT 1")
        except (sqlite3.Error, OSError) as error:
            raise ValueError(
                f"{path} cannot be used as a verdict cache ({error}); give the path of a file that "
                "can be written to, on a local disk"
            ) from None

    def get(self, keys: Sequence[str]) -> dict[str, Category]:
        """See `VerdictCache`."""
        found = {}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, category FROM verdicts WHERE key IN ({marks})"
            found |= {
                key: Category(number) for key, number in self._run(query, part) if number in _KNOWN
            }
        return found

    def put(self, row: Row) -> Category:
        """See `VerdictCache`."""
        marks = ", ".join("?" * len(_FIELDS))
        values = dataclasses.astuple(row)
        self._run(
            f"INSERT INTO verdicts ({', '.join(_FIELDS)}) VALUES ({marks}) "
            "ON CONFLICT (key) DO NOTHING",
            values,
        )
        return self.get([row.key]).get(row.key, Category(row.category))

    def rows(self) -> Iterator[Row]:
        """See `VerdictCache`."""
        for values in self._run(f"SELECT {', '.join(_FIELDS)} FROM verdicts ORDER BY created, key"):
            row = Row(*values)
            if row.category in _KNOWN:
                yield row

    def delete(self, keys: Iterable[str]) -> int:
        """See `VerdictCache`."""
        rows = [(key,) for key in keys]
        if not rows:
            return 0
        try:
            with self._lock, self._base:
                return self._base.executemany("DELETE FROM verdicts WHERE key = ?", rows).rowcount
        except sqlite3.Error as error:
            raise Unavailable(f"SQLite: {error}") from None

    def close(self) -> None:
        """See `VerdictCache`."""
        self._base.close()

    def _run(self, query: str, values: Sequence[Any] = ()) -> list[tuple]:
        try:
            with self._lock, self._base:
                return self._base.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise Unavailable(f"SQLite: {error}") from None


class RedisCache:
    """Verdicts in Redis, for processes of several machines."""

    PREFIX = "speciarl_jax:verdict:"

    def __init__(self, url: str):
        """Connects. See `open_cache`."""
        try:
            import redis
        except ImportError:
            raise ValueError(
                "a verdict cache in Redis needs its client; pip install redis"
            ) from None
        self._error = redis.RedisError
        self._base = redis.Redis.from_url(url, decode_responses=True, socket_timeout=30)
        try:
            self._base.ping()
        except redis.RedisError as error:
            # Without the URL: it may hold a password.
            raise ValueError(f"the verdict cache in Redis does not answer ({error})") from None

    def get(self, keys: Sequence[str]) -> dict[str, Category]:
        """See `VerdictCache`."""
        if not keys:
            return {}
        values = self._call(self._base.mget, [self.PREFIX + key for key in keys])
        rows = {key: _read_row(value) for key, value in zip(keys, values, strict=True)}
        return {key: Category(row.category) for key, row in rows.items() if row}

    def put(self, row: Row) -> Category:
        """See `VerdictCache`."""
        value = json.dumps(dataclasses.asdict(row))
        self._call(self._base.set, self.PREFIX + row.key, value, nx=True)
        return self.get([row.key]).get(row.key, Category(row.category))

    def rows(self) -> Iterator[Row]:
        """See `VerdictCache`."""
        names = self._call(lambda: list(self._base.scan_iter(self.PREFIX + "*", count=1000)))
        values = self._call(self._base.mget, names) if names else []
        rows = [row for row in map(_read_row, values) if row]
        yield from sorted(rows, key=lambda row: (row.created, row.key))

    def delete(self, keys: Iterable[str]) -> int:
        """See `VerdictCache`."""
        names = [self.PREFIX + key for key in keys]
        return self._call(self._base.delete, *names) if names else 0

    def close(self) -> None:
        """See `VerdictCache`."""
        self._base.close()

    def _call(self, what, *args, **options):
        try:
            return what(*args, **options)
        except self._error as error:
            raise Unavailable(f"Redis: {error}") from None
