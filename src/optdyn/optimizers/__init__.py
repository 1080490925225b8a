"""What optimises: every optimizer is an optax pair of pure functions."""

from optdyn.optimizers.cells import CELLS
from optdyn.optimizers.componentwise_rnn import Architecture, ComponentwiseRNN, RNNState
from optdyn.optimizers.encodings import ENCODINGS, Encoding

__all__ = ["CELLS", "ENCODINGS", "Architecture", "ComponentwiseRNN", "Encoding", "RNNState"]
