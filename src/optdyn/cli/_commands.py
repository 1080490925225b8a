"""The commands: where each is, what its help says, and command lines to start from."""

from __future__ import annotations

COMMANDS: dict[str, str] = {
    "train": """Meta-train a learned optimizer; the same command goes on where it was left.

What is not given is as in the run folder, else as in the built-in task's recipe for
optdyn reproduce; the defaults shown are the paper's. --meta-steps may be raised later.""",
    "launch": """Run one command in several processes of this machine.

The command, train with its options, follows after --.""",
    "search-lr": """Search the meta learning rate at random.

Short trainings, then the best at full length.""",
    "sweep": """Meta-train over tasks, cells, sizes, seeds and learning rates.

Every combination of what is listed; the same command goes on. Whatever else a training
needs is as in its task's recipe for optdyn reproduce.""",
    "tune": """Tune a baseline by random search over its grid of hyperparameters.

What is not given is as in the run folder, else as in the built-in task's recipe.""",
    "evaluate": """Compare a run's learned optimizer and tuned baselines on unseen problems.

What is not given is as in the run folder, else as in the built-in task's recipe.""",
    "analyze": """Take an optimizer apart: a run's stages, or any one optimizer.

Without TARGET: each stage of the run's learned optimizer (fixed point, modes, reduction).
TARGET is one optimizer: a checkpoint file, a pretrained name, or module:object, an optax
optimizer or a function that returns one (the current folder is searched).""",
    "reproduce": "Do the whole study: train, tune, evaluate, analyze, draw and report.",
    "distill": """Fit readable optimizers to a run's learned one.

As optdyn reproduce --retrain does. The run holds an evaluated optimizer, trained there or
shipped with the package.""",
    "report": "Write a run's report: one page with claims, figures, settings and timings.",
    "export": "Copy a run's weights, tables and fits to where they ship from.",
    "doctor": "Check this installation: versions, devices, caches, weights, a self-test.",
    "completion": "Print a completion script for bash, zsh or fish.",
}

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("optdyn train --task rosenbrock --meta-steps 500", "half a minute or so"),
        ("optdyn train --task rosenbrock --meta-steps 1000", "goes on for 500 more"),
        ("optdyn train --task mymodule:MyTask --out runs/mine", "a task of yours"),
    ),
    "launch": (
        ("optdyn launch --processes 2 -- train --task rosenbrock --out runs/mine", "one training"),
    ),
    "search-lr": (
        ("optdyn search-lr --task rosenbrock --draws 8 --horizon 200", "short trainings"),
        ("optdyn search-lr --json > search.json", "for a script; progress stays on the screen"),
    ),
    "sweep": (
        ("optdyn sweep --cells gru,lstm --units 8,16 --meta-steps 500", "in this process"),
        ("optdyn sweep --seeds 0,1,2 --engine ray", "on a Ray cluster of this machine"),
    ),
    "tune": (
        ("optdyn tune --task rosenbrock --baseline adam --out runs/mine", "the paper's search"),
        ("optdyn tune --samples 50 --rescore-top 10", "a quick look"),
    ),
    "evaluate": (
        ("optdyn evaluate --task rosenbrock --out runs/mine", "after optdyn train and tune"),
        ("optdyn evaluate --out runs/mine --json --quiet", "one JSON object and nothing else"),
    ),
    "analyze": (
        ("optdyn analyze --out runs/mine", "every stage of a run"),
        ("optdyn analyze linear_regression --stage momentum", "a pretrained optimizer"),
        ("optdyn analyze mymodule:make_optimizer --out folder", "yours, with figures"),
        (
            "optdyn analyze mymodule:make_optimizer --params mymodule:make_params",
            "yours, as it treats each part of your model",
        ),
    ),
    "reproduce": (
        ("optdyn reproduce", "minutes; goes on where it was left when repeated"),
        ("optdyn reproduce --task rosenbrock --scale smoke --out runs/smoke", "seconds"),
    ),
    "distill": (
        ("optdyn distill --task digits --out runs/reproduce", "minutes; after optdyn reproduce"),
    ),
    "report": (("optdyn report --out runs/reproduce", "the page again"),),
    "export": (
        (
            "optdyn export --task rosenbrock --out runs/reproduce --to weights",
            'then optdyn.load_pretrained("rosenbrock", folder=Path("weights"))',
        ),
    ),
    "doctor": (
        ("optdyn doctor", "exit code 0 if all is well, 1 if not"),
        ("optdyn doctor --json", "for a bug report"),
    ),
    "completion": (
        ("source <(optdyn completion bash)", "in ~/.bashrc; for zsh alike, in ~/.zshrc"),
        ("optdyn completion fish > ~/.config/fish/completions/optdyn.fish", "for fish"),
    ),
}


def module_of(command: str) -> str:
    """Where the function of a command is, as cyclopts loads it."""
    name = command.replace("-", "_")
    return f"optdyn.cli._{name}:{name}"


def examples(command: str) -> str:
    """The examples of ``command`` as the end of its help."""
    lines = [line for text, what in EXAMPLES[command] for line in (f"  {text}", f"      {what}")]
    return "\n".join(["Examples:", *lines])
