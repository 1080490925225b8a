"""Chunks of work on a Ray cluster; `RayEngine` is the one place that imports Ray.

A worker has one device: one CPU device, or one accelerator where the cluster has
any. It makes the work's function once and keeps it compiled. XLA is set up
there as it is here, so that results are the same to the bit on like machines.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from optdyn.distributed._engines import Chunk, Result, Work
from optdyn.errors import UserError, first_line, shown

SECONDS_TO_ANSWER = 3.0
TRIES = "3"
"""How often Ray asks, a second apart, whether what answers at an address is a cluster."""
START_ONE = (
    "start a cluster there (ray start --head), or leave --address out for one on this machine"
)
RETRIES = 5
"""How often a chunk is done again because its worker was lost."""

PASSED_ON = (
    "XLA_FLAGS",
    "JAX_ENABLE_X64",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_COMPILATION_CACHE_DIR",
    "OPTDYN_NATIVE",
)
"""Environment variables on which results, or the time they take, depend."""


class RayEngine:
    """Joins the cluster at ``address``, or starts one on this machine (None).

    Raises `UserError` where Ray is not installed or the cluster cannot be reached.
    """

    def __init__(self, address: str | None = None) -> None:
        if address not in (None, "auto"):
            require_reachable(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", TRIES)
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise UserError(
                "--engine: ray is not installed (pip install 'optdyn[ray]', or use local)"
            ) from None
        try:
            if not ray.is_initialized():
                ray.init(address=address, include_dashboard=False, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--address: cannot join {address!r} ({reason}); {START_ONE}") from None
        gpus = ray.cluster_resources().get("GPU", 0)
        self._ray = ray
        self._remote = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=RETRIES)(
            on_worker
        )

    def map(self, work: Work, chunks: Iterable[Chunk]) -> Iterator[Result]:
        """The results, in the order of ``chunks``, which are all under way at once.

        Raises `UserError` when a chunk's workers were lost more than `RETRIES` times.
        """
        ray = self._ray
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        settings = json.dumps(work.settings, sort_keys=True)
        pending = [
            self._remote.remote(environment, work.maker, settings, chunk) for chunk in chunks
        ]
        try:
            for each in pending:
                yield ray.get(each)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--engine: ray lost a chunk ({reason})") from None


def require_reachable(address: str) -> None:
    """Raise `UserError` where nothing answers at a cluster's address; Ray would try for long."""
    host, _, port = address.removeprefix("ray://").partition("/")[0].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER):
            pass
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"--address: nothing answers at {shown(address)} ({first_line(error)}); {START_ONE}"
        ) from None


def on_worker(environment: Mapping[str, str], maker: str, settings: str, chunk: Chunk) -> Result:
    """One chunk, in a worker."""
    if "jax" not in sys.modules:  # it reads its environment once
        for name in PASSED_ON:
            os.environ.pop(name, None)
        os.environ.update(environment)
    from optdyn.precision import use_exact_products

    use_exact_products()
    return _made(maker, settings)(chunk)


@functools.lru_cache(maxsize=8)
def _made(maker: str, settings: str) -> Callable[[Chunk], Any]:
    """The function that ``maker`` makes of ``settings`` (JSON)."""
    module, _, name = maker.partition(":")
    return getattr(importlib.import_module(module), name)(**json.loads(settings))
