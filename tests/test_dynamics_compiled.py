"""What is compiled serves other optimizers too, and what is remembered stays bounded."""

from __future__ import annotations

import jax
import optax

import helpers
from optdyn.dynamics import _remembered as remembered
from optdyn.dynamics import identify, linearize


def test_the_second_analysis_of_an_optimizer_compiles_nothing(caplog):
    tx = optax.sgd(0.1, momentum=0.9)
    with helpers.compilations(caplog) as first:
        linearize(tx)
    assert first
    with helpers.compilations(caplog) as again:
        linearize(tx, gradient=0.5)
    assert again == []


def test_the_second_identification_compiles_nothing(caplog):
    tx = optax.sgd(0.1, momentum=0.9)
    found = identify(tx, candidates=["momentum"])
    with helpers.compilations(caplog) as again:
        assert identify(tx, candidates=["momentum"]).name == found.name
    assert again == []


def test_optimizers_looked_at_long_ago_are_forgotten(monkeypatch):
    monkeypatch.setattr(remembered, "MOST", 2)
    client = jax.devices()[0].client
    programs = []
    for rate in range(1, 7):
        linearize(optax.sgd(rate / 10.0))
        programs.append(len(client.live_executables()))
    assert programs[-1] <= programs[2]
