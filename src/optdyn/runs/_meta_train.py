"""Meta-training in one call, with a run folder or without."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from optdyn.meta_training._trainer import MetaTraining, make_meta_step, start_training
from optdyn.runs._progress import progress as shown_progress
from optdyn.runs._run_folder import open_run
from optdyn.runs._training_run import Hope, Watch, in_words, train
from optdyn.tasks import describe_task

if TYPE_CHECKING:
    from optdyn.optimizers import ComponentwiseRNN
    from optdyn.tasks import Task


def meta_train(
    task: Task,
    rnn: ComponentwiseRNN,
    protocol: MetaTraining = MetaTraining(),
    *,
    seed: int,
    out: str | Path | None = None,
    progress: bool = True,
) -> ComponentwiseRNN:
    """Meta-train ``rnn`` on ``task``; returns the trained optimizer.

    ``seed`` settles the problems. With ``out``, a run folder, checkpoints and a log of the
    training go there, and the same call goes on where it was stopped, to the same bits (on
    one machine with one number of devices). With more meta-steps in ``protocol`` a finished
    training goes on, too.

    >>> rnn = optdyn.ComponentwiseRNN.init(jax.random.key(0), optdyn.Architecture(units=2))
    >>> protocol = optdyn.MetaTraining(num_meta_steps=1, unroll_length=2, batch_size=2)
    >>> rnn = optdyn.meta_train(
    ...     optdyn.make_task("rosenbrock"), rnn, protocol, seed=0, progress=False
    ... )
    >>> tx = rnn.as_optax()

    Raises `UserError` for settings that differ from the folder's, and with advice when no
    problem gives a meta-gradient for many meta-steps in a row. With ``out``, SIGTERM and
    Ctrl-C raise `Interrupted` once the state is saved.
    """
    rnn = dataclasses.replace(rnn, trained_on=None)  # it is about to meet other gradients
    if out is not None:
        with open_run(Path(out)) as run:
            watch = Watch(progress=progress)
            return train(run, task, rnn, protocol, seed=seed, watch=watch).averaged
    state, meta_step = start_training(rnn, protocol), make_meta_step(task, protocol, seed)
    hope, total = Hope(protocol), protocol.num_meta_steps
    with shown_progress(f"training {describe_task(task).name}", total, shown=progress) as advance:
        for step in range(1, total + 1):
            state, metrics = jax.block_until_ready(meta_step(state))
            hope.require(metrics, step)
            advance(step, in_words(metrics))
    return state.averaged
