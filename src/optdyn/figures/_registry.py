"""Every figure by file name: its title, what it shows, and the task it belongs to."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection


@dataclasses.dataclass(frozen=True)
class Description:
    """A figure in words. ``task`` is None for a figure that spans the tasks."""

    title: str
    caption: str
    task: str | None = None


@dataclasses.dataclass(frozen=True)
class Placed:
    """What a figure file is, by its name.

    ``figure`` is its key in `FIGURES` (the file's name where there is none),
    ``variant`` what the name says beyond figure and task ("" for nothing).
    """

    figure: str
    description: Description
    task: str | None
    variant: str


FIGURES: dict[str, Description] = {
    "fig08": Description(
        "How a learned optimizer is wired",
        "Every scalar parameter has a lane of its own: its gradient is encoded, updates the "
        "state of a recurrent cell, and a linear readout of the new state is added to the "
        "parameter. The weights of cell and readout are shared by all lanes.",
    ),
    "fig09": Description(
        "Performance on unseen problems",
        "Meta-objective (inner loss averaged over the unroll) of each optimizer, mean ± standard "
        "error over the test problems of each task; lower is better. The dotted line is at the "
        "learned optimizer.",
    ),
    "fig09_paired": Description(
        "Paired differences from the learned optimizer",
        "Each baseline's meta-objective minus the learned optimizer's on the same test problems. "
        "Bars span two standard errors to either side; in brackets, the mean in units of its "
        "standard error. Right of zero the learned optimizer wins.",
    ),
    "fig02a": Description(
        "Condition numbers of the linear regression problems",
        "Histogram, on a logarithmic axis, of the ratio of the largest to the smallest "
        "eigenvalue of AᵀA over sampled problems. The dashed line is the median.",
        "linear_regression",
    ),
    "fig02b": Description(
        "The Rosenbrock function",
        "Loss over the square from which starting points are drawn, colour on a logarithmic "
        "scale, one white contour a decade. The star is the only minimum, at the bottom of the "
        "curved valley.",
        "rosenbrock",
    ),
    "fig02c": Description(
        "The two-moons data",
        "The points that the network learns to separate, by class.",
        "two_moons",
    ),
    "training_curve": Description(
        "Meta-training",
        "Meta-objective of each meta-step's batch and its running mean. Where problems exploded, "
        "the lower panel counts them.",
    ),
    "loss_curves": Description(
        "Loss against iteration",
        "Mean loss ± standard error over the test problems, for every optimizer on the same "
        "problems. The learned optimizer was trained for the iterations shown. A line that "
        "falls off the axis has reached 0 in float32.",
    ),
    "fig07a": Description(
        "Eigenvalues of the linearised optimizer",
        "Eigenvalues β of the Jacobian ∂F/∂h at the fixed point, with the unit circle; right, the "
        "square near 1 enlarged. An eigenvalue of size β is a momentum of timescale −1/ln|β| "
        "steps. The mode with the largest steady-state gain is the diamond.",
        "linear_regression",
    ),
    "fig07b": Description(
        "Each mode as a momentum optimizer",
        "Momentum timescale against learning rate for every eigenmode. The full gold star is the "
        "best tuned momentum, the open one the optimum that theory gives where the task's "
        "curvatures are known, the ringed diamond the mode with the largest steady-state gain.",
        "linear_regression",
    ),
    "fig07c": Description(
        "One mode against the full optimizer",
        "Loss, mean ± standard error over test problems: the full nonlinear learned optimizer, "
        "the optimizer made of its leading mode alone (dashed), and the best tuned momentum.",
        "linear_regression",
    ),
    "momentum_stage": Description(
        "How momentum appears during meta-training",
        "At each stored checkpoint: the meta-objective with tuned momentum's level, how far the "
        "leading mode's steady-state gain exceeds the next mode's, its learning rate and "
        "timescale beside the best tuned and (where known) the theoretical ones, how well "
        "momentum does with those two numbers, and how closely the mode alone follows the full "
        "optimizer. The vertical line is the checkpoint taken as the momentum stage. Triangles "
        "at the top stand for what is above the axis or diverged; negative learning rates are "
        "left out.",
    ),
    "mode_stages": Description(
        "The modes at stored stages of meta-training",
        "Momentum timescale against learning rate of every eigenmode, one panel a stored "
        "checkpoint, on the same axes. The full gold star is the best tuned momentum, the open "
        "one the optimum that theory gives where the task's curvatures are known; the framed "
        "panel is the momentum stage.",
    ),
    "modes_over_training": Description(
        "Timescales of all modes during meta-training",
        "Every eigenmode of every checkpoint, darker where its steady-state gain |α/(1−β)| is "
        "larger: the modes that matter come out of the bulk and slow down.",
    ),
    "mode_tracks": Description(
        "Modes followed through meta-training",
        "The modes with the largest shares of the gain at any time, each matched from checkpoint "
        "to checkpoint and drawn in one colour: its eigenvalue's path, timescale and steady-state "
        "gain. The dotted line is the momentum stage. The same as a film: the file of this "
        "figure's name ending in .gif.",
    ),
    "mechanisms": Description(
        "What the optimizer does beyond its modes",
        "Update against gradient (its odd part, half of what g and −g make differ), at the initial "
        "and at the resting state, over the density of "
        "the gradients met; effective learning rate without gradients (the autonomous schedule) "
        "and on problems, mean ± standard error; effective learning rate at the fixed points "
        "h*(g) that constant gradients lead to, beside tuned RMSProp's and Adam's closed forms "
        "(open markers: it is negative there); "
        "states, those fixed points and trajectories in principal components; impulse and "
        "frequency response of the linear optimizer at rest.",
    ),
    "advantage_kept": Description(
        "What readable optimizers keep, and what each mechanism is worth",
        "Part of the learned optimizer's advantage over the best tuned baseline that is kept on "
        "unseen problems, ± standard error: readable optimizers from the smallest up; the chosen "
        "one less one part; the learned optimizer itself less a mechanism. Bars that reach the "
        "left edge go on beyond it. The chosen one is exported as distilled.py.",
    ),
    "optimizer_modes": Description(
        "The modes of an optimizer",
        "Eigenvalues β of its linearisation with the unit circle (white: not driven by the "
        "gradient), and each mode's timescale with its steady-state gain |α/(1−β)|, the learning "
        "rate it adds up to. The dashed line is the feed-through, a learning rate without memory.",
    ),
    "optimizer_impulse": Description(
        "The impulse response of an optimizer",
        "What one unit of gradient does at once and in the steps after it, in the linearised "
        "optimizer, with the parts of its leading modes.",
    ),
    "optimizer_stability": Description(
        "The stability map of an optimizer",
        "Spectral radius of the linearised optimizer together with a quadratic, against the "
        "quadratic's curvature: the factor by which the error shrinks a step, unstable above 1. "
        "Over the grey range: the slowest of this optimizer, and the best that gradient descent "
        "and momentum can do with settings made for that range. Under it, the curvatures of the "
        "task where one is given.",
    ),
    "optimizer_identification": Description(
        "Which optimizer is this?",
        "Responses to an impulse, to gradients of six decades at the first step and after many "
        "equal ones, beside those of the nearest hand-designed optimizer; and the residual of "
        "every candidate.",
    ),
    "fig10": Description(
        "Hyperparameter search: linear regression",
        "Every combination tried, coloured by meta-objective on one scale (purple is best, "
        "yellow is a hundred times the best or worse); grey crosses diverged. Adam's search has "
        "three hyperparameters and is shown twice. The star is the combination selected.",
        "linear_regression",
    ),
    "fig11": Description(
        "Hyperparameter search: Rosenbrock",
        "As for linear regression: all combinations, one colour scale, the selected one starred.",
        "rosenbrock",
    ),
    "fig12": Description(
        "Hyperparameter search: two moons",
        "As for linear regression: all combinations, one colour scale, the selected one starred.",
        "two_moons",
    ),
    "hyperparameter_search": Description(
        "Hyperparameter search",
        "Every combination tried, coloured by meta-objective on one scale (purple is best); grey "
        "crosses diverged. The star is the combination selected.",
    ),
}


def place(name: str, tasks: Collection[str]) -> Placed:
    """What the figure file ``name`` is: ``<figure>``, then ``_<task>``, then ``_<variant>``.

    ``tasks`` are the names to look for. A figure that is not in `FIGURES` is
    titled by its file name.
    """
    known = [key for key in FIGURES if name == key or name.startswith(f"{key}_")]
    key = max(known, key=len, default=name)
    description = FIGURES.get(key, Description(name.replace("_", " "), ""))
    rest = name[len(key) :].lstrip("_")
    if key not in FIGURES:
        rest = next((name[name.find(task) :] for task in tasks if task in name), "")
    for task in sorted(tasks, key=len, reverse=True):
        if rest == task or rest.startswith(f"{task}_"):
            return Placed(key, description, task, rest[len(task) :].lstrip("_").replace("_", " "))
    return Placed(key, description, description.task, rest.replace("_", " "))
