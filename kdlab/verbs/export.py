"""`kdlab export`: a finished student as a plain folder or as ONNX, and on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdlab.errors import ConfigError, StoreError
from kdlab.verbs import parser, run_folders

ABOUT = """Write the student of a finished run into a folder that needs no kdlab: hf is what transformers loads; onnx
is model.onnx, checked against torch. Both come with tokenizer, model card and export.json."""


def main(words: list[str]) -> int:
    from kdlab.export import FORMATS, export

    arguments = parser("export", ABOUT)
    arguments.add_argument("run", type=Path, help="the folder of a run")
    arguments.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new folder")
    arguments.add_argument("--format", choices=FORMATS, default="hf", help="default: hf")
    arguments.add_argument("--push", metavar="OWNER/NAME", help="put it on the Hub too; needs HF_TOKEN or a login")
    arguments.add_argument("--private", action="store_true", help="with --push: nobody else sees it")
    arguments.add_argument("--opset", type=int, metavar="N", help="of ONNX; default: as torch.onnx chooses")
    arguments.add_argument(
        "--force", action="store_true", help="replace an earlier export in DIR; with --push also add to a repository"
    )
    arguments.add_argument("--store", type=Path, help="where the run's artifacts are; default: as the run says")
    given = arguments.parse_args(words)

    from kdlab.report.summary import megabytes
    from kdlab.runs import Record

    problems = []
    if given.private and given.push is None:
        problems.append("--private: is for --push")
    if given.opset is not None and given.format != "onnx":
        problems.append("--opset: is for --format onnx")
    if problems:
        raise ConfigError(problems)
    if given.push is not None:
        from kdlab.export.hub import check_repository, push

        check_repository(given.push)
    jobs = run_folders(given.run)
    if jobs != [given.run]:
        raise StoreError(
            f"this is a sweep of {len(jobs)} runs", where=str(given.run), fix=f"give one of them: {jobs[0]}"
        )

    def note(text: str) -> None:
        print(text, flush=True)

    found = export(
        Record.open(given.run),
        given.to,
        form=given.format,
        opset=given.opset,
        force=given.force,
        store=given.store,
        repository=given.push,
        note=note,
    )
    for line in told(found.told):
        print(line)
    print(f"wrote  {given.to}: {len(found.told['files']) + 1} files, {megabytes(found.bytes)} MB")
    if given.push is not None:
        print(f"pushed {push(found.folder, given.push, private=given.private, force=given.force)}")
    return 0


def told(found: dict[str, Any]) -> list[str]:
    """What was written and how it was checked, in lines for the terminal."""
    from kdlab.export import told_check

    if "onnx" in found:
        onnx = found["onnx"]
        longest = f"up to {onnx['longest']} tokens each" if onnx["longest"] else "of any length"
        return [
            f"onnx   opset {onnx['opset']}, {', '.join(onnx['inputs'])}: any number of rows, {longest}",
            f"check  {told_check(found['check'])}",
        ]
    same = found["check"]["same_as_saved"]
    return [
        "check  every file is as the run saved it" if same else "check  none: the store no longer has what was saved"
    ]
