"""A readable optimizer: parts in a fixed order, any of them left out."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from optdyn.distillation._parts import (
    AdaptiveScaling,
    Forgetting,
    Momenta,
    Saturation,
    Schedule,
    forgetful,
)
from optdyn.errors import UserError
from optdyn.optimizers._state_precision import compute_in


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Distilled:
    """Adaptive scaling, saturation, momenta, schedule, in this order; None leaves one out.

    ``forgetting`` cuts the momenta's memory where the gradient that came in is large.

    A pytree of its parts' numbers, and an optimizer by ``as_optax()``.

    >>> tx = Distilled(momenta=Momenta.of([0.5], [0.75])).as_optax()
    >>> updates, state = tx.update(jax.numpy.ones(1), tx.init(jax.numpy.zeros(1)))
    >>> updates.tolist()
    [-0.5]
    """

    componentwise: ClassVar[bool] = True

    momenta: Momenta
    adaptive: AdaptiveScaling | None = None
    saturation: Saturation | None = None
    forgetting: Forgetting | None = None
    schedule: Schedule | None = None

    def parts(self) -> dict[str, Any]:
        """The parts present, by name, in the order in which a gradient passes them."""
        found = {name: getattr(self, name) for name in ORDER}
        return {name: part for name, part in found.items() if part is not None}

    def values(self) -> dict[str, dict[str, Any]]:
        """Every part's numbers, by name."""
        return {name: part.values() for name, part in self.parts().items()}

    @property
    def name(self) -> str:
        """Such as ``2 momenta, saturation``."""
        count = self.momenta.share.shape[0]
        others = [READABLE[name] for name in self.parts() if name != "momenta"]
        return ", ".join([f"{count} moment{'a' if count > 1 else 'um'}", *others])

    @property
    def size(self) -> int:
        """The number of numbers: those that ``values`` lists."""
        lists = (value for part in self.values().values() for value in part.values())
        return sum(len(value) if isinstance(value, list) else 1 for value in lists)

    def without(self, part: str) -> Distilled:
        """This optimizer less one part. Raises `UserError` where there is no such part."""
        if part == "momenta" or part not in self.parts():
            allowed = ", ".join(name for name in self.parts() if name != "momenta")
            raise UserError(f"part: {part!r} is not allowed (one of: {allowed or 'none'})")
        removed: dict[str, Any] = {part: None}
        return dataclasses.replace(self, **removed)

    def widened(self, like: Distilled) -> Distilled:
        """The same optimizer with every part that ``like`` has: those it lacked do nothing."""
        momenta = self.momenta
        lacking = like.momenta.share.shape[0] - momenta.share.shape[0]
        if lacking > 0:
            momenta = Momenta(
                momenta.log_rate,
                jnp.append(momenta.share, jnp.zeros(lacking)),
                jnp.append(momenta.beta_logit, jnp.zeros(lacking)),
            )
        lacked = [name for name in like.parts() if name not in self.parts()]
        added: dict[str, Any] = {name: getattr(idle(), name) for name in lacked}
        return dataclasses.replace(self, momenta=momenta, **added)

    def whole(self) -> Distilled:
        """The same optimizer with every part, so that one compiled program serves all sizes."""
        return self.widened(idle())

    def as_optax(self) -> optax.GradientTransformation:
        """The optax chain of its parts, computed in the type of their numbers at least."""
        return compute_in(jnp.result_type(*jax.tree.leaves(self)), self._chain())

    def _chain(self) -> optax.GradientTransformation:
        before = [part.as_optax() for part in (self.adaptive, self.saturation) if part is not None]
        after = [] if self.schedule is None else [self.schedule.as_optax()]
        if self.forgetting is None:
            return optax.chain(*before, self.momenta.as_optax(), *after)
        passed = optax.chain(*before) if before else optax.identity()
        return optax.chain(forgetful(passed, self.momenta, self.forgetting), *after)


ORDER = ("adaptive", "saturation", "momenta", "forgetting", "schedule")
READABLE = {
    "adaptive": "adaptive scaling",
    "saturation": "saturation",
    "forgetting": "forgetting",
    "schedule": "schedule",
}


@functools.cache
def idle() -> Distilled:
    """Every part, each doing nothing: one momentum is without memory, the other without a rate.

    With these numbers float32 gives back what comes in, to the bit. (A function, because
    arrays made at import would start JAX before its devices are chosen.)
    """
    with jax.ensure_compile_time_eval():
        return Distilled(
            Momenta.of([1.0, 0.0], [0.5, 0.5]),
            adaptive=AdaptiveScaling.of(0.5, 1e-30, 1.0),
            saturation=Saturation.of(1e30, 0.9),
            forgetting=Forgetting.of(1e30, 0.9),
            schedule=Schedule.of([0.0, 0.0], [0.5, 0.95]),
        )


def from_values(values: dict[str, dict[str, Any]]) -> Distilled:
    """The optimizer whose `Distilled.values` these are. Raises `UserError` for bad ones."""
    kinds: dict[str, Any] = {
        "adaptive": AdaptiveScaling, "saturation": Saturation,
        "momenta": Momenta, "forgetting": Forgetting, "schedule": Schedule,
    }  # fmt: skip
    try:
        parts: PyTree = {name: kinds[name].of(**part) for name, part in values.items()}
        return Distilled(**parts)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"distilled optimizer: bad values ({error})") from None
