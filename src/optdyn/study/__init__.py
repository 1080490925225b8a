"""The whole study: from nothing to the report."""

from optdyn.study._reproduce import reproduce

__all__ = ["reproduce"]
