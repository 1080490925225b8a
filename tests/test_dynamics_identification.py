"""Which optimizer is this: every candidate is recognised, with its hyperparameters."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics_helpers import learned, learned_at_fixed_point, random_rnn
from helpers import small_part
from optdyn.dynamics import Identification, identify, responses, reversal_threshold
from optdyn.dynamics._candidates import CANDIDATES
from optdyn.errors import UserError
from optdyn.optimizers._aggregated_momentum import aggregated_momentum

KNOWN = {
    "gradient_descent": (optax.sgd(0.03), {"alpha": 0.03}),
    "momentum": (optax.sgd(0.03, momentum=0.87), {"alpha": 0.03, "beta": 0.87}),
    "nesterov": (optax.sgd(0.03, momentum=0.87, nesterov=True), {"alpha": 0.03, "beta": 0.87}),
    "aggmo": (
        aggregated_momentum([0.01, 0.02, 0.03], [0.0, 0.9, 0.99]),
        {
            "alpha1": 0.03, "alpha2": 0.02, "alpha3": 0.01,
            "beta1": 0.99, "beta2": 0.9, "beta3": 0.0,
        },
    ),
    "rmsprop": (optax.rmsprop(0.02, decay=0.95), {"alpha": 0.02, "gamma": 0.95, "eps": 1e-8}),
    "adam": (
        optax.adam(0.01, b1=0.85, b2=0.98),
        {"alpha": 0.01, "beta1": 0.85, "beta2": 0.98, "eps": 1e-8},
    ),
    "sign": (optax.sign_sgd(0.01), {"alpha": 0.01}),
    "lion": (optax.lion(0.01, b1=0.92, b2=0.97), {"alpha": 0.01, "beta1": 0.92, "beta2": 0.97}),
    "clipped_momentum": (
        optax.chain(optax.clip(0.3), optax.sgd(0.1, momentum=0.8)),
        {"alpha": 0.1, "beta": 0.8, "clip": 0.3},
    ),
}  # fmt: skip


@functools.cache
def identified(name: str) -> Identification:
    return identify(KNOWN[name][0])


HARDER = {"nesterov", "adam", "aggmo"}
"""With unusual hyperparameters, these are among `HARD`."""


@pytest.mark.parametrize(
    "name", small_part([name for name in CANDIDATES if name not in HARDER], CANDIDATES)
)
def test_each_candidate_is_recognised_exactly(name: str) -> None:
    found = identified(name)
    assert found.nearest.name == name
    assert found.exact
    assert found.nearest.residual < 1e-10
    expected = KNOWN[name][1]
    assert found.nearest.hyperparameters.keys() == expected.keys()
    for key, value in expected.items():
        tolerance = 1e-6 if key == "eps" else 1e-8
        assert found.nearest.hyperparameters[key] == pytest.approx(value, rel=tolerance, abs=1e-10)


def test_others_are_not_exact() -> None:
    """What contains the true one may be as near; nothing else may."""
    contains = {"momentum", "clipped_momentum", "aggmo"}
    for fit in identified("momentum").fits:
        assert (fit.residual < 1e-6) == (fit.name in contains), fit.name


def test_settings_that_differ_only_in_scale_differ_only_in_the_rate() -> None:
    few = ("momentum", "adam")
    scaled = optax.chain(optax.scale(0.5), KNOWN["momentum"][0], optax.scale(4.0))
    found = identify(scaled, candidates=few).nearest
    assert found.hyperparameters["alpha"] == pytest.approx(0.06, rel=1e-10)
    tiny = identify(optax.adam(0.01, eps=1e-15), gradient_scale=1e-4, candidates=few).nearest
    assert tiny.name == "adam"
    assert tiny.hyperparameters["beta2"] == pytest.approx(0.999, rel=1e-8)


HARD = {
    "momentum": (optax.sgd(0.3, momentum=-0.6), {"beta": -0.6}),
    "nesterov": (optax.sgd(0.3, momentum=-0.4, nesterov=True), {"beta": -0.4}),
    "adam": (optax.adam(0.036, b1=0.46, b2=0.934, eps=1e-7), {"beta2": 0.934, "eps": 1e-7}),
    "aggmo": (
        aggregated_momentum([0.0023, 0.69, 0.045], [0.7, 0.614, 0.56]),
        {"alpha1": 0.0023, "beta1": 0.7, "beta2": 0.614, "beta3": 0.56},
    ),
}


@pytest.mark.parametrize("name", HARD)
def test_unusual_hyperparameters_are_found(name: str) -> None:
    tx, expected = HARD[name]
    found = identify(tx, candidates=sorted({name, "aggmo", "momentum"}))
    assert found.nearest.name == name
    assert found.nearest.residual < 1e-10
    for key, value in expected.items():
        assert found.nearest.hyperparameters[key] == pytest.approx(value, rel=1e-6)


def test_probes_without_an_answer_do_not_outweigh_all_others() -> None:
    # ADOPT does not answer the first gradient, hence no impulse.
    found = identify(optax.contrib.adopt(0.1), candidates=["gradient_descent", "sign", "adam"])
    assert found.nearest.name == "adam"
    assert 0.01 < found.nearest.hyperparameters["alpha"] < 0.2
    assert found.nearest.residual < 0.8


@pytest.mark.parametrize(
    "tx",
    [
        optax.optimistic_gradient_descent(0.1),
        optax.chain(optax.trace(0.9), optax.trace(0.9), optax.scale(-0.1)),
    ],
    ids=["delay", "critical"],
)
def test_told_hyperparameters_give_the_told_updates(tx: optax.GradientTransformation) -> None:
    found = identify(tx, candidates=["momentum", "aggmo"])
    for fit in found.fits:
        if fit.name == "aggmo":
            values = [
                [fit.hyperparameters[f"{n}{j}"] for j in (1, 2, 3)] for n in ("alpha", "beta")
            ]
            again = responses(aggregated_momentum(*values)).updates
            np.testing.assert_allclose(again, fit.updates, atol=1e-6 * np.abs(fit.updates).max())


def test_any_layout_of_the_state() -> None:
    def update(gradients, state, params=None):
        n = gradients.size
        m, v = 0.9 * state[:n] + gradients, 0.5 * state[n:] + gradients
        return -0.1 * m - 0.2 * v, jnp.concatenate([m, v])

    tx = optax.GradientTransformation(lambda p: jnp.zeros(2 * p.size), update)
    found = identify(tx, candidates=["aggmo"])
    assert found.exact
    expected = {"alpha1": 0.1, "beta1": 0.9, "alpha2": 0.2, "beta2": 0.5, "alpha3": 0, "beta3": 0}
    assert found.nearest.hyperparameters == pytest.approx(expected, rel=1e-8)


def test_a_relative_of_adam_is_nearest_to_adam_but_not_exact() -> None:
    found = identify(optax.nadam(0.1), candidates=("momentum", "rmsprop", "adam", "sign"))
    assert found.nearest.name == "adam"
    assert not found.exact
    assert 0.05 < found.nearest.residual < 0.5


def test_a_learned_optimizer() -> None:
    few = ("gradient_descent", "momentum", "clipped_momentum", "rmsprop")
    rnn = random_rnn("gru", 4)
    first, second = identify(rnn, candidates=few), identify(rnn, candidates=few)
    assert first.nearest.hyperparameters == second.nearest.hyperparameters
    residuals = [fit.residual for fit in first.fits]
    assert residuals == sorted(residuals)
    # Its gates saturate: clipping comes nearer than any linear optimizer.
    assert first.nearest.name in ("clipped_momentum", "rmsprop")
    assert 1e-3 < first.nearest.residual < 1.0
    np.testing.assert_array_equal(first.nearest.updates, second.nearest.updates)


def test_responses() -> None:
    seen = responses(optax.sgd(0.1, momentum=0.5), gradient_scale=2.0, steps=20)
    impulse = seen.of_kind("impulse")
    assert impulse.shape == (7, 20)
    np.testing.assert_allclose(impulse[3], -0.2 * 0.5 ** np.arange(20), rtol=1e-14)
    constant = seen.of_kind("constant")
    np.testing.assert_allclose(constant[:, -1] / seen.amplitudes[:7], -0.2, rtol=1e-5)
    with pytest.raises(UserError, match="not component-wise"):
        responses(optax.lamb(1.0))


def test_the_drift_of_an_optimizer_is_no_response() -> None:
    drifting = optax.chain(optax.sgd(0.1), optax.stateless(lambda g, p: g + 3.0))
    np.testing.assert_allclose(
        responses(drifting).updates, responses(optax.sgd(0.1)).updates, rtol=1e-9, atol=1e-14
    )


@pytest.mark.usefixtures("x64")
def test_small_responses_at_a_fixed_point_are_the_impulse_response() -> None:
    lin = learned_at_fixed_point("gru")
    seen = responses(learned("gru")[1], gradient_scale=1e-3, steps=30, h=lin.state)
    impulse = seen.of_kind("impulse")[0] / seen.amplitudes[0]
    np.testing.assert_allclose(impulse, lin.impulse_response(30), atol=1e-8)
    with pytest.raises(UserError, match="h: shape"):
        responses(learned("gru")[1], h=np.zeros(3))


@pytest.mark.parametrize("lag", [0, 2])
def test_reversal_thresholds(lag: int) -> None:
    def threshold(tx: optax.GradientTransformation) -> float:
        return reversal_threshold(tx, lag=lag, gradient_scale=0.1)

    assert threshold(optax.sgd(0.1)) == 0.0
    assert threshold(optax.sgd(0.1, momentum=0.8)) == pytest.approx(0.8 ** (lag + 1), rel=1e-11)
    lion = 0.9 * 0.95**lag * 0.05 / 0.1
    assert threshold(optax.lion(0.1, b1=0.9, b2=0.95)) == pytest.approx(lion, rel=1e-11)


def test_bad_input() -> None:
    with pytest.raises(UserError, match="candidates: unknown value 'sgd'"):
        identify(optax.sgd(0.1), candidates=["sgd"])
    with pytest.raises(UserError, match="none given"):
        identify(optax.sgd(0.1), candidates=[])
    with pytest.raises(UserError, match="none changes sign with the gradient"):
        identify(optax.stateless(lambda g, p: g**2))
    with pytest.raises(UserError, match="gradient_scale"):
        identify(optax.sgd(0.1), gradient_scale=0.0)
    with pytest.raises(UserError, match="steps"):
        identify(optax.sgd(0.1), steps=2)
