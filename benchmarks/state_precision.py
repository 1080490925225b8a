"""The meta-objective with the state stored in bfloat16: `python -m benchmarks.state_precision`.

Meta-trains small GRUs with either type and judges each, in float32, on the same validation
problems; writes ``benchmarks/results/state_precision.json`` and a table in docs/scaling.md.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from optdyn.meta_training._gradient import meta_value_and_grad
from optdyn.optimizers._componentwise_rnn import ComponentwiseRNN
from optdyn.optimizers._state_precision import STATE_DTYPES
from optdyn.search._learning_rate import make_trainer, make_validator
from optdyn.study._recipes import recipe_for
from optdyn.tasks import make_task

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- begin precision -->", "<!-- end precision -->"
RESULTS = Path(__file__).parent / "results" / "state_precision.json"
TASKS = ("linear_regression", "rosenbrock")
SEEDS = (0, 1, 2)
UNITS, META_STEPS, UNROLL_LENGTH, BATCH = 16, 300, 100, 16
PROBLEMS = 256


def main() -> None:
    rows = [row for task in TASKS for seed in SEEDS for row in measure(task, seed)]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    lines = [
        "| task | seed | float32 | bfloat16 | change | meta-gradient's change |",
        "|---|---|---|---|---|---|",
    ]
    for exact, rounded in zip(rows[::2], rows[1::2], strict=True):
        before, after = exact["meta_objective"], rounded["meta_objective"]
        lines.append(
            f"| {exact['task'].replace('_', ' ')} | {exact['seed']} | {before:.4g} | {after:.4g} "
            f"| {after / before - 1:+.1%} | {rounded['gradient_change']:.1e} |"
        )
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}")


def measure(name: str, seed: int) -> list[dict[str, object]]:
    """A row for each type; ``gradient_change``: of one meta-gradient of the float32 result."""
    recipe, task = recipe_for(name, "laptop"), make_task(name)
    architecture = dataclasses.replace(recipe.architecture, units=UNITS)
    rows, gradients, optimizer = [], [], None
    for dtype in STATE_DTYPES:
        protocol = dataclasses.replace(
            recipe.protocol,
            num_meta_steps=META_STEPS,
            unroll_length=UNROLL_LENGTH,
            batch_size=BATCH,
            state_dtype=dtype,
        )
        trained = make_trainer(task, architecture, protocol, seed, None)
        result = trained(protocol.learning_rate, META_STEPS)
        judge = make_validator(task, architecture, protocol, seed, PROBLEMS)
        optimizer = optimizer or result
        gradients.append(gradient(optimizer, task, protocol))
        rows.append(
            {
                "task": name,
                "seed": seed,
                "state_dtype": dtype,
                "units": UNITS,
                "meta_steps": META_STEPS,
                "unroll_length": UNROLL_LENGTH,
                "meta_objective": judge(result),
                "gradient_change": relative_change(gradients[-1], gradients[0]),
            }
        )
    return rows


def gradient(optimizer: ComponentwiseRNN, task, protocol) -> jax.Array:
    return jax.jit(
        lambda opt: meta_value_and_grad(
            opt,
            task,
            jax.random.key(0),
            batch_size=BATCH,
            options=protocol.unroll_options(),
        )[1]
    )(optimizer)


def relative_change(one, other) -> float:
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, one, other))
    return float(difference / optax.tree.norm(other))


if __name__ == "__main__":
    main()
