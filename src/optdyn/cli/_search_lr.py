"""``optdyn search-lr``."""

from __future__ import annotations

from optdyn.cli import _devices as devices
from optdyn.cli._options import parse_settings
from optdyn.cli._output import Result, present
from optdyn.cli._settings import PROTOCOL, SearchSettings
from optdyn.runs._interrupts import interruptible
from optdyn.runs._run_folder import open_run
from optdyn.runs._search_run import search
from optdyn.search._learning_rate import ranked


def command(argv: list[str]) -> None:
    """Parse ``argv``, search, and print the learning rates from best to worst."""
    settings = parse_settings(SearchSettings, "search-lr", argv)
    task, architecture = settings.make_task(), settings.architecture()
    protocol, what = settings.protocol(PROTOCOL.learning_rate), settings.search()
    devices.require_even_batch(settings.batch_size, settings.chunk, settings.devices)
    mesh = devices.start(settings.devices, settings.batch_size, settings.chunk)

    def work() -> Result:
        rows = search(run, task, architecture, protocol, settings.seed, what, mesh=mesh)
        head = "learning rate  meta-steps  meta-objective"
        lines = [
            f"{row.learning_rate:13.4g}  {row.num_meta_steps:10d}  {row.meta_objective:14.4g}"
            for row in ranked(rows)
        ]
        return Result({"task": settings.task, "trainings": ranked(rows)}, [head, *lines])

    with open_run(settings.out) as run:
        message = "the search stopped; finished trainings are saved"
        present(settings, lambda: interruptible(work, message))
