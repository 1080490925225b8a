"""The command that a target of the Makefile runs, at a small size."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from optdyn.cli.main import main
from optdyn.runs._checkpoints import load_optimizer

ROOT = Path(__file__).parent.parent


def test_the_gpu_target_trains_by_the_papers_protocol(tmp_path: Path) -> None:
    small = "--task-option width=2 --task-option depth=1 --task-option points=8 --unroll-length 3"
    variables = {"UNITS": "2", "META_STEPS": "1", "GPU_OUT": str(tmp_path / "run"), "MORE": small}
    printed = subprocess.run(
        [
            "make",
            "--no-print-directory",
            "--dry-run",
            "paper-gpu",
            *(f"{name}={text}" for name, text in variables.items()),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    program, *arguments = shlex.split(printed.splitlines()[-1])
    assert program.endswith("bin/optdyn")
    assert main(arguments) == 0
    checkpoint = tmp_path / "run" / "two_moons" / "checkpoints" / "step-000001.safetensors"
    protocol = load_optimizer(checkpoint)[1].protocol
    assert (protocol.batch_size, protocol.decay, protocol.decay_every) == (32, 0.8, 500)
    assert protocol.gradient == "exact"
