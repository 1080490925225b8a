"""Command lines to start from, for each command's help."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("optdyn train --task rosenbrock --out runs/mine --meta-steps 500", "half a minute or so"),
        (
            "optdyn train --task two_moons --encoding asinh --gain 1000 --output-scale 0.1 "
            "--max-cotangent-norm 1 --memory-budget 8000000000",
            "a network's gradients are small and its meta-gradients long",
        ),
    ),
    "launch": (
        ("optdyn launch --processes 2 -- train --task rosenbrock --out runs/mine", "one training"),
    ),
    "sweep": (
        ("optdyn sweep --cells gru,lstm --units 8,16 --meta-steps 500", "in this process"),
        ("optdyn sweep --seeds 0,1,2 --engine ray", "on a Ray cluster of this machine"),
    ),
    "search-lr": (
        ("optdyn search-lr --task rosenbrock --draws 8 --horizon 200", "short trainings"),
        ("optdyn search-lr --json > search.json", "for a script; progress stays on the screen"),
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
        ("optdyn analyze --task rosenbrock --out runs/mine", "every stage of a run"),
        ("optdyn analyze two_moons", "one optimizer: a pretrained name ..."),
        ("optdyn analyze mymodule:make_optimizer --out folder", "... or a function of yours"),
    ),
    "analyze TARGET": (
        ("optdyn analyze linear_regression --stage momentum", "what ships"),
        ("optdyn analyze runs/mine/rosenbrock/checkpoints/step-000500.safetensors", "a checkpoint"),
        ("optdyn analyze mymodule:make_optimizer --out folder --json", "numbers and figures"),
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
    "completion SHELL": (
        ("source <(optdyn completion bash)", "in ~/.bashrc; for zsh alike, in ~/.zshrc"),
        ("optdyn completion fish > ~/.config/fish/completions/optdyn.fish", "for fish"),
    ),
}


def told(command: str) -> str:
    """The examples of ``command`` as the end of its help."""
    lines = [line for text, what in EXAMPLES[command] for line in (f"  {text}", f"      {what}")]
    return "\n".join(["examples:", *lines])
