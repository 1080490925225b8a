"""The whole study: from nothing to the report."""

from optdyn.study.reproduce import reproduce

__all__ = ["reproduce"]
