"""The memory budget: its choices, its model, and that the gradient does not change."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import helpers
from optdyn.errors import UserError
from optdyn.meta_training import UnrollOptions, meta_value_and_grad
from optdyn.meta_training._memory import ENOUGH, StepMemory, fit_to_budget

BIG = StepMemory(kept=8 * ENOUGH, carry=ENOUGH)
SMALL = StepMemory(kept=8, carry=1)


def test_everything_at_once_where_it_fits():
    budget = BIG.needed(200, 32, None)
    assert fit_to_budget(BIG, budget, num_steps=200, batch=32) == (None, 32)
    assert fit_to_budget(BIG, budget - 1, num_steps=200, batch=32) == (None, 16)


def test_large_problems_are_taken_in_turn_before_anything_is_recomputed():
    one = BIG.needed(200, 1, None)
    assert fit_to_budget(BIG, one, num_steps=200, batch=32) == (None, 1)
    assert fit_to_budget(BIG, one - 1, num_steps=200, batch=32) == (5, 1)


def test_small_problems_stay_together_and_are_recomputed():
    budget = SMALL.needed(200, 32, None) - 1
    assert fit_to_budget(SMALL, budget, num_steps=200, batch=32) == (5, 32)


def test_what_is_given_stays():
    assert fit_to_budget(BIG, 2**60, num_steps=200, batch=32, segment=7, chunk=4) == (7, 4)


def test_too_small_a_budget_names_the_least():
    least = BIG.needed(200, 1, 5)
    with pytest.raises(UserError, match=f"at least {least}"):
        fit_to_budget(BIG, least - 1, num_steps=200, batch=6)


@given(
    kept=st.integers(1, 10**7),
    carry=st.integers(1, 10**6),
    batch=st.integers(1, 64),
    num_steps=st.integers(1, 300),
    budget=st.integers(1, 10**11),
)
def test_a_choice_keeps_within_the_budget_and_divides_the_batch(
    kept, carry, batch, num_steps, budget
):
    step = StepMemory(kept, carry)
    try:
        segment, chunk = fit_to_budget(step, budget, num_steps=num_steps, batch=batch)
    except UserError:
        assert budget < step.needed(num_steps, 1, None)
    else:
        assert batch % chunk == 0
        assert step.needed(num_steps, chunk, segment) <= budget


def _compiled(budget, batch=4, num_steps=60, units=16, **options):
    task = helpers.small_task("linear_regression")
    chosen = UnrollOptions(num_steps=num_steps, memory_budget=budget, **options)
    rnn = helpers.random_rnn("gru", units=units)
    step = jax.jit(
        lambda r: meta_value_and_grad(r, task, jax.random.key(0), batch_size=batch, options=chosen)
    )
    return step.lower(rnn).compile(), rnn


@pytest.mark.usefixtures("x64")
def test_the_gradient_does_not_depend_on_the_budget():
    free, rnn = _compiled(None)
    exact = helpers.as_vector(free(rnn)[1])
    for budget in helpers.small_part([2**16], [2**19, 2**17, 2**16]):
        tight, _ = _compiled(budget)
        np.testing.assert_allclose(
            helpers.as_vector(tight(rnn)[1]), exact, rtol=1e-10, atol=1e-12 * np.abs(exact).max()
        )


def test_compiled_programs_need_what_the_model_says():
    for budget in helpers.small_part([2**18], [2**20, 2**18]):
        compiled, _ = _compiled(budget, batch=16, num_steps=100)
        assert compiled.memory_analysis().temp_size_in_bytes <= 1.5 * budget
    free, _ = _compiled(None, batch=16, num_steps=100)
    assert free.memory_analysis().temp_size_in_bytes > 2**20
