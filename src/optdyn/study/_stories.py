"""The table of figures: what each one is called in the paper, what it shows, how it is drawn.

One more figure is one more row, and a drawing function that takes results and gives `Drawn`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from optdyn.figures import save_figure
from optdyn.runs._progress import progress
from optdyn.runs._run_folder import RunFolder
from optdyn.runs._store import write_bytes
from optdyn.study import _drawing as draw
from optdyn.study._drawing import STAGE, Drawn
from optdyn.study._results import TaskResults, read_results

FIGURES = "figures"
MANY = 24
"""From so many drawings on, as two tasks have, more processes save more than they take to start."""
MOST_PROCESSES = 4


@dataclasses.dataclass(frozen=True)
class Story:
    """A figure in words, and how it is drawn.

    ``key`` begins its files' names. ``number``: the paper's, "" for a figure of this project.
    ``needs``: the results that a task must have to be in it (fields of `TaskResults`).
    It is drawn by ``of_task`` for each task, or by ``of_all`` once for all of them.
    ``paper_files``: names of files by task, where the paper numbers a figure by task.
    """

    key: str
    number: str
    title: str
    caption: str
    needs: tuple[str, ...]
    of_task: Callable[[TaskResults], Iterator[Drawn]] | None = None
    of_all: Callable[[Sequence[TaskResults]], Iterator[Drawn]] | None = None
    paper_files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def drawings(self, results: Sequence[TaskResults]) -> Sequence[Callable[[], Iterator[Drawn]]]:
        """Calls that each draw some of its pictures, of the tasks that have what it needs."""
        able = [result for result in results if result.has(*self.needs)]
        together = [functools.partial(self.of_all, able)] if self.of_all and able else []
        return [*together, *(functools.partial(self.of_task, r) for r in able if self.of_task)]

    def file(self, drawn: Drawn) -> str:
        """The name of a picture's files, without suffix."""
        if drawn.task in self.paper_files and drawn.variant in ("", STAGE):
            return self.paper_files[drawn.task]
        task = drawn.task.replace(":", ".")
        return "_".join(filter(None, (self.key, task, drawn.variant)))


STORIES = (
    Story("fig02", "Fig. 2", "The tasks",
          "Linear regression: histogram of the ratio of the largest to the smallest eigenvalue of "
          "AᵀA over sampled problems; the dashed line is the median. Rosenbrock: loss over the "
          "square from which starting points are drawn, one white contour a decade, the star at "
          "the only minimum. Two moons: the points that the network learns to separate.",
          (), draw.problems, paper_files={
              "linear_regression": "fig02a", "rosenbrock": "fig02b", "two_moons": "fig02c"
          }),
    Story("fig07a", "Fig. 7a", "Eigenvalues of the linearised optimizer",
          "Eigenvalues β of the Jacobian ∂F/∂h at the fixed point, with the unit circle; right, "
          "the square near 1 enlarged. An eigenvalue of size β is a momentum of timescale −1/ln|β| "
          "steps. The mode with the largest steady-state gain is the diamond.",
          ("analysis",), draw.eigenvalues, paper_files={"linear_regression": "fig07a"}),
    Story("fig07b", "Fig. 7b", "Each mode as a momentum optimizer",
          "Momentum timescale against learning rate for every eigenmode. The full gold star is the "
          "best tuned momentum, the open one the optimum that theory gives where the task's "
          "curvatures are known, the ringed diamond the mode with the largest steady-state gain. "
          "Small green stars are the modes of the best linear optimizer, tuned by gradient.",
          ("analysis",), draw.modes_as_momentum, paper_files={"linear_regression": "fig07b"}),
    Story("fig07c", "Fig. 7c", "One mode against the full optimizer",
          "Loss, mean ± standard error over test problems: the full nonlinear learned optimizer, "
          "the optimizer made of its leading mode alone (dashed), and the best tuned momentum.",
          ("analysis",), draw.one_mode, paper_files={"linear_regression": "fig07c"}),
    Story("fig08", "Fig. 8", "How a learned optimizer is wired",
          "Every scalar parameter has a lane of its own: its gradient is encoded, updates the "
          "state of a recurrent cell, and a linear readout of the new state is added to the "
          "parameter. The weights of cell and readout are shared by all lanes.",
          (), of_all=draw.schematic),
    Story("fig09", "Fig. 9", "Performance on unseen problems",
          "Meta-objective (inner loss averaged over the unroll) of each optimizer, mean ± standard "
          "error over the test problems of each task; lower is better. The dotted line is at the "
          "learned optimizer.",
          ("summary",), of_all=draw.comparison),
    Story("fig09_paired", "Fig. 9, paired", "Paired differences from the learned optimizer",
          "Each baseline's meta-objective minus the learned optimizer's on the same test problems. "
          "Bars span two standard errors to either side; in brackets, the mean in units of its "
          "standard error. Right of zero the learned optimizer wins.",
          ("summary",), of_all=draw.paired),
    Story("hyperparameter_search", "Figs. 10–12", "Hyperparameter searches",
          "Every combination tried, coloured by meta-objective on one scale for each task (purple "
          "is best, yellow is a hundred times the best or worse); grey crosses diverged. Adam's "
          "search has three hyperparameters and is shown twice. The star is the combination "
          "selected.",
          ("tables",), draw.searches,
          paper_files={"linear_regression": "fig10", "rosenbrock": "fig11", "two_moons": "fig12"}),
    Story("loss_curves", "", "Loss against iteration",
          "Mean loss ± standard error over the test problems, for every optimizer on the same "
          "problems. The learned optimizer was trained for the iterations shown. A line that "
          "falls off the axis has reached 0 in float32.",
          ("summary",), draw.loss_curves),
    Story("training_curve", "", "Meta-training",
          "Meta-objective of each meta-step's batch and its running mean. Where problems exploded, "
          "the lower panel counts them.",
          ("training",), draw.training),
    Story("momentum_stage", "", "How momentum appears during meta-training",
          "At each stored checkpoint: the meta-objective with tuned momentum's level, how far the "
          "leading mode's steady-state gain exceeds the next mode's, its learning rate and "
          "timescale beside the best tuned and (where known) the theoretical ones, how well "
          "momentum does with those two numbers, and how closely the mode alone follows the full "
          "optimizer. The vertical line is the checkpoint taken as the momentum stage. Triangles "
          "at the top stand for what is above the axis or diverged; negative learning rates are "
          "left out.",
          ("analysis",), draw.emergence),
    Story("mode_stages", "", "The modes at stored stages of meta-training",
          "Momentum timescale against learning rate of every eigenmode, one panel a stored "
          "checkpoint, on the same axes. The full gold star is the best tuned momentum, the open "
          "one the optimum of theory; the framed panel is the momentum stage.",
          ("analysis",), draw.stages),
    Story("modes_over_training", "", "Timescales of all modes during meta-training",
          "Every eigenmode of every checkpoint, darker where its steady-state gain |α/(1−β)| is "
          "larger: the modes that matter come out of the bulk and slow down.",
          ("analysis",), draw.all_modes),
    Story("mode_tracks", "", "Modes followed through meta-training",
          "The modes with the largest shares of the gain at any time, each matched from checkpoint "
          "to checkpoint and drawn in one colour: its eigenvalue's path, timescale and "
          "steady-state gain. The dotted line is the momentum stage. The same as a film: the GIF.",
          ("analysis", "mechanisms"), draw.tracks),
    Story("mechanisms", "", "What the optimizer does beyond its modes",
          "Update against gradient (its odd part, half the difference of g and −g), at the initial "
          "and at the resting state, over the density of the gradients met; effective learning "
          "rate without gradients (the autonomous schedule) and on problems, mean ± standard "
          "error; effective learning rate at the fixed points h*(g) that constant gradients lead "
          "to, beside tuned RMSProp's and Adam's closed forms (open markers: it is negative "
          "there); states, those fixed points and trajectories in principal components; impulse "
          "and frequency response of the linear optimizer at rest.",
          ("mechanisms",), draw.mechanisms),
    Story("advantage_kept", "", "How far readable optimizers come, and what each mechanism adds",
          "The learned optimizer's advantage over the best tuned baseline on unseen problems is 1 "
          "here, the baseline 0; bars are fractions of it, ± standard error. Top: readable "
          "optimizers, the smallest first. Middle: the chosen one without one of its parts. "
          "Bottom: the learned optimizer without a mechanism. Pale bars go on beyond the left "
          "edge. distilled.py holds the chosen one as code.",
          ("distillation",), draw.advantage_kept),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Placed:
    """A picture's files (their ``name`` without suffix), and which of which figure it is."""

    name: str
    key: str
    task: str = ""
    note: str = ""
    variant: str = ""


Numbered = dict[int, list[Placed]]
"""What each of the drawings of all `STORIES`, by its number, has placed."""


def draw_part(results: Sequence[TaskResults], folder: Path, part: int, parts: int) -> Numbered:
    """Draw every ``parts``-th drawing of `STORIES`, from number ``part`` on, into ``folder``."""
    drawings = [(story, draw) for story in STORIES for draw in story.drawings(results)]
    chosen = range(part, len(drawings), parts)
    placed: Numbered = {}
    with progress("drawing figures", len(chosen), shown=part == 0) as advance:
        for done, number in enumerate(chosen, start=1):
            story, pictures = drawings[number]
            placed[number] = [_save(story, drawn, folder) for drawn in pictures()]
            advance(done, story.title)
    return placed


def _save(story: Story, drawn: Drawn, folder: Path) -> Placed:
    name = story.file(drawn)
    save_figure(drawn.entitled(), drawn.data, folder, name)
    if drawn.film is not None:
        write_bytes(folder / f"{name}.gif", drawn.film)
    return Placed(name, story.key, drawn.task, drawn.note, drawn.variant)


def draw_study(run: RunFolder, results: Sequence[TaskResults]) -> list[Placed]:
    """Draw every figure that ``results`` of ``run`` allow, in the order of the stories.

    Where there are many, in several processes, each a command that reads the results from the run
    folder, draws its part and prints what it placed: forking would copy JAX's threads' locks, and
    what starts processes from an imported module runs a user's script again. What another
    process could not draw (a task of the user's own script, say, which it cannot import) is drawn
    here.
    """
    parts = 1
    if sum(len(story.drawings(results)) for story in STORIES) >= MANY:
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
