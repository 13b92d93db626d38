"""Checkpoints: the same bits back, or a refusal that can be read."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speciarl_jax import assemble
from speciarl_jax.checkpoint import Checkpoints

FACTS = {"seed": 0, "data.options.split": "reinforcement", "optimizer.learning_rate": 0.01}


@pytest.fixture(scope="module")
def trained(run):
    """The state and the shardings of a run whose every number is its own."""
    _, state, where = assemble.init_state(run)
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


@pytest.fixture
def saved(tmp_path):
    """Steps -> a folder with checkpoints of `small` at these steps."""

    def saved(steps):
        checkpoints = Checkpoints(tmp_path, save_every=1, keep=5)
        for step in steps:
            checkpoints.save(step, small(step), {"position": step}, FACTS)
        checkpoints.close()
        return tmp_path

    return saved


def test_a_state_comes_back_bit_for_bit_where_it_lay(opened, run, trained, tmp_path):
    state, where = trained
    position = {"stream": {"next": 12, "names": ["a", "b"]}, "seconds": 1 / 3}
    checkpoints = opened(tmp_path)
    assert checkpoints.latest_step() is None
    assert checkpoints.save(7, state, position, FACTS)
    checkpoints.close()
    _, empty, _ = assemble.init_state(run)
    checkpoints = opened(tmp_path)
    got, got_position = checkpoints.restore(empty, FACTS)
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
    got, _ = opened(folder).restore(abstract, FACTS)
    assert got["lora"].sharding.is_equivalent_to(place, 2)
    np.testing.assert_array_equal(got["lora"], small(1)["lora"])


def test_other_facts_are_refused_with_old_and_new(opened, saved):
    folder = saved([3])
    now = FACTS | {"optimizer.learning_rate": 0.5, "data.options.split": "held_out", "new.key": 1}
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
    # Facts that the caller does not give are not compared.
    got, _ = opened(folder).restore(small(0), {"seed": 0})
    assert int(got["step"]) == 3


def test_nothing_to_restore_is_an_error(opened, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no checkpoint"):
        opened(tmp_path).restore(small(0), {})


def test_a_step_that_is_not_there_is_refused_with_those_that_are(opened, saved):
    folder = saved([2, 4])
    checkpoints = opened(folder)
    with pytest.raises(ValueError, match=r"no checkpoint of step 3, only \[2, 4\]"):
        checkpoints.restore(small(0), FACTS, 3)
    for step in (2, 4, None):
        got, position = checkpoints.restore(small(0), FACTS, step)
        assert int(got["step"]) == position["position"] == (step or 4)


def test_only_the_latest_are_kept_and_only_due_steps_are_saved(opened, tmp_path):
    checkpoints = opened(tmp_path, save_every=2, keep=2)
    written = [s for s in range(2, 10) if checkpoints.save(s, small(s), {}, FACTS)]
    assert written == [2, 4, 6, 8]
    assert not checkpoints.due(9) and checkpoints.due(10)
    assert checkpoints.save(9, small(9), {}, FACTS, force=True)
    # Saved already.
    assert not checkpoints.save(9, small(9), {}, FACTS, force=True)
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["8", "9"]
    assert opened(tmp_path).latest_step() == 9


@pytest.mark.parametrize("numbers", [{"save_every": 0, "keep": 1}, {"save_every": 1, "keep": 0}])
def test_numbers_below_one_are_refused(tmp_path, numbers):
    said = f"save_every is {numbers['save_every']} and checkpoint.keep {numbers['keep']}"
    with pytest.raises(ValueError, match=said):
        Checkpoints(tmp_path, **numbers)


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
    got, position = checkpoints.restore(small(0), FACTS)
    np.testing.assert_array_equal(got["lora"], small(4)["lora"])
    # The step can be taken and saved again.
    assert checkpoints.save(7, small(7), {"position": 7}, FACTS)
    checkpoints.close()
    assert opened(folder).latest_step() == 7


@pytest.mark.parametrize("leave", [without_state, empty])
def test_a_step_folder_without_a_whole_checkpoint_is_refused_by_name(opened, saved, leave):
    folder = saved([2, 4])
    leave(folder)
    with pytest.raises(ValueError, match="7 is no whole checkpoint .*; delete it"):
        opened(folder)
    shutil.rmtree(folder / "7")
    assert opened(folder).latest_step() == 4


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
    checkpoints.save(1, small(1), {}, FACTS)
    checkpoints.wait()
    assert opened("here").latest_step() == 1 and (tmp_path / "here" / "1").is_dir()


# Orbax reads all arrays at once and leaves the second error to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_state_of_another_shape_is_refused(opened, saved):
    folder = saved([1])
    other = {"lora": jnp.zeros((3, 5)), "step": jnp.int32(0)}
    with pytest.raises(ValueError, match=r"\(3, 5\)|\[3, 5\]|shape"):
        opened(folder).restore(other, FACTS)


def test_what_is_saved_does_not_follow_later_changes(opened, tmp_path):
    checkpoints = opened(tmp_path)
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = small(1)
    want = np.asarray(state["lora"])
    checkpoints.save(1, state, {}, FACTS)
    # Written asynchronously, while the next step reuses the memory.
    for _ in range(5):
        state = bump(state)
    checkpoints.wait()
    got, _ = checkpoints.restore(small(0), FACTS, 1)
    checkpoints.close()
    np.testing.assert_array_equal(got["lora"], want)
