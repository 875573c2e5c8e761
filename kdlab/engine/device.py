"""Which device, kernel and number format a stage runs with. Fixed tables, made by measurement, never timed in a run."""

from __future__ import annotations

import ctypes
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from kdlab.config import Hardware
from kdlab.errors import KdlabError

# device type -> attention kernel of encoders (kdlab/models/attention.py); elsewhere sdpa. By benchmarks/kernels.py.
ATTENTION = {"cpu": "kdlab"}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # as /proc/cpuinfo names them; the last one on Arm
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
PATIENCE = timedelta(days=7)  # how long processes wait for each other: the first one runs whole stages alone


@dataclass(frozen=True)
class World:
    """This process among those that train together (torchrun sets the environment)."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def first(self) -> bool:
        return self.rank == 0


def pick_device(hardware: Hardware) -> torch.device:
    """The device that the hardware configuration asks for; refuses one that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if hardware.device == "auto":
        name = next(name for name in ("cuda", "mps", "cpu") if there[name])
    else:
        name = hardware.device
    if not there[name]:
        raise KdlabError(
            f"there is no {name} device here",
            where="hardware.device",
            fix="give hardware=auto, or run `kdlab doctor` to see what torch finds",
        )
    if hardware.compile != "off" and name != "cuda":
        raise KdlabError(
            f"hardware.compile={hardware.compile} is for GPUs, and this stage runs on {name}",
            where="hardware.compile",
            fix="leave it out: on a processor it costs minutes and saves next to nothing",
        )
    if hardware.threads:
        torch.set_num_threads(hardware.threads)
    if name == "cpu" and not hardware.recompute:  # who asks for less memory gives it back
        keep_memory()
    if name == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(name)


def keep_memory(mapped: int = 2**30, trimmed: int = 2**31 - 1) -> bool:
    """Let this process keep what tensors freed, for the next ones; returns whether the C library can (glibc's does).

    As glibc is, each large tensor of each step is fetched from the kernel and given back, and every page of it is
    zeroed: 15 % of the processor time of a small encoder's step on 12 tokens, 5 % on 72. The peak grows by 1 to 6 %.

    mapped: bytes of a tensor from which on it is not kept; trimmed: bytes of free memory above which it is given back.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    option = ctypes.CDLL(None).mallopt
    return bool(option(M_MMAP_THRESHOLD, mapped) and option(M_TRIM_THRESHOLD, trimmed))


def attention_kernel(hardware: Hardware) -> str:
    """Which kernel encoders run with: that of the table, unless the hardware configuration names one."""
    if hardware.attention != "auto":
        return hardware.attention
    return ATTENTION.get(pick_device(hardware).type, "sdpa")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast for a forward pass at `precision`; does nothing at fp32."""
    return torch.autocast(device.type, dtype=DTYPES.get(precision), enabled=precision in DTYPES)


def native_bf16() -> bool | None:
    """Whether the processor computes in bf16: then it is quicker than fp32, else many times slower. None: unknown."""
    flags = cpu_flags(Path("/proc/cpuinfo"))
    return None if not flags else any(flag in flags for flag in BF16_FLAGS)


def cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """Features of the first core that a Linux `cpuinfo` names; empty where there is no such file."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    named = (line.partition(":") for line in lines)
    return next(
        (frozenset(rest.split()) for key, _, rest in named if key.strip() in ("flags", "Features")),
        frozenset(),
    )


def accelerator(device: torch.device, precision: str) -> Any:
    """An `accelerate.Accelerator` at this precision. It never accumulates: the loop does, and divides once."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    if precision == "fp16" and device.type == "cpu":  # accelerate would train in fp32 without a word
        raise KdlabError(
            "a processor can't train in fp16",
            where="precision",
            fix="take precision=bf16 or fp32, or a machine with a GPU",
        )
    AcceleratorState._reset_state(reset_partial_state=False)
    mixed = {"fp32": "no"}.get(precision, precision)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=mixed,
        gradient_accumulation_steps=1,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )


def prepare(accelerator: Any, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Both as the accelerator wraps them."""
    with warnings.catch_warnings():
        # torch 2.13 wants another name for it, which accelerate does not pass on yet.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        return accelerator.prepare(model, optimizer)


def join(hardware: Hardware) -> None:
    """Let the processes of a distributed job find each other, on the device that the run asks for."""
    from accelerate import PartialState

    PartialState(cpu=pick_device(hardware).type == "cpu", timeout=PATIENCE)


def share(value: int) -> int:
    """The first process's value, in every process."""
    world = World.current()
    if world.size == 1:
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor([value], dtype=torch.int64, device=device)
    torch.distributed.broadcast(tensor, src=0)
    return int(tensor.item())


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes."""
    if World.current().size > 1:
        torch.distributed.all_reduce(values)
    return values


def gather(values: torch.Tensor, *, real: bool = True) -> list[torch.Tensor]:
    """The same rows of every other process, in the order of their ranks, with their gradients.

    values: [B, ...], B may differ. real: False of a phantom micro-batch, whose rows nobody gets. The backward pass is a
    collective too: a process's rows get the sum of what all processes' losses ask of them, so that summed gradients
    are those of one process with all rows. Each process must reach both passes equally often and in the same order.
    """
    world = World.current()
    if world.size == 1:
        return []
    mine = values if real else values[:0]
    counts = total(torch.nn.functional.one_hot(torch.tensor(world.rank), world.size).to(values.device) * len(mine))
    sizes = [int(count) for count in counts]
    most: torch.Tensor = _Gather.apply(mine, sizes, world.rank)  # type: ignore[no-untyped-call]
    return [most[rank, :size] for rank, size in enumerate(sizes) if rank != world.rank]


class _Gather(torch.autograd.Function):
    """[b, ...] of each process -> [processes, most b, ...] in all of them, padded with 0."""

    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor, sizes: list[int], rank: int) -> torch.Tensor:
        ctx.rank, ctx.rows = rank, len(mine)
        everywhere = mine.new_zeros(len(sizes), max(sizes), *mine.shape[1:])
        everywhere[rank, : len(mine)] = mine
        return total(everywhere)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return total(gradients[0].clone())[ctx.rank, : ctx.rows], None, None


def wait() -> None:
    """Wait until every process is here."""
    if World.current().size > 1:
        torch.distributed.barrier()


@contextmanager
def frozen(parameters: Any) -> Iterator[None]:
    """Take parameters out of training for a while: heads without a loss."""
    held = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
