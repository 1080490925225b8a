"""The measured rows as a table in the docs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- begin table -->", "<!-- end table -->"
HEADER = (
    "| task | units | batch | s a meta-step | fraction of the limit | peak memory, MB "
    "| compilation, s | torch, s |\n|---|---|---|---|---|---|---|---|"
)


def write_table(rows: list[dict[str, Any]]) -> None:
    """Replace the table between the page's two marks."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    lines = "\n".join(table_line(row) for row in rows)
    PAGE.write_text(f"{before}{BEGIN}\n{HEADER}\n{lines}\n{END}{after}")


def table_line(row: dict[str, Any]) -> str:
    """One row of the table; a dash where nothing was measured."""
    torch = row["peers"].get("torch")
    cells = [row["task"].replace("_", " "), row["units"], row["batch"]]
    if row["seconds"] is None:
        cells += ["–", "–", "–", "–"]
    else:
        cells += [
            f"{row['seconds']:.3g}",
            f"{row['fraction_of_limit']:.0%}",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['compile_seconds']:.1f}",
        ]
    cells.append("–" if torch is None else f"{torch:.3g}")
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
