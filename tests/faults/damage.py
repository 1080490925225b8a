"""Ways to damage a file."""

from __future__ import annotations

import random
from pathlib import Path

from optdyn.errors import UserError


def require_one_line(error: UserError, where: Path) -> None:
    assert str(where) in str(error)
    assert "\n" not in str(error)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """``content`` cut off somewhere, or with one bit flipped (sometimes several)."""
    if chance.random() < 0.3:
        return content[: chance.randrange(len(content))]
    flipped = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 20])):
        # Headers, cards and footers steer what is read: a third of the flips each.
        low, high = chance.choice([(0, 200), (0, len(content)), (len(content) - 600, len(content))])
        flipped[chance.randrange(max(0, low), min(high, len(content)))] ^= 1 << chance.randrange(8)
    return bytes(flipped)
