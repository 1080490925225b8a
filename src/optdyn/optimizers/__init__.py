"""What optimises: every optimizer is an optax pair of pure functions."""

from optdyn.optimizers._baselines import BASELINES
from optdyn.optimizers._cells import CELLS
from optdyn.optimizers._componentwise_rnn import Architecture, ComponentwiseRNN, RNNState
from optdyn.optimizers._encodings import ENCODINGS, Encoding
from optdyn.optimizers._gradient_range import GradientRange, GradientRangeWarning

__all__ = [
    "BASELINES",
    "CELLS",
    "ENCODINGS",
    "Architecture",
    "ComponentwiseRNN",
    "Encoding",
    "GradientRange",
    "GradientRangeWarning",
    "RNNState",
]
