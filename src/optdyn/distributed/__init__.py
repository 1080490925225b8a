"""One training in many processes: who takes part, what they share, what happens to a lost one."""

from optdyn.distributed._group import Group, join
from optdyn.distributed._processes import Processes

__all__ = ["Group", "Processes", "join"]
