"""``optdyn completion``."""

from __future__ import annotations

from typing import Annotated, Literal

from optdyn.cli._reading import one_of

SHELLS = ("bash", "zsh", "fish")


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], one_of(SHELLS)], /) -> None:
    """Print the script for a shell.

    Args:
        shell: bash, zsh or fish
    """
    from optdyn.cli.main import make_app

    print(make_app().generate_completion(shell=shell))
