"""The options that several commands share; the rest are the library's own dataclasses."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from optdyn.cli._names import search_here
from optdyn.cli._reading import checked, one_of, read_pairs, shown_default, whole
from optdyn.distributed._engines import ENGINES, Engine, read_engine_address, start_engine
from optdyn.distributed._processes import Processes, find_processes, read_address
from optdyn.errors import UserError, shown
from optdyn.meta_training import MetaTraining
from optdyn.optimizers import Architecture
from optdyn.random_streams import LARGEST_SEED
from optdyn.runs import HeldOut
from optdyn.tasks import TASKS, task_from

if TYPE_CHECKING:
    from cyclopts import Token

    from optdyn.tasks import Task

LARGEST_DEVICES = 256
LARGEST_TASK_OPTION = 10**6
SCALES = ("smoke", "laptop", "paper")

if TYPE_CHECKING:
    TaskName = str
    AnyTaskName = str
else:
    TaskName = Literal[tuple(TASKS)]
    AnyTaskName = TaskName | str
"""The built-in names are offered in the help and on completion; `AnyTaskName` takes others too."""

Seed = Annotated[int, whole(minimum=0, maximum=LARGEST_SEED)]
Devices = Annotated[int | None, whole(maximum=LARGEST_DEVICES)]
Count = Annotated[int, whole()]
MaybeCount = Annotated[int | None, whole()]
RUN, STUDY = Path("runs/default"), Path("runs/reproduce")
Scale = Annotated[Literal["smoke", "laptop", "paper"], one_of(SCALES), Parameter(name="--scale")]


def _texts(hint: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    return tuple(token.value for token in tokens)


Texts = Annotated[tuple[str, ...], Parameter(converter=_texts)]


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """What is printed.

    Attributes:
        json: print the result as one JSON object; progress goes to standard error
        quiet: print the result alone, without progress
    """

    json: bool = False
    quiet: bool = False


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The run folder, and how its work is done.

    Attributes:
        out: folder for all results; in one that has some, the command goes on from there
        devices: how many cores or accelerators share the problems (none: as many as
            divide the batch evenly)
        seed: seed of all random numbers; the same seed gives the same results
    """

    out: Path = RUN
    devices: Devices = None
    seed: Seed = 0


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """What is optimised.

    Attributes:
        task: what the optimizer works on: a built-in task, or module:Task for one of yours, from a
            file module.py in the current folder
        task_option: an option of the task as NAME=VALUE, such as n=10; may be given several times
    """

    task: AnyTaskName = "linear_regression"
    task_option: Texts = ()

    def make(self) -> Task:
        """The task. Raises `UserError` where there is none of that name, or not with these."""
        if ":" not in self.task and self.task not in TASKS:
            raise UserError(
                f"--task: unknown value {shown(self.task)} (allowed: {', '.join(TASKS)}, or "
                "module:Task for one of yours)"
            )
        options = pairs(self.task_option, "--task-option")
        search_here()
        try:
            return task_from(self.task, **options)
        except UserError as error:
            told = str(error)
            flag = "--task" if told.startswith("task: ") else "--task-option"
            raise UserError(f"{flag}: {told.removeprefix('task: ')}") from None


def pairs(texts: tuple[str, ...], flag: str) -> dict[str, Any]:
    """What an option that takes ``NAME=VALUE`` is given. Raises `UserError` under its name."""
    try:
        return read_pairs(texts, LARGEST_TASK_OPTION)
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """Many workers.

    Attributes:
        engine: where the work is done: local (in this process) or ray (on a Ray cluster)
        address: the Ray cluster, such as auto or host:6379 (none: one is started on this machine)
    """

    engine: Annotated[Literal["local", "ray"], one_of(ENGINES)] = "local"
    address: Annotated[str | None, checked(read_engine_address)] = None

    def start(self) -> Engine:
        """The engine these options describe. Raises `UserError` where there is none."""
        return start_engine(self.engine, self.address)


@dataclasses.dataclass(frozen=True)
class DistributedOptions:
    """Several processes.

    Attributes:
        distributed: train together with other processes that run this same command; see also
            optdyn launch
        coordinator: host:port at which process 0 listens (none: from $OPTDYN_COORDINATOR)
        num_processes: number of processes (none: from $OPTDYN_NUM_PROCESSES)
        process_id: number of this process, from 0 (none: from $OPTDYN_PROCESS_ID)
    """

    distributed: bool = False
    coordinator: Annotated[str | None, checked(read_address)] = None
    num_processes: Annotated[int | None, whole(), Parameter(name="num-processes")] = None
    process_id: Annotated[int | None, whole(minimum=0)] = None

    def processes(self) -> Processes | None:
        """Who takes part (None: this process alone). Raises `UserError` for a bad value."""
        given = (self.coordinator, self.num_processes, self.process_id)
        if self.distributed:
            return find_processes(*given, os.environ)
        if given != (None, None, None):
            raise UserError("--coordinator, --num-processes, --process-id: need --distributed")
        return None


def flat(title: str, order: int) -> Parameter:
    """Each field of a dataclass is an option of its own, in a group of the help."""
    return Parameter(name="*", group=Group(title, sort_key=order), show_default=shown_default)


Run = Annotated[RunOptions, flat("Run", 2)]
ChosenTask = Annotated[TaskOptions, flat("Task", 1)]
Learned = Annotated[Architecture, flat("Learned optimizer", 3)]
Training = Annotated[MetaTraining, flat("Meta-training", 4)]
Judged = Annotated[HeldOut, flat("Problems", 3)]
Workers = Annotated[EngineOptions, flat("Many workers", 6)]
Together = Annotated[DistributedOptions, flat("Several processes", 7)]
Output = Annotated[OutputOptions, flat("Output", 8)]
