"""The report: one self-contained HTML page made from a run folder."""

from optdyn.study.page._page import build_report

__all__ = ["build_report"]
