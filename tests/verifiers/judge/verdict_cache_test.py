"""The verdict cache, in SQLite and in Redis, and the command that looks into it."""

import csv
import dataclasses
import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading

import fakeredis
import pytest
import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from speciarl_jax.tools import verdict_cache
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.judge.verdict_cache import Judge, RedisCache, open_cache

BAD = {"category": 17}
JUDGE = Judge("judge", "Compare {pair}", {"temperature": 0.0})


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    """URL of a Redis server of our own, where one is installed (apt-get install redis-server)."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server here; fakeredis takes its place")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = str(tmp_path_factory.mktemp("redis"))
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port, retry=Retry(ExponentialBackoff(cap=0.5), 40))
    assert client.ping() and "redis_version" in client.info()
    yield f"redis://127.0.0.1:{port}/0"
    server.kill()


@pytest.fixture(params=["sqlite", "memory", "redis", "redis-server"])
def where(request, tmp_path):
    """The path or URL of an empty cache."""
    if request.param == "sqlite":
        yield str(tmp_path / "deep" / "verdicts.sqlite")
    elif request.param == "memory":
        yield ""
    elif request.param == "redis-server":
        url = request.getfixturevalue("redis_server")
        redis.Redis.from_url(url).flushdb()
        yield url
    else:
        server = fakeredis.TcpFakeServer(("127.0.0.1", 0))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()
        server.server_close()


@pytest.fixture
def cache(where):
    opened = open_cache(where)
    yield opened
    opened.close()


def rows_of(count, judge=JUDGE):
    return [judge.row("eagle", f"thing {i}", Category(i % 6)) for i in range(count)]


def test_what_was_put_is_found_and_nothing_else(cache):
    rows = rows_of(1300)  # more than one query takes
    for row in rows:
        assert cache.put(row) == row.category
    found = cache.get([row.key for row in rows] + ["no such key"])
    assert found == {row.key: Category(row.category) for row in rows}
    assert all(isinstance(category, Category) for category in found.values())
    assert cache.get([]) == {}
    assert sorted(cache.rows(), key=lambda row: row.key) == sorted(rows, key=lambda row: row.key)
    assert cache.delete([rows[0].key, rows[1].key, "no such key"]) == 2
    assert cache.delete([]) == 0
    assert len(cache.get([row.key for row in rows])) == 1298


def test_the_first_verdict_stays(cache):
    first = JUDGE.row("eagle", "bird", Category.LESS_SPECIFIC)
    later = JUDGE.row("eagle", "bird", Category.GENERIC)
    assert first.key == later.key
    assert cache.put(first) == cache.put(later) == Category.LESS_SPECIFIC
    assert list(cache.rows()) == [first]


@pytest.mark.parametrize("where", ["sqlite", "redis", "redis-server"], indirect=True)
def test_what_is_no_verdict_counts_as_absent(cache, where):
    rows = rows_of(3)
    for row in rows:
        cache.put(row)
    if where.startswith("redis"):
        base = redis.Redis.from_url(where)
        base.set(RedisCache.PREFIX + rows[0].key, "junk")
        base.set(RedisCache.PREFIX + rows[1].key, json.dumps(dataclasses.asdict(rows[1]) | BAD))
    else:
        with sqlite3.connect(where) as base:
            base.execute("UPDATE verdicts SET category = 17 WHERE prediction != 'thing 2'")
    keys = [row.key for row in rows]
    assert cache.get(keys) == {keys[2]: Category.GENERIC}
    assert list(cache.rows()) == rows[2:]
    assert cache.put(rows[0]) == Category.WRONG


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(JUDGE, model="other"),
        dataclasses.replace(JUDGE, prompt="Compare  {pair}"),
        dataclasses.replace(JUDGE, settings={"temperature": 0.1}),
    ],
)
def test_all_that_decides_is_part_of_the_key(other):
    assert other.key("eagle", "bird") != JUDGE.key("eagle", "bird")
    assert JUDGE.key("eagle", "bird") != JUDGE.key("bird", "eagle")
    assert JUDGE.key("a", "b c") != JUDGE.key("a b", "c")
    again = dataclasses.replace(JUDGE, settings=dict(JUDGE.settings))
    assert again.key("eagle", "bird") == JUDGE.key("eagle", "bird")


def test_text_that_is_no_unicode_can_be_kept(cache):
    row = JUDGE.row("eagle", "bird \ud800", Category.WRONG)
    cache.put(row)
    assert cache.get([row.key]) == {row.key: Category.WRONG}


PUT = """
import sys
from speciarl_jax.verifiers.judge import verdict_cache
from speciarl_jax.verifiers.category import Category
path, me = sys.argv[1], int(sys.argv[2])
judge = verdict_cache.Judge("judge", "Compare {pair}", {})
print("ready", flush=True)
input()
cache = verdict_cache.open_cache(path)
for i in range(200):
    cache.put(judge.row("eagle", f"thing {i}", Category(me)))
    cache.put(judge.row("eagle", f"thing {i} of {me}", Category(me)))
"""


@pytest.mark.parametrize("where", ["sqlite", "redis-server"], indirect=True)
def test_processes_that_write_at_once_lose_nothing(where):
    path = where
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen([sys.executable, "-c", PUT, path, str(me)], **pipes) for me in range(3)
    ]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        process.communicate(timeout=120)
        assert process.returncode == 0
    cache = open_cache(path, create=False)
    rows = {row.prediction: row.category for row in cache.rows()}
    assert len(rows) == 200 + 3 * 200
    assert all(rows[f"thing {i} of {me}"] == me for i in range(200) for me in range(3))
    cache.close()


OPEN = """
import sys
from speciarl_jax.verifiers.judge import verdict_cache
print("ready", flush=True)
for path in sys.stdin:
    verdict_cache.open_cache(path.strip())
    print("opened", flush=True)
"""


def test_processes_that_make_the_file_at_once_all_get_it(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([sys.executable, "-c", OPEN], **pipes) for _ in range(4)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for number in range(40):
        for process in running:
            process.stdin.write(f"{tmp_path}/{number}.sqlite\n")
            process.stdin.flush()
        for process in running:
            assert process.stdout.readline() == "opened\n"
    for process in running:
        process.communicate(timeout=60)


def test_what_is_no_cache_is_refused(tmp_path):
    (tmp_path / "text").write_text("no database, but long enough to be taken for one " * 40)
    with pytest.raises(ValueError, match="text cannot be used as a verdict cache"):
        open_cache(str(tmp_path / "text"))
    with pytest.raises(ValueError, match="cannot be used as a verdict cache"):
        open_cache(str(tmp_path))
    with pytest.raises(ValueError, match="there is no verdict cache"):
        open_cache(str(tmp_path / "none.sqlite"), create=False)
    with pytest.raises(ValueError, match="redis:// URL, and 'http://x' is neither"):
        open_cache("http://x")
    with pytest.raises(ValueError, match="does not answer") as error:
        open_cache("redis://:secret@127.0.0.1:1/0")
    assert "secret" not in str(error.value)


@pytest.fixture
def command(where, tmp_path):
    """Arguments -> what `speciarl_jax.tools.verdict_cache` prints about a cache of 12 verdicts."""
    cache = open_cache(where)
    for row in rows_of(12):
        cache.put(dataclasses.replace(row, created=row.created - 10 * 86400))
    other = dataclasses.replace(JUDGE, model="other")
    cache.put(other.row("hawk", "bird", Category.LESS_SPECIFIC))
    cache.close()

    def command(*args):
        done = subprocess.run(
            [sys.executable, "-m", "speciarl_jax.tools.verdict_cache", *args, f"--cache={where}"],
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return command


@pytest.mark.parametrize("where", ["sqlite", "redis", "redis-server"], indirect=True)
def test_the_command_lists_exports_and_prunes(command, where, tmp_path):
    _, said, _ = command("list")
    assert "12 verdicts: more_specific 2, specific 2" in said and "1 verdicts" in said
    _, said, _ = command("list", "--pairs", "--model=other")
    assert said == "less_specific 'hawk' <- 'bird'  other\n"
    command("export", f"--out={tmp_path / 'out.csv'}")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13 and rows[-1]["category"] == "less_specific"
    command("export", "--truth=eagle", f"--out={tmp_path / 'out.jsonl'}")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == [f"thing {i}" for i in range(12)]
    code, _, said = command("prune")
    assert code and "prune needs" in said
    assert command("prune", "--older_than_days=9")[1] == "12 verdicts deleted\n"
    cache = open_cache(where)
    assert [row.model for row in cache.rows()] == ["other"]
    cache.close()


def test_the_command_refuses_a_cache_that_is_not_there(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "speciarl_jax.tools.verdict_cache",
            "list",
            f"--cache={tmp_path / 'x'}",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78 and "verdict_cache: there is no verdict cache" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "x").exists()


def test_rows_are_narrowed_down_by_all_that_is_given():
    row = JUDGE.row("eagle", "bird", Category.GENERIC)
    assert verdict_cache.chosen()(row)
    assert verdict_cache.chosen(model="judge", prompt=row.prompt[:7], truth="eagle")(row)
    assert not verdict_cache.chosen(model="judge", prompt="x")(row)
    assert not verdict_cache.chosen(truth="hawk")(row) and not verdict_cache.chosen(model="judg")(
        row
    )
    assert not verdict_cache.chosen(older_than_days=1)(row) and verdict_cache.chosen(
        older_than_days=-1
    )(row)
