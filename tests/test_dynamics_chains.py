"""Chains of transforms built at random: each is right, or refused with the cause."""

from __future__ import annotations

import pytest

from chains import random_chain, worst_error
from optdyn.errors import UserError

ALLOWED = 1e-6
KNOWN = ("random", "does not exist", "more than a few common f")
"""Parts of the causes. The last: a clip by norm beside cycles, in leaves of few components."""
LEAST_RIGHT = 0.6


@pytest.mark.usefixtures("x64")
def test_random_chains_are_right_or_refused(full: bool, figures: dict[str, object]) -> None:
    right, refused, wrong = 0, [], []
    for seed in range(100 if full else 1):
        chain = random_chain(seed)
        try:
            error = worst_error(chain, seed)
        except UserError as cause:
            refused.append((seed, chain.parts, str(cause)[:90]))
            continue
        right += error <= ALLOWED
        if chain.noisy or not error <= ALLOWED:
            wrong.append((seed, chain.parts, error))
    figures["random chains: right"] = right
    figures["random chains: refused"] = refused
    assert not wrong, wrong
    assert not full or right >= LEAST_RIGHT * 100
    assert all(any(word in cause for word in KNOWN) for _, _, cause in refused), refused
