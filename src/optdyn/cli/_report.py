"""``optdyn report``."""

from __future__ import annotations

from pathlib import Path

from optdyn.cli._options import STUDY, Output, OutputOptions
from optdyn.cli._output import Result, present
from optdyn.runs._run_folder import open_run, require_own


def report(*, out: Path = STUDY, output: Output = OutputOptions()) -> None:
    """Write the report and print where it is.

    Args:
        out: run folder with the results to report
        output: what is printed
    """
    require_own(out)
    from optdyn.study import report as report_in

    with open_run(out, create=False) as run:

        def work() -> Result:
            page = report_in(run)
            return Result({"report": page}, [str(page)])

        present(output, work)
