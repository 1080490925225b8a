"""``optdyn report``."""

from __future__ import annotations

from optdyn.cli._options import parse_settings
from optdyn.cli._output import Result, present
from optdyn.cli._settings import ReportSettings
from optdyn.runs._run_folder import open_run, require_own


def command(argv: list[str]) -> None:
    """Parse ``argv``, write the report and print where it is."""
    settings = parse_settings(ReportSettings, "report", argv)
    require_own(settings.out)
    from optdyn.study.page import build_report

    def work() -> Result:
        report = build_report(settings.out)
        return Result({"report": report}, [str(report)])

    with open_run(settings.out, create=False):
        present(settings, work)
