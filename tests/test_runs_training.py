"""Meta-training in a run folder: interrupted or not, the same bits."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from optdyn.distributed._interrupts import (
    Interrupted,
    interruptible,
    noted_signals,
    raised_signals,
)
from optdyn.errors import UserError
from optdyn.meta_training._trainer import (
    MetaTraining,
    Metrics,
    TrainingState,
    make_meta_step,
    start_training,
)
from optdyn.optimizers._componentwise_rnn import Architecture, ComponentwiseRNN
from optdyn.runs import _training_run as training_run
from optdyn.runs._checkpoints import (
    analysis_checkpoints,
    analysis_steps,
    load_optimizer,
    load_state,
    resume_path,
)
from optdyn.runs._metrics_log import TrainingRow, read_metrics
from optdyn.runs._run_folder import open_run
from optdyn.runs._training_run import load_trained, meta_train
from optdyn.tasks import Problem, Rosenbrock, Task

TASK = "rosenbrock"
ARCHITECTURE = Architecture(units=4)
PROTOCOL = MetaTraining(num_meta_steps=12, unroll_length=10, batch_size=2, learning_rate=1e-2)
WATCH = training_run.Watch(seconds_between_saves=0.0)

KILLED = """
import sys, time
from pathlib import Path
from optdyn.runs._run_folder import open_run
from optdyn.runs._training_run import Watch, train
from optdyn.tasks import Rosenbrock
from optdyn.meta_training._trainer import MetaTraining
from optdyn.optimizers._componentwise_rnn import Architecture
protocol = MetaTraining(num_meta_steps=12, unroll_length=10, batch_size=2, learning_rate=1e-2)
with open_run(Path(sys.argv[1])) as run:
    watch = Watch(seconds_between_saves=0.0, on_step=lambda *_: time.sleep(0.05))
    train(run, Rosenbrock(), Architecture(units=4), protocol, seed=0, watch=watch)
"""


@pytest.fixture(autouse=True, scope="module")
def compile_once() -> Iterator[None]:
    """Runs of one protocol share one compiled meta-step, however many meta-steps they have."""
    made = functools.cache(make_meta_step)

    def shared(task: Task, protocol: MetaTraining, seed: int, mesh: Mesh | None = None) -> Any:
        return made(task, dataclasses.replace(protocol, num_meta_steps=1), seed, mesh)

    patch = pytest.MonkeyPatch()
    patch.setattr(training_run, "make_meta_step", shared)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, compile_once: None) -> Path:
    """The folder of a run that nothing disturbed."""
    path = tmp_path_factory.mktemp("whole") / "run"
    with jax.numpy_rank_promotion("raise"):  # as in every test, or JAX compiles anew
        train(path)
    return path


class Crash(Exception):
    """Stands for anything that ends a process without warning."""


def train(
    path: Path,
    on_step: Callable[[int, Metrics], None] = WATCH.on_step,
    start: Architecture | ComponentwiseRNN = ARCHITECTURE,
    protocol: MetaTraining = PROTOCOL,
) -> TrainingState:
    watch = dataclasses.replace(WATCH, on_step=on_step)
    with open_run(path) as run:
        return training_run.train(run, Rosenbrock(), start, protocol, seed=0, watch=watch)


def at_step(chosen: int, act: Callable[[], None]) -> Callable[[int, Metrics], None]:
    def on_step(step: int, _: Metrics) -> None:
        if step == chosen:
            act()

    return on_step


def crash() -> None:
    raise Crash


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != training_run.METRICS
    }


def metrics(path: Path) -> list[TrainingRow]:
    rows = read_metrics(path / TASK / training_run.METRICS)
    return [dataclasses.replace(row, seconds=0.0) for row in rows]


def assert_same_run(a: Path, b: Path) -> None:
    assert contents(a) == contents(b)
    assert metrics(a) == metrics(b)


def test_a_run_holds_metrics_and_checkpoints(uninterrupted: Path) -> None:
    rows = metrics(uninterrupted)
    assert [row.meta_step for row in rows] == list(range(12))
    assert all(np.isfinite(row.meta_objective) for row in rows)
    paths = analysis_checkpoints(uninterrupted / TASK / "checkpoints")
    cards = [load_optimizer(path)[1] for path in paths]
    assert [card.meta_step for card in cards] == analysis_steps(12)
    assert cards[0].meta_objective is None
    assert cards[5].meta_objective == rows[4].meta_objective
    resumes = sorted((uninterrupted / TASK / "checkpoints").glob("resume-*"))
    assert [path.stem for path in resumes] == ["resume-000010", "resume-000011", "resume-000012"]


@pytest.mark.parametrize("step", [1, 5, 11])
def test_a_crashed_run_goes_on_to_the_same_bits(
    tmp_path: Path, uninterrupted: Path, step: int
) -> None:
    with pytest.raises(Crash):
        train(tmp_path, on_step=at_step(step, crash))
    train(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_a_crash_after_the_last_save_repeats_steps(tmp_path: Path, uninterrupted: Path) -> None:
    with pytest.raises(Crash):
        train(tmp_path, on_step=at_step(9, crash))
    for step in (8, 9):
        resume_path(tmp_path / TASK / "checkpoints", step).unlink()
    log = tmp_path / TASK / training_run.METRICS
    log.write_bytes(log.read_bytes()[:-5])
    train(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_damaged_checkpoints_are_skipped_and_told(
    tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Crash):
        train(tmp_path, on_step=at_step(9, crash))
    resume_path(tmp_path / TASK / "checkpoints", 9).write_bytes(b"torn")
    train(tmp_path)
    assert "skipped a damaged checkpoint" in capsys.readouterr().out
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path: Path, uninterrupted: Path, signum: int) -> None:
    with pytest.raises(Interrupted) as caught:
        train(tmp_path, on_step=at_step(6, lambda: os.kill(os.getpid(), signum)))
    assert caught.value.signum == signum
    state, _ = load_state(resume_path(tmp_path / TASK / "checkpoints", 6))
    assert int(state.meta_step) == 6
    train(tmp_path)
    assert_same_run(tmp_path, uninterrupted)


def test_a_finished_run_is_left_untouched(
    uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stamps() -> dict[Path, tuple[int, int]]:
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in uninterrupted.rglob("*")
        }

    before = stamps()
    state = train(uninterrupted)
    assert stamps() == before
    assert int(state.meta_step) == 12
    assert "finished" in capsys.readouterr().out


def test_other_settings_are_refused(uninterrupted: Path) -> None:
    before = contents(uninterrupted)
    slower = dataclasses.replace(PROTOCOL, learning_rate=1e-3)
    with (
        open_run(uninterrupted) as run,
        pytest.raises(UserError, match=r"protocol\.learning_rate = 0\.01, not 0\.001"),
    ):
        training_run.train(run, Rosenbrock(), ARCHITECTURE, slower, seed=0)
    assert contents(uninterrupted) == before


def test_a_killed_process_goes_on_to_the_same_bits(tmp_path: Path, uninterrupted: Path) -> None:
    source = str(Path(__file__).parents[1] / "src")
    log = tmp_path / "run" / TASK / training_run.METRICS
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": source}
    ) as process:
        while not log.exists() or log.read_bytes().count(b"\n") < 4:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    train(tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted)


def test_fine_tuning_starts_from_the_given_weights(tmp_path: Path, uninterrupted: Path) -> None:
    last = analysis_checkpoints(uninterrupted / TASK / "checkpoints")[-1]
    trained, _ = load_optimizer(last)
    with pytest.raises(Crash):
        train(tmp_path, start=trained, on_step=at_step(1, crash))
    first, card = load_optimizer(analysis_checkpoints(tmp_path / TASK / "checkpoints")[0])
    assert card.initial is not None
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(trained), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match=r"initial = '.*', not None"):
        train(tmp_path)


def test_hopeless_training_stops_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "HOPELESS_AFTER", 4)
    rnn = ComponentwiseRNN.init(jax.random.key(0), ARCHITECTURE)
    exploding = dataclasses.replace(rnn, w=jnp.full_like(rnn.w, 1e5), h0=jnp.ones_like(rnn.h0))
    with pytest.raises(UserError, match=r"lower the learning rate"):
        train(tmp_path, start=exploding)
    assert [row.exploded for row in metrics(tmp_path)] == [2] * 4


def test_more_meta_steps_go_on_to_the_same_bits(
    tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, protocol=dataclasses.replace(PROTOCOL, num_meta_steps=5))
    state = train(tmp_path)
    assert "going on from meta-step 5" in capsys.readouterr().out
    for name in ("step-000012", "resume-000012"):
        path, whole = (
            root / TASK / "checkpoints" / f"{name}.safetensors"
            for root in (tmp_path, uninterrupted)
        )
        assert path.read_bytes() == whole.read_bytes()
    assert metrics(tmp_path) == metrics(uninterrupted)
    assert int(state.meta_step) == 12
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"protocol\.num_meta_steps = 12, not 5"):
        train(tmp_path, protocol=dataclasses.replace(PROTOCOL, num_meta_steps=5))
    assert contents(tmp_path) == before
    paths = analysis_checkpoints(tmp_path / TASK / "checkpoints")
    with open_run(tmp_path) as run:  # of the shorter training and the longer one alike
        assert [load_trained(run, Rosenbrock(), path)[1].meta_step for path in paths]


@dataclasses.dataclass(frozen=True)
class Quartic:
    """A task of the user's own: ``Σ scale·x⁴``, from a normal start."""

    scale: float = 0.25
    n: int = 3

    def sample(self, key: jax.Array) -> Problem:
        return Problem(jax.random.normal(key, (self.n,)), lambda x: self.scale * jnp.sum(x**4))


def test_meta_train_is_the_loop_of_meta_steps_with_a_folder_or_without(tmp_path: Path) -> None:
    rnn = ComponentwiseRNN.init(jax.random.key(0), ARCHITECTURE)
    protocol = dataclasses.replace(PROTOCOL, num_meta_steps=6)
    task = Quartic(scale=0.5)
    state, step = start_training(rnn, protocol), make_meta_step(task, protocol, seed=3)
    for _ in range(6):
        state, _ = step(state)
    shorter = dataclasses.replace(protocol, num_meta_steps=4)
    meta_train(task, rnn, shorter, seed=3, out=tmp_path / "run", progress=False)
    for out in (None, tmp_path / "run", str(tmp_path / "run")):
        trained = meta_train(task, rnn, protocol, seed=3, out=out, progress=False)
        for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(state.optimizer), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    with pytest.raises(UserError, match=r"task_options\.scale = 0\.5, not 0\.25"):
        meta_train(Quartic(), rnn, protocol, seed=3, out=tmp_path / "run")


def test_meta_train_without_progress_prints_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rnn = ComponentwiseRNN.init(jax.random.key(0), ARCHITECTURE)
    protocol = dataclasses.replace(PROTOCOL, num_meta_steps=2)
    for out in (None, tmp_path / "run"):
        meta_train(Rosenbrock(), rnn, protocol, seed=0, out=out, progress=False)
    assert capsys.readouterr().out == ""
    meta_train(Rosenbrock(), rnn, protocol, seed=0)
    assert "training rosenbrock: 2/2  meta-objective" in capsys.readouterr().out


def test_a_signal_nobody_acted_upon_is_sent_again() -> None:
    received = []
    previous = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    try:
        with noted_signals() as noted:
            os.kill(os.getpid(), signal.SIGTERM)
            assert noted() == signal.SIGTERM
            assert received == []
        assert received == [1]
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_an_error_is_told_though_a_signal_came_before_it() -> None:
    with pytest.raises(UserError, match="disk full"), noted_signals():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        raise UserError("disk full")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_raised_before_there_is_anything_to_save(signum: int) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted, match="stopped") as caught, raised_signals("stopped"):  # noqa: PT012
        os.kill(os.getpid(), signum)
        time.sleep(1.0)
    assert caught.value.signum == signum
    assert signal.getsignal(signum) == before


def test_slow_work_is_abandoned_at_a_signal() -> None:
    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.0)

    started = time.monotonic()
    with pytest.raises(Interrupted, match="stopped"):
        interruptible(work, "stopped")
    assert time.monotonic() - started < 0.9
    interruptible(lambda: None, "stopped")
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 / 0, "stopped")


def test_meta_parameters_move(uninterrupted: Path) -> None:
    paths = analysis_checkpoints(uninterrupted / TASK / "checkpoints")
    first, last = (load_optimizer(path)[0] for path in (paths[0], paths[-1]))
    assert float(jnp.max(jnp.abs(first.w - last.w))) > 1e-2
