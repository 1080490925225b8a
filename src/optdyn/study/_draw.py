"""Draw a study's figures, where there are many in several processes.

A process of its own is a command: `python -m optdyn.study._draw FOLDER PART PARTS TASK...` reads
the results from the run folder, draws its part and prints what it placed. Forking would
copy JAX's threads' locks, and what starts processes from an imported module runs a user's
script again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from optdyn.runs._run_folder import RunFolder
from optdyn.study._results import TaskResults, read_results
from optdyn.study._stories import Numbered, Placed, count_drawings, draw_part

FIGURES = "figures"
MANY = 24
"""From so many drawings on, as two tasks have, more processes save more than they take to start."""
MOST_PROCESSES = 4


def draw_study(run: RunFolder, results: Sequence[TaskResults]) -> list[Placed]:
    """Draw every figure that ``results`` of ``run`` allow, in the order of the stories.

    What another process could not draw (a task of the user's own script, say, which it cannot
    import) is drawn here.
    """
    parts = 1
    if count_drawings(results) >= MANY:
        parts = min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
    helpers = [_started(run.path, part, parts, results) for part in range(1, parts)]
    try:
        placed = draw_part(results, run.path / FIGURES, 0, parts)
        for part, helper in enumerate(helpers, start=1):
            answer, _ = helper.communicate()
            drawn = _read(answer) if helper.returncode == 0 else None
            if drawn is None:
                drawn = draw_part(results, run.path / FIGURES, part, parts)
            placed |= drawn
    finally:
        for helper in helpers:
            helper.kill()
            helper.wait()
    return [each for number in sorted(placed) for each in placed[number]]


def _started(
    folder: Path, part: int, parts: int, results: Sequence[TaskResults]
) -> subprocess.Popen[bytes]:
    tasks = [result.task for result in results]
    command = [sys.executable, "-m", __name__, str(folder), str(part), str(parts), *tasks]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _read(answer: bytes) -> Numbered | None:
    try:
        return msgspec.json.decode(answer, type=Numbered)
    except msgspec.DecodeError:
        return None


def main(folder: str, part: str, parts: str, *tasks: str) -> None:
    """Draw one part, and print what was placed."""
    run = RunFolder(Path(folder))  # it is read alone; the process that waits has the lock
    results = [read_results(run, task) for task in tasks]
    placed = draw_part(results, run.path / FIGURES, int(part), int(parts))
    sys.stdout.buffer.write(msgspec.json.encode(placed))


if __name__ == "__main__":
    main(*sys.argv[1:])
