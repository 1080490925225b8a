"""``optdyn analyze``."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from optdyn.cli import _devices as devices_
from optdyn.cli import _options as options
from optdyn.cli._names import Target, load_target, tree_from
from optdyn.cli._output import Result, present
from optdyn.cli._reading import one_of, positive, whole
from optdyn.distributed._interrupts import interruptible
from optdyn.errors import UserError, require_positive_int
from optdyn.runs import HeldOut, analyze_task, open_run
from optdyn.runs._store import make_folder
from optdyn.tasks import describe_task, task_from

if TYPE_CHECKING:
    import numpy as np

    from optdyn.dynamics import Eigenmodes, StabilityMap
    from optdyn.dynamics._dissection import Dissection
    from optdyn.dynamics._place import Place
    from optdyn.runs import AnalysisResult, Card
    from optdyn.tasks import Task

STAGES = ("final", "momentum", "readable")
MODES_PRINTED = 8
LEAST_GAIN = 1e-4
"""Modes below this part of the largest gain are counted, not listed."""
PROBLEMS, COMPONENTS = 4, 16


@dataclasses.dataclass(frozen=True)
class TargetOptions:
    """How one optimizer is taken apart.

    Attributes:
        stage: which form of a pretrained name: final (the end of meta-training), momentum
            (where it did as well as the best tuned momentum), or readable (the few numbers
            that were fitted to the final one)
        gradient_scale: size of the gradients, in your loss's units (none: of a stored optimizer
            the median on its own task, else 1)
        count: number of steps taken before, from 0: moments, bias corrections and schedules are
            as after so many gradients of that size (none: schedules at their peak, all else as
            after 20000 steps)
        params: module:object, your model's parameters (a pytree of arrays), or a function that
            returns them: prints a line for each group of arrays that is treated alike
        leaf: name of the one array of --params to look at, such as layers.0.w
        index: position of the number in that array, such as 3,5 (none: the first)
    """

    stage: Annotated[Literal["final", "momentum", "readable"], one_of(STAGES)] = "final"
    gradient_scale: Annotated[float | None, positive()] = None
    count: Annotated[int | None, whole(minimum=0)] = None
    params: str | None = None
    leaf: str | None = None
    index: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for i in self.index:
            require_positive_int("index", i, minimum=0)
        if self.params is None and (self.leaf is not None or self.index):
            raise UserError("--leaf, --index: need --params")

    def place(self) -> Place:
        """The component of the training that is looked at. Raises `UserError`."""
        place: Place = {"count": self.count, "leaf": self.leaf}
        if self.params is not None:
            place["params"] = tree_from(self.params)
        if self.index:
            place["index"] = self.index
        return place


OfTarget = Annotated[TargetOptions, options.flat("With TARGET", 4)]


def analyze(
    target: str | None = None,
    /,
    *,
    task: options.ChosenTask | None = None,
    held_out: options.Judged = HeldOut(seed=0),
    one: OfTarget = TargetOptions(),
    out: Path | None = None,
    devices: options.Devices = None,
    output: options.Output = options.OutputOptions(),
) -> None:
    """Take apart one optimizer if a target is named, else each stage of a run.

    Args:
        target: one optimizer: a checkpoint file, a pretrained name, or module:object
        task: what the run was trained on; with TARGET, the task whose curvatures its stability is
            shown for
        held_out: on which problems stages are tried
        one: how one optimizer is taken apart
        out: run folder (none: runs/default); with TARGET, a folder for figures and their data
            (none: nothing is drawn)
        devices: how many cores or accelerators share the problems (none: all)
        output: what is printed
    """
    if target is not None:
        # What optax logs while a refused optimizer is tried would stand beside the one line.
        logging.getLogger("absl").setLevel(logging.ERROR)
        if ":" in target:  # a stored optimizer runs on its task, which takes longer
            devices_.start_for_small_programs()
        else:
            devices_.start(1)
        present(output, lambda: _taken_apart(target, task, one, out, held_out.seed))
        return
    chosen = (task or options.TaskOptions()).make()
    devices_.start(devices)

    def work() -> Result:
        analysis = analyze_task(run, chosen, held_out)
        values = {"task": describe_task(chosen).name, **vars(analysis)}
        return Result(values, _in_short(analysis))

    with open_run(out or options.RUN, create=False) as run:
        message = "the analysis stopped; finished checkpoints are saved"
        present(output, lambda: interruptible(work, message))


def _taken_apart(
    text: str,
    chosen: options.TaskOptions | None,
    one: TargetOptions,
    out: Path | None,
    seed: int,
) -> Result:
    from optdyn.dynamics import dissect, step_map
    from optdyn.pretrained._shipped import READABLE
    from optdyn.tasks._curvature import task_curvatures

    target, place = load_target(text, one.stage), one.place()
    learned = target.card is not None and one.stage != READABLE
    if learned and one.count is not None:
        raise UserError("--count: a learned optimizer counts no steps (leave --count out)")
    task = None if chosen is None else chosen.make()
    if out is not None:
        make_folder(out)
    gradients, scale = None, one.gradient_scale
    if target.card is not None:
        print(f"running {target.name} on its own task: some seconds", flush=True)
        own = task_from(target.card.task, **target.card.task_options)
        gradients = _gradients(target.optimizer, target.card, own, seed)
        scale = scale or _typical_size(gradients)
        task = task or own
    scale = scale or 1.0
    if one.params is not None and one.leaf is None:
        return _groups(target, place, scale, out)
    count = place.pop("count")
    step = step_map(target.optimizer, **place)
    print(f"taking {target.name} apart: compiling, ten seconds to a minute", flush=True)
    found = dissect(
        step,
        gradient_scale=scale,
        gradients=gradients,
        spectrum=None if task is None else task_curvatures(task, seed=seed),
        count=count,
    )
    lines = describe(found, target.name)
    size = f"gradients of size {found.gradient_scale:.4g}"
    if found.gradient_scale < scale:
        size += f", not {scale:.4g}, on which a clip by norm may act (--params looks at that)"
    lines.insert(1, size)
    if out is not None:
        from optdyn.study._optimizer_drawing import save_dissection

        save_dissection(found, target.name, out)
        lines.append(f"figures and data: {out}")
    return Result({"optimizer": target.name, **found.summary()}, lines)


def _groups(target: Target, place: Place, scale: float, out: Path | None) -> Result:
    """One row for each group of leaves that the optimizer treats alike."""
    from optdyn.dynamics import param_groups

    if out is not None or "index" in place:
        raise UserError("--out, --index: need --leaf (give it, or leave them out)")
    print(f"taking {target.name} apart: compiling, some seconds for each group", flush=True)
    groups = param_groups(
        target.optimizer, place["params"], gradient_scale=scale, count=place["count"]
    )
    values = [
        {
            "leaves": group.leaves,
            "components": group.components,
            "uniform": group.uniform,
            **group.found.summary(),
        }
        for group in groups.groups
    ]
    size = f"gradients of size {scale:.4g}"
    lines = [f"optimizer: {target.name}", size, *groups.verdict()]
    coupled = [vars(one) for one in groups.coupled]
    found = {"gradient_scale": scale, "groups": values, "coupled": coupled}
    return Result({"optimizer": target.name, **found}, lines)


def _gradients(optimizer: Any, card: Card, task: Task, seed: int) -> np.ndarray:
    """Gradient histories [components, steps] of a stored optimizer on its own task."""
    from optdyn.evaluation import VALIDATION_STREAM, ProblemSet

    problems = ProblemSet(
        task,
        seed=seed,
        number=PROBLEMS,
        objective=card.protocol.objective,
        stream=VALIDATION_STREAM,
    )
    tx = optimizer.as_optax() if hasattr(optimizer, "as_optax") else optimizer
    return problems.gradient_histories(lambda: tx, COMPONENTS)()


def _typical_size(gradients: np.ndarray) -> float | None:
    """The median size of the gradients that are not zero."""
    import numpy as np

    sizes = np.abs(gradients[gradients != 0.0])
    return float(np.median(sizes)) if sizes.size else None


def describe(found: Dissection, name: str) -> list[str]:
    """What was found about the optimizer ``name``, in lines of text."""
    lines = [f"optimizer: {name}", *found.verdict(), *_mode_lines(found.modes)]
    if found.linearization.size:
        condition = f"condition number of the eigenvectors: {found.modes.condition_number:.3g}"
        alone = "; single modes mean nothing" if found.modes.degenerate else ""
        miss = f"; modes miss the impulse response by {found.mismatch:.1g}"
        lines.append(condition + alone + miss)
    if found.responds:
        lines.append(_rate_line(found.stability))
    others = [fit for fit in found.identification.fits if fit is not found.identification.nearest]
    rest = ", ".join(f"{fit.name} {fit.residual:.2g}" for fit in others[:4])
    return [*lines, f"others' residuals: {rest}"] if rest else lines


def _mode_lines(modes: Eigenmodes) -> list[str]:
    import numpy as np

    largest = np.max(modes.gain, where=np.isfinite(modes.gain), initial=0.0)
    shown = [j for j, gain in enumerate(modes.gain) if gain > LEAST_GAIN * largest]
    if not shown:
        return ["modes: none that the gradient drives"]
    lines = [f"modes: {'momentum β':>22} {'learning rate α':>24} {'timescale':>11} {'gain':>11}"]
    for j in shown[:MODES_PRINTED]:
        alpha = modes.alpha[j] + modes.delayed[j]
        late = "one step" if modes.lag[j] == 1 else f"{modes.lag[j]} steps"
        delay = f"  ({late} late)" if modes.delayed[j] else ""
        lines.append(
            f"{j + 1:>5}  {_number(modes.beta[j]):>22} {_number(alpha):>24} "
            f"{modes.timescale[j]:>11.5g} {modes.gain[j]:>11.5g}{delay}"
        )
    rest = len(modes.beta) - len(shown[:MODES_PRINTED])
    return [*lines, f"       and {rest} with less or no gain"] if rest else lines


def _rate_line(found: StabilityMap) -> str:
    kind = "the task's" if found.range_given else "its best range of"
    return (
        f"on {kind} curvatures {found.low:.4g} to {found.high:.4g}: factor {found.rate:.5g} a step "
        f"(best momentum {found.momentum_rate:.5g}, best gradient descent {found.descent_rate:.5g})"
    )


def _number(value: complex) -> str:
    return f"{value.real:.6g}" if value.imag == 0 else f"{value.real:.5g}{value.imag:+.5g}i"


def _in_short(analysis: AnalysisResult) -> list[str]:
    """The momentum stage and the last checkpoint, in a few lines."""
    tuned = analysis.tuned
    lines = [
        f"tuned momentum: learning rate {tuned.alpha:.4g}, momentum {tuned.beta:.4g}, "
        f"meta-objective {tuned.meta_objective:.4g}"
    ]
    rows = analysis.checkpoints
    degenerate = [row.meta_step for row in rows if row.modes.degenerate]
    if degenerate:
        lines.append(
            f"eigenvectors nearly parallel at {len(degenerate)} of {len(rows)} checkpoints "
            f"(first at meta-step {degenerate[0]}): there only sums of modes mean anything"
        )
    stage = _stage_name(analysis)
    for name, step in ((stage, analysis.momentum_stage), ("final", analysis.final)):
        row = analysis.row(step)
        known = math.isfinite(row.meta_objective)
        objective = f"{row.meta_objective:.4g}" if known else "diverged"
        lines.append(
            f"{name}: meta-step {row.meta_step}, meta-objective {objective}; leading mode: "
            f"learning rate {row.alpha:.4g}, momentum {row.beta:.4g}"
        )
    return lines


def _stage_name(analysis: AnalysisResult) -> str:
    """What to call the checkpoint that the rule names, as the report does."""
    from optdyn.study._measures import AT_THE_STAGE, distance_to_momentum

    off, where = distance_to_momentum(analysis), " on fresh problems"
    if analysis.judged.training:  # that is a checkpoint of another training
        own = analysis.row(analysis.momentum_stage).meta_objective
        off, where = abs(own / analysis.tuned.meta_objective - 1.0), ""
    if off <= AT_THE_STAGE:
        return "momentum stage"
    far = f"{100 * off:.0f} % off{where}" if math.isfinite(off) else "diverged"
    return f"nearest checkpoint to momentum ({far})"
