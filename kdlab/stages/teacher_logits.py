"""A teacher's logits of a task's rows: written once, read by every student that learns from them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from kdlab.context import Context
from kdlab.data.batches import EncodedSplit
from kdlab.engine import device
from kdlab.engine.progress import duration
from kdlab.errors import DataError
from kdlab.integrity import checksum
from kdlab.models.taps import Tapped
from kdlab.stages.encoder import TaskData, on, saved_model
from kdlab.stages.steps import TEACHER_LOGITS

SPLITS = ("train", "dev")  # what a student is trained on, and what its loss is followed on
SHOWN_EVERY = 10.0  # seconds between two lines of progress


def teacher_logits(context: Context, *, data: Path, teacher: Path, pad_to_max: bool, precision: str) -> None:
    """Write `train.safetensors` and `dev.safetensors`: logits [rows, C] float32, and ids [rows] int64, those of `data`.

    Without dropout, at the `precision` of the training that reads them. A stage that was killed goes on from what it
    last kept in `work`.
    """
    task = TaskData(data)
    place = device.pick_device(context.hardware)
    kernel = device.attention_kernel(context.hardware)
    model = saved_model(teacher / "model", kernel=kernel).to(place).freeze()
    for name in SPLITS:
        split = task.split(name)
        logits = _answered(context, task, split, model, name, pad_to_max=pad_to_max, precision=precision)
        save_file({"logits": logits, "ids": split.ids.astype(np.int64)}, context.out / f"{name}.safetensors")
    context.facts["rows"] = {name: len(task.split(name)) for name in SPLITS}


def _answered(
    context: Context,
    task: TaskData,
    split: EncodedSplit,
    model: Tapped,
    name: str,
    *,
    pad_to_max: bool,
    precision: str,
) -> np.ndarray:
    """Logits [rows, C] in the order of the rows."""
    size, place = context.hardware.eval_batch, next(model.parameters()).device
    logits, done = np.zeros((len(split), task.num_labels), dtype=np.float32), 0
    for kept in context.work.glob(f"{name}-*.safetensors"):
        if not kept.stem.endswith(f"-{checksum(kept)}"):
            context.note(f"damaged: {kept}: it is not as it was written; its rows are computed again")
            continue
        found = load_file(kept)
        if int(found["done"][0]) > done:
            logits, done = found["logits"], int(found["done"][0])
    batches = task.batches(split, batch_size=size, seed=0, shuffle=False, pad_to_max=pad_to_max)
    start = len(batches) if done == len(split) else done // size
    started = shown = saved = time.monotonic()
    for number, (batch,) in enumerate(batches.epoch(0, start=start), start=start):
        with torch.inference_mode(), device.autocast(place, precision):
            logits[batch["index"].numpy()] = model(on(place, batch)).logits.float().cpu().numpy()
        done, now = min((number + 1) * size, len(split)), time.monotonic()
        if done == len(split) or now - saved >= context.hardware.checkpoint_seconds:
            _keep(context.work / name, logits, done)
            saved = now
        if now - shown > SHOWN_EVERY:
            context.note(f"      {context.stage} {name} {done}/{len(split)}: {duration(now - started)}")
            shown = now
    return logits


def _keep(place: Path, logits: np.ndarray, done: int) -> None:
    """Write what is there to <place>-<checksum>.safetensors, and remove the one before.

    done: of the rows in the order in which they are read, the longest first.
    """
    scratch, before = place.with_suffix(".tmp"), list(place.parent.glob(f"{place.name}-*.safetensors"))
    save_file({"logits": logits, "done": np.array([done])}, scratch)
    kept = place.with_name(f"{place.name}-{checksum(scratch)}.safetensors")
    os.replace(scratch, kept)
    for old in before:
        if old != kept:
            old.unlink()


class TaughtData(TaskData):
    """A task whose batches of train and dev hold the teacher's logits beside each row."""

    def __init__(self, folder: Path, logits: Path) -> None:
        """logits: what `teacher_logits` made of `folder`."""
        super().__init__(folder)
        self.logits = logits

    def split(self, name: str) -> EncodedSplit:
        """Raises DataError where logits and rows are not of the same data."""
        found = super().split(name)
        if name in SPLITS:
            found.extra[TEACHER_LOGITS] = self._logits(found, name)
        return found

    def _logits(self, split: EncodedSplit, name: str) -> np.ndarray:
        stored = load_file(self.logits / f"{name}.safetensors")
        logits = stored["logits"]
        if logits.shape != (len(split), self.num_labels) or not np.array_equal(stored["ids"], split.ids):
            raise DataError(
                f"the teacher's logits are of other data: {logits.shape[0]} rows of {logits.shape[1]} logits, and "
                f"{name} has {len(split)} of {self.num_labels}"
                + ("" if len(stored["ids"]) != len(split) else ", or other rows"),
                where=str(self.logits),
                fix="give the command again with fresh=[teacher_logits]",
            )
        return logits
