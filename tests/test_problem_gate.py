"""Which problems are taken: any tree of real floats, and one real loss. The rest is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import helpers
from optdyn.dynamics import Lens, closed_loop
from optdyn.errors import UserError
from optdyn.evaluation import evaluate
from optdyn.inner_loop import unroll
from optdyn.meta_training import UnrollOptions
from optdyn.tasks import Problem, joint, require_sound, sample_batch


@dataclasses.dataclass(frozen=True)
class Given:
    """A task whose problems are all the given one."""

    problem: Callable[[], Any]

    def sample(self, key: jax.Array) -> Any:
        return self.problem()


def ones(x: dict[str, Any]) -> jax.Array:
    return jnp.sum(x["a"] ** 2)


def of_params(**params: Any) -> Callable[[], Problem]:
    return lambda: Problem({"a": jnp.ones(2), **params}, ones)


def of_loss(loss: Any) -> Callable[[], Problem]:
    return lambda: Problem({"a": jnp.ones(2)}, loss)


REFUSED = {
    "an integer leaf": (of_params(count=jnp.int32(3)), r"params\['count'\]: int32"),
    "a boolean leaf": (of_params(flag=True), r"params\['flag'\]: bool"),
    "a Python integer": (of_params(n=3), r"params\['n'\]: int32"),
    "a function": (of_params(act=jax.nn.relu), r"params\['act'\]: .* is no array"),
    "text": (of_params(name="linear"), r"params\['name'\]: 'linear' is no array"),
    "an array of objects": (of_params(o=np.array([None])), r"params\['o'\]: .* is no array"),
    "a nested leaf": (of_params(layers=[{"w": jnp.arange(2)}]), r"\['layers'\]\[0\]\['w'\]"),
    "a key": (of_params(key=jax.random.key(0)), r"params\['key'\]: key<fry>"),
    "complex numbers": (of_params(z=jnp.ones(1, complex)), r"params\['z'\]: complex.*two leaves"),
    "nothing": (lambda: Problem({"a": None}, lambda x: 0.0), "params: they hold no number"),
    "empty arrays": (lambda: Problem(jnp.ones((0, 3)), jnp.sum), "params: they hold no number"),
    "data that is no array": (lambda: Problem(jnp.ones(1), jnp.sum, ("x",)), r"data\[0\]: 'x'"),
    "auxiliary outputs": (of_loss(lambda x: (ones(x), x)), "gives a tuple of 2.*auxiliary"),
    "a dict": (of_loss(lambda x: {"loss": ones(x)}), "gives a dict of 1"),
    "no return": (of_loss(lambda x: None), "loss_fn: gives None"),
    "a vector": (of_loss(lambda x: x["a"]), r"shape \(2,\)"),
    "shape one": (of_loss(lambda x: ones(x)[None]), r"shape \(1,\).*its one entry"),
    "a complex loss": (of_loss(lambda x: ones(x) + 1j), "type complex64"),
    "an integer loss": (of_loss(lambda x: ones(x).astype(int)), "type int32"),
    "shapes that do not fit": (of_loss(lambda x: jnp.ones(3) @ x["a"]), "loss_fn: fails on the"),
    "a missing leaf": (of_loss(lambda x: x["b"]), "loss_fn: fails on the parameters.*'b'"),
    "no derivative": (
        of_loss(lambda x: jax.lax.while_loop(lambda v: v < 9.0, lambda v: 2 * v, ones(x))),
        "loss_fn: fails.*[Rr]everse-mode",
    ),
    "no problem": (lambda: (jnp.ones(2), ones), "sample gives .*Problem is needed"),
    "a failing sample": (lambda: jnp.ones(2) @ jnp.ones(3), "sample fails"),
    "a loss without key": (
        lambda: Problem({"a": jnp.ones(2)}, ones, key=jax.random.key(0)), "keyword argument 'key'",
    ),
    "an old key": (
        lambda: Problem({"a": jnp.ones(2)}, ones, key=jnp.ones(2)), r"key of jax.random.key",
    ),
    "a full loss with outputs": (
        lambda: Problem({"a": jnp.ones(2)}, ones, full_loss_fn=lambda x: (ones(x), 1)),
        "full_loss_fn: gives a tuple",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_solved_is_named(name: str) -> None:
    problem, why = REFUSED[name]
    with pytest.raises(UserError, match=why) as raised:
        sample_batch(Given(problem), jax.random.split(jax.random.key(0), 2))
    assert "\n" not in str(raised.value)


class Closing:
    """A task whose loss refers to what sample drew, by a variable or by an attribute."""

    def __init__(self, where: str) -> None:
        self.where = where

    def sample(self, key: jax.Array) -> Problem:
        x, start = jax.random.normal(key, (3,)), jnp.ones(3)
        self.x = x

        def by_variable(params: jax.Array) -> jax.Array:
            return jnp.sum((params - x) ** 2)

        def by_attribute(params: jax.Array) -> jax.Array:
            return jnp.sum((params - self.x) ** 2)

        def of_constants(params: jax.Array) -> jax.Array:
            return jnp.sum((params - start) ** 2)

        if self.where == "full":
            return Problem(start, jnp.sum, full_loss_fn=by_variable)
        losses = {"variable": by_variable, "attribute": by_attribute, "constant": of_constants}
        return Problem(x, losses[self.where])


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("variable", r"^loss_fn: closes over x made in sample \(.*data=\(x,\)\).*\(params, x\)\)"),
        ("attribute", r"^loss_fn: closes over arrays made in sample \(.*data=\(x, y\)\)"),
        ("full", r"^full_loss_fn: closes over (x|x, start|start, x) made in sample"),
    ],
)
def test_a_loss_that_closes_over_what_sample_drew_is_told_to_take_it(where: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        evaluate(optax.sgd(0.1), Closing(where), seed=0, num_problems=2, num_steps=2)


def test_a_loss_may_close_over_what_is_the_same_for_all_problems() -> None:
    """Descent of (x − 1)² halves x − 1 at the rate ¼, and quarters each loss."""
    found = evaluate(optax.sgd(0.25), Closing("constant"), seed=0, num_problems=2, num_steps=2)
    np.testing.assert_allclose(found.losses[:, 1:], found.losses[:, :-1] / 4, rtol=1e-5)


def test_a_problem_given_to_unroll_is_looked_at_too() -> None:
    with pytest.raises(UserError, match=r"params\['count'\]"):
        unroll(optax.sgd(0.1), of_params(count=jnp.int32(3))(), 2)
    with pytest.raises(UserError, match="tuple of 2"):
        unroll(optax.sgd(0.1), of_loss(lambda x: (ones(x), x))(), 2)


SGD = optax.sgd(0.1)
NOT_ONE_NUMBER = {
    "a vector": (lambda x: x**2, r"^loss_fn: gives an array of shape \(3,\) \(one real number"),
    "shape one": (lambda x: jnp.sum(x**2)[None], r"^loss_fn: gives an array of shape \(1,\)"),
}


CALLS: dict[str, Callable[[Any, jax.Array], Any]] = {
    "unroll": lambda loss, x: unroll(SGD, Problem(x, loss), 2),
    "closed_loop": lambda loss, x: closed_loop(SGD, loss, x, SGD.init(x)),
    "Lens": lambda loss, x: Lens(SGD, loss).scalars(SGD.init(x), x),
}


@pytest.mark.parametrize("name", NOT_ONE_NUMBER)
@pytest.mark.parametrize("call", CALLS)
def test_a_loss_that_is_not_one_number_is_refused_alike(call: str, name: str) -> None:
    loss, why = NOT_ONE_NUMBER[name]
    with pytest.raises(UserError, match=why):
        CALLS[call](loss, jnp.ones(3))


MOMENTUM = optax.sgd(0.1, momentum=0.9)
LOOKS: dict[str, Callable[[Any, Any], Any]] = {
    "closed_loop": lambda x, state: closed_loop(MOMENTUM, square, x, state),
    "Lens.scalars": lambda x, state: Lens(MOMENTUM, square).scalars(state, x),
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_training_that_has_no_values_is_refused_alike(name: str) -> None:
    look = LOOKS[name]
    with pytest.raises(UserError, match=r"^params: they hold no number"):
        look({}, MOMENTUM.init({}))
    x = {"w": jnp.ones(2)}
    state = MOMENTUM.init(x)
    with pytest.raises(UserError, match=rf"^{name}: called within jax\.jit"):
        jax.jit(lambda x, state: len(str(look(x, state))))(x, state)
    with pytest.raises(UserError, match=rf"^{name}: called within jax\.jit"):
        jax.jit(lambda state: len(str(look(x, state))))(state)
    state[0].trace["w"].delete()
    with pytest.raises(UserError, match=rf"^{name}: state\[0\].trace\['w'\] was donated"):
        look(x, state)
    state = MOMENTUM.init(x)
    x["w"].delete()
    with pytest.raises(UserError, match=rf"^{name}: params\['w'\] was donated"):
        look(x, state)


def test_the_loss_on_all_data_is_looked_at_in_unroll_too() -> None:
    problem = Problem(
        jnp.ones(3),
        lambda x, key: jnp.sum(x**2),
        key=jax.random.key(0),
        full_loss_fn=lambda x: x,
    )
    with pytest.raises(UserError, match=r"^full_loss_fn: gives an array of shape \(3,\)"):
        unroll(optax.sgd(0.1), problem, 2)


def test_a_loss_of_python_is_a_constant() -> None:
    found = unroll(optax.sgd(0.1), Problem(jnp.ones(3), lambda x: 1.5), 2)
    np.testing.assert_array_equal(found.losses, [1.5, 1.5, 1.5])
    np.testing.assert_array_equal(found.params, jnp.ones(3))


DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32]
SHAPES = st.sampled_from([(), (1,), (3,), (2, 2), (0,), (2, 0, 1)])
LEAVES = st.one_of(
    st.builds(lambda shape, dtype: jnp.full(shape, 0.5, dtype), SHAPES, st.sampled_from(DTYPES)),
    st.none(),
    st.just(0.5),
    st.just(np.full(2, 0.5, np.float64)),
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layer:
    """A module with a static field, as network libraries have them."""

    weight: Any
    name: str = dataclasses.field(default="layer", metadata={"static": True})


TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        st.tuples(inner, inner),
        st.builds(Layer, inner, st.sampled_from(["one", "two"])),
    ),
    max_leaves=6,
)


def square(tree: Any) -> jax.Array:
    leaves = jax.tree.leaves(tree)
    return sum((jnp.sum(jnp.asarray(x, jnp.float32) ** 2) for x in leaves), jnp.zeros(()))


@settings(max_examples=15)
@given(TREES)
def test_any_tree_of_real_floats_is_descended_leaf_by_leaf(tree: Any) -> None:
    """Gradient descent of x² halves each entry a step at the rate ¼, in the entry's own type."""
    problem = Problem(tree, square)
    if not sum(np.size(leaf) for leaf in jax.tree.leaves(tree)):
        with pytest.raises(UserError, match="hold no number"):
            require_sound(problem)
        return
    require_sound(problem)
    found = jax.jit(lambda p: unroll(optax.sgd(0.25), p, 3).params)(problem)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for before, after in zip(jax.tree.leaves(tree), jax.tree.leaves(found), strict=True):
        assert after.shape == np.shape(before)
        assert after.dtype == jnp.asarray(before).dtype
        np.testing.assert_array_equal(np.asarray(after, np.float64), 0.5 * 0.5**3)
    batch = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * 2), problem)
    together = joint(batch)
    np.testing.assert_allclose(together.loss(together.params), square(tree), rtol=1e-6)


def test_leaves_of_unlike_types_keep_them_in_meta_training() -> None:
    """The rounding of bfloat16 parameters acts in training as it does in evaluation."""

    def problem() -> Problem:
        params = {"half": jnp.full(2, 1.7, jnp.bfloat16), "full": jnp.full(2, 1.7)}
        return Problem(params, square)

    tx, options = helpers.Rate(jnp.float32(-2.0)), UnrollOptions(num_steps=5)
    value, _, _ = helpers.compiled_gradient(
        tx, Given(problem), jax.random.key(0), batch_size=2, options=options
    )
    alone = unroll(tx.as_optax(), problem(), 5).losses
    np.testing.assert_allclose(value, np.mean(alone[1:]), rtol=1e-6)
