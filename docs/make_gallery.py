"""Make the gallery's pictures: `python docs/make_gallery.py RUN`, with the folder of a study."""

from __future__ import annotations

import sys
from pathlib import Path

import optax

import optdyn
from optdyn import figures
from optdyn.pretrained import load_shipped
from optdyn.search import best

IMAGES = Path(__file__).parent / "images"
OF_THE_STUDY = {"mechanisms": "mechanisms_rosenbrock", "readable": "advantage_kept_rosenbrock"}
DOTS_PER_INCH = 110


def main(run: Path) -> None:
    """Write every picture of docs/gallery.md that no other page makes."""
    rnn = optdyn.load_pretrained("linear_regression", "momentum")
    modes = optdyn.eigenmodes(optdyn.linearize(rnn, state=optdyn.settle(rnn, 0.0)))
    tuned = best(load_shipped("linear_regression").tables["momentum"]).hyperparameters
    drawn = {
        "modes": figures.momentum_hyperparameters(
            modes.beta, modes.alpha, figures.MomentumPoint(**tuned), None
        )
    }
    curvatures = optdyn.task_curvatures(optdyn.make_task("linear_regression"), seed=0)
    adamw = optdyn.dissect(optax.adamw(1e-2))
    drawn["stability"] = figures.optimizer_stability(
        optdyn.stability_map(adamw.modes, spectrum=curvatures)
    )
    drawn["identification"] = figures.optimizer_identification(adamw.identification)
    for name, figure in drawn.items():
        figure.savefig(IMAGES / f"gallery_{name}.png", dpi=DOTS_PER_INCH)
    for name, stem in OF_THE_STUDY.items():
        picture = (run / "figures" / f"{stem}.png").read_bytes()
        (IMAGES / f"gallery_{name}.png").write_bytes(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
