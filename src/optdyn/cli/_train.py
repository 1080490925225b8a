"""``optdyn train``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from optdyn.cli import _devices as devices
from optdyn.cli import _options as options
from optdyn.cli._output import Result, present
from optdyn.cli._reading import whole
from optdyn.distributed import join
from optdyn.errors import UserError
from optdyn.meta_training import MetaTraining
from optdyn.optimizers import Architecture, ComponentwiseRNN
from optdyn.runs import RunFolder, load, open_run, train_along
from optdyn.runs import train as train_in
from optdyn.runs._cards import require_architecture
from optdyn.runs._checkpoints import analysis_checkpoints, load_optimizer
from optdyn.runs._training_run import CHECKPOINTS
from optdyn.tasks import Task


@dataclasses.dataclass(frozen=True)
class StartOptions:
    """How a training starts, and how it is spread.

    Attributes:
        initial: file of a checkpoint to start from, of the same architecture (none: random weights)
        components: devices that share the parameters of each problem, where it is too large for one
    """

    initial: Path | None = None
    components: Annotated[int, whole(maximum=options.LARGEST_DEVICES)] = 1


Start = Annotated[StartOptions, options.flat("Start", 5)]


def train(
    *,
    task: options.ChosenTask = options.TaskOptions(),
    run: options.Run = options.RunOptions(),
    architecture: options.Learned = Architecture(),
    protocol: options.Training = MetaTraining(),
    start: Start = StartOptions(),
    together: options.Together = options.DistributedOptions(),
    output: options.Output = options.OutputOptions(),
) -> None:
    """Meta-train alone or as one of several processes, and print what was reached."""
    chosen, processes = task.make(), together.processes()
    group, mesh = None, None
    if processes is None:
        _require_even_batch(protocol, run.devices, start.components)
        mesh = devices.start(run.devices, protocol.batch_size, protocol.chunk, start.components)
    else:
        devices.use_compilation_cache()
        group = join(processes, run.devices, protocol.batch_size, start.components)
    if group is not None and not group.is_first:
        train_along(chosen, architecture, protocol, run.seed, group)
        group.finish()
        return
    first = architecture if start.initial is None else _load(start.initial, architecture)

    def work() -> Result:
        train_in(folder, chosen, first, protocol, seed=run.seed, devices=group or mesh)
        if group is not None:
            group.finish()
        return _result(folder, chosen)

    with open_run(run.out) as folder:
        present(output, work)


def _load(path: Path, architecture: Architecture) -> ComponentwiseRNN:
    try:
        found = load(path)
        require_architecture(found.architecture, architecture, str(path))
    except UserError as error:
        raise UserError(f"--initial: {error}") from None
    return found


def _require_even_batch(protocol: MetaTraining, count: int | None, components: int) -> None:
    """Raise `UserError` unless the batch divides over the devices, and those over problems."""
    if count is not None and count % components:
        raise UserError(
            f"--components: {components} is not allowed (a divisor of --devices {count})"
        )
    groups = None if count is None else count // components
    devices.require_even_batch(protocol.batch_size, protocol.chunk, groups)


def _result(run: RunFolder, task: Task) -> Result:
    checkpoint = analysis_checkpoints(run.task_folder(task) / CHECKPOINTS)[-1]
    _, card = load_optimizer(checkpoint)
    values: dict[str, Any] = {
        "task": card.task,
        "meta_steps": card.meta_step,
        "meta_objective": card.meta_objective,
        "checkpoint": checkpoint,
    }
    reached = "none" if card.meta_objective is None else f"{card.meta_objective:.4g}"
    line = f"meta-objective {reached} after {card.meta_step} meta-steps: {checkpoint}"
    return Result(values, [f"{card.task}: {line}"])
