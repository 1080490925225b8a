"""``optdyn evaluate``."""

from __future__ import annotations

from pathlib import Path

from optdyn.cli import _devices as devices_
from optdyn.cli import _options as options
from optdyn.cli._output import Result, present
from optdyn.distributed._interrupts import interruptible
from optdyn.errors import UserError
from optdyn.runs import EvaluationSummary, HeldOut, evaluate_all, load, open_run, read_result
from optdyn.runs._evaluation_run import SUMMARY
from optdyn.runs._plain import to_plain
from optdyn.tasks import describe_task


def evaluate(
    *,
    task: options.ChosenTask = options.TaskOptions(),
    held_out: options.Judged = HeldOut(seed=0),
    out: Path = options.RUN,
    checkpoint: Path | None = None,
    devices: options.Devices = None,
    output: options.Output = options.OutputOptions(),
) -> None:
    """Evaluate, and print each optimizer's meta-objective.

    Args:
        task: what the optimizers work on
        held_out: on which problems
        out: run folder, with a trained optimizer or a tuned baseline
        checkpoint: file of the learned optimizer to compare (none: the last of the run folder)
        devices: how many cores or accelerators share the problems (none: all)
        output: what is printed
    """
    chosen, mesh = task.make(), devices_.start(devices)
    if checkpoint is not None:
        try:
            load(checkpoint)
        except UserError as error:
            raise UserError(f"--checkpoint: {error}") from None

    def work() -> Result:
        found = evaluate_all(run, chosen, held_out, checkpoint=checkpoint, mesh=mesh)
        summary = to_plain(read_result(run.task_folder(chosen) / SUMMARY, EvaluationSummary))
        lines = [f"{name:<18} {e.mean:.4g} ± {e.standard_error:.2g}" for name, e in found.items()]
        return Result({"task": describe_task(chosen).name, **summary}, lines)

    with open_run(out, create=checkpoint is not None) as run:
        message = "evaluation stopped; finished optimizers are saved"
        present(output, lambda: interruptible(work, message))
