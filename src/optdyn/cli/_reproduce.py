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
        retrain: train and tune everything here, using nothing that ships with the package
        seeds: trainings per task, to see how claims spread over seeds (1: as measured before
            the release, where that ships)
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
        out: run folder: made if absent, continued if present
        task: the task, or all of them
        scale: seconds, minutes, or the paper's sizes
        seed: seed of every random number
        trainings: what is trained
        devices: devices to spread problems over (none: every core, or every accelerator)
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
