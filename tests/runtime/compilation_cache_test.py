"""Where compiled programs are kept."""

import pathlib

import jax
import pytest

from configs import base
from speciarl_jax.runtime import compilation_cache

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No folder is chosen, and the user's is in `tmp_path`."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_by_default_programs_are_kept_for_the_user_and_bounded(fresh):
    compilation_cache.enable(base.get_config().compilation_cache)
    folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
    assert folder == compilation_cache.user_folder() and folder.is_dir()
    assert folder.parent == fresh / "speciarl_jax" / "programs"
    assert 0 < jax.config.jax_compilation_cache_max_size < 2**36
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_the_folder_is_of_one_kind_of_machine(fresh, monkeypatch):
    here = compilation_cache.user_folder()
    assert here == compilation_cache.user_folder()
    monkeypatch.setattr("platform.machine", lambda: "another")
    assert compilation_cache.user_folder() != here


def test_what_jax_was_told_goes_first(fresh):
    jax.config.update("jax_compilation_cache_dir", "told/to/jax")
    compilation_cache.enable("user")
    assert jax.config.jax_compilation_cache_dir == "told/to/jax" and not list(fresh.iterdir())
    compilation_cache.enable(str(fresh / "own"))
    assert jax.config.jax_compilation_cache_dir == str(fresh / "own")


def test_an_empty_text_is_none(fresh):
    compilation_cache.enable("")
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_cannot_be_made_is_told(fresh, monkeypatch, caplog):
    (fresh / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "file"))
    compilation_cache.enable("user")
    assert "compiled programs are not kept" in caplog.text
    assert jax.config.jax_compilation_cache_dir is None
    with pytest.raises(ValueError, match="cannot be made .Not a directory.; choose another"):
        compilation_cache.enable(str(fresh / "file" / "programs"))
