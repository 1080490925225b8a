"""The settings of each command; every default of the protocol is the paper's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from optdyn.cli._cluster_settings import DistributedSettings, EngineSettings, LaunchSettings
from optdyn.cli._devices import require_even_batch
from optdyn.cli._options import (
    choice,
    integer,
    number,
    option,
    path,
    read_number,
    several,
    switch,
)
from optdyn.errors import UserError
from optdyn.inner_loop._objective import NORMALIZATIONS, Objective
from optdyn.meta_training._trainer import MetaTraining
from optdyn.meta_training._unroll_options import GRADIENTS
from optdyn.optimizers._baselines import BASELINES
from optdyn.optimizers._cells import CELLS
from optdyn.optimizers._componentwise_rnn import Architecture
from optdyn.optimizers._encodings import ENCODINGS, Encoding
from optdyn.optimizers._state_precision import STATE_DTYPES
from optdyn.random_streams import LARGEST_SEED
from optdyn.runs._checkpoints import LARGEST_META_STEP
from optdyn.runs._results import HeldOut
from optdyn.runs._sweep_run import Base, Sweep
from optdyn.search._learning_rate import LearningRateSearch
from optdyn.study._recipes import recipe_for
from optdyn.tasks import TASKS, Task, make_task
from optdyn.tasks._description import with_options

PROTOCOL = MetaTraining()
ARCHITECTURE = Architecture()
SEARCH = LearningRateSearch()
SCALES = ("smoke", "laptop", "paper")
STAGES = ("final", "momentum")
ALL_TASKS = "all"
LARGEST_CELL = 2**15
LARGEST_MEMORY = 2**50
LARGEST_BATCH = 10**6
LARGEST_TASK_OPTION = 10**6
LARGEST_DEVICES = 256
"""Beyond these sizes XLA ends the process, instead of raising an error."""


def _read_task_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UserError(f"{text!r} is not allowed (NAME=VALUE, such as n=10)")
    kinds: tuple[type, ...] = (int, float)
    for kind in kinds:
        number = read_number(kind, value)
        if number is None:
            continue
        if not abs(number) <= LARGEST_TASK_OPTION:
            raise UserError(
                f"{name}: {value[:20]!r} is not allowed (at most {LARGEST_TASK_OPTION})"
            )
        return name, number
    return name, value


@dataclasses.dataclass(frozen=True)
class OutputSettings:
    """Output."""

    json: bool = switch(
        "print the result as one JSON object; progress and messages go to standard error"
    )
    quiet: bool = switch("print the result alone: no progress, no messages")


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Run."""

    out: Path = path(Path("runs/default"), "run folder: made if absent, continued if present")
    seed: int = integer(0, "seed of every random number", minimum=0, maximum=LARGEST_SEED)
    devices: int | None = integer(
        None,
        "devices to spread problems over (none: every core, or every accelerator)",
        maximum=LARGEST_DEVICES,
    )


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """Task."""

    task: str = choice("linear_regression", "what is optimised", TASKS)
    task_option: tuple[tuple[str, Any], ...] = option(
        (),
        "an option of the task, such as n=10; may be repeated",
        _read_task_option,
        metavar="NAME=VALUE",
        repeat=True,
    )

    def make_task(self) -> Task:
        """The task; raises `UserError` for an option that it does not take."""
        options = dict(self.task_option)
        if len(options) < len(self.task_option):
            names = ", ".join(name for name, _ in self.task_option)
            raise UserError(f"--task-option: {names}: each may be given once")
        try:
            return make_task(self.task, **options)
        except UserError as error:
            raise UserError(f"--task-option: {error}") from None


@dataclasses.dataclass(frozen=True)
class ArchitectureSettings:
    """Learned optimizer."""

    cell: str = choice(ARCHITECTURE.cell, "recurrent cell", CELLS)
    units: int = integer(
        ARCHITECTURE.units, "size of the cell (the authors' largest: 256)", maximum=LARGEST_CELL
    )
    encoding: str = choice(
        ARCHITECTURE.encoding.kind, "how a gradient enters the network", ENCODINGS
    )
    gain: float = number(ARCHITECTURE.encoding.gain, "factor on the gradient before encoding")
    input_scale: float = number(ARCHITECTURE.encoding.scale, "factor on the encoded gradient")
    output_scale: float = number(ARCHITECTURE.output_scale, "factor on the network's update")

    def architecture(self) -> Architecture:
        """The architecture these options describe."""
        encoding = Encoding(kind=self.encoding, gain=self.gain, scale=self.input_scale)
        return Architecture(
            cell=self.cell, units=self.units, encoding=encoding, output_scale=self.output_scale
        )


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """Meta-objective."""

    unroll_length: int = integer(PROTOCOL.unroll_length, "inner steps, none of them truncated")
    normalization: str = choice(
        PROTOCOL.normalization, "divide each loss curve by its first value, or not", NORMALIZATIONS
    )

    def objective(self) -> Objective:
        """The objective these options describe."""
        return Objective(self.unroll_length, self.normalization)

    def held_out(self, seed: int, problems: int) -> HeldOut:
        """The first ``problems`` held-out problems of a seed, judged by the objective."""
        return HeldOut(seed, problems, self.objective())


@dataclasses.dataclass(frozen=True)
class ProtocolSettings(ObjectiveSettings):
    """Meta-training."""

    meta_steps: int = integer(PROTOCOL.num_meta_steps, "meta-steps", maximum=LARGEST_META_STEP)
    batch_size: int = integer(PROTOCOL.batch_size, "problems a meta-step", maximum=LARGEST_BATCH)
    decay: float = number(PROTOCOL.decay, "factor on the meta learning rate ...")
    decay_every: int = integer(PROTOCOL.decay_every, "... every so many meta-steps")
    clip: float = number(PROTOCOL.clip, "bound on each entry of the meta-gradient")
    l2: float = number(PROTOCOL.l2, "penalty on the squared meta-parameters", inclusive=True)
    max_cotangent_norm: float | None = number(
        PROTOCOL.max_cotangent_norm,
        "bound on each problem's back-propagated cotangent at every inner step: for tasks where "
        "it explodes, no longer the exact meta-gradient",
    )
    segment: int | None = integer(
        PROTOCOL.segment, "inner steps between stored states; others are recomputed, saving memory"
    )
    chunk: int | None = integer(
        PROTOCOL.chunk, "problems in memory at once on a device; others follow, saving memory"
    )
    memory_budget: int | None = integer(
        PROTOCOL.memory_budget,
        "bytes that a meta-step may keep for its reverse pass, from which segment and chunk follow",
        maximum=LARGEST_MEMORY,
    )
    state_dtype: str = choice(
        PROTOCOL.state_dtype, "how the optimizer's state is stored between steps", STATE_DTYPES
    )
    gradient: str = choice(
        PROTOCOL.gradient,
        "how the meta-gradient is estimated: by backpropagation (exact), by antithetic evolution "
        "strategies (es), or by both, weighed by their inverse variances (combined)",
        GRADIENTS,
    )
    es_sigma: float = number(
        PROTOCOL.es_sigma, "standard deviation of evolution strategies' perturbations"
    )
    es_pairs: int = integer(
        PROTOCOL.es_pairs,
        "antithetic pairs of perturbations for each problem",
        maximum=LARGEST_BATCH,
    )

    def protocol(self, learning_rate: float) -> MetaTraining:
        """The protocol these options describe."""
        same = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(MetaTraining)
            if hasattr(self, field.name)
        }
        return MetaTraining(
            **{**same, "num_meta_steps": self.meta_steps, "learning_rate": learning_rate}
        )


@dataclasses.dataclass(frozen=True)
class TrainSettings(
    DistributedSettings,
    OutputSettings,
    ProtocolSettings,
    ArchitectureSettings,
    TaskSettings,
    RunSettings,
):
    """Meta-train a learned optimizer; the same command goes on where it was left."""

    learning_rate: float = number(
        PROTOCOL.learning_rate, "meta learning rate at the start; optdyn search-lr finds one"
    )
    initial: Path | None = path(
        None, "checkpoint (of the same architecture) to fine-tune from; none: random weights"
    )
    components: int = integer(
        1,
        "devices that share the components of each problem, where one is too small for it",
        maximum=LARGEST_DEVICES,
    )

    def require_even_batch(self) -> None:
        """Raise `UserError` unless the batch divides over the devices, and those over problems."""
        groups = self.devices
        if groups is not None:
            if groups % self.components:
                raise UserError(
                    f"--components: {self.components} is not allowed "
                    f"(a divisor of --devices {self.devices})"
                )
            groups //= self.components
        require_even_batch(self.batch_size, self.chunk, groups)


@dataclasses.dataclass(frozen=True)
class SearchSettings(
    OutputSettings, ProtocolSettings, ArchitectureSettings, TaskSettings, RunSettings
):
    """Search the meta learning rate at random: short trainings, then the best at full length."""

    draws: int = integer(SEARCH.num_draws, "meta learning rates to draw, log-uniformly")
    lowest: float = number(SEARCH.low, "lowest meta learning rate")
    highest: float = number(SEARCH.high, "highest meta learning rate")
    horizon: int = integer(SEARCH.horizon, "meta-steps of a short training")
    finalists: int = integer(SEARCH.num_finalists, "draws to train at full length", minimum=0)
    problems: int = integer(
        SEARCH.num_problems, "validation problems that judge each training", maximum=LARGEST_BATCH
    )

    def search(self) -> LearningRateSearch:
        """The search these options describe."""
        if self.lowest > self.highest:
            raise UserError(f"--lowest: {self.lowest!r} is not allowed (<= --highest)")
        return LearningRateSearch(
            num_draws=self.draws,
            low=self.lowest,
            high=self.highest,
            horizon=self.horizon,
            num_finalists=self.finalists,
            num_problems=self.problems,
        )


@dataclasses.dataclass(frozen=True)
class TuneSettings(EngineSettings, OutputSettings, ObjectiveSettings, TaskSettings, RunSettings):
    """Tune a baseline by random search over its grid of hyperparameters."""

    baseline: str = choice("momentum", "optimizer to tune", BASELINES)
    samples: int = integer(2500, "combinations to draw")
    problems: int = integer(32, "problems that score each combination", maximum=LARGEST_BATCH)
    rescore_top: int = integer(50, "best combinations to score again, on fresh problems")
    rescore_problems: int = integer(64, "fresh problems for that", maximum=LARGEST_BATCH)
    stand_in: tuple[tuple[str, Any], ...] = option(
        (),
        "an option of the task for all combinations but the best, which are scored again on the "
        "task itself, such as points=256 to save time; may be repeated",
        _read_task_option,
        metavar="NAME=VALUE",
        repeat=True,
    )

    def stand_in_options(self) -> dict[str, Any]:
        """The stand-in's options; raises `UserError` for one that the task does not take."""
        options = dict(self.stand_in)
        try:
            with_options(self.make_task(), options)
        except UserError as error:
            raise UserError(f"--stand-in: {error}") from None
        return options


@dataclasses.dataclass(frozen=True)
class SweepSettings(EngineSettings):
    """Meta-train over every combination of what is listed; the same command goes on.

    Whatever else a training needs is as in its task's recipe for optdyn reproduce.
    """

    out: Path = path(Path("runs/sweep"), "run folder: made if absent, continued if present")
    tasks: tuple[str, ...] = several(
        ("linear_regression",), "what is optimised", choice(None, "", TASKS)
    )
    cells: tuple[str, ...] = several(("gru",), "recurrent cells", choice(None, "", CELLS))
    units: tuple[int, ...] = several(
        (32,), "sizes of the cell", integer(None, "", maximum=LARGEST_CELL)
    )
    seeds: tuple[int, ...] = several(
        (0,), "seeds of all random numbers", integer(None, "", minimum=0, maximum=LARGEST_SEED)
    )
    learning_rates: tuple[float, ...] = several(
        (1e-3, 1e-2), "meta learning rates at the start", number(None, "")
    )
    meta_steps: int | None = integer(
        None, "meta-steps; none: the recipe's", maximum=LARGEST_META_STEP
    )
    unroll_length: int | None = integer(None, "inner steps; none: the recipe's")
    batch_size: int | None = integer(
        None, "problems a meta-step; none: the recipe's", maximum=LARGEST_BATCH
    )
    problems: int = integer(
        64, "validation problems that judge each training", maximum=LARGEST_BATCH
    )
    devices: int | None = integer(
        None,
        "devices to spread problems over, in this process (none: every core or accelerator)",
        maximum=LARGEST_DEVICES,
    )

    def sweep(self) -> Sweep:
        """The sweep these options describe."""
        given = {
            "num_meta_steps": self.meta_steps,
            "unroll_length": self.unroll_length,
            "batch_size": self.batch_size,
        }
        changed: dict[str, Any] = {n: value for n, value in given.items() if value is not None}
        recipes = {task: recipe_for(task, "laptop") for task in dict.fromkeys(self.tasks)}
        return Sweep(
            bases=tuple(
                Base(
                    make_task(task, **recipe.task_options),
                    recipe.architecture,
                    dataclasses.replace(recipe.protocol, **changed),
                )
                for task, recipe in recipes.items()
            ),
            cells=self.cells,
            units=self.units,
            seeds=self.seeds,
            learning_rates=self.learning_rates,
            num_problems=self.problems,
        )


@dataclasses.dataclass(frozen=True)
class EvaluateSettings(OutputSettings, ObjectiveSettings, TaskSettings, RunSettings):
    """Compare a run's learned optimizer and tuned baselines on unseen problems."""

    problems: int = integer(64, "test problems", maximum=LARGEST_BATCH)
    checkpoint: Path | None = path(
        None, "checkpoint of a learned optimizer; none: the last one of the run"
    )


@dataclasses.dataclass(frozen=True)
class AnalyzeSettings(OutputSettings, ObjectiveSettings, TaskSettings, RunSettings):
    """Take each stage of a run's learned optimizer apart: fixed point, modes, reduction.

    With a TARGET before the options (optdyn analyze TARGET --help) it takes one optimizer
    apart instead: a checkpoint file, a pretrained name, or module:callable giving an optax
    optimizer.
    """

    problems: int = integer(64, "validation problems that judge each stage", maximum=LARGEST_BATCH)


@dataclasses.dataclass(frozen=True)
class AnalyzeOptimizerSettings(OutputSettings):
    """Take one optimizer apart: its modes, its stability, and what it most resembles.

    TARGET is a checkpoint file, a pretrained name, or module:callable, where the
    callable takes no arguments and returns an optax optimizer.
    """

    out: Path | None = path(None, "folder for figures and their data; none: print only")
    task: str | None = choice(
        None,
        "draw this task's curvatures under the stability map; none: the checkpoint's own",
        TASKS,
    )
    stage: str = choice("final", "which of the pretrained weights", STAGES)
    gradient_scale: float | None = number(
        None, "size of the gradients that it meets; none: its task's, or 1"
    )
    count: int | None = integer(
        None, "freeze schedules and bias corrections at this step", minimum=0
    )
    seed: int = integer(0, "seed of the task's problems", minimum=0, maximum=LARGEST_SEED)


@dataclasses.dataclass(frozen=True)
class ReproduceSettings(OutputSettings):
    """Do the whole study: train, tune, evaluate, analyze, draw and report."""

    out: Path = path(Path("runs/reproduce"), "run folder: made if absent, continued if present")
    task: str = choice(ALL_TASKS, "the task, or all of them", [*TASKS, ALL_TASKS])
    scale: str = choice("laptop", "seconds, minutes, or the paper's sizes", SCALES)
    seed: int = integer(0, "seed of every random number", minimum=0, maximum=LARGEST_SEED)
    retrain: bool = switch(
        "train and tune everything here, using nothing that ships with the package"
    )
    devices: int | None = integer(
        None,
        "devices to spread problems over (none: every core, or every accelerator)",
        maximum=LARGEST_DEVICES,
    )


@dataclasses.dataclass(frozen=True)
class DistillSettings(OutputSettings):
    """Fit readable optimizers to a run's learned one, as optdyn reproduce --retrain does.

    The run holds an evaluated optimizer, trained there or shipped with the package.
    """

    out: Path = path(Path("runs/reproduce"), "run folder")
    task: str = choice("linear_regression", "whose learned optimizer", TASKS)
    scale: str = choice("laptop", "whose recipe: smoke, laptop or paper", SCALES)
    seed: int = integer(0, "seed of every random number", minimum=0, maximum=LARGEST_SEED)
    devices: int | None = integer(
        None, "devices to spread problems over (none: every core, or every accelerator)"
    )


@dataclasses.dataclass(frozen=True)
class ExportSettings(OutputSettings):
    """Copy a finished run's weights, tables and readable optimizers to where they ship from."""

    out: Path = path(Path("runs/reproduce"), "run folder")
    task: str = choice("linear_regression", "whose weights and tables", TASKS)
    to: Path | None = path(
        None, "folder to copy into; none: the package's own, in a source checkout"
    )


@dataclasses.dataclass(frozen=True)
class ReportSettings(OutputSettings):
    """Write a run's report: one page with claims, figures, settings and timings."""

    out: Path = path(Path("runs/reproduce"), "run folder")


@dataclasses.dataclass(frozen=True)
class DoctorSettings(OutputSettings):
    """Check this installation: versions, devices, caches, shipped weights, a short self-test."""


@dataclasses.dataclass(frozen=True)
class CompletionSettings:
    """Print a script that completes optdyn's commands and options in bash, zsh or fish."""


SETTINGS: dict[str, tuple[type, ...]] = {
    "train": (TrainSettings,),
    "launch": (LaunchSettings,),
    "search-lr": (SearchSettings,),
    "sweep": (SweepSettings,),
    "tune": (TuneSettings,),
    "evaluate": (EvaluateSettings,),
    "analyze": (AnalyzeSettings, AnalyzeOptimizerSettings),
    "reproduce": (ReproduceSettings,),
    "distill": (DistillSettings,),
    "report": (ReportSettings,),
    "export": (ExportSettings,),
    "doctor": (DoctorSettings,),
    "completion": (CompletionSettings,),
}
"""The options of each command (of both forms of analyze)."""
