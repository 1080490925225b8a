"""What is optimised: tasks, each a distribution over problems."""

from optdyn.tasks.base import Problem, Task, joint, sample_batch
from optdyn.tasks.digits import Digits
from optdyn.tasks.linear_regression import LinearRegression
from optdyn.tasks.registry import TASKS, make_task
from optdyn.tasks.rosenbrock import Rosenbrock
from optdyn.tasks.two_moons import TwoMoons

__all__ = [
    "TASKS",
    "Digits",
    "LinearRegression",
    "Problem",
    "Rosenbrock",
    "Task",
    "TwoMoons",
    "joint",
    "make_task",
    "sample_batch",
]
