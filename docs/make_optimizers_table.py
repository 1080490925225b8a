"""Write optimizers_table.md: what optdyn finds in some optax optimizers.

Run as ``python docs/make_optimizers_table.py`` (two minutes or so on two cores).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import optax

from optdyn.dynamics._dissection import Dissection, dissect
from optdyn.errors import UserError
from optdyn.optimizers._aggregated_momentum import aggregated_momentum
from optdyn.runs._store import write_bytes

PLACE = Path(__file__).with_name("optimizers_table.md")
INTRODUCTION = """\
# What optdyn finds in optax's optimizers

Made by `python docs/make_optimizers_table.py`; each row is `optdyn.dynamics.dissect` of the
optimizer written in it, at gradients of size 1.

- **at**: where it was linearised. *start*: its initial state, to which gradients ±1 lead
  back. *±1*: the state that 20 000 gradients of alternating sign lead to, where second moments
  are 1. *1*: under the constant gradient 1, where the sign of a sum cannot change. A number
  after *k* is the step at which schedules were frozen.
- **modes**: each that the gradient drives as (α, β), by falling steady-state gain, in
  v ← βv + αg, Δx = −Σv − feed-through · g. *late* marks a gradient that only counts one step later.
- **feed-through**: the learning rate without memory. **decay**: weight decay a step.
- **stable below**: the curvature beyond which a quadratic diverges.
- **nearest**: the hand-designed optimizer that responds most alike, with its
  hyperparameters; *same* when no probe tells them apart, else the relative residual (0.1: close;
  1: no better than standing still).

"""
REFUSALS = """
Refused: components are coupled, steps differ, or more is needed than an array of parameters:

| optimizer | what optdyn says |
|---|---|
"""
# The code of an optimizer, and the step at which its counters are frozen.
COMPONENTWISE: dict[str, int | None] = {
    "optax.sgd(0.1)": None,
    "optax.sgd(0.1, momentum=0.9)": None,
    "optax.sgd(0.1, momentum=0.9, nesterov=True)": None,
    "aggregated_momentum([0.1, 0.02, 0.3], [0.9, 0.99, 0.0])": None,
    "optax.chain(optax.trace(0.9), optax.trace(0.5), optax.scale(-0.1))": None,
    "optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.1))": None,
    "optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9))": None,
    "optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1))": None,
    "optax.sgd(optax.cosine_decay_schedule(0.1, 100), momentum=0.9)": 50,
    "optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9)": None,
    "optax.optimistic_gradient_descent(0.1)": None,
    "optax.adagrad(0.1)": None,
    "optax.rmsprop(0.01)": None,
    "optax.rmsprop(0.01, momentum=0.9)": None,
    "optax.adam(0.01)": None,
    "optax.adamw(0.01, weight_decay=0.1)": None,
    "optax.amsgrad(0.01)": None,
    "optax.adamax(0.01)": None,
    "optax.adabelief(0.01)": None,
    "optax.nadam(0.01)": None,
    "optax.contrib.ademamix(0.01)": None,
    "optax.contrib.schedule_free(optax.sgd(0.5), learning_rate=0.5, b1=0.8)": None,
    "optax.sign_sgd(0.01)": None,
    "optax.lion(0.01)": None,
}
COUPLED = (
    "optax.lars(0.1)",
    "optax.lamb(0.01)",
    "optax.adafactor(0.01)",
    "optax.novograd(0.01)",
    "optax.contrib.muon(0.01)",
    "optax.lookahead(optax.sgd(0.1), 5, 0.5)",
)
# Where an operating point is said in words, the word for it here.
PLACES = {"initial": "start", "constant": "1", "gradients ±": "±1"}


def make(code: str) -> optax.GradientTransformation:
    """The optimizer that ``code`` gives."""
    return eval(code, {"optax": optax, "aggregated_momentum": aggregated_momentum})


def row(code: str) -> str:
    """The line of a component-wise optimizer."""
    count = COMPONENTWISE[code]
    found = dissect(make(code), count=count)
    place = next(word for part, word in PLACES.items() if part in found.where)
    nearest = found.identification.nearest
    values = ", ".join(f"{k} {_number(v)}" for k, v in nearest.hyperparameters.items())
    likeness = "same" if found.identification.exact else f"{nearest.residual:.1g}"
    cells = (
        f"`{code}`",
        place if count is None else f"{place}, k = {count}",
        _modes(found),
        _number(found.modes.feedthrough, abs(found.linearization.D)),
        _number(-found.linearization.weight_decay),
        _number(found.stability.edge) if found.responds else "no response",
        f"{nearest.name} ({values}): {likeness}",
    )
    return f"| {' | '.join(cells)} |"


def refusal(code: str) -> str:
    """The line of an optimizer that is refused."""
    try:
        dissect(make(code))
    except UserError as error:
        return f"| `{code}` | {str(error).partition(' (allowed')[0]} |"
    raise ValueError(f"{code} is not refused")


def table(componentwise: Iterable[str] = COMPONENTWISE, coupled: Iterable[str] = COUPLED) -> str:
    """The page, with these optimizers."""
    names = "optimizer", "at", "modes (α, β)", "feed-through", "decay", "stable below", "nearest"
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|", *map(row, componentwise)]
    refusals = "".join(f"{refusal(code)}\n" for code in coupled)
    return INTRODUCTION + "\n".join(lines) + "\n" + REFUSALS + refusals


def _modes(found: Dissection) -> str:
    modes = found.modes
    largest = max([float(gain) for gain in modes.gain], default=0.0)
    parts = [
        f"({_number(modes.delayed[j].real)}, late)"
        if modes.delayed[j]
        else f"({_number(modes.alpha[j].real)}, {_number(modes.beta[j].real)})"
        for j, gain in enumerate(modes.gain)
        if gain > 1e-9 * largest
    ]
    return ", ".join(parts) or "none"


def _number(value: float, scale: float = 1.0) -> str:
    return f"{value:.5g}" if abs(value) > 1e-12 * scale else "0"


if __name__ == "__main__":
    write_bytes(PLACE, table().encode())
    print(PLACE)
