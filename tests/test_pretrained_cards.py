"""The cards of what ships, readable optimizers, and warnings about unfamiliar gradients."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from benchmarks.cards import cost, gradients_met, tried

import optdyn
from optdyn.distillation import from_values
from optdyn.errors import UserError
from optdyn.optimizers import GradientRange, GradientRangeWarning
from optdyn.pretrained import PRETRAINED, PretrainedCard, other_trainings
from optdyn.pretrained._shipped import FOLDER
from optdyn.tasks import Rosenbrock

NAMES = {**PRETRAINED, **other_trainings()}
WITH_READABLE = [name for name in NAMES if "readable" in NAMES[name]]


@pytest.mark.parametrize("name", NAMES)
def test_every_card_that_ships_is_measured_and_has_five_lines(name: str) -> None:
    for stage in NAMES[name]:
        card = optdyn.pretrained_card(name, stage)
        assert isinstance(card, PretrainedCard)
        assert card.measured is not None, f"{name}: run python -m benchmarks.cards {name}"
        lines = str(card).splitlines()
        assert len(lines) == 5
        assert lines[0].startswith(f"{name} ({stage})")
        assert "Adam" in lines[2]
        assert lines[4].startswith("fails: ")
        assert card._repr_html_().startswith("<pre>")
        assert hashlib.sha256((FOLDER / name / card.file).read_bytes()).hexdigest() == card.sha256


def test_a_learned_optimizer_costs_more_than_its_readable_one() -> None:
    for name in WITH_READABLE:
        learned, readable = (
            optdyn.pretrained_card(name, s).measured for s in ("final", "readable")
        )
        assert learned is not None
        assert readable is not None
        units = optdyn.load_pretrained(name).architecture.units
        assert learned.cost.numbers == units
        assert readable.cost.numbers < 8
        assert readable.cost.time < learned.cost.time


@pytest.mark.parametrize("name", WITH_READABLE)
def test_a_readable_optimizer_is_an_optax_pair_of_the_cards_numbers(name: str) -> None:
    tx, card = optdyn.load_pretrained(name, "readable"), optdyn.pretrained_card(name, "readable")
    assert card.numbers is not None
    expected = from_values(card.numbers).as_optax()
    params = {"w": jnp.linspace(-1.0, 1.0, 5), "b": jnp.ones(())}
    found = optax.chain(tx, optax.scale(1.0))
    (updates, _), (others, _) = (
        each.update(params, each.init(params), params) for each in (found, expected)
    )
    for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_name_without_a_readable_optimizer_says_which_have_one() -> None:
    with pytest.raises(UserError, match=r"stage of rosenbrock: .*digits"):
        optdyn.load_pretrained("rosenbrock", "readable")


def test_measurements_of_other_weights_do_not_count(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "digits", tmp_path / "digits")
    found = tmp_path / "digits" / "measured.json"
    shutil.copy(FOLDER / "two_moons" / "measured.json", found)
    card = optdyn.pretrained_card("digits", folder=tmp_path)
    assert card.measured is None
    assert "not measured" in str(card)
    assert optdyn.load_pretrained("digits", folder=tmp_path).trained_on is None
    found.write_text("{}")
    with pytest.raises(UserError, match=r"measured\.json: damaged"):
        optdyn.pretrained_card("digits", folder=tmp_path)


RANGE = GradientRange(1e-2, 1.0)


def updates_of(tx: optax.GradientTransformation, sizes: list[float], jitted: bool) -> int:
    """How many warnings steps with these gradients give."""
    x = jnp.zeros(2)
    state, update = tx.init(x), jax.jit(tx.update) if jitted else tx.update
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for size in sizes:
            _, state = update(jnp.array([size, 0.0]), state)
        jax.effects_barrier()
    return sum(issubclass(each.category, GradientRangeWarning) for each in caught)


SIZES = [
    ([0.5, 0.5], 0),
    ([0.5, 1e-6], 0),  # gradients that shrink are no fault
    ([1e-6, 1e-6], 1),
    ([0.0, 0.5], 0),
    ([0.5, 10.0, 100.0], 1),
    ([0.5, float("nan")], 1),
    ([-10.0], 1),
]


@pytest.mark.parametrize(("sizes", "expected"), SIZES)
def test_unfamiliar_gradients_give_one_warning(sizes: list[float], expected: int) -> None:
    rnn = optdyn.ComponentwiseRNN.init(jax.random.key(0), optdyn.Architecture(units=2))
    rnn = dataclasses.replace(rnn, trained_on=RANGE)
    assert updates_of(rnn.as_optax(), sizes, jitted=False) == expected
    assert updates_of(rnn.as_optax(), sizes, jitted=True) == 0
    assert updates_of(RANGE.watch(), sizes, jitted=False) == expected
    assert updates_of(RANGE.watch(), sizes, jitted=True) == expected


def test_meta_training_forgets_the_range_of_the_weights_that_it_starts_from() -> None:
    rnn = optdyn.load_pretrained("rosenbrock")
    assert rnn.trained_on is not None
    protocol = optdyn.MetaTraining(num_meta_steps=1, unroll_length=2, batch_size=2)
    assert optdyn.meta_train(Rosenbrock(), rnn, protocol, seed=0, progress=False).trained_on is None


def test_what_is_measured_on_a_quadratic_is_known() -> None:
    @dataclasses.dataclass(frozen=True)
    class Bowl:
        def sample(self, key: jax.Array) -> optdyn.Problem:
            del key
            return optdyn.Problem(jnp.array([2.0, 1.0]), lambda x: 0.5 * jnp.sum(x**2))

    found = gradients_met(optax.sgd(0.5), Bowl(), steps=4, problems=2)
    assert (found.smallest, found.largest) == (0.25, 2.0)
    row = tried(optax.sgd(0.5), optax.sgd(3.0), ("bowl", None), Bowl(), steps=2, problems=3)
    assert (row.first, row.last, row.worse) == (2.5, 2.5 / 16, 0)
    assert (row.mean, row.adam) == (2.5 * (1 / 4 + 1 / 16) / 2, 2.5 * (4 + 16) / 2)
    assert tried(optax.sgd(3.0), optax.sgd(0.1), ("b", None), Bowl(), 2, 3).worse == 3
    assert cost(optax.sgd(0.1, momentum=0.9), 1000, "here").numbers == 1.0
