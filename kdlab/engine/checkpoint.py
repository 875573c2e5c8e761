"""Checkpoints from which training goes on bit for bit.

    work/checkpoint-<step>/   model.safetensors optimizer.safetensors extra-<name>.safetensors
                              rng-<rank>.safetensors state.json
    work/best-<step>.safetensors

A checkpoint is a folder renamed into place after its last file was written. Tensors are safetensors, the rest JSON.
state.json has the checksum of every file that training goes on from, and its own.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdlab.engine import device
from kdlab.integrity import checksum, sealed, unsealed

RNG_STATE = "python"


def save(
    work: Path,
    step: int,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    beside: Mapping[Path, int] | None = None,
) -> None:
    """Write a checkpoint of `step` and remove the older ones.

    tensors: file name -> tensors; state: JSON; beside: files outside of it that it needs, and how many of their bytes.
    In a distributed job every process calls this; each adds its own
    random-number state, the first writes the rest.
    """
    world = device.World.current()
    scratch, final = work / f"checkpoint-{step}.tmp", work / f"checkpoint-{step}"
    if world.first:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    device.wait()
    save_file(_rng_tensors(), scratch / f"rng-{world.rank}.safetensors")
    _write(scratch / f"rng-{world.rank}.json", {RNG_STATE: random.getstate()})
    if world.first:
        for name, group in tensors.items():
            save_file(
                {key: value.detach().contiguous() for key, value in group.items()},
                scratch / f"{name}.safetensors",
            )
    device.wait()
    if world.first:
        needed = {path: path.stat().st_size for path in scratch.iterdir()} | dict(beside or {})
        files = {os.path.relpath(path, scratch): [size, checksum(path, size)] for path, size in needed.items()}
        told = sealed({**state, "step": step, "files": files}, indent=2, finite=False)  # fp16 overflows
        (scratch / "state.json").write_text(told, encoding="utf-8")
        _sync(scratch)
        if final.exists():  # moved away first: one that is half removed must not be found
            shutil.rmtree(replaced := final.with_suffix(".replaced"), ignore_errors=True)
            os.rename(final, replaced)
        os.rename(scratch, final)
        shutil.rmtree(final.with_suffix(".replaced"), ignore_errors=True)
        for old in checkpoints(work)[:-1]:
            shutil.rmtree(old)
    device.wait()


def checkpoints(work: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = [path for path in work.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def latest(work: Path) -> Path | None:
    return next(iter(reversed(checkpoints(work))), None)


def newest(work: Path, tell: Callable[[str], None]) -> Path | None:
    """The last checkpoint that is whole. Those that are not are told of, and moved aside. Every process calls this."""
    if device.World.current().first:
        for replaced in work.glob("checkpoint-*.replaced"):  # of a process that was killed before its own was there
            if not replaced.with_suffix("").exists():
                os.rename(replaced, replaced.with_suffix(""))
        for folder in reversed(checkpoints(work)):
            damaged = faults(folder)
            if not damaged:
                break
            tell(f"damaged: {folder.name}/{damaged[0]}; it is not used")
            shutil.rmtree(aside := folder.with_suffix(".damaged"), ignore_errors=True)
            os.rename(folder, aside)
    device.wait()
    return latest(work)


def faults(folder: Path) -> list[str]:
    """What of a checkpoint, and of what it needs beside it, is not as it was written, one line a file.

    Raises OSError for what can't be read now, and may be whole.
    """
    try:
        files = read_state(folder).get("files", {})
    except (FileNotFoundError, ValueError) as error:
        return [f"state.json: {error}"]
    found = []
    for name, (size, wanted) in files.items():
        try:
            if checksum(folder / name, size) != wanted:
                found.append(f"{name}: not as it was written")
        except FileNotFoundError:
            found.append(f"{name}: missing")
    return found


def read_state(folder: Path) -> dict[str, Any]:
    """Raises OSError; ValueError if the file is not as it was written."""
    return unsealed((folder / "state.json").read_bytes().decode("utf-8"), indent=2)


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / f"{name}.safetensors")


def restore_rng(folder: Path) -> bool:
    """Put back this process's random-number state; False if the checkpoint has none for it."""
    rank = device.World.current().rank
    file = folder / f"rng-{rank}.safetensors"
    if not file.exists():
        return False
    states = load_file(file)
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    keys, (position, has_gauss, cached) = states["numpy_keys"].numpy(), states["numpy_rest"].tolist()
    np.random.set_state(("MT19937", keys.astype(np.uint32), int(position), int(has_gauss), cached))
    version, internal, gauss = json.loads((folder / f"rng-{rank}.json").read_text(encoding="utf-8"))[RNG_STATE]
    random.setstate((version, tuple(internal), gauss))
    return True


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; each process of a distributed job differently."""
    mixed = int(np.random.SeedSequence([seed, device.World.current().rank]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def flat_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state tensors under names "<parameter index>.<state name>"."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _rng_tensors() -> dict[str, Tensor]:
    state = np.random.get_state(legacy=True)
    assert isinstance(state, tuple)
    _, keys, position, has_gauss, cached = state
    states = {
        "torch": torch.get_rng_state(),
        "numpy_keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
