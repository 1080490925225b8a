"""Signals that arrive where Python drops exceptions still stop the work."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from optdyn.distributed._interrupts import Interrupted, raised_signals


class Finalized:
    """Interrupted while the interpreter clears it away."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)


def test_a_signal_dropped_by_a_finalizer_is_sent_again() -> None:
    before = sys.unraisablehook

    def lose_a_signal() -> None:
        thing = Finalized()
        del thing
        time.sleep(5.0)
        raise AssertionError("the signal was lost")

    with pytest.raises(Interrupted, match="stopped"), raised_signals("stopped"):
        lose_a_signal()
    assert sys.unraisablehook is before


def test_other_dropped_errors_are_told_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    class Faulty:
        def __del__(self) -> None:
            raise ValueError("in a finalizer")

    with raised_signals("stopped"):
        thing = Faulty()
        del thing
    assert [type(one.exc_value) for one in told] == [ValueError]
