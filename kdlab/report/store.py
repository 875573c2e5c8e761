"""The store as a table: what `kdlab store ls` prints."""

from __future__ import annotations

from rich import box
from rich.table import Table

from kdlab.artifacts import Store
from kdlab.report.summary import megabytes
from kdlab.runner import other_code


def store_table(store: Store) -> Table:
    """One row per artifact, oldest first, and one per interrupted stage."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column in ("artifact", "made", "seconds", "MB", ""):
        table.add_column(column, justify="right" if column in ("seconds", "MB") else "left", overflow="fold")
    total = 0
    for artifact in store.artifacts():
        made = artifact.manifest["made"]
        total += artifact.bytes
        table.add_row(
            artifact.path.name,
            made["at"][:16].replace("T", " "),
            f"{made['seconds']:.1f}",
            megabytes(artifact.bytes),
            other_code(artifact),
        )
    for folder in store.unfinished():
        table.add_row(folder.name, "", "", "", "interrupted")
    table.add_section()
    table.add_row("all", "", "", megabytes(total), "")
    return table
