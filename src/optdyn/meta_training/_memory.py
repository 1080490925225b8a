"""Chooses how a meta-gradient keeps within a number of bytes.

The model, for each device: c problems at once whose reverse pass keeps R bytes
a step and problem, and whose carry (parameters and optimizer state) is C bytes,
over T steps, need

    c (T + 2) R                              when every step is kept,
    c (⌈T/s⌉ C + (s + 2) R)                  when segments of s steps are recomputed,

of which s = √(T C / R) needs least. The two extra R are the step being worked
on. The program itself, JAX and the meta-parameters come on top of it.
"""

from __future__ import annotations

import dataclasses
import math

from optdyn.errors import UserError

ENOUGH = 2**18
"""Bytes of carry beyond which more problems at once do not speed up a step."""


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes a problem: ``kept`` for the reverse pass of one step (R), ``carry`` (C)."""

    kept: int
    carry: int

    def needed(self, num_steps: int, chunk: int, segment: int | None) -> int:
        """Bytes for ``chunk`` problems at once (the model above)."""
        if segment is None or segment >= num_steps:
            return chunk * (num_steps + 2) * self.kept
        return chunk * (math.ceil(num_steps / segment) * self.carry + (segment + 2) * self.kept)

    def best_segment(self, num_steps: int) -> int:
        """The segment that needs the least memory."""
        return min(range(1, num_steps + 1), key=lambda segment: self.needed(num_steps, 1, segment))


def fit_to_budget(
    step: StepMemory,
    budget: int,
    *,
    num_steps: int,
    batch: int,
    segment: int | None = None,
    chunk: int | None = None,
) -> tuple[int | None, int]:
    """The (segment, chunk) that cost least time among those within ``budget`` bytes.

    Everything at once where it fits; else smaller chunks, as long as each still
    fills a step (`ENOUGH`); else such chunks, and then smaller ones, with
    recomputed segments. A ``segment`` or ``chunk`` that is given stays.

    Raises `UserError` where nothing fits, naming the least that would.
    """
    chunks = [chunk] if chunk else [n for n in range(batch, 0, -1) if batch % n == 0]
    filling = min((n for n in chunks if n * step.carry >= ENOUGH), default=chunks[0])
    recomputed = segment or step.best_segment(num_steps)
    choices = [(segment, n) for n in chunks if n >= filling]
    choices += [(recomputed, n) for n in chunks if n <= filling]
    for segment_choice, chunk_choice in choices:
        if step.needed(num_steps, chunk_choice, segment_choice) <= budget:
            return segment_choice, chunk_choice
    least = min(step.needed(num_steps, n, s) for s, n in choices)
    raise UserError(
        f"memory budget: {budget} bytes a device are not allowed (at least {least} are needed)"
    )
