"""Bounded stores: what they keep, what they drop, and what damage and sharing do."""

import os
import threading

import pytest

from speciarl_jax.runtime.byte_store import DiskStore, HostStore

KEYS = [f"{i:040x}" for i in range(40)]


def value(i, size=100):
    return bytes([i]) * size


def test_memory_drops_what_was_not_used_for_longest():
    store = HostStore(300)
    for i in range(3):
        store.put(KEYS[i], value(i))
    assert store.get(KEYS[0]) == value(0)
    store.put(KEYS[3], value(3))
    assert [store.get(key) for key in KEYS[:4]] == [value(0), None, value(2), value(3)]
    store.put(KEYS[0], value(9, 40))
    store.put(KEYS[4], value(4, 60))
    assert [store.get(key) is None for key in KEYS[:5]] == [False, True, False, False, False]
    store.put(KEYS[5], value(5, 301))
    assert store.get(KEYS[5]) is None and store.get(KEYS[4]) == value(4, 60)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def age(folder, key, seconds):
    os.utime(folder / key[:2] / key, (seconds, seconds))


def test_a_folder_drops_the_oldest_and_never_exceeds_its_limit(tmp_path):
    store = DiskStore(tmp_path, 1200)  # ten files
    for i in range(10):
        store.put(KEYS[i], value(i))
        age(tmp_path, KEYS[i], 1000 + i)
    assert all(store.get(KEYS[i]) == value(i) for i in range(3))  # used: now the newest
    for i in range(10, 13):
        store.put(KEYS[i], value(i))
        assert size_of(tmp_path) <= 1200
    assert all(store.get(KEYS[i]) == value(i) for i in (0, 1, 2, 11, 12))
    assert store.get(KEYS[3]) is None and store.get(KEYS[4]) is None
    store.put(KEYS[20], value(20, 2000))
    assert store.get(KEYS[20]) is None


def test_a_folder_outlives_its_process_and_shrinks_to_a_smaller_limit(tmp_path):
    first = DiskStore(tmp_path, 10_000)
    for i in range(10):
        first.put(KEYS[i], value(i))
        age(tmp_path, KEYS[i], 1000 + i)
    again = DiskStore(tmp_path, 580)
    assert size_of(tmp_path) <= 580
    assert again.get(KEYS[9]) == value(9) and again.get(KEYS[0]) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "swap"])
def test_a_damaged_file_counts_as_none_and_may_be_written_again(tmp_path, damage):
    store = DiskStore(tmp_path, 10_000)
    store.put(KEYS[0], value(0))
    store.put(KEYS[1], value(1))
    path, other = (tmp_path / key[:2] / key for key in KEYS[:2])
    content = path.read_bytes()
    changed = {
        "flip": content[:50] + bytes([content[50] ^ 1]) + content[51:],
        "cut": content[:70],
        "empty": b"",
        "swap": other.read_bytes(),  # sound, but of another image
    }
    path.write_bytes(changed[damage])
    assert store.get(KEYS[0]) is None and not path.exists()
    store.put(KEYS[0], value(7))
    assert store.get(KEYS[0]) == value(7)


def test_two_stores_on_one_folder_read_whole_values_or_none(tmp_path):
    """Both write, read and delete at once; the limit makes them take files from each other."""
    limit, wrong = 1200, []

    def use(turn):
        store = DiskStore(tmp_path, limit)
        for round_ in range(15):
            for i, key in enumerate(KEYS[:20]):
                found = store.get(key)
                if found is None:
                    store.put(key, value(i))
                elif found != value(i):
                    wrong.append((turn, round_, i))

    threads = [threading.Thread(target=use, args=(turn,)) for turn in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not list(tmp_path.rglob("*.draft"))
    DiskStore(tmp_path, limit)
    assert size_of(tmp_path) <= limit


def test_what_cannot_be_written_is_left_out(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="vision_cache.path. cannot be written to .*; choose"):
        DiskStore(tmp_path / "file" / "cache", 10_000)
    store = DiskStore(tmp_path / "cache", 10_000)
    (tmp_path / "cache" / KEYS[0][:2]).write_text("in the way")
    store.put(KEYS[0], value(0))
    assert store.get(KEYS[0]) is None
