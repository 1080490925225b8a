"""One training in many processes: who takes part, what they share, what happens to a lost one."""

from optdyn.distributed.group import Group, join
from optdyn.distributed.processes import Processes

__all__ = ["Group", "Processes", "join"]
