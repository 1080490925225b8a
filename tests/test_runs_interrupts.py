"""Signals: those that Python would drop still stop the work, and what stopped can go on."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import jax
import pytest

from optdyn.distributed._interrupts import Interrupted, raised_signals
from optdyn.meta_training import MetaTraining
from optdyn.optimizers import Architecture, ComponentwiseRNN
from optdyn.runs import meta_train
from optdyn.runs._metrics_log import MetricsLog, TrainingRow
from optdyn.tasks import Rosenbrock


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


@pytest.mark.parametrize(
    ("signum", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Interrupted)]
)
def test_a_stopped_meta_train_says_how_to_resume(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    signum: int,
    raised: type[BaseException],
) -> None:
    rnn = ComponentwiseRNN.init(jax.random.key(0), Architecture(units=2))
    protocol = MetaTraining(num_meta_steps=4, unroll_length=3, batch_size=2)
    append = MetricsLog.append

    def interrupting(log: MetricsLog, row: TrainingRow) -> None:
        append(log, row)
        if row.meta_step == 2:
            os.kill(os.getpid(), signum)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "append", interrupting)
        with pytest.raises(raised):
            meta_train(Rosenbrock(), rnn, protocol, seed=0, out=tmp_path, progress=False)
    assert capsys.readouterr().err == (
        "stopped after meta-step 3 of rosenbrock; saved; to resume, make the same call with "
        f"out={str(tmp_path)!r}\n"
    )
    meta_train(Rosenbrock(), rnn, protocol, seed=0, out=tmp_path)
    assert "going on from meta-step 3" in capsys.readouterr().out
