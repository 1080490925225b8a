"""``optdyn doctor``."""

from __future__ import annotations

import os
import platform
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from optdyn.cli import _devices as devices
from optdyn.cli._options import Output, OutputOptions
from optdyn.cli._output import Result, present
from optdyn.errors import UserError
from optdyn.runs._cards import versions

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FAULT = 1


def doctor(*, output: Output = OutputOptions()) -> int:
    """Check the installation and print what was found; 1 if a check failed, else 0."""
    devices.start_for_small_programs()
    failed: list[str] = []

    def work() -> Result:
        from optdyn.study._self_test import CHECKS, run_check

        here, checks = environment(), []
        for name, check in {"the cache can be written": cache_is_writable, **CHECKS}.items():
            print(f"checking: {name}", flush=True)
            checks.append(run_check(name, check))
        failed.extend(check.name for check in checks if not check.ok)
        verdict = f"not well: {', '.join(failed)}" if failed else "all is well"
        lines = [
            *(f"{name}: {_in_words(value)}" for name, value in here.items()),
            *(
                f"{'ok   ' if check.ok else 'FAULT'} {check.name}: {check.found} "
                f"({check.seconds:.1f} s)"
                for check in checks
            ),
            verdict,
        ]
        return Result({"ok": not failed, **here, "checks": checks}, lines)

    present(output, work)
    return FAULT if failed else 0


def environment() -> dict[str, Any]:
    """Versions, machine, devices, and the folder of compiled programs."""
    import jax

    from optdyn.optimizers.native.build import targets

    return {
        "versions": versions(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "devices": dict(Counter(device.device_kind for device in jax.devices())),
        "large pages": large_pages(),
        "cache": _cache(),
        "native step": "built" if targets() else "not here: the plain step is used, and is slower",
    }


def large_pages() -> str:
    """Whether this process may use large memory pages, as far as can be seen."""
    if not HUGE_PAGES.exists():
        return "none on this system"
    if "[never]" in HUGE_PAGES.read_text(encoding="ascii"):
        return "switched off by the system"
    asked = "hugetlb=1" in os.environ.get(devices.TUNABLES, "")
    return "asked for" if asked else f"not asked for ({devices.TUNABLES} says otherwise)"


def _cache() -> Path | str:
    try:
        return devices.program_folder()
    except UserError as error:
        return str(error)


def cache_is_writable() -> tuple[bool, str]:
    """The folder for compiled programs can be written to; else each command compiles anew."""
    folder = devices.program_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return True, f"{folder} holds {size / 1e6:.0f} MB"


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {of}" for name, of in value.items())
    return str(value)
