"""Where a task's weights and search tables came from, as its run folder's settings tell."""

from __future__ import annotations

from typing import Any


def shipped_part(task: str) -> str:
    """The part of a run's settings that lists the files taken from the package."""
    return f"shipped/{task}"


def origin(settings: dict[str, Any], task: str) -> str:
    """One line for the ledger: shipped or made here, and what was run in meta-training."""
    training = settings[f"train/{task}"]
    architecture, protocol = training["architecture"], training["protocol"]
    where = (
        "weights and search tables shipped with the package, evaluated in this run"
        if shipped_part(task) in settings
        else "trained and tuned in this run"
    )
    parts = [
        f"{architecture['units']} units ({architecture['cell']})",
        f"batch {protocol['batch_size']}",
        f"{protocol['num_meta_steps']} meta-steps",
        *(f"{name} {value}" for name, value in training["task_options"].items()),
    ]
    if training["initial"]:
        parts.append("fine-tuned from earlier weights")
    return f"{where}; meta-training: {', '.join(parts)}"
