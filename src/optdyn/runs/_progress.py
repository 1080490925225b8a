"""Progress of a long loop: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import datetime
import math
import sys
import time
from collections.abc import Callable, Iterator

Advance = Callable[[int, str], None]
Show = Callable[[int, str, str], None]

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
    kind = _bar if sys.stdout.isatty() else _lines
    first: tuple[int, float] | None = None
    with kind(description, total, done) as show:

        def advance(count: int, words: str) -> None:
            nonlocal first
            now = time.monotonic()
            first = first or (count, now)  # what comes before the first report is compiling
            rate = (count - first[0]) / (now - first[1]) if count > first[0] else 0.0
            show(count, words, _speed(rate, total - count) if rate else "")

        yield advance


@contextlib.contextmanager
def _lines(description: str, total: int, _: int) -> Iterator[Show]:
    last = -math.inf

    def show(count: int, words: str, speed: str) -> None:
        nonlocal last
        now = time.monotonic()
        if count >= total or now - last >= SECONDS_BETWEEN_LINES:
            last = now
            print(f"{description}: {count}/{total}  {words}  {speed}".rstrip(), flush=True)

    yield show


@contextlib.contextmanager
def _bar(description: str, total: int, done: int) -> Iterator[Show]:
    from rich import progress as rich_progress  # needed on a terminal only

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),  # moves from the start, while programs compile
        rich_progress.TextColumn("{task.fields[words]}"),
        rich_progress.TextColumn("{task.fields[speed]}"),
    )
    with rich_progress.Progress(*columns, refresh_per_second=4) as bar:
        task = bar.add_task(description, total=total, completed=done, words="", speed="")
        yield lambda count, words, speed: bar.update(
            task, completed=count, words=words, speed=speed
        )


def _speed(rate: float, left: int) -> str:
    each = f"{rate:.1f} steps/s" if rate >= 1.0 else f"{1.0 / rate:.1f} s each"
    return f"{each}  ETA {datetime.timedelta(seconds=round(left / rate))}"
