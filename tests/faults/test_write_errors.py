"""A disk that fails at any moment of a training costs no checkpoint and no bit."""

from __future__ import annotations

import dataclasses
import errno
import functools
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optdyn.errors import UserError
from optdyn.meta_training._trainer import make_meta_step
from optdyn.runs import _training_run as training_run
from optdyn.runs._checkpoints import load_state
from tiny_runs import PROTOCOL, TASK, results, run_training

CALLS = ("open", "write", "fsync", "replace", "unlink")
SHORT = dataclasses.replace(PROTOCOL, num_meta_steps=4)
EVERY_IN_SMALL = 19
"""Of the calls, every so many-th is failed in the small run."""


def states(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in (folder / TASK / "checkpoints").glob("resume-*")
    }


def train_with_failing_call(folder: Path, number: int | None, code: int) -> int:
    """Train with call ``number`` to the operating system refused; how many were made."""
    count = itertools.count()

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def run(*arguments: Any, **options: Any) -> Any:
            if next(count) == number:
                raise OSError(code, os.strerror(code))
            return call(*arguments, **options)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for call in CALLS:
            patch.setattr(os, call, guarded(getattr(os, call)))
        run_training(folder, SHORT)
    return next(count)


def test_whichever_call_fails_the_checkpoints_load_and_the_run_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    full: bool,
    figures: dict[str, object],
) -> None:
    monkeypatch.setattr(training_run, "make_meta_step", functools.cache(make_meta_step))
    run_training(tmp_path / "whole", SHORT)
    expected = results(tmp_path / "whole")
    calls = train_with_failing_call(tmp_path / "counted", None, 0)
    assert calls > 60
    here, failures = tmp_path / "here", 0
    for number in range(0, calls, 1 if full else EVERY_IN_SMALL):
        for code in (errno.ENOSPC, errno.EIO):
            with pytest.raises(UserError, match=os.strerror(code)) as caught:
                train_with_failing_call(here, number, code)
            assert "\n" not in str(caught.value)
            for name in states(here):
                load_state(here / TASK / "checkpoints" / name)
            run_training(here, SHORT)
            assert results(here) == expected
            shutil.rmtree(here)
            failures += 1
    figures["refused writes in a training"] = (
        f"{failures} of the {2 * calls} there are (ENOSPC, EIO), "
        "each one line, each time all checkpoints load and the run goes on to the same bits"
    )
