"""What the command line settles before JAX starts."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import pytest

from optdyn.cli import _devices as devices
from optdyn.errors import UserError


@pytest.fixture
def started(monkeypatch):
    calls = []
    monkeypatch.setattr(devices.os, "execve", lambda *arguments: calls.append(arguments))
    monkeypatch.delenv(devices.TUNABLES, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    return calls


def test_the_process_starts_anew_as_it_was_called_with_large_pages(started):
    devices.use_large_pages()
    ((program, arguments, environment),) = started
    assert (program, arguments) == (sys.executable, sys.orig_argv)
    assert environment[devices.TUNABLES] == "glibc.malloc.hugetlb=1"


def test_a_setting_of_the_users_stays(started, monkeypatch):
    monkeypatch.setenv(devices.TUNABLES, "")
    devices.use_large_pages()
    assert started == []


def test_other_systems_are_left_alone(started, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    devices.use_large_pages()
    assert started == []


@pytest.fixture
def kept_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(devices.CACHE, raising=False)
    before = jax.config.jax_compilation_cache_dir
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_where_that_is_possible(kept_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    devices.use_compilation_cache()
    assert kept_folder() == str(tmp_path / "optdyn" / "xla")
    assert (tmp_path / "optdyn" / "xla").is_dir()


@pytest.mark.parametrize("base", ["/dev/null", "odd\udcff"])
def test_programs_are_not_kept_in_folders_that_cannot_be(kept_folder, monkeypatch, tmp_path, base):
    before = kept_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / base))
    devices.use_compilation_cache()
    assert kept_folder() == before


def test_a_user_without_a_home_has_no_cache(kept_folder, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    before = kept_folder()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    devices.use_compilation_cache()
    assert kept_folder() == before
    with pytest.raises(UserError, match="HOME: is not set"):
        devices.program_folder()
