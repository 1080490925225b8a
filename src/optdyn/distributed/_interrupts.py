"""SIGTERM and SIGINT as a request to stop at the next safe point."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

from optdyn.distributed._watch import LOST_EXIT

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_SEND_AGAIN = 0.05

T = TypeVar("T")


class Interrupted(BaseException):
    """A signal asked the run to stop, and what it had done is saved.

    The command line prints the message and exits with ``code``, ``128 + signum``. Like
    `KeyboardInterrupt` it is no `Exception`, so that no library swallows it.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
        self.code = 128 + signum


class LostProcess(Interrupted):
    """Another process of a distributed training went, and what was done is saved."""

    def __init__(self, message: str) -> None:
        super().__init__(0, message)
        self.code = LOST_EXIT


@contextlib.contextmanager
def noted_signals() -> Iterator[Callable[[], int | None]]:
    """Within the block signals are only noted; the yielded function gives the first one.

    A signal that nobody acted upon before the block ended is sent again then, unless
    the block ends with an error, which must be seen. Outside the main thread (where
    Python cannot handle signals) nothing changes.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def note(signum: int, _: FrameType | None) -> None:
        noted.append(signum)

    previous = {signum: signal.signal(signum, note) for signum in SIGNALS}
    try:
        yield lambda: noted[0] if noted else None
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if noted:
        signal.raise_signal(noted[0])


@contextlib.contextmanager
def raised_signals(message: str) -> Iterator[None]:
    """Within the block signals raise `Interrupted` with ``message``, save in `noted_signals`.

    One that arrives where Python drops exceptions (a callback of the garbage collector, a
    finalizer) is sent again a moment later. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, _: FrameType | None) -> None:
        raise Interrupted(signum, message)

    def dropped(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if not isinstance(error, Interrupted):
            return usual(unraisable)
        threading.Timer(SECONDS_TO_SEND_AGAIN, os.kill, (os.getpid(), error.signum)).start()

    usual = sys.unraisablehook
    previous = {signum: signal.signal(signum, stop) for signum in SIGNALS}
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = usual
        for signum, handler in previous.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def waiting_thread() -> Iterator[concurrent.futures.Executor]:
    """A thread to wait for slow computations in; at the end of the block it is left behind.

    Python runs signal handlers in the main thread, and there not before a
    computation outside Python has returned: another thread must do that waiting.
    """
    executor = concurrent.futures.ThreadPoolExecutor(1)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False)


def result_unless(noted: Callable[[], object], future: concurrent.futures.Future[T]) -> T | None:
    """The result of ``future``, or None as soon as something (a signal, say) is noted."""
    while noted() is None:
        finished, _ = concurrent.futures.wait([future], timeout=SECONDS_BETWEEN_LOOKS)
        if finished:
            return future.result()
    return None


def interruptible(work: Callable[[], T], message: str) -> T:
    """The result of ``work``, done in another thread and abandoned at a signal.

    For work that saves each of its parts whole. Raises `Interrupted` with ``message``.
    """
    with noted_signals() as noted, waiting_thread() as waiter:
        future = waiter.submit(work)
        result_unless(noted, future)
        signum = noted()
        if signum is not None:
            raise Interrupted(signum, message)
        return future.result()
