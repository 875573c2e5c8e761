"""What `kdlab export` does: a finished student as a folder that needs no kdlab and shares no file with the store.

hf: what AutoModel...from_pretrained loads. onnx: model.onnx, checked against torch. Both with tokenizer, config.json, a
model card, and export.json, which tells what was exported and what the check found. No torch here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from kdlab import provenance
from kdlab.artifacts import MANIFEST, write_json
from kdlab.errors import ModelError, StoreError, disk_errors
from kdlab.export.folder import NAME, check_target, staged
from kdlab.integrity import checksum
from kdlab.report.card import model_card
from kdlab.runs import AGAIN, Record, read_json

FORMAT = 1
FORMATS = ("hf", "onnx")
PACKAGES = ("kdlab", "python", "torch", "transformers", "tokenizers")
SCORED = {"evaluate_student": "model", "answers": "student"}  # what reads the student, and the name of that input


@dataclass(frozen=True)
class Exported:
    """folder: what was written; told: the content of its export.json."""

    folder: Path
    told: dict[str, Any]

    @property
    def bytes(self) -> int:
        return sum(int(file["bytes"]) for file in self.told["files"].values())


def export(
    record: Record,
    to: Path,
    *,
    form: str = "hf",
    opset: int | None = None,
    force: bool = False,
    store: Path | None = None,
    repository: str | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write the student of a finished run into the folder `to`, in one piece; after an error nothing is left of it.

    form: of `FORMATS`. opset: of ONNX; None: as torch.onnx chooses. force: take the place of an earlier export. store:
    where the run's artifacts are; None: as the run says. repository: on the Hub, from which the card's reader is to
    load it. note: told what takes its time, and what the user should know.

    Raises StoreError if the run has not finished, or the folder can't be written or must not be; ModelError if the run
    has no student, it is not what the run saved, or ONNX can't hold it or does not compute what torch does.
    """
    result, artifacts = record.finished, record.store(store)
    if store is not None and not store.is_dir():
        raise StoreError("there is no such store", where=str(store), fix="give the folder of the artifacts, or none")
    to = check_target(to, store=artifacts, student=record.folder / "student", force=force)
    source, artifact = _student(record, result, artifacts)
    files = _files(source, artifact)
    if form == "hf" and result["student"].get("head") == "official":
        note("warning: the official code's head is no part of plain transformers: README.md tells the line to add")
    with disk_errors("writing the export", to, place="`--to`"), staged(to) as scratch:
        if form == "hf":
            _copy(files, scratch)
            found: dict[str, Any] = {"check": {"same_as_saved": artifact is not None}}
        else:
            from kdlab.export.network import write

            found = write(source, scratch, record=record, store=artifacts, opset=opset, note=note)
            _copy([file for file in files if ".safetensors" not in file.name], scratch)
        card = model_card(
            result,
            record.config,
            record.told["overrides"],
            place=repository or to.name,
            onnx=None if form == "hf" else told_check(found["check"]),
        )
        (scratch / "README.md").write_text(card, encoding="utf-8")
        told = {**_told(record, result, form, artifact), **found}
        told["files"] = {
            file.name: {"sha256": checksum(file), "bytes": file.stat().st_size} for file in sorted(scratch.iterdir())
        }
        write_json(scratch / NAME, told)
    return Exported(to, told)


def told_check(check: Mapping[str, Any]) -> str:
    """What the check of an ONNX model found, in words."""
    shortest, longest = check["tokens"]
    rows = f"{check['rows']} rows of {check['rows_of']} and {check['made_up']} made up" if check["rows"] else None
    text = (
        f"{rows or str(check['made_up']) + ' rows made up'}, of {shortest} to {longest} tokens, in batches of "
        f"{', '.join(map(str, check['batches']))}: logits differ from torch's by at most {check['difference']:.1e}, "
        f"and {check['allowed']:.1e} is allowed ({check['tolerance']:g} of the largest)"
    )
    agreed = check["predictions"] is not None
    return text + (f"; {check['agreeing']} of {check['predictions']} predictions are the same" if agreed else "")


def _student(record: Record, result: Mapping[str, Any], store: Path) -> tuple[Path, Path | None]:
    """(the folder of the student, the artifact it was published in if the store still has that)."""
    model = record.config["model"]
    if not {"run", "scores", "student", "made_by"} <= set(result):
        raise StoreError(
            "this result was written by another kdlab", where=str(record.folder / "result.json"), fix=AGAIN
        )
    if not result["student"].get("path"):
        behind = model.get("kind") == "endpoint"
        why = "its model is behind an endpoint" if behind else "its model was only prompted"
        fix = "what an endpoint has trained stays there" if behind else "the model itself has not changed"
        raise ModelError(
            f"run {record.name} has no student to export: {why}",
            where=str(record.folder),
            fix=f"export a run that trains a model on this machine; {fix}",
        )
    reading = {stage["label"]: stage["inputs"] for stage in record.graph}
    names = [reading[label][name] for label, name in SCORED.items() if name in reading.get(label, {})]
    artifact = next((store / name for name in names if (store / name / MANIFEST).is_file()), None)
    places = [record.folder / "student", *([artifact / "model"] if artifact else [])]
    for place in places:
        if (place / "config.json").is_file() and any(place.glob("*.safetensors")):
            return place, artifact
    raise ModelError(f"the student of run {record.name} is not there", where=str(places[0]), fix=AGAIN)


def _files(source: Path, artifact: Path | None) -> list[Path]:
    """What a student is made of; of a known artifact what the run has saved, unchanged."""
    if artifact is None:
        return [
            file
            for file in sorted(source.iterdir())
            if file.is_file() and file.name != "README.md" and not file.name.startswith(".")
        ]
    saved = read_json(artifact / MANIFEST)["files"]
    files = {source / Path(name).name: entry for name, entry in saved.items() if Path(name).parent.name == "model"}
    for file, entry in files.items():
        if not file.is_file() or checksum(file) != entry["sha256"]:
            raise ModelError(
                f"the student is not as the run saved it: {file.name} is {'other' if file.is_file() else 'missing'}",
                where=str(source),
                fix=f"delete that folder, and what `kdlab store verify` calls damaged; then {AGAIN}",
            )
    return list(files)


def _copy(files: Iterable[Path], folder: Path) -> None:
    for file in files:
        try:
            shutil.copyfile(file, folder / file.name)
        except OSError as error:
            error.filename = folder / file.name  # a full disk is that of the copy
            raise


def _told(record: Record, result: Mapping[str, Any], form: str, artifact: Path | None) -> dict[str, Any]:
    run = result["run"]
    named = {name: run[name] for name in ("name", "family", "method", "task", "model", "seed")}
    return {
        "format": FORMAT,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "exported_as": form,
        "run": {**named, "run_id": record.told["run_id"], "made_by": result["made_by"]},
        "artifact": artifact.name if artifact else None,
        "student": {name: result["student"].get(name) for name in ("parameters", "head")},
        "scores": {
            split: {metric: values.get("selected") for metric, values in metrics.items()}
            for split, metrics in result["student"]["scores"].items()
        },
        "versions": {name: provenance.versions()[name] for name in PACKAGES},
    }
