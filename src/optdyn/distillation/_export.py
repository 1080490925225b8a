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
    states = [name for name in ("s", "v", "k") if STATES[name][0] in values]
    initial = ", ".join(STATES[name][1] for name in states)
    after = ", ".join(STATES[name][2] for name in states)
    rate = "rate * " if "schedule" in values else ""
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
        *(f"    {line}" for line in [f"({', '.join(states)},) = state", *_steps(values)]),
        f"    return each(lambda v: -{rate}v.sum(-1), v), ({after},)",
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


def _steps(values: dict[str, Any]) -> list[str]:
    """The lines that take a gradient g through the parts, to the velocities v."""
    lines = []
    if "forgetting" in values:
        lines.append(f"b = each(lambda g: 1 / {_excess(values['forgetting'])}, g)")
    if "adaptive" in values:
        part = values["adaptive"]
        gamma, rest = _number(part["gamma"]), _number(1.0 - part["gamma"])
        power, epsilon = _number(part["power"] / 2), _number(part["epsilon"])
        lines += [
            f"s = each(lambda s, g: {gamma} * s + {rest} * jnp.stack([g**2, 0 * g + 1]), s, g)",
            f"g = each(lambda g, s: g / (s[0] / s[1] + {epsilon}) ** {power}, g, s)",
        ]
    if "saturation" in values:
        lines.append(f"g = each(lambda g: g / {_excess(values['saturation'])}, g)")
    kept, more = ("b[..., None] * ", ", b") if "forgetting" in values else ("", "")
    moved = f"{kept}beta * v + alpha * g[..., None]"
    lines.append(f"v = each(lambda v, g{more}: {moved}, v, g{more})")
    if "schedule" in values:
        pairs = zip(values["schedule"]["amplitude"], values["schedule"]["decay"], strict=True)
        terms = [f"{_number(amplitude)} * {_number(decay)}**k" for amplitude, decay in pairs]
        lines.append(f"rate = jnp.exp({' + '.join(terms)})")
    return lines


def _excess(part: dict[str, Any]) -> str:
    return f"(1 + jnp.abs(g / {_number(part['threshold'])}) ** {_number(part['power'])})"


def _list(numbers: Sequence[float]) -> str:
    return f"[{', '.join(map(_number, numbers))}]"


def _number(value: float) -> str:
    """Enough digits to give the same float32."""
    return f"{value:.9g}"
