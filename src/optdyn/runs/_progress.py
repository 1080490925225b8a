"""Progress of a long loop: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import datetime
import math
import sys
import time
from collections.abc import Callable, Iterator

Advance = Callable[[int, str], None]

SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def progress(description: str, total: int, done: int = 0, shown: bool = True) -> Iterator[Advance]:
    """Show a loop that stands at ``done`` of ``total``, unless ``shown`` is false.

    The yielded function takes the new count and a few words on the state, such
    as ``"meta-objective 0.031"``; rate and remaining time are added.
    """
    if not shown:
        yield lambda count, words: None
        return
    bar = _bar(description, total, done) if sys.stdout.isatty() else _lines(description, total)
    with bar as advance:
        yield advance


class _Clock:
    """The rate of a loop, from its first report on: compiling comes before that."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def rate(self, count: int) -> float | None:
        now = time.monotonic()
        if self._first is None:
            self._first = count, now
        first_count, first_time = self._first
        return (count - first_count) / (now - first_time) if count > first_count else None


@contextlib.contextmanager
def _lines(description: str, total: int) -> Iterator[Advance]:
    clock, last = _Clock(), -math.inf

    def advance(count: int, words: str) -> None:
        nonlocal last
        now, rate = time.monotonic(), clock.rate(count)
        if count < total and now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        speed = f"  {_speed(rate, total - count)}" if rate else ""
        print(f"{description}: {count}/{total}  {words}{speed}", flush=True)

    yield advance


@contextlib.contextmanager
def _bar(description: str, total: int, done: int) -> Iterator[Advance]:
    from rich import progress as rich_progress  # needed on a terminal only

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),  # moves from the start, while programs compile
        rich_progress.TextColumn("{task.fields[words]}"),
        rich_progress.TextColumn("{task.fields[speed]}"),
    )
    clock = _Clock()
    with rich_progress.Progress(*columns, refresh_per_second=4) as bar:
        task = bar.add_task(description, total=total, completed=done, words="", speed="")

        def advance(count: int, words: str) -> None:
            rate = clock.rate(count)
            speed = _speed(rate, total - count) if rate else ""
            bar.update(task, completed=count, words=words, speed=speed)

        yield advance


def _speed(rate: float, left: int) -> str:
    each = f"{rate:.1f} steps/s" if rate >= 1.0 else f"{1.0 / rate:.1f} s each"
    return f"{each}  ETA {datetime.timedelta(seconds=round(left / rate))}"
