"""A readable optimizer: parts in a fixed order, any of them left out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import optax

from optdyn.distillation.parts import (
    AdaptiveScaling,
    Forgetting,
    Momenta,
    Saturation,
    Schedule,
    forgetful,
)
from optdyn.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import PyTree


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

    def as_optax(self) -> optax.GradientTransformation:
        """The optax chain of its parts."""
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
