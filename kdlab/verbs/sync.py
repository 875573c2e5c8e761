"""`kdlab sync`: send runs to Weights & Biases."""

from __future__ import annotations

from pathlib import Path

from kdlab.verbs import parser, run_folders


def main(words: list[str]) -> int:
    arguments = parser("sync", "Send runs to Weights & Biases, each as one run, from its metrics.jsonl.")
    arguments.add_argument("runs", nargs="+", type=Path, help="folders of runs, or of a sweep")
    arguments.add_argument("--project", default="kdlab")
    arguments.add_argument("--entity")
    arguments.add_argument("--offline", action="store_true", help="write an offline run instead of sending")
    given = arguments.parse_args(words)

    from kdlab.config import Tracking
    from kdlab.report.sync import sync as send

    folders = [inner for folder in given.runs for inner in run_folders(folder)]
    mode = "offline" if given.offline else "online"
    settings = Tracking(name="wandb", mode=mode, project=given.project, entity=given.entity)
    for folder, place in zip(folders, send(folders, settings=settings), strict=True):
        print(f"{folder}: {place}")
    return 0
