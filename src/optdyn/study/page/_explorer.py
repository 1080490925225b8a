"""The explorer's place in the page; what is in it is drawn by its scripts."""

from __future__ import annotations

from typing import Any

from optdyn.study.page._markup import missing
from optdyn.study.page._scripts import asset


def explorer(data: dict[str, Any]) -> str:
    """Controls and empty charts, or a note where there is nothing to explore."""
    if not data["tasks"]:
        return missing("the explorer", "no task here has been tuned, analysed or measured")
    return asset("explorer.html")
