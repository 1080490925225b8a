"""``optdyn reproduce``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from optdyn.cli._devices import start
from optdyn.cli._options import STUDY, Devices, Output, OutputOptions, Scale, Seed, flat
from optdyn.cli._output import Result, present
from optdyn.cli._reading import one_of
from optdyn.meta_training import MetaTraining
from optdyn.tasks import TASKS

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from optdyn.study import Claim, Study

WHICH = (*TASKS, "all")
if TYPE_CHECKING:
    Which = str
else:
    Which = Literal[WHICH]


@dataclasses.dataclass(frozen=True)
class TrainingsOptions:
    """What is trained.

    Attributes:
        retrain: train and tune everything here, instead of taking the weights and searches that
            ship with the package for some tasks
        seeds: trainings of each task with other seeds, to see how far results spread (1: the
            spread that ships with the package is shown)
    """

    retrain: bool = False
    seeds: int = 1


def reproduce(
    *,
    out: Path = STUDY,
    task: Annotated[Which, one_of(WHICH)] = "all",
    scale: Scale = "laptop",
    seed: Seed = 0,
    trainings: Annotated[TrainingsOptions, flat("Trainings", 2)] = TrainingsOptions(),
    devices: Devices = None,
    output: Output = OutputOptions(),
) -> None:
    """Do the whole study, and print which claims hold and where the report is.

    Args:
        out: folder for all results; in one that has some, the command goes on from there
        task: one task, or all
        scale: smoke (a test of seconds; its numbers mean nothing), laptop (minutes) or paper (the
            paper's sizes, for a GPU)
        seed: seed of all random numbers; the same seed gives the same results
        trainings: what is trained
        devices: how many cores or accelerators share the problems (none: as many as
            divide the batch evenly)
        output: what is printed
    """
    mesh = start(devices, MetaTraining().batch_size)
    from optdyn.study import Study, recipes_for

    study = Study(recipes_for(task, scale), scale, seed, **vars(trainings))
    present(output, lambda: reproduced(out, study, mesh))


def reproduced(out: Path, study: Study, mesh: Mesh | None = None) -> Result:
    """Run a study in ``out``; gives its claims and where the report is."""
    from optdyn.study import LEDGER, read_ledger
    from optdyn.study import reproduce as reproduce_in

    report = reproduce_in(out, study, mesh)
    claims = read_ledger(out / LEDGER)
    return Result({"report": report, "claims": claims}, _lines(report, claims))


def _lines(report: Path, claims: list[Claim]) -> list[str]:
    missed = [claim for claim in claims if not claim.passed]
    return [
        f"claims: {len(claims) - len(missed)} of {len(claims)} hold",
        *(
            f"  {claim.verdict}: {claim.id}: {claim.measured} ({claim.threshold})"
            for claim in missed
        ),
        f"report: {report}",
    ]
