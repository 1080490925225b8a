"""What is optimised: tasks, each a distribution over problems."""

from optdyn.tasks._base import Problem, Task, joint
from optdyn.tasks._curvature import task_curvatures
from optdyn.tasks._description import TaskDescription, describe_task, task_from, with_options
from optdyn.tasks._digits import Digits
from optdyn.tasks._gate import require_sound, require_task, sample_batch
from optdyn.tasks._linear_regression import LinearRegression
from optdyn.tasks._registry import TASKS, make_task
from optdyn.tasks._rosenbrock import Rosenbrock
from optdyn.tasks._two_moons import TwoMoons

__all__ = [
    "TASKS",
    "Digits",
    "LinearRegression",
    "Problem",
    "Rosenbrock",
    "Task",
    "TaskDescription",
    "TwoMoons",
    "describe_task",
    "joint",
    "make_task",
    "require_sound",
    "require_task",
    "sample_batch",
    "task_curvatures",
    "task_from",
    "with_options",
]
