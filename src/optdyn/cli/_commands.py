"""The commands: where each is, what its help says, and command lines to start from."""

from __future__ import annotations

COMMANDS: dict[str, str] = {
    "train": """Train a learned optimizer on a task.

Each meta-step samples problems of the task, lets the learned optimizer work on each for some
inner steps, and updates its weights so that the mean loss falls (this is meta-training). The
same command goes on where it was stopped; a larger --meta-steps extends a finished training.

An option that is left out is as in the run folder, else as in optdyn reproduce for a built-in
task, else the default shown, which is the paper's.""",
    "launch": """Run one training in several processes of this machine.

The command, train with its options, follows after --.""",
    "search-lr": """Search the best meta learning rate at random.

Many learning rates are tried in short trainings, the best again at full length. Options that
are left out are taken as by optdyn train.""",
    "sweep": """Train one optimizer for each combination of the settings listed.

Settings are tasks, cells, sizes, seeds and meta learning rates; what else a training needs is as
in optdyn reproduce. Several values are separated by commas. The same command goes on where it was
stopped.""",
    "tune": """Tune a hand-designed optimizer by random search.

Options that are left out are taken as by optdyn train.""",
    "evaluate": """Compare the learned optimizer and the tuned ones on unseen problems.

Options that are left out are taken as by optdyn train. An evaluation with other settings takes the
place of the folder's last one, which is put aside.""",
    "analyze": """Take apart a run's learned optimizer, or any one optimizer.

Without TARGET: the learned optimizer at each stored stage of its training (fixed point, modes,
one mode run alone). With TARGET: one optimizer, which is a checkpoint file, a pretrained name, or
module:object, your own optax optimizer or a function that returns one, from a file module.py in
the current folder.""",
    "reproduce": "Do the whole study: train, tune, evaluate, analyze, draw and report.",
    "distill": """Fit optimizers of a few readable numbers to a run's learned one.

The run folder must hold a learned optimizer and a tuned one, both evaluated.""",
    "report": "Write a run's report: one page with results, figures and settings.",
    "export": "Copy a run's weights and tables to a folder that load_pretrained reads.",
    "doctor": "Check this installation: versions, devices, caches, weights, a self-test.",
    "completion": "Print a completion script for bash, zsh or fish.",
}

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("optdyn train --task rosenbrock --meta-steps 500", "about half a minute"),
        ("optdyn train --task rosenbrock --meta-steps 1000", "extends it by 500 meta-steps"),
        ("optdyn train --task mymodule:MyTask --out runs/mine", "a task of yours"),
    ),
    "launch": (
        (
            "optdyn launch --processes 2 -- train --task rosenbrock --out runs/mine",
            "one training in two processes",
        ),
    ),
    "search-lr": (
        ("optdyn search-lr --task rosenbrock --draws 8 --horizon 200", "short trainings"),
        ("optdyn search-lr --json > search.json", "for a script; progress is on the screen"),
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
        ("optdyn analyze digits --stage readable", "the few numbers that imitate one"),
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
    "report": (("optdyn report --out runs/reproduce", "writes the page again"),),
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
