"""The table of claims: each finding of the paper, how it is measured, and what it must reach.

One more claim is one more row.
"""

from __future__ import annotations

from optdyn.study import _measures as measure
from optdyn.study._ledger import Bound, Row, at_least, at_most
from optdyn.study._measures import there

APPENDIX_A = ("linear_regression",)
"""The task of appendix A; elsewhere the ledger says whether its findings hold too."""

ROWS = (
    Row("learned_beats_{}", "beats the tuned baselines",
        "The learned optimizer has a lower meta-objective than tuned {} on unseen problems "
        "(paired difference in standard errors).",
        "appendix C.2, Fig. 9", "fig09", "summary", measure.lower_by, at_least(2.0),
        subjects=lambda results: there(results.summary).learned_minus,
        spread=measure.over_seeds("standard_errors_below_{}")),
    Row("advantage_over_{}", "wins by a margin",
        "With more meta-training the learned optimizer outperforms tuned {} (relative advantage "
        "in meta-objective).",
        "appendix A", "fig09", "summary", measure.advantage, at_least(0.25),
        subjects=lambda results: ("momentum",), asked_of=APPENDIX_A,
        spread=measure.over_seeds("advantage_over_{}")),
    Row("momentum_stage", "performs like tuned momentum once",
        "Meta-training passes a stage at which the learned optimizer performs like the best "
        "tuned momentum (relative difference of meta-objectives).",
        "appendix A", "momentum_stage", "analysis", measure.off_momentum, at_most(0.05),
        stated_for=APPENDIX_A, spread=measure.over_stage_trainings("near")),
    Row("fixed_point", "settles at a fixed point",
        "The zero-gradient dynamics settle at a fixed point (estimated distance to it).",
        "appendix B, eq. 3", "fig07a", "analysis", measure.distance_to_fixed_point, at_most(1e-6)),
    Row("one_mode_stands_out", "one mode stands out",
        "One eigenmode stands out of the bulk (its steady-state gain |α/(1−β)| over the next "
        "mode's).",
        "appendix A, Fig. 7a", "fig07a", "analysis",
        measure.at_stage(lambda row: row.gain_gap), at_least(3.0, linear_regression=10.0),
        stated_for=APPENDIX_A),
    Row("its_learning_rate_is_large", "… with a large learning rate",
        "That mode also has a large learning rate (over the median of the others).",
        "appendix A, Fig. 7b", "fig07b", "analysis",
        measure.at_stage(lambda row: row.rate_ratio), at_least(3.0),
        stated_for=APPENDIX_A),
    Row("mode_matches_tuned_momentum", "… that matches tuned momentum",
        "Momentum run with that mode's learning rate and timescale does as well as the best "
        "tuned momentum (ratio of meta-objectives).",
        "appendix A, Fig. 7b", "fig07b", "analysis",
        measure.at_stage(lambda row: row.momentum_ratio), at_most(1.10, linear_regression=1.05),
        stated_for=APPENDIX_A),
    Row("mode_has_tuned_momentums_numbers", "… in learning rate and timescale",
        "That mode's learning rate and momentum are within 10 % of the best tuned momentum's, and "
        "its timescale within 15 % (the largest difference over what is allowed).",
        "appendix A, Fig. 7b", "fig07b", "analysis", measure.strain_of_mode, at_most(1.0),
        stated_for=APPENDIX_A, spread=measure.over_stage_trainings("met")),
    Row("linearised_follows_the_full_optimizer", "the linearised optimizer follows",
        "At that stage the optimizer linearised at its fixed point, all modes, follows the "
        "full nonlinear one (median relative deviation of the loss over the unroll).",
        "appendix A", "fig07c", "analysis", measure.linear_deviation, at_most(0.05),
        stated_for=APPENDIX_A),
    Row("advantage_is_nonlinear", "the final advantage is nonlinear",
        "Of what the fully trained optimizer wins over tuned momentum, most is beyond its linear "
        "dynamics and initial transient (fraction).",
        "this project", "fig09", "analysis", measure.nonlinear_share, at_least(0.5),
        stated_for=(), spread=measure.over_seeds("nonlinearity")),
    Row("one_mode_follows_the_full_optimizer", "… and follows the full optimizer",
        "The optimizer reduced to that mode follows the full nonlinear one (median relative "
        "deviation of the loss over the unroll).",
        "appendix A, Fig. 7c", "fig07c", "analysis",
        measure.at_stage(lambda row: row.deviation), at_most(0.05),
        stated_for=APPENDIX_A),
    Row("update_saturates", "the update saturates",
        "The update saturates as a function of the gradient (part of the linear update that is "
        "left at a problem's largest gradient, from the initial state).",
        "main text", "mechanisms", "mechanisms", measure.largest_part, at_most(0.5),
        spread=measure.over_seeds("saturation")),
    Row("schedule_warms_up", "the learning rate warms up",
        "With no gradient the learning rate first rises (largest over first).",
        "main text", "mechanisms", "mechanisms", measure.warm_up, at_least(1.1),
        spread=measure.over_seeds("warm_up")),
    Row("schedule_decays", "… and decays",
        "With no gradient the learning rate then falls (last over largest).",
        "main text", "mechanisms", "mechanisms", measure.decay, at_most(0.9),
        spread=measure.over_seeds("decay")),
    Row("rate_falls_with_gradient", "the learning rate adapts",
        "At the fixed points that constant gradients lead to, the effective learning rate "
        "−∂Δx/∂g at g = 0 falls as |g| grows (at the 95 % quantile of |g| over at the 5 % "
        "quantile).",
        "main text", "mechanisms", "mechanisms",
        measure.over_problems(lambda found: found.adaptation.ratio), at_most(0.9),
        spread=measure.over_seeds("adaptation")),
    Row("slope_falls_with_gradient", "… and so does its slope",
        "The same with the slope taken at the constant gradient itself, where saturation has a "
        "part in it.",
        "main text", "mechanisms", "mechanisms",
        measure.over_problems(lambda found: found.adaptation.slope_ratio), at_most(0.9)),
    Row("distilled_keeps_the_advantage", "a few numbers do as well",
        "A readable optimizer reaches the learned one's advantage over the best tuned baseline on "
        "unseen problems (as a fraction).",
        "this project", "advantage_kept", "distillation",
        measure.advantage_kept, at_least(0.7, linear_regression=0.9),
        stated_for=()),
    Row("{}_best_is_interior", "searches end inside their grids",
        "The best hyperparameters of {} lie inside the grid (hyperparameters on an edge).",
        "appendix C.3, Figs. 10–12", "hyperparameter_search", "tables",
        measure.on_an_edge, at_most(0),
        subjects=lambda results: there(results.tables), decided_by="measurement"),
    Row("{}_reproduces_from_its_table", "searches give the same again",
        "Tuned {} reproduces its score when run again from the stored search table (difference "
        "in standard errors of that score).",
        "appendix C.3", "hyperparameter_search", "reruns", measure.rerun_difference, at_most(0.1),
        subjects=lambda results: there(results.reruns).baselines, decided_by="rounding"),
)  # fmt: skip


def bound_of(row_id: str) -> Bound:
    """The bound of a row of the table, for a figure that draws it."""
    return next(row.bound for row in ROWS if row.id == row_id)
