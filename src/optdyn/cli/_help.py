"""How the help is laid out: as cyclopts does, but an option's words are one paragraph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cyclopts.help import DefaultFormatter, InlineText
from rich.text import Text

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions


class Paragraphs(DefaultFormatter):
    """Lines of a docstring end where the source's do; here they end where the terminal's do."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print one group of options."""
        for entry in panel.entries:
            words = entry.description
            if isinstance(words, InlineText) and isinstance(words.primary_renderable, Text):
                words.primary_renderable = Text(" ".join(words.primary_renderable.plain.split()))
        super().__call__(console, options, panel)
