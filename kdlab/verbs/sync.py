"""`kdlab sync`: send runs to Weights & Biases."""

from __future__ import annotations

from kdlab.verbs import parser


def main(words: list[str]) -> int:
    arguments = parser("sync", "Send runs to Weights & Biases, each as one run of its sweep's group.")
    arguments.add_argument("runs", nargs="+", help="folders of runs or sweeps, or patterns: 'outputs/sweeps/crild-*'")
    arguments.add_argument("--project", default="kdlab")
    arguments.add_argument("--entity")
    arguments.add_argument("--offline", action="store_true", help="write an offline run instead of sending")
    given = arguments.parse_args(words)

    from kdlab.config import Tracking
    from kdlab.report.sync import sync
    from kdlab.runs import collect

    records, left_out = collect(given.runs)
    mode = "offline" if given.offline else "online"
    settings = Tracking(name="wandb", mode=mode, project=given.project, entity=given.entity)
    failed = [f"{line} (left out)" for line in left_out]
    sent = 0
    for run, record in zip(sync([record.folder for record in records], settings=settings), records, strict=True):
        if run.place is None:
            failed.append(f"{run.folder}: {run.problem}")
            print(f"failed  {run.folder}", flush=True)
        else:
            sent += 1
            print(f"sent    {run.folder}{'' if record.result else f' ({record.state})'}: {run.place}", flush=True)
    print(f"{sent} of {len(records) + len(left_out)} runs sent to project {given.project}")
    for line in failed:
        print(f"failed: {line}")
    return 2 if failed else 0
