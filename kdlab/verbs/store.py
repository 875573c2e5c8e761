"""`kdlab store`: look after the artifacts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kdlab.errors import StoreError, disk_errors
from kdlab.verbs import parser


def main(words: list[str]) -> int:
    arguments = parser("store", "Look after the artifacts.")
    arguments.add_argument("action", choices=["ls", "verify", "prune"])
    arguments.add_argument("--store", default="outputs/artifacts")
    arguments.add_argument(
        "--outputs", default=["outputs"], nargs="+", metavar="DIR", help="prune keeps what the runs below are made of"
    )
    arguments.add_argument("--older-than", type=float, default=0.0, metavar="DAYS")
    arguments.add_argument("--yes", action="store_true", help="prune: remove; without it only say what would go")
    given = arguments.parse_args(words)

    from rich.console import Console

    from kdlab.artifacts import AGAIN, Store

    shelf, console = Store(given.store), Console(highlight=False)
    if given.action == "ls":
        from kdlab.report.store import store_table

        console.print(store_table(shelf))
        return 0
    if given.action == "verify":
        from kdlab.rationales.journal import MEND, damaged_lines
        from kdlab.translators import memory

        damage = shelf.verify()
        journals = _lines(shelf.root / "journals", ".jsonl", damaged_lines)
        memories = _lines(shelf.root / "translations", ".sqlite3", memory.mend)
        lines = [*damage, *journals, *memories]
        for line in lines:
            console.print(f"damaged: {line}", markup=False, soft_wrap=True)
        console.print(f"{len(shelf.artifacts())} artifacts, {len(lines)} damaged files")
        if damage:
            console.print(f"fix: {AGAIN}", markup=False, soft_wrap=True)
        if journals:
            console.print(f"fix: {MEND}", markup=False, soft_wrap=True)
        if memories:
            console.print(f"fix: {memory.MEND}", markup=False, soft_wrap=True)
        return 2 if lines else 0
    from kdlab.rundir import used_artifacts

    folders = [Path(folder) for folder in given.outputs]
    for folder in folders:
        if not folder.is_dir() and shelf.artifacts():
            raise StoreError(
                f"there is no folder {folder}, so what its runs are made of would look unused",
                where="--outputs",
                fix="give the folders that hold your runs/ and sweeps/; an empty one to keep nothing",
            )
    if given.yes and shelf.busy():
        raise StoreError(
            "a run is in progress on this store: what it reads must stay",
            where=str(shelf.root),
            fix="wait until it has ended; without --yes you see what would go",
        )

    def used() -> set[str]:
        return {name for folder in folders for name in used_artifacts(folder)}

    chosen = shelf.prune(used(), older_than_days=given.older_than, remove=given.yes, meanwhile=used)
    for name, size in chosen:
        console.print(f"{'removed' if given.yes else 'unused'}  {name}  {size / 1e6:.1f} MB")
    total = sum(size for _, size in chosen) / 1e6
    console.print(f"{len(chosen)} artifacts, {total:.1f} MB" + ("" if given.yes else "; --yes removes them"))
    return 0


def _lines(folder: Path, ending: str, look: Callable[[Path], list[str]]) -> list[str]:
    """What is wrong with the files of a folder of the store, one line each."""
    with disk_errors("looking into the store", folder):
        files = sorted(path for path in folder.iterdir() if path.suffix == ending) if folder.is_dir() else []
        return [f"{folder.name}/{file.name}: {line}" for file in files for line in look(file)]
