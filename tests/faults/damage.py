"""Ways to damage a file, and to forge one: whoever writes a file can sign it, too."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from optdyn.errors import UserError
from optdyn.runs import _checkpoints as checkpoints
from optdyn.runs._files import read_signed_json, write_signed_json

ANYTHING = [
    None,
    True,
    -1,
    0,
    3.5,
    1e308,
    10**400,
    "",
    "x",
    "\ud800",
    "../x",
    [],
    [[]],
    {},
    {"a": 1},
]


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


def forged(plain: Any, chance: random.Random) -> Any:
    """``plain`` with one thing somewhere in it removed, renamed or replaced by anything."""
    if isinstance(plain, dict) and plain and chance.random() < 0.9:
        name = chance.choice(sorted(plain))
        rest = {key: value for key, value in plain.items() if key != name}
        if chance.random() < 0.15:
            return chance.choice([rest, {**rest, "other": plain[name]}])
        return {**plain, name: forged(plain[name], chance)}
    if isinstance(plain, list) and plain and chance.random() < 0.9:
        place = chance.randrange(len(plain))
        return [*plain[:place], forged(plain[place], chance), *plain[place + 1 :]]
    return chance.choice(ANYTHING)


def forge(path: Path, chance: random.Random) -> None:
    if path.suffix == ".json":
        changed = forged(read_signed_json(path), chance)
        write_signed_json(path, changed if isinstance(changed, dict) else {})
        return
    plain, arrays = opened(path)
    sign(path, forged(plain, chance), arrays)


def opened(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The card without its checksum, and the arrays, of a checkpoint."""
    with safe_open(path, framework="numpy") as file:
        plain = json.loads(file.metadata()["card"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    plain.pop("sha256")
    return plain, arrays


def sign(path: Path, plain: Any, arrays: dict[str, np.ndarray]) -> None:
    if isinstance(plain, dict):
        plain["sha256"] = checkpoints._digest(checkpoints._canonical(plain), arrays)
    path.write_bytes(save(arrays, metadata={"card": json.dumps(plain, sort_keys=True)}))
