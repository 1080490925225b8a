"""What the command line settles before JAX starts."""

from __future__ import annotations

import sys

import pytest

from optdyn.cli import devices


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
