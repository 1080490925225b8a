"""Runs the tiny runs in forks of itself and ends them by a signal.

Each line of standard input is a JSON object: the ``run`` and its ``folder``;
``signal``, or null to let it end; ``after`` how many seconds to send it,
counted from when the run first replaced a file if ``working``, else from its
start. Each line of standard output tells how that went. A fork is made before JAX
starts anything, and spares every run the imports.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
import optax  # noqa: F401
import pyarrow.parquet  # noqa: F401
import safetensors.numpy  # noqa: F401

import optdyn  # noqa: F401
from tiny_runs import RUNS

LONGEST = 120.0


def child(request: dict[str, Any], began: int) -> int:
    folder = Path(request["folder"])
    output = os.open(folder.with_suffix(".output"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    replace = os.replace

    def noted(*arguments: Any, **options: Any) -> None:
        os.write(began, b".")
        replace(*arguments, **options)

    os.replace = noted
    code = RUNS[request["run"]](folder)
    sys.stdout.flush()
    sys.stderr.flush()
    return code or 0


def serve(request: dict[str, Any]) -> dict[str, Any]:
    told, began = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = child(request, began)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(began)
    worked = started
    if request["working"]:
        select.select([told], [], [], LONGEST)
        worked = time.monotonic()
    due = worked + (request["after"] if request["signal"] else LONGEST)
    sent = None
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        now = time.monotonic()
        if ended:
            break
        if sent is None and now >= due:
            os.kill(pid, request["signal"] or signal.SIGKILL)
            sent = now
        time.sleep(0.002)
    os.close(told)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds_of_work": now - worked,
        "seconds_to_end": None if sent is None else now - sent,
    }


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", sys.argv[1])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
