"""A distilled optimizer as a few lines of Python that need only jax and optax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optdyn.distillation._chain import Distilled

NAME = "distilled"
"""What the exported function is called."""


def as_code(optimizer: Distilled, origin: str = "") -> str:
    """Python that defines ``distilled()``, an optax pair with the same updates.

    Ready to be pasted: it imports jax and optax alone. ``origin``: words for the
    docstring that say what the optimizer was distilled from.
    """
    values = optimizer.values()
    named = [name for name in values if name in LINES]
    steps = [line for name in named for line in LINES[name](values[name], values)]
    if "forgetting" in values:
        steps = [_kept(values["forgetting"]), *steps]
    states = [name for name in ("s", "v", "k") if STATES[name][0] in values]
    initial = ", ".join(STATES[name][1] for name in states)
    after = ", ".join(STATES[name][2] for name in states)
    alpha, beta = (_list(values["momenta"][name]) for name in ("alpha", "beta"))
    words = " ".join(origin.replace("\\", "/").replace('"', "'").split())
    told = f"{optimizer.name[0].upper()}{optimizer.name[1:]}{f' ({words})' if words else ''}."
    body = [
        f'"""{told}"""',
        f"alpha, beta = jnp.array({alpha}), jnp.array({beta})",
        "each = jax.tree.map",
        "",
        "def init(x):",
        f"    return ({initial},)",
        "",
        "def update(g, state, x=None):",
        *(f"    {line}" for line in [f"({', '.join(states)},) = state", *steps]),
        f"    return each(lambda v: -{_rate(values)}v.sum(-1), v), ({after},)",
        "",
        "return optax.GradientTransformation(init, update)",
    ]
    head = ["import jax", "import jax.numpy as jnp", "import optax", "", "", f"def {NAME}():"]
    return "\n".join([*head, *(f"    {line}" if line else "" for line in body)]) + "\n"


STATES = {
    "s": ("adaptive", "each(lambda p: jnp.zeros((2, *p.shape)), x)", "s"),
    "v": ("momenta", "each(lambda p: jnp.zeros((*p.shape, len(beta))), x)", "v"),
    "k": ("schedule", "0", "k + 1"),
}
"""Each state's part, its initial value and its next one, as code."""


def _adaptive(part: dict[str, Any], values: dict[str, Any]) -> list[str]:
    del values
    gamma, rest = _number(part["gamma"]), _number(1.0 - part["gamma"])
    power, epsilon = _number(part["power"] / 2), _number(part["epsilon"])
    return [
        f"s = each(lambda s, g: {gamma} * s + {rest} * jnp.stack([g**2, 0 * g + 1]), s, g)",
        f"g = each(lambda g, s: g / (s[0] / s[1] + {epsilon}) ** {power}, g, s)",
    ]


def _saturation(part: dict[str, Any], values: dict[str, Any]) -> list[str]:
    del values
    threshold, power = _number(part["threshold"]), _number(part["power"])
    return [f"g = each(lambda g: g / (1 + jnp.abs(g / {threshold}) ** {power}), g)"]


def _momenta(part: dict[str, Any], values: dict[str, Any]) -> list[str]:
    del part
    if "forgetting" in values:
        return ["v = each(lambda v, g, b: b[..., None] * beta * v + alpha * g[..., None], v, g, b)"]
    return ["v = each(lambda v, g: beta * v + alpha * g[..., None], v, g)"]


def _kept(part: dict[str, Any]) -> str:
    threshold, power = _number(part["threshold"]), _number(part["power"])
    return f"b = each(lambda g: 1 / (1 + jnp.abs(g / {threshold}) ** {power}), g)"


def _schedule(part: dict[str, Any], values: dict[str, Any]) -> list[str]:
    del values
    terms = [
        f"{_number(amplitude)} * {_number(decay)}**k"
        for amplitude, decay in zip(part["amplitude"], part["decay"], strict=True)
    ]
    return [f"rate = jnp.exp({' + '.join(terms)})"]


LINES = {
    "adaptive": _adaptive,
    "saturation": _saturation,
    "momenta": _momenta,
    "schedule": _schedule,
}


def _rate(values: dict[str, Any]) -> str:
    return "rate * " if "schedule" in values else ""


def _list(numbers: Sequence[float]) -> str:
    return f"[{', '.join(map(_number, numbers))}]"


def _number(value: float) -> str:
    """Enough digits to give the same float32."""
    return f"{value:.9g}"
