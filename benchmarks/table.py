"""The measured rows as a table in the docs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
HEADER = (
    "| task | units | batch | s a meta-step | fraction of the limit | peak memory, MB "
    "| compilation, s | plain JAX, s | torch, s | best peer over ours |"
    "\n|---|---|---|---|---|---|---|---|---|---|"
)


def write_table(rows: list[dict[str, Any]]) -> None:
    """Replace the docs' table."""
    write_section(PAGE, "table", "\n".join([HEADER, *(table_line(row) for row in rows)]))


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands between the two marks of ``name`` in ``page``."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, _, rest = page.read_text().partition(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def table_line(row: dict[str, Any]) -> str:
    """One row of the table; a dash where nothing was measured."""
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
    peers = row["peers"]
    cells += [f"{peers[name]:.3g}" if name in peers else "–" for name in ("jax", "torch")]
    compared = peers and row["seconds"] is not None
    cells.append(f"{min(peers.values()) / row['seconds']:.2f}" if compared else "–")
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
