"""``optdyn report``."""

from __future__ import annotations

from optdyn.cli.options import parse_settings
from optdyn.cli.output import Result, present
from optdyn.cli.settings import ReportSettings
from optdyn.experiments.run_folder import open_run, require_own


def command(argv: list[str]) -> None:
    """Parse ``argv``, write the report and print where it is."""
    settings = parse_settings(ReportSettings, "report", argv)
    require_own(settings.out)
    from optdyn.report import build_report

    def work() -> Result:
        report = build_report(settings.out)
        return Result({"report": report}, [str(report)])

    with open_run(settings.out, create=False):
        present(settings, work)
