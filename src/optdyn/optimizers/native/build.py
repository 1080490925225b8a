"""Builds the native code with the machine's C++ compiler and hands it to XLA.

The library is kept in the user's cache folder, under a name that says what it was
built from and for. A machine without a compiler, or with `OPTDYN_NATIVE=off` in the
environment, uses the plain JAX step instead: the same numbers to rounding, slower.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

from optdyn.errors import UserError
from optdyn.user_cache import cache_folder

SWITCH = "OPTDYN_NATIVE"
SOURCES = ("gru.cc", "update.h", "vectors.h", "parallel.h")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno")
FUNCTIONS = (
    *("forward_float32", "reverse_float32", "forward_float64", "reverse_float64"),
    *("update_float32", "update_bfloat16"),
)
BUILD_SECONDS = 180.0
DIGEST_SIZE = hashlib.sha256().digest_size

_log = logging.getLogger("optdyn")


@functools.cache
def targets() -> dict[str, str] | None:
    """XLA's name of each native function; None where there is no native code, and why is logged."""
    if os.environ.get(SWITCH, "on") == "off":
        return None
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        _log.info("no C++ compiler found: the plain JAX step is used")
        return None
    try:
        return _registered(compiler, _identity(compiler))
    except (OSError, UserError, subprocess.SubprocessError) as error:
        said = [line for line in (getattr(error, "stderr", None) or "").splitlines() if line]
        detail = next((line for line in said if "error:" in line), str(error))
        _log.warning("the native step was not built, the plain JAX step is used: %s", detail)
        return None


@functools.cache
def _registered(compiler: str, identity: str) -> dict[str, str]:
    """The functions' names, once they are built, loaded and known to XLA, which takes each once."""
    library = cache_folder() / "native" / f"gru-{identity}.so"
    if not _is_intact(library):
        _build(compiler, library)
    loaded = ctypes.cdll.LoadLibrary(str(library))
    names = {function: f"optdyn_{function}_{identity}" for function in FUNCTIONS}
    for function, name in names.items():
        capsule = jax.ffi.pycapsule(getattr(loaded, function))
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return names


def _is_intact(library: Path) -> bool:
    """Whether the file is there and ends with the SHA-256 of what comes before.

    A damaged one would end the process when it is loaded, or compute something else.
    """
    try:
        content = library.read_bytes()
    except FileNotFoundError:
        return False
    code, signature = content[:-DIGEST_SIZE], content[-DIGEST_SIZE:]
    return hashlib.sha256(code).digest() == signature


def _identity(compiler: str) -> str:
    """A name for what the library depends on: source, headers, compiler and processor."""
    folder = Path(__file__).parent
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True
    ).stdout
    parts = [(folder / source).read_bytes() for source in SOURCES]
    parts += [version.encode(), " ".join(FLAGS).encode(), jax.__version__.encode(), _processor()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> bytes:
    """The processor's model and abilities: a shared home folder serves unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"".join(sorted({line for line in lines if line.startswith((b"flags", b"model name"))}))


def _build(compiler: str, library: Path) -> None:
    """Compile into a temporary file beside ``library``, sign it, then rename it."""
    library.parent.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).parent / SOURCES[0]
    handle, unfinished = tempfile.mkstemp(dir=library.parent, suffix=".unfinished")
    os.close(handle)
    command = [compiler, *FLAGS, "-shared", "-fPIC", f"-I{jax.ffi.include_dir()}"]
    try:
        subprocess.run(
            [*command, str(source), "-o", unfinished],
            capture_output=True,
            text=True,
            check=True,
            timeout=BUILD_SECONDS,
        )
        with open(unfinished, "r+b") as file:
            file.write(hashlib.sha256(file.read()).digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, library)
    finally:
        Path(unfinished).unlink(missing_ok=True)
