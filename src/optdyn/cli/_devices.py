"""JAX as a command uses it: devices, a cache of compiled programs, large memory pages."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from optdyn.errors import UserError
from optdyn.user_cache import cache_folder

if TYPE_CHECKING:
    from jax.sharding import Mesh

TUNABLES = "GLIBC_TUNABLES"
CACHE = "JAX_COMPILATION_CACHE_DIR"
FLAGS = "XLA_FLAGS"
SHORTEST_CACHED = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def require_even_batch(batch_size: int, chunk: int | None, devices: int | None) -> None:
    """Raise `UserError` unless the batch divides over the devices asked for, and over chunks."""
    if devices is not None and batch_size % devices:
        raise UserError(
            f"--devices: {devices} is not allowed (a divisor of --batch-size {batch_size})"
        )
    if not _fits(devices or 1, batch_size, chunk):
        raise UserError(
            f"--chunk: {chunk} is not allowed (a divisor of the problems on each device: "
            f"{batch_size // (devices or 1)})"
        )


def use_large_pages() -> None:
    """Start this process anew with large memory pages, unless `GLIBC_TUNABLES` is set already.

    A meta-step takes its memory from the system anew each time, gigabytes on
    networks, and with pages of 4 KiB that is a quarter of its time. The C library
    (glibc 2.35 or newer; others take no notice) reads the setting only at start.
    """
    if sys.platform == "linux" and TUNABLES not in os.environ:
        environment = os.environ | {TUNABLES: "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, sys.orig_argv, environment)


def start(
    devices: int | None, batch_size: int = 0, chunk: int | None = None, components: int = 1
) -> Mesh | None:
    """Set JAX up, before its first use, with a mesh over ``devices`` (None for a single one).

    Where ``devices`` is None: as many of the machine's accelerators, or of its
    cores, as the batch divides over. ``components``: of these, how many share each
    problem. Raises `UserError` when there are too few.
    """
    import jax

    from optdyn.meta_training._components import make_mesh
    from optdyn.precision import use_exact_products

    use_compilation_cache()
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(RuntimeError):  # JAX has started: its devices are settled
        count = devices or components * _most(cores // components, batch_size, chunk)
        jax.config.update("jax_num_cpu_devices", count)
    use_exact_products()
    present = jax.devices()
    count = devices or components * _most(len(present) // components, batch_size, chunk)
    if count > len(present):
        raise UserError(f"--devices: {count} is not allowed (at most {len(present)} here)")
    return make_mesh(present[:count], components) if count > 1 else None


def start_for_small_programs() -> None:
    """Set JAX up as `start` does, on one device, to compile without optimizing.

    For commands whose many small programs run once: compiling them is most of their time.
    """
    flags = os.environ.get(FLAGS)
    os.environ[FLAGS] = f"{flags or ''} --xla_backend_optimization_level=0".strip()
    try:
        start(1)  # here XLA reads its flags
    finally:
        if flags is None:
            del os.environ[FLAGS]
        else:
            os.environ[FLAGS] = flags


def _most(available: int, batch_size: int, chunk: int | None) -> int:
    return max(n for n in range(1, max(1, available) + 1) if n == 1 or _fits(n, batch_size, chunk))


def _fits(devices: int, batch_size: int, chunk: int | None) -> bool:
    each, left_over = divmod(batch_size, devices)
    return not left_over and (chunk is None or each % chunk == 0)


def use_compilation_cache() -> None:
    """Store compiled programs for later commands, unless the user has settled where already.

    Where their folder cannot be written each command compiles anew; `optdyn doctor` says so.
    """
    import jax

    # A disk that fills up later costs time, too.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if SHORTEST_CACHED not in os.environ:
        # A short command compiles a hundred small programs, which together take seconds.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if CACHE in os.environ:
        return
    with contextlib.suppress(OSError, UserError, UnicodeEncodeError):
        folder = program_folder()
        folder.mkdir(parents=True, exist_ok=True)
        str(folder).encode()
        jax.config.update("jax_compilation_cache_dir", str(folder))


def program_folder() -> Path:
    """The folder of compiled programs. Raises `UserError` as `cache_folder` does."""
    return Path(os.environ.get(CACHE) or cache_folder() / "xla")
