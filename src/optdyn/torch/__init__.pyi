"""What ``optdyn.torch`` offers."""

from ._analysis import as_optax as as_optax
from ._analysis import dissect as dissect
from ._analysis import linearize as linearize
from ._closed_loop import closed_loop as closed_loop
from ._learned_optimizer import LearnedOptimizer as LearnedOptimizer
