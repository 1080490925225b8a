"""The report: one self-contained HTML page made from results, claims and figures."""

from optdyn.study.page._page import REPORT, write_page

__all__ = ["REPORT", "write_page"]
