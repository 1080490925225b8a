"""What printing a result shows: a few lines in words."""

from __future__ import annotations

import html


class InWords:
    """A result that prints as its ``verdict``; its arrays stay behind its attributes.

    A notebook shows the same lines.
    """

    def verdict(self) -> list[str]:
        """The result in words, one line each."""
        raise TypeError(f"{type(self).__name__} has no verdict")

    def __str__(self) -> str:
        return "\n".join(self.verdict())

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"
