"""Where chunks of work are done: in this process, or wherever an engine takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from optdyn.distributed._processes import read_address
from optdyn.errors import UserError, require_positive_int

if TYPE_CHECKING:
    from jax.sharding import Mesh

ENGINES = ("local", "ray")

Chunk = Any
Result = Any
"""Arrays, and what JSON can hold."""


@dataclasses.dataclass(frozen=True)
class Work:
    """A function of chunks: how to make it here, and how elsewhere.

    ``maker`` names a function as ``module:function``; called with ``settings``,
    which JSON can hold, it gives a function with the results of ``here()``.
    """

    here: Callable[[], Callable[[Chunk], Result]]
    maker: str
    settings: dict[str, Any]


class Engine(Protocol):
    """Does work on chunks."""

    def map(self, work: Work, chunks: Iterable[Chunk]) -> Iterator[Result]:
        """The results, in the order of ``chunks``."""


class LocalEngine:
    """One chunk after the other, in this process."""

    def map(self, work: Work, chunks: Iterable[Chunk]) -> Iterator[Result]:
        function = work.here()
        return map(function, chunks)


def read_engine_address(text: str) -> str:
    """``text``, when it can name a Ray cluster. Raises `UserError` for anything else."""
    if text == "auto" or text.startswith("ray://"):
        return text
    return read_address(text)


def start_engine(name: str, address: str | None) -> Engine:
    """The engine called ``name``; ``address``: of a Ray cluster to join (None: one of its own).

    Raises `UserError` where Ray is missing, or not to be reached.
    """
    if name == "local":
        if address is not None:
            raise UserError("--address: needs --engine ray")
        return LocalEngine()
    from optdyn.distributed._ray_engine import RayEngine

    return RayEngine(address)


@dataclasses.dataclass(frozen=True)
class Execution:
    """Where a search's inner loops run; the results do not depend on it.

    ``at_once`` (default: `runs_at_once`) of them are vectorised together on each device of
    the one-axis ``mesh``, ``runs_per_chunk`` are done between two saves. ``engine`` does the
    chunks: another one than the local needs the baseline to be in its registry and the task
    where a module holds it, and takes no notice of ``mesh``.

    Raises `UserError` for a bad count.
    """

    at_once: int | None = None
    runs_per_chunk: int | None = None
    mesh: Mesh | None = None
    engine: Engine = LocalEngine()

    def __post_init__(self) -> None:
        for name in ("at_once", "runs_per_chunk"):
            if getattr(self, name) is not None:
                require_positive_int(name, getattr(self, name))
