"""Checkpoints: the same bits back, or a refusal that can be read."""

import errno
import logging as logging_lib
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import logging

from speciarl_jax.runtime import checkpoint, checksum, exit_codes, fingerprint
from speciarl_jax.runtime.checkpoint import Checkpoints, DamagedCheckpoint
from speciarl_jax.training import state as state_lib

FINGERPRINT = {"seed": 0, "data.options.split": "reinforcement", "optimizer.learning_rate": 0.01}


@pytest.fixture(scope="module")
def trained(run):
    """The state and the shardings of a run whose every number is its own."""
    _, state, where = state_lib.start(run)
    rng = np.random.default_rng(0)

    def some(x, place):
        if jnp.issubdtype(x.dtype, jnp.floating):
            # Values that survive neither a cast to bfloat16 nor one through text.
            return jax.device_put(rng.normal(0, 1, x.shape).astype(x.dtype), place)
        return jax.device_put(jnp.asarray(rng.integers(1, 99, x.shape), x.dtype), place)

    return jax.tree.map(some, state, where), where


@pytest.fixture
def opened():
    """Opens a folder of checkpoints, and closes it after the test."""
    made = []

    def opened(folder, **changes):
        made.append(Checkpoints(folder, **{"save_every": 1, "keep": 5} | changes))
        return made[-1]

    yield opened
    for checkpoints in made:
        checkpoints.close()


def small(number):
    return {"lora": jnp.full((3, 2), number / 3), "step": jnp.int32(number)}


def large(number):
    """Numbers that do not compress, so that most of a checkpoint are they."""
    rng = np.random.default_rng(number)
    return {"lora": jnp.asarray(rng.normal(size=(60, 40)), jnp.float32), "step": jnp.int32(number)}


@pytest.fixture
def saved(tmp_path):
    """Steps -> a folder with checkpoints of `small` or another state at these steps."""

    def saved(steps, state=small):
        checkpoints = Checkpoints(tmp_path, save_every=1, keep=5)
        for step in steps:
            checkpoints.save(step, state(step), {"position": step}, FINGERPRINT)
        checkpoints.close()
        return tmp_path

    return saved


def test_a_state_comes_back_bit_for_bit_where_it_lay(opened, run, trained, tmp_path):
    state, where = trained
    position = {"stream": {"next": 12, "names": ["a", "b"]}, "seconds": 1 / 3}
    checkpoints = opened(tmp_path)
    assert checkpoints.latest_step() is None
    assert checkpoints.save(7, state, position, FINGERPRINT)
    checkpoints.close()
    _, empty, _ = state_lib.start(run)
    checkpoints = opened(tmp_path)
    got, got_position = checkpoints.restore(empty, FINGERPRINT)
    checkpoints.close()
    assert got_position == position
    assert jax.tree.structure(got) == jax.tree.structure(state)
    for leaf, want, place in zip(*map(jax.tree.leaves, (got, state, where)), strict=True):
        assert leaf.dtype == want.dtype and leaf.sharding.is_equivalent_to(place, leaf.ndim)
        assert np.asarray(leaf).tobytes() == np.asarray(want).tobytes()


def test_a_state_comes_back_into_other_shardings(opened, saved):
    folder = saved([1])
    mesh = jax.make_mesh((1,), ("x",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    abstract = {
        "lora": jax.ShapeDtypeStruct((3, 2), jnp.float32, sharding=place),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    got, _ = opened(folder).restore(abstract, FINGERPRINT)
    assert got["lora"].sharding.is_equivalent_to(place, 2)
    np.testing.assert_array_equal(got["lora"], small(1)["lora"])


def test_another_fingerprint_is_refused_with_old_and_new(opened, saved):
    folder = saved([3])
    now = FINGERPRINT | {
        "optimizer.learning_rate": 0.5,
        "data.options.split": "held_out",
        "new.key": 1,
    }
    with pytest.raises(ValueError) as error:
        opened(folder).restore(small(0), now)
    lines = str(error.value).splitlines()
    assert "step 3" in lines[0] and "checkpoint -> now" in lines[0]
    assert sorted(line.strip() for line in lines[1:-1]) == [
        "data.options.split: 'reinforcement' -> 'held_out'",
        "new.key: None -> 1",
        "optimizer.learning_rate: 0.01 -> 0.5",
    ]
    assert "--workdir" in lines[-1]
    with pytest.raises(ValueError, match="--allow_config_change"):
        opened(folder).check_fingerprint(now)
    # Keys that the caller does not give are not compared.
    got, _ = opened(folder).restore(small(0), {"seed": 0})
    assert int(got["step"]) == 3


def test_nothing_to_restore_is_an_error(opened, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no checkpoint"):
        opened(tmp_path).restore(small(0), {})


def test_a_step_that_is_not_there_is_refused_with_those_that_are(opened, saved):
    folder = saved([2, 4])
    checkpoints = opened(folder)
    with pytest.raises(ValueError, match=r"no checkpoint of step 3, only \[2, 4\]"):
        checkpoints.restore(small(0), FINGERPRINT, 3)
    for step in (2, 4, None):
        got, position = checkpoints.restore(small(0), FINGERPRINT, step)
        assert int(got["step"]) == position["position"] == (step or 4)


def test_only_the_latest_are_kept_and_only_due_steps_are_saved(opened, tmp_path):
    checkpoints = opened(tmp_path, save_every=2, keep=2)
    written = [s for s in range(2, 10) if checkpoints.save(s, small(s), {}, FINGERPRINT)]
    assert written == [2, 4, 6, 8]
    assert not checkpoints.due(9) and checkpoints.due(10)
    assert checkpoints.save(9, small(9), {}, FINGERPRINT, force=True)
    # Saved already.
    assert not checkpoints.save(9, small(9), {}, FINGERPRINT, force=True)
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["8", "9"]
    assert opened(tmp_path).latest_step() == 9


def half_written(folder):
    """What a kill leaves behind while Orbax writes: its temporary folder, never renamed."""
    whole = folder / "4"
    shutil.copytree(whole, folder / "7.orbax-checkpoint-tmp")
    shutil.rmtree(folder / "7.orbax-checkpoint-tmp" / "state")


def without_state(folder):
    """A folder with a step's name that Orbax did not finish."""
    (folder / "7" / "state.orbax-checkpoint-tmp").mkdir(parents=True)


def empty(folder):
    (folder / "7").mkdir()


def stray(folder):
    (folder / "notes").mkdir()
    (folder / "9").write_text("not a folder")


@pytest.mark.parametrize("leave", [half_written, stray])
def test_a_checkpoint_that_was_not_finished_is_never_chosen(opened, saved, leave):
    folder = saved([2, 4])
    leave(folder)
    checkpoints = opened(folder)
    assert checkpoints.latest_step() == 4
    got, position = checkpoints.restore(small(0), FINGERPRINT)
    np.testing.assert_array_equal(got["lora"], small(4)["lora"])
    # The step can be taken and saved again.
    assert checkpoints.save(7, small(7), {"position": 7}, FINGERPRINT)
    checkpoints.close()
    assert opened(folder).latest_step() == 7


@pytest.mark.parametrize("leave", [without_state, empty])
def test_a_step_folder_without_a_whole_checkpoint_is_set_aside(opened, saved, leave, caplog):
    folder = saved([2, 4])
    leave(folder)
    with pytest.raises(DamagedCheckpoint, match="7 is no whole checkpoint: it lacks .*'state'"):
        opened(folder).restore(small(0), FINGERPRINT)
    step, got, position = opened(folder).resume(small(0), FINGERPRINT)
    assert step == 4 and position == {"position": 4}
    np.testing.assert_array_equal(got["lora"], small(4)["lora"])
    assert sorted(p.name for p in folder.iterdir()) == ["2", "4", "damaged_7"]
    assert "DAMAGED CHECKPOINT, set aside as" in caplog.text and "lacks" in caplog.text


def test_a_folder_is_not_made_where_none_is_wanted(opened, tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(ValueError, match="missing holds no checkpoint: there is no such folder"):
        opened(missing, create=False)
    assert not missing.exists()
    opened(missing)
    assert missing.is_dir()
    assert opened(missing, create=False).latest_step() is None


def test_a_relative_folder_will_do(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = opened("here")
    checkpoints.save(1, small(1), {}, FINGERPRINT)
    checkpoints.wait()
    assert opened("here").latest_step() == 1 and (tmp_path / "here" / "1").is_dir()


# Orbax reads all arrays at once and leaves the second error to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_state_of_another_shape_is_refused(opened, saved):
    folder = saved([1])
    other = {"lora": jnp.zeros((3, 5)), "step": jnp.int32(0)}
    with pytest.raises(ValueError, match=r"\(3, 5\)|\[3, 5\]|shape"):
        opened(folder).restore(other, FINGERPRINT)


def test_what_is_saved_does_not_follow_later_changes(opened, tmp_path):
    checkpoints = opened(tmp_path)
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = small(1)
    want = np.asarray(state["lora"])
    checkpoints.save(1, state, {}, FINGERPRINT)
    # Written asynchronously, while the next step reuses the memory.
    for _ in range(5):
        state = bump(state)
    checkpoints.wait()
    got, _ = checkpoints.restore(small(0), FINGERPRINT, 1)
    checkpoints.close()
    np.testing.assert_array_equal(got["lora"], want)


def files_of(folder):
    """Parts of a checkpoint that hold its content."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "commit_success.txt"]
    numbers = max((p for p in files if p.parent.name == "d"), key=lambda p: p.stat().st_size)
    named = ("iterator/metadata", "facts/metadata", "checksum/metadata", "state/manifest.ocdbt")
    return [numbers, *(folder / name for name in named)]


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x11
    path.write_bytes(content)


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("spoil", [flipped, cut_short])
def test_no_damage_to_the_newest_checkpoint_goes_unnoticed(opened, saved, tmp_path, spoil, caplog):
    names = [p.relative_to(tmp_path / "4") for p in files_of(saved([2, 4], large) / "4")]
    assert len(names) == 5
    for i, name in enumerate(names):
        folder = tmp_path / f"copy_{i}"
        for step in ("2", "4"):
            shutil.copytree(tmp_path / step, folder / step)
        spoil(folder / "4" / name)
        caplog.clear()
        step, got, position = opened(folder).resume(large(0), FINGERPRINT)
        assert (step, position) == (2, {"position": 2}), name
        np.testing.assert_array_equal(got["lora"], large(2)["lora"])
        assert "DAMAGED CHECKPOINT" in caplog.text and (folder / "damaged_4").is_dir()


def test_a_run_does_not_begin_anew_where_every_checkpoint_is_damaged(opened, saved):
    folder = saved([2, 4], large)
    for step in ("2", "4"):
        flipped(files_of(folder / step)[0])
    for _ in range(2):
        with pytest.raises(DamagedCheckpoint, match="no whole checkpoint, only .*damaged_2.*anew"):
            opened(folder).resume(large(0), FINGERPRINT)
    shutil.copytree(saved([6], large) / "6", folder / "8")
    assert opened(folder).resume(large(0), FINGERPRINT)[0] == 8


def test_a_checkpoint_that_is_damaged_again_gets_a_name_of_its_own(opened, saved, tmp_path):
    folder = saved([2, 4], large)
    (folder / "damaged_4").mkdir()
    flipped(files_of(folder / "4")[0])
    assert opened(folder).resume(large(0), FINGERPRINT)[0] == 2
    assert sorted(p.name for p in folder.iterdir()) == ["2", "damaged_4", "damaged_4_2"]


def test_two_processes_may_set_the_same_checkpoint_aside(opened, saved, monkeypatch):
    folder = saved([2, 4])
    free_name = checkpoint._free_name

    def slow(*args):
        name = free_name(*args)
        shutil.copytree(folder / "4", name)  # The other process, a moment before this one.
        return name

    checkpoints = opened(folder)
    monkeypatch.setattr(checkpoint, "_free_name", slow)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(exit_codes.RestartNeeded, match="4 was damaged and is set aside"):
        checkpoints._set_aside(4, DamagedCheckpoint("flipped"))
    monkeypatch.undo()


class ServerDisconnectedError(Exception):
    __module__ = "aiohttp.client_exceptions"


class HttpError(Exception):
    __module__ = "gcsfs.retry"
    code = 403


def caused(cause):
    error = RuntimeError("restore failed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "said, raised, code",
    [
        (
            ValueError("UNAVAILABLE: GET https://storage: 503"),
            exit_codes.RestartNeeded,
            exit_codes.RESTART,
        ),
        (
            caused(ValueError("DEADLINE_EXCEEDED: reading")),
            exit_codes.RestartNeeded,
            exit_codes.RESTART,
        ),
        (caused(ServerDisconnectedError()), exit_codes.RestartNeeded, exit_codes.RESTART),
        (TimeoutError(), exit_codes.RestartNeeded, exit_codes.RESTART),
        (ValueError("PERMISSION_DENIED: 403"), exit_codes.StorageError, exit_codes.STORAGE),
        (caused(HttpError("Forbidden")), exit_codes.StorageError, exit_codes.STORAGE),
        (PermissionError(errno.EACCES, "not yours"), PermissionError, exit_codes.STORAGE),
        (caused(OSError(errno.EIO, "a bad sector")), OSError, 1),
        (MemoryError(), MemoryError, 1),
    ],
)
def test_a_checkpoint_that_is_out_of_reach_is_left_where_it_is(
    opened, saved, monkeypatch, said, raised, code
):
    folder = saved([2, 4])
    checkpoints = opened(folder)

    def away(*args, **options):
        raise said

    monkeypatch.setattr(checkpoints._manager, "restore", away)
    for read in (
        lambda: checkpoints.resume(small(0), FINGERPRINT),
        lambda: checkpoints.check_fingerprint(FINGERPRINT),
    ):
        with pytest.raises(raised) as error:
            read()
        assert exit_codes.code_of(error.value, False) == code
    assert sorted(p.name for p in folder.iterdir()) == ["2", "4"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_of_the_disk_is_not_taken_for_damage(opened, saved):
    folder = saved([2, 4], large)
    numbers = files_of(folder / "4")[0]
    numbers.unlink()
    numbers.symlink_to(numbers)  # "Too many levels of symbolic links", for root as well
    with pytest.raises(OSError, match="may be whole") as error:
        opened(folder).resume(large(0), FINGERPRINT)
    assert error.value.errno == errno.ELOOP
    assert sorted(p.name for p in folder.iterdir()) == ["2", "4"]


def test_an_error_of_the_devices_is_not_taken_for_a_full_disk(opened, saved, monkeypatch):
    checkpoints = opened(saved([2]))

    def broken(*args, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: a device is lost")

    for owner, name in ((checksum, "digest"), (checkpoints._manager, "save")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, broken)
            with pytest.raises(jax.errors.JaxRuntimeError, match="a device is lost"):
                checkpoints.save(4, small(4), {}, FINGERPRINT)


def test_checksums_tell_any_changed_or_moved_element_and_no_mesh(run):
    rng = np.random.default_rng(0)
    state = {"a": rng.normal(size=(4, 6)).astype(np.float32), "b": np.arange(5, dtype=np.int8)}
    state |= {"c": np.array([True, False]), "d": jnp.asarray(rng.normal(size=7), jnp.bfloat16)}
    want = [int(x) for x in checksum.of_arrays(state)]
    for name, index in (("a", (2, 3)), ("b", 1), ("c", 0), ("d", 4)):
        other = {k: np.array(v) for k, v in state.items()}
        other[name][index] = not other[name][index] if name == "c" else -other[name][index]
        assert [int(x) for x in checksum.of_arrays(other)] != want
    assert [int(x) for x in checksum.of_arrays(state | {"a": state["a"][::-1]})] != want


def test_the_best_are_kept_besides_the_latest(opened, tmp_path):
    best = {"keep": 1, "keep_best": 2, "best_metric": "reward/mean"}
    checkpoints = opened(tmp_path, **best)
    for step, metric in enumerate((0.5, 0.9, 0.2, 0.7, 0.1), start=1):
        checkpoints.save(step, small(step), {}, FINGERPRINT, metric=metric)
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "4", "5"]
    assert opened(tmp_path, **best).best_step() == 2
    assert opened(tmp_path, **best | {"best_mode": "min"}).best_step() == 5
    assert opened(tmp_path, **best).resume(small(0), FINGERPRINT)[0] == 5
    with pytest.raises(ValueError, match="best_mode is 'most'; choose 'max' or 'min'"):
        opened(tmp_path, **best | {"best_mode": "most"})
    with pytest.raises(ValueError, match="has a metric; train with config.checkpoint.keep_best"):
        opened(tmp_path).best_step()


def test_a_changed_configuration_is_taken_where_that_is_allowed(opened, saved, caplog):
    now = FINGERPRINT | {"optimizer.learning_rate": 0.5}
    folder = saved([3])
    opened(folder).check_fingerprint(now, allow_change=True)
    assert opened(folder).resume(small(0), now, allow_change=True)[0] == 3
    assert "optimizer.learning_rate: 0.01 -> 0.5" in caplog.text


def test_orbax_is_quiet_but_for_its_warnings():
    """And but for one of these, about metadata that nobody wrote."""
    handler = logging.get_absl_handler()
    before = list(handler.filters)
    checkpoint.quieten_orbax()
    try:
        (wanted,) = [one for one in handler.filters if one not in before]
    finally:
        handler.filters[:] = before

    def is_shown(message, level, path="/lib/orbax/checkpoint/_src/metadata/checkpoint.py"):
        return wanted(logging_lib.LogRecord("absl", level, path, 1, message, (), None))

    missing = "Metadata file does not exist: %s"
    assert not is_shown(missing, logging_lib.WARNING)
    assert not is_shown("Saving", logging_lib.INFO)
    assert is_shown("Failed to read Metadata file: %s", logging_lib.ERROR)
    assert is_shown("A slow disk", logging_lib.WARNING)
    assert is_shown(missing, logging_lib.INFO, "/home/me/my_model.py")
    # It is what Orbax says.
    source = pathlib.Path(ocp.__file__).parent / "_src" / "metadata" / "checkpoint.py"
    assert missing in source.read_text()


def test_a_checkpoint_that_keeps_no_fingerprint_of_its_base_goes_on():
    """Earlier versions kept none; one that is there must be this run's."""
    now = FINGERPRINT | {fingerprint.BASE_WEIGHTS: "a"}
    fingerprint.check(FINGERPRINT, now, "it", allow_change=False)
    fingerprint.check(now, now, "it", allow_change=False)
    with pytest.raises(ValueError, match="model.base_fingerprint: 'b' -> 'a'"):
        fingerprint.check(now | {fingerprint.BASE_WEIGHTS: "b"}, now, "it", allow_change=False)
