"""A workdir that cannot be written to is refused by every entry point, before any compute."""

import types

import pytest
from absl import flags

from configs import quickstart_sft
from examples.pretrain import __main__ as pretrain
from speciarl_jax import evaluate, train
from speciarl_jax.runtime.workdir import open_workdir
from speciarl_jax.runtime.workdir_lock import WorkdirLock

GIVEN = {
    "print_config": False,
    "allow_config_change": False,
    **{name: None for name in ("coordinator", "num_processes", "process_id", "step", "embeddings")},
    **{name: False for name in ("distributed", "best", "overwrite", "judge_inclusion")},
    **{name: False for name in ("rejudge", "partial_answers")},
    **{name: [] for name in ("policies", "sets", "prompts", "answers")},
    "heartbeat_timeout": 60,
    "best_of": 0,
}
REFUSED = r"--workdir=.*/file/workdir cannot be written to \(.*\); choose a folder that can"


@pytest.fixture
def blocked(tmp_path):
    """A path that nobody, not even root, can make a folder of."""
    (tmp_path / "file").write_text("")
    return str(tmp_path / "file" / "workdir")


def test_a_workdir_is_made_and_left_empty(tmp_path):
    opened = open_workdir(str(tmp_path / "new" / "workdir"))
    assert opened.is_dir() and not list(opened.iterdir())


def test_a_workdir_that_cannot_be_written_to_is_refused(blocked):
    with pytest.raises(ValueError, match=REFUSED):
        open_workdir(blocked)


@pytest.mark.parametrize("program", [train, evaluate, pretrain])
def test_every_entry_point_refuses_such_a_workdir(program, blocked, small_config, monkeypatch):
    config = quickstart_sft.get_config() if program is pretrain else small_config()
    given = types.SimpleNamespace(**GIVEN, config=config, workdir=blocked)
    monkeypatch.setattr(flags, "FLAGS", given)
    with pytest.raises(ValueError, match=REFUSED):
        program.main([])


@pytest.mark.parametrize("program", [train, evaluate, pretrain])
def test_every_entry_point_refuses_a_workdir_that_another_program_writes_to(
    program, tmp_path, small_config, monkeypatch
):
    config = quickstart_sft.get_config() if program is pretrain else small_config()
    given = types.SimpleNamespace(**GIVEN, config=config, workdir=str(tmp_path))
    monkeypatch.setattr(flags, "FLAGS", given)
    with WorkdirLock(tmp_path, "train") as lock:
        with pytest.raises(ValueError, match="is being written to by `train`"):
            program.main([])
        assert list(tmp_path.iterdir()) == [lock.path]


def test_a_mistyped_workdir_of_a_training_run_is_not_made(tmp_path, monkeypatch):
    folder = tmp_path / "quikstart"
    given = types.SimpleNamespace(**GIVEN, config=None, workdir=str(folder))
    monkeypatch.setattr(flags, "FLAGS", given)
    with pytest.raises(ValueError, match="quikstart"):
        evaluate.main([])
    assert not folder.exists()


def test_a_damaged_summary_is_refused_before_training(tmp_path, small_config, monkeypatch):
    (tmp_path / "summary.json").write_text('{"steps": ')
    given = types.SimpleNamespace(**GIVEN, config=small_config(), workdir=str(tmp_path))
    monkeypatch.setattr(flags, "FLAGS", given)
    monkeypatch.delattr(train, "prepare")  # an AttributeError, were it reached
    with pytest.raises(ValueError, match="summary.json is no JSON .*delete it"):
        train.main([])
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
