"""A Ray cluster that is not there is refused at once, with the next thing to do."""

from __future__ import annotations

import pytest

from optdyn.distributed._ray_engine import require_reachable
from optdyn.errors import UserError


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "ray://127.0.0.1", "[::1]:1", "ray://x:9e9"]
)
def test_an_address_where_nothing_answers(address: str) -> None:
    with pytest.raises(UserError, match=r"--address: nothing answers at .*ray start --head"):
        require_reachable(address)
