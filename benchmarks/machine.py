"""How every part measures: contenders take turns, figures are medians, and the machine's own limit is beside them."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from kdlab.engine import device

Row = dict[str, str | float | int]

SIDE = 2048  # of the matrices that the limit is measured with
TRIES = 6
GLIBC_MAPPED = 32 * 2**20  # DEFAULT_MMAP_THRESHOLD_MAX of malloc.c: what its own threshold grows to


@dataclass(frozen=True)
class Settings:
    """What the command line decides.

    rounds: turns of each contender, after a warm-up. seconds: no round of a comparison starts after so many; a part
    may have several comparisons. precisions: of "fp32" and "bf16".
    """

    threads: int
    rounds: int
    seconds: float
    precisions: tuple[str, ...]


def facts(settings: Settings) -> Row:
    """The machine and the software, as a row of its own."""
    found: Row = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": settings.threads,
        "rounds": settings.rounds,
        "load": os.getloadavg()[0],
        "bf16": {True: "native", False: "emulated", None: "unknown"}[device.native_bf16()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return found | {f"peak_{name}_gflops": peak(name) / 1e9 for name in settings.precisions}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in named if key.strip() == "model name"), platform.machine())


@contextmanager
def memory_as_it_is() -> Iterator[None]:
    """For baselines: the C library gives memory back as it does by itself once it has seen large tensors."""
    device.keep_memory(GLIBC_MAPPED, 2 * GLIBC_MAPPED)
    try:
        yield
    finally:
        device.keep_memory()


def give_back() -> None:
    """Give the memory that comparisons before have left to the system."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def peak(precision: str, *, side: int = SIDE) -> float:
    """FLOP/s of a matrix product of two [side, side] matrices, the best of some, with the threads torch has now."""
    dtype = device.DTYPES.get(precision, torch.float32)
    left, right = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    return 2 * side**3 / min(seconds(lambda: torch.matmul(left, right)) for _ in range(TRIES))


def seconds(function: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def flops(function: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products in one call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def interleave(contenders: Mapping[str, Callable[[], object]], settings: Settings) -> dict[str, float]:
    """Median seconds of a call of each contender.

    Each has one call that does not count, then all take turns: `settings.rounds` times, or until `settings.seconds`
    have passed since the first counted call; at least once.
    """
    for contender in contenders.values():
        contender()
    timed = {name: _timed(contender) for name, contender in contenders.items()}
    return {name: found for name, (found,) in interleave_steps(timed, settings).items()}


def _timed(function: Callable[[], object]) -> Callable[[], list[float]]:
    return lambda: [seconds(function)]


def interleave_steps(
    contenders: Mapping[str, Callable[[], Sequence[float]]], settings: Settings
) -> dict[str, list[float]]:
    """Median seconds of each step of contenders that time their own steps, by turns as in `interleave`.

    Each call of a contender gives the seconds of the same steps, and warms up by itself.
    """
    times: dict[str, list[Sequence[float]]] = {name: [] for name in contenders}
    start = time.perf_counter()
    for _ in range(settings.rounds):
        for name, contender in contenders.items():
            times[name].append(contender())
        if time.perf_counter() - start > settings.seconds:
            break
    return {name: [statistics.median(step) for step in zip(*found, strict=True)] for name, found in times.items()}


def peak_memory(function: Callable[..., object], *args: Any) -> int:
    """Bytes of memory that a call needs at most, beyond what the process holds when it starts.

    The call runs in a fresh process with as many threads as torch has here, so `function`, of a module's top level,
    makes all that it needs; imports of its module do not count. Raises what it raises, and
    `concurrent.futures.process.BrokenProcessPool` if the system killed it.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, torch.get_num_threads(), function, *args).result()


def _measured(threads: int, function: Callable[..., object], *args: Any) -> int:
    torch.set_num_threads(threads)
    start = _status("VmRSS")
    function(*args)
    return _status("VmHWM") - start


def _status(name: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most. Where there is no /proc both are the most so far."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    found = next(line for line in lines if line.startswith(f"{name}:"))
    return int(found.split()[1]) * 1024
