"""Readable optimizers from the smallest up: each is the one before with a part more."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from optdyn.distillation._chain import Distilled
from optdyn.distillation._parts import AdaptiveScaling, Forgetting, Momenta, Saturation, Schedule
from optdyn.dynamics import Eigenmodes
from optdyn.errors import require_choice

LADDER = ("momentum", "second momentum", "saturation", "schedule", "adaptive scaling", "forgetting")
"""What each size adds to the one before."""

SMALLEST_BETA, LARGEST_BETA = 0.05, 0.995
SMALLEST_COEFFICIENT = 1e-3
"""A tuned coefficient of 0 starts here: those of the parts are inside (0, 1)."""
SECOND_BETA_POWER = 3
"""The second momentum starts with a third of the first one's timescale."""
POWER = 0.5
FORGETTING_SIZE = 100.0
AMPLITUDES, DECAYS = (-0.1, 0.1), (0.5, 0.95)
GAMMA, ADAPTIVE_POWER, EPSILON_SIZE = 0.99, 0.1, 1e-2
FULL_POWER = 1.0 - 1e-3
"""The power of adaptive scaling, which is below 1, nearest RMSProp's and Adam's."""
RMSPROP_EPSILON, ADAM_EPSILON = 1e-8, 1e-16
"""What optax adds to g², for Adam as the square of what it adds to the root."""


@dataclasses.dataclass(frozen=True)
class Guess:
    """What the analysis of an optimizer says about its parts, to start a fit from.

    ``alpha``, ``beta``: its leading mode; ``threshold``: where its update saturates;
    ``gradient``: the size of gradients that it is used on.
    """

    alpha: float
    beta: float
    threshold: float
    gradient: float


def leading_momentum(modes: Eigenmodes) -> tuple[float, float]:
    """(α, β) of the real mode of the largest gain that is a momentum: α > 0, 0 < β < 1.

    Where there is none: the learning rate that all modes add up to, without memory.
    """
    for alpha, beta in zip(modes.alpha, modes.beta, strict=True):
        if beta.imag == 0 and 0 < beta.real < 1 and alpha.real > 0:
            return float(alpha.real), float(np.clip(beta.real, SMALLEST_BETA, LARGEST_BETA))
    total = abs(modes.feedthrough + float(np.sum(modes.alpha / (1.0 - modes.beta)).real))
    return total or 1.0, SMALLEST_BETA


def extended(current: Distilled | None, added: str, guess: Guess) -> Distilled:
    """``current`` with one more part of `LADDER`, which starts where it changes little.

    Raises `UserError` for an unknown part.
    """
    require_choice("part", added, list(LADDER))
    if current is None or added == "momentum":
        return Distilled(Momenta.of([guess.alpha], [guess.beta]))
    if added == "second momentum":
        return dataclasses.replace(current, momenta=_split(current.momenta))
    if added == "saturation":
        # Gradients of the usual size pass the saturation as small as this makes up for.
        rate = current.momenta.log_rate + np.log1p((guess.gradient / guess.threshold) ** POWER)
        return dataclasses.replace(
            current,
            saturation=Saturation.of(guess.threshold, POWER),
            momenta=dataclasses.replace(current.momenta, log_rate=rate),
        )
    if added == "schedule":
        return dataclasses.replace(current, schedule=Schedule.of(AMPLITUDES, DECAYS))
    if added == "forgetting":
        threshold = FORGETTING_SIZE * max(guess.threshold, guess.gradient)
        return dataclasses.replace(current, forgetting=Forgetting.of(threshold, POWER))
    part = AdaptiveScaling.of(GAMMA, ADAPTIVE_POWER, (EPSILON_SIZE * guess.gradient) ** 2)
    # Gradients of the usual size pass the scaling enlarged by gradient^(−p).
    rate = current.momenta.log_rate + ADAPTIVE_POWER * np.log(guess.gradient)
    momenta = dataclasses.replace(current.momenta, log_rate=rate)
    return dataclasses.replace(current, adaptive=part, momenta=momenta)


def tuned_in_parts(tuned: Mapping[str, Mapping[str, float]]) -> dict[str, Distilled]:
    """Tuned baselines, by name, from their hyperparameters: those that the parts can express.

    Momentum exactly. RMSProp with Adam's correction of its running mean. Adam with its
    momentum after the division, started as momentum is.
    """
    found: dict[str, Distilled] = {}
    if "momentum" in tuned:
        alpha, beta = tuned["momentum"]["alpha"], tuned["momentum"]["beta"]
        found["momentum"] = _one_momentum(alpha, beta)
    if "rmsprop" in tuned:
        part = _full_scaling(tuned["rmsprop"]["gamma"], RMSPROP_EPSILON)
        found["rmsprop"] = dataclasses.replace(
            _one_momentum(tuned["rmsprop"]["alpha"], 0.0), adaptive=part
        )
    if "adam" in tuned:
        alpha, beta = tuned["adam"]["alpha"], tuned["adam"]["beta1"]
        part = _full_scaling(tuned["adam"]["beta2"], ADAM_EPSILON)
        found["adam"] = dataclasses.replace(
            _one_momentum(alpha * (1.0 - beta), beta), adaptive=part
        )
    return found


def _one_momentum(alpha: float, beta: float) -> Distilled:
    return Distilled(Momenta.of([alpha], [max(beta, SMALLEST_COEFFICIENT)]))


def _full_scaling(gamma: float, epsilon: float) -> AdaptiveScaling:
    return AdaptiveScaling.of(max(gamma, SMALLEST_COEFFICIENT), FULL_POWER, epsilon)


def _split(momenta: Momenta) -> Momenta:
    """Half of the learning rate given to a momentum of a shorter timescale."""
    alpha, beta = float(momenta.alpha[0]), float(momenta.beta[0])
    beta = float(np.clip(beta, SMALLEST_BETA, LARGEST_BETA))
    return Momenta.of([alpha / 2, alpha / 2], [beta**SECOND_BETA_POWER, beta])
