"""A training watched as a dynamical system: plain numbers for any logger."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optdyn.dynamics._closed_loop import closed_loop
from optdyn.dynamics._cycle import steps_in_cycle
from optdyn.dynamics._derivative_rows import (
    common_factor,
    compact,
    derivative_rows,
    leaves_alone,
    leaves_at_rest,
)
from optdyn.dynamics._krylov import top_curvature, top_real_part
from optdyn.dynamics._place import leaf_names
from optdyn.dynamics._remembered import Remembered
from optdyn.dynamics._sharpness import component_loop, leaf_loops
from optdyn.dynamics._training_step import require_own_state, require_values
from optdyn.errors import UserError, require_positive_int
from optdyn.inner_loop._unroll import losses_and_gradients, optimizer_step
from optdyn.tasks import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Complex, PyTree

    from optdyn.dynamics._training_step import LossFn

SAMPLED = 8
"""Entries along each axis of a leaf by which the leaf's rate is read."""
CLIPPING = 1e-5
"""A clip acts where it takes more than this part of the gradients."""
MULTIPLIERS = 4
LARGEST_COUPLED = 20_000
"""Entries of (x, s) up to which optimizers that couple components get their multipliers."""


def _remembered() -> Any:
    return dataclasses.field(default_factory=Remembered, init=False, repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Lens:
    """Measures a training from outside; the training itself stays as it is.

    ``loss_fn(params)`` or ``loss_fn(params, batch)``; `scalars` takes the batch. Parameters
    are any pytree of real floats (a Flax NNX state, the arrays of an Equinox model), in
    float32 or bfloat16. ``lanczos_steps``: products of the Hessian with a vector for each
    measurement of the sharpness; each costs about as much as two gradients.

    >>> import jax.numpy as jnp, optax
    >>> tx, x = optax.sgd(0.1, momentum=0.5), jnp.ones(2)
    >>> def loss(x):
    ...     return jnp.sum(jnp.array([1.0, 4.0]) * x**2)
    >>> lens = Lens(tx, loss)
    >>> lens
    Lens(tx, loss, lanczos_steps=20)
    >>> found = lens.scalars(tx.init(x), x)
    >>> round(found["sharpness"], 3), round(found["sharpness_edge"], 3), round(found["margin"], 2)
    (0.8, 3.0, 3.75)
    """

    tx: optax.GradientTransformation
    loss_fn: LossFn
    lanczos_steps: int = 20
    _cycles: Remembered[int] = _remembered()
    _fits: Remembered[None] = _remembered()
    _sampling: Remembered[bool] = _remembered()
    _alone: Remembered[list[bool]] = _remembered()

    def __post_init__(self) -> None:
        require_positive_int("lanczos_steps", self.lanczos_steps, minimum=2)

    def __repr__(self) -> str:
        loss = getattr(self.loss_fn, "__name__", type(self.loss_fn).__name__)
        return f"Lens(tx, {loss}, lanczos_steps={self.lanczos_steps})"

    def scalars(
        self,
        state: PyTree,
        params: PyTree,
        batch: Any = None,
        *,
        curvature: bool = True,
    ) -> dict[str, float]:
        """A flat dictionary of numbers at one moment of the training.

        For each leaf, read from a sample of its entries without any gradient:
        ``rate/LEAF`` (what a constant gradient of 1 would move a parameter by at each step,
        second moments held as they are in ``state``),
        ``momentum/LEAF`` (β of its slowest fading answer) and ``decay/LEAF`` (the part of
        the parameter taken away a step). They are NaN where there is no such number: where
        components of a leaf act on one another, as in trust ratios and Muon. A leaf whose learning
        rate is 0 now has a rate of 0 alone. An optimizer that steps in cycles has none. In the
        first steps second moments are far from what they come to, and rates with them.

        With ``curvature``, at the cost of one step and 2·``lanczos_steps`` gradients on
        ``batch``: ``loss``, ``gradient_norm``, ``update_ratio/LEAF`` (‖Δx‖ / ‖x‖, NaN for a
        leaf of zeros), and

        - ``sharpness``: the largest curvature, times what a gradient of 1 moves each parameter by
          at once (α for momentum, α(1 − β₁)/√v̂ for Adam), with second moments held;
          ``sharpness_edge``: where the optimizer starts to swing apart;
          ``margin``: the factor by which the learning rate can grow until then;
          ``multiplier/K/real`` and ``/imag``: the multipliers of the sharpest direction.
          Where components are coupled or have different momenta, the margin and the
          multipliers come from `closed_loop`, up to 20,000 entries of parameters and state;
          beyond, the margin is NaN.
        - ``clip_factor``: what a clip by norm multiplies all gradients by here. Sharpness and
          margin count it, and that it takes away the part along the gradient. They then hold
          ``lanczos_steps`` vectors of the parameters' size in memory, otherwise three.

        All of it is on one batch: take a large fixed one to compare over time.

        Raises `UserError` where ``loss_fn`` needs a batch that is not given, for a leaf that is
        no array of real floats, for donated arrays, and within `jax.jit`.
        """
        if isinstance(params, optax.LookaheadParams):
            raise UserError(
                "Lens.scalars: lookahead's pair of parameters is not allowed (optdyn.closed_loop "
                "takes it)"
            )
        require_values(params, state, "Lens.scalars")
        shapes = tuple(map(np.shape, jax.tree.leaves((params, state))))
        self._fits.recall(
            (jax.tree.structure((params, state)), shapes),
            lambda: require_own_state(self.tx, params, state, "Lens.scalars"),
        )
        found, alone = self._by_leaf(state, params)
        if not curvature:
            return found
        self._require_batch(batch)
        numbers, gradients, factor = self._step(params, state, batch)
        found |= {name: float(value) for name, value in numbers.items()}
        if not math.isfinite(found["gradient_norm"]):
            return found | {"margin": math.nan}  # the training is over; its log may go on
        return found | self._edge(
            state, params, batch, gradients, float(factor) if alone else math.nan
        )

    def _on(self, batch: Any) -> LossFn:
        if batch is not None:
            return lambda params: self.loss_fn(params, batch)
        return self.loss_fn

    def _require_batch(self, batch: Any) -> None:
        needed = inspect.signature(self.loss_fn).parameters.values()
        required = [
            each
            for each in needed
            if each.default is each.empty and each.kind < each.VAR_POSITIONAL
        ]
        if batch is None and len(required) > 1:
            raise UserError(
                "batch: loss_fn needs one, and none is given (call scalars(state, params, batch))"
            )

    @functools.cached_property
    def _step(self) -> Callable[..., Any]:
        def step(params: PyTree, state: PyTree, batch: Any) -> Any:
            problem = Problem(params=params, loss_fn=self._on(batch))
            loss, gradients, updates, _ = optimizer_step(self.tx, problem, params, state)
            found = {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}
            for (name, x), update in zip(_named(params), jax.tree.leaves(updates), strict=True):
                size, moved = (_norm(leaf) for leaf in (x, update))
                found[f"update_ratio/{name}"] = jnp.where(size > 0, moved / size, jnp.nan)
            return found, gradients, common_factor(self.tx, params, state, gradients)

        return jax.jit(step)

    @functools.cached_property
    def _rows(self) -> Callable[..., Any]:
        return compact(functools.partial(derivative_rows, self.tx))

    @functools.cached_property
    def _sampled_rows(self) -> Callable[..., Any]:
        """`derivative_rows` and `leaves_at_rest` of the sampled entries."""

        def sampled(params: PyTree, state: PyTree) -> Any:
            at = _sampled(params, state)
            return derivative_rows(self.tx, *at), leaves_at_rest(self.tx, *at)

        return jax.jit(sampled)

    @functools.cached_property
    def _product(self) -> Callable[..., PyTree]:
        """``R^½ c (1 − ĝĝᵀ) H R^½ v``: c a clip's factor, ĝ the gradient's direction or zero."""

        def product(
            params: PyTree, batch: Any, root: PyTree, clip: tuple[Any, PyTree], v: PyTree
        ) -> PyTree:
            problem = Problem(params=params, loss_fn=self._on(batch))
            moving = jax.tree.map(lambda x, r, d: (r * d).astype(x.dtype), params, root, v)
            image = jax.jvp(lambda x: losses_and_gradients(problem, x)[1], (params,), (moving,))[1]
            factor, along = clip
            if along is None:
                return jax.tree.map(lambda r, a: r * a, root, image)
            part = optax.tree.vdot(along, image)
            return jax.tree.map(lambda r, a, g: r * factor * (a - part * g), root, image, along)

        return jax.jit(product)

    def _in_cycles(self, state: PyTree, params: PyTree) -> bool:
        kind = jax.tree.structure((params, state))
        return self._cycles.recall(kind, lambda: steps_in_cycle(self.tx, params, state)) > 1

    def _by_leaf(self, state: PyTree, params: PyTree) -> tuple[dict[str, float], bool]:
        """The numbers of each leaf, and whether all components answer one by one."""
        if self._in_cycles(state, params):
            return {}, False
        like = _few_params(params)
        rows, still = jax.device_get(self._sampled_rows(params, state))
        # What stands still tells nothing about how it moves later.
        kind = jax.tree.structure((params, state)), tuple(map(bool, still))
        if not self._sampling.recall(kind, lambda: self._samples_stand_for_all(params, state)):
            rows, like = jax.device_get(self._rows(params, state)), params
        alone = self._alone.recall(kind, lambda: self._leaves_alone(params, state))
        found: dict[str, float] = {}
        loops = leaf_loops(rows, like)
        parts = zip(_named(params), loops, alone, still, strict=True)
        for (name, _), loop, one_by_one, at_rest in parts:
            rate, momentum, decay = 0.0 if at_rest else math.nan, math.nan, math.nan
            if loop is not None and one_by_one and not at_rest:
                mean = float(np.mean(np.asarray(loop.rate, np.float64)))
                rate, momentum, decay = mean * loop.steady_rate, loop.momentum, loop.decay
            found |= {f"rate/{name}": rate, f"momentum/{name}": momentum, f"decay/{name}": decay}
        return found, all(alone)

    def _samples_stand_for_all(self, params: PyTree, state: PyTree) -> bool:
        """Whether the few entries answer as in the whole tree: nothing goes by a leaf's size."""
        few = jax.device_get(self._sampled_rows(params, state))[0]
        every = jax.device_get(self._rows(params, state))
        if few is None or every is None:
            return few is every
        chosen = np.concatenate([np.ravel(_few(at)) for at in _positions(params)])
        return all(
            np.allclose(part, np.asarray(whole)[chosen], rtol=1e-4, atol=0.0, equal_nan=True)
            for effects, wholes in zip(few, every, strict=True)
            for part, whole in zip(effects, wholes, strict=True)
        )

    def _leaves_alone(self, params: PyTree, state: PyTree) -> list[bool]:
        # Operation by operation, each of the optimizer's would be compiled for every shape.
        alone = jax.jit(functools.partial(leaves_alone, self.tx))(*_sampled(params, state))
        return [bool(each) for each in alone]

    def _edge(
        self, state: PyTree, params: PyTree, batch: Any, gradients: PyTree, factor: float
    ) -> dict[str, float]:
        one_factor = math.isfinite(factor)
        loop = component_loop(self._rows(params, state), params, gradients) if one_factor else None
        # Memory that never fades moves with the parameters: that is no answer to a gradient.
        if loop is None or not loop.settles:
            size = sum(np.size(leaf) for leaf in jax.tree.leaves((params, state)))
            if size > LARGEST_COUPLED:
                return {"margin": math.nan}
            whole = closed_loop(self.tx, self._on(batch), params, state, num=4)
            margin = {"margin": whole.margin, "spectral_radius": whole.spectral_radius}
            return margin | _multipliers(whole.oscillating)
        # From here on the memory is for the search of the sharpness alone.
        root = jax.tree.map(jnp.sqrt, loop.rate)
        loop = dataclasses.replace(loop, rate=())
        if factor > 1 - CLIPPING:
            del gradients
            times = functools.partial(self._product, params, batch, root, (1.0, None))
            sharpness = top_curvature(times, root, steps=self.lanczos_steps)
        else:
            length = jnp.maximum(optax.tree.norm(gradients), np.finfo(np.float32).tiny)
            clip = (factor, jax.tree.map(lambda g: g / length, gradients))
            times = functools.partial(self._product, params, batch, root, clip)
            sharpness = top_real_part(times, root, steps=self.lanczos_steps)
        found = {
            "sharpness": sharpness,
            "sharpness_edge": loop.edge,
            "margin": loop.margin(sharpness),
            "clip_factor": min(factor, 1.0),
        }
        return found | _multipliers(loop.multipliers(sharpness))


def _multipliers(values: Complex[np.ndarray, " K"]) -> dict[str, float]:
    """The largest, of a conjugate pair the one above the axis, as pairs of numbers."""
    upper = values[values.imag >= 0]
    chosen = upper[np.argsort(-np.abs(upper))][:MULTIPLIERS]
    return {
        f"multiplier/{k}/{part}": float(getattr(value, part))
        for k, value in enumerate(chosen)
        for part in ("real", "imag")
    }


def _norm(leaf: Any) -> Any:
    return jnp.linalg.norm(jnp.ravel(leaf).astype(jnp.float32))


def _named(params: PyTree) -> list[tuple[str, Any]]:
    names = [name or "params" for name in leaf_names(params)]
    return list(zip(names, jax.tree.leaves(params), strict=True))


def _sampled(params: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
    """The first entries of every leaf, along each axis, and of the state's leaves like them.

    Ranks and paths stay, and with them what masks and partitions choose by.
    """
    shapes = {np.shape(leaf) for leaf in jax.tree.leaves(params)}

    def few(leaf: Any) -> Any:
        return _few(leaf) if np.shape(leaf) in shapes and np.ndim(leaf) else leaf

    return jax.tree.map(few, params), jax.tree.map(few, state)


def _positions(params: PyTree) -> list[np.ndarray]:
    """Where each entry stands among all, as arrays like the leaves."""
    sizes = [int(np.size(leaf)) for leaf in jax.tree.leaves(params)]
    starts = np.cumsum([0, *sizes[:-1]])
    return [
        start + np.arange(size).reshape(np.shape(leaf))
        for start, size, leaf in zip(starts, sizes, jax.tree.leaves(params), strict=True)
    ]


def _few(leaf: Any) -> Any:
    return leaf[tuple(slice(SAMPLED) for _ in np.shape(leaf))]


def _few_params(params: PyTree) -> PyTree:
    """Shapes alone: what the rates of the sampled entries are arranged by."""
    return jax.tree.map(lambda leaf: np.zeros([min(n, SAMPLED) for n in np.shape(leaf)]), params)
