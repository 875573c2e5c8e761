"""Processes that do jobs for this one, and what each of them gets of the machine: threads, GPUs.

If a worker dies (out of memory, a crash in a library, kill -9), one job is lost and the next one gets a new worker.
Workers end with the process that started them, however that ends.
"""

from __future__ import annotations

import codecs
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from kdlab import interruption
from kdlab.errors import KdlabError

if TYPE_CHECKING:
    from filelock import FileLock

BEAT_SECONDS = 0.25  # between two looks at a worker
GRACE_SECONDS = 15.0  # for the other processes of a job when one of them has failed
QUIT = b"quit"
LAST_LINES = 5  # of a dead worker's standard error that its job's error shows

# Forked where that is safe: a process that has used macOS's own libraries can't be.
_CONTEXT = multiprocessing.get_context("fork") if sys.platform == "linux" else multiprocessing.get_context("spawn")
_LIFE: tuple[Connection, Connection] | None = None


class Died(Exception):
    """A worker ended before its job did."""

    def __init__(self, how: str, *, killed: bool) -> None:
        super().__init__(how)
        self.how, self.killed = how, killed


class Worker:
    """One process that does job after job; `environment` is set before it does anything."""

    def __init__(self, work: Callable[[int], int], environment: Mapping[str, str], *, quiet: bool) -> None:
        """work: does the job of that number and returns an exit code. quiet: what it prints is not shown."""
        self.orders, orders = _CONTEXT.Pipe()
        self.streams: dict[Connection, _Stream] = {}
        self.last_words = _Stream("stderr", quiet=quiet)
        ends = []
        for name in ("stdout", "stderr"):
            reader, writer = _CONTEXT.Pipe(duplex=False)
            self.streams[reader] = self.last_words if name == "stderr" else _Stream(name, quiet=quiet)
            ends.append(writer)
        self.process = _CONTEXT.Process(target=_serve, args=(work, dict(environment), orders, *ends, _life()))
        self.process.start()
        for end in (orders, *ends):
            end.close()

    def begin(self, number: int) -> None:
        self.last_words.lines.clear()
        with suppress(OSError):  # a worker that is gone says so when it is listened to
            self.orders.send_bytes(str(number).encode())

    @property
    def ears(self) -> list[Connection | int]:
        return [self.orders, *self.streams, self.process.sentinel]

    def listen(self) -> int | None:
        """Show what the worker said; its job's exit code, if it has one. Raises Died."""
        ended = not self.process.is_alive()
        answer = None
        with suppress(EOFError, OSError):
            if self.orders.poll():
                answer = int(self.orders.recv_bytes())
        for reader in list(self.streams):
            self._forward(reader)
        if answer is None and ended:
            code = self.process.exitcode or 0
            said = [f"  | {line}" for line in self.last_words.last()]
            raise Died("\n".join([_ending(code), *said]), killed=code < 0)
        return answer

    def stop(self) -> None:
        """Ask the worker to stop at the next checkpoint; it then answers with an exit code above 128."""
        self.process.terminate()

    def dismiss(self, *, at_once: bool = False) -> None:
        """Let the worker end; at_once: kill it."""
        if at_once:
            self.process.kill()
        with suppress(OSError):
            self.orders.send_bytes(QUIT)
        self.process.join(GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        for reader in list(self.streams):
            self._forward(reader)
            reader.close()
        self.streams.clear()
        self.orders.close()

    def _forward(self, reader: Connection) -> None:
        while reader in self.streams and reader.poll():
            try:
                text = os.read(reader.fileno(), 65536)
            except OSError:
                text = b""
            if not text:
                reader.close()
                del self.streams[reader]
                return
            self.streams[reader].show(text)


def _ending(code: int) -> str:
    if code >= 0:
        return f"it ended with exit code {code}"
    name = next((one.name for one in signal.Signals if one == -code), f"signal {-code}")
    return f"it was killed by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")


class _Stream:
    """What a worker writes to one of its standard streams, shown here line by line."""

    def __init__(self, name: str, *, quiet: bool) -> None:
        self.name, self.quiet = name, quiet
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.lines: deque[str] = deque(maxlen=LAST_LINES)
        self.rest = ""

    def show(self, text: bytes) -> None:
        *lines, self.rest = (self.rest + self.decoder.decode(text)).split("\n")
        self.lines += lines
        if lines and not self.quiet:
            place: TextIO = getattr(sys, self.name)
            place.write("".join(f"{line}\n" for line in lines))
            place.flush()

    def last(self) -> list[str]:
        return [line for line in [*self.lines, self.rest] if line.strip()]


def _life() -> tuple[Connection, Connection]:
    """A pipe that this process never writes to: its workers see it break when this process is gone."""
    global _LIFE
    if _LIFE is None:
        _LIFE = _CONTEXT.Pipe(duplex=False)
    return _LIFE


def _serve(
    work: Callable[[int], int],
    environment: Mapping[str, str],
    orders: Connection,
    out: Connection,
    err: Connection,
    life: tuple[Connection, Connection],
) -> None:
    """The worker's side."""
    global _LIFE
    _LIFE = None  # the worker's own workers end with the worker
    life[1].close()
    threading.Thread(target=_end_with, args=(life[0],), daemon=True).start()
    for name in [name for name in os.environ if name.startswith("TORCHELASTIC_")]:
        del os.environ[name]
    os.environ.update(environment)
    sys.stdout, sys.stderr = _redirected(1, out), _redirected(2, err)
    with interruption.watched(speaks=False), suppress(EOFError, OSError, KeyboardInterrupt):
        while not interruption.asked() and (order := orders.recv_bytes()) != QUIT:
            try:
                code = work(int(order))
            except interruption.Interrupted as stop:
                code = interruption.code(stop)
            sys.stdout.flush()
            sys.stderr.flush()
            orders.send_bytes(str(code).encode())


def _redirected(number: int, place: Connection) -> TextIO:
    """A standard stream that goes to the parent, also where a library writes to it directly."""
    os.dup2(place.fileno(), number)
    place.close()
    return os.fdopen(number, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)


def _end_with(life: Connection) -> None:
    with suppress(EOFError, OSError):
        life.recv_bytes()
    os.kill(os.getpid(), signal.SIGKILL)


def end_with(parent: int) -> None:
    """End this process when it is no longer that process's child: joblib's go on for ever when theirs is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(BEAT_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


class Team:
    """Does jobs one after the other, each in workers: one, or as many as train it together."""

    def __init__(self, work: Callable[[int], int], *, quiet: bool = False, claims: bool = True) -> None:
        """claims: a job that may use GPUs gets as many as it has processes, for itself; see `gpus`."""
        self.work, self.quiet, self.claims = work, quiet, claims
        self.workers: list[Worker] = []

    def do(
        self, number: int, *, processes: int = 1, on_gpu: bool = False, beat: Callable[[], None] = lambda: None
    ) -> int:
        """The job's exit code: the first one that is not 0. beat is called about four times a second.

        Raises Died. If this process is asked to stop, its workers are, too; raises Interrupted when they have.
        """
        if len(self.workers) != processes:
            self.dismiss()
        with ExitStack() as claim:
            environment = claim.enter_context(gpus(processes, beat)) if self.claims and on_gpu else {}
            if not self.workers:
                self.workers = [
                    Worker(self.work, {**environment, **one}, quiet=self.quiet) for one in _together(processes)
                ]
            whole = False
            try:
                with interruption.deferred(self.stop):
                    code = self._follow(number, beat)
                whole = code == 0 and not environment
            finally:
                if not whole:  # processes that no longer agree, or that hold a GPU, do no other job
                    self.dismiss(at_once=True)
        return code

    def _follow(self, number: int, beat: Callable[[], None]) -> int:
        for worker in self.workers:
            worker.begin(number)
        codes: dict[Worker, int] = {}
        deaths: list[Died] = []
        deadline = None
        while len(codes) < len(self.workers):
            working = [worker for worker in self.workers if worker not in codes]
            wait([ear for worker in working for ear in worker.ears], BEAT_SECONDS)
            for worker in working:
                try:
                    code = worker.listen()
                except Died as death:
                    code = 1
                    deaths.append(death)
                if code is not None:
                    codes[worker] = code
            beat()
            if any(codes.values()):
                deadline = deadline or time.monotonic() + GRACE_SECONDS
                if time.monotonic() > deadline:
                    break
        told = [code for code in codes.values() if code]
        killed = [death for death in deaths if death.killed]
        if killed or (deaths and len(deaths) == len(told)):  # what the others say then is only that they miss it
            raise (killed or deaths)[0]
        return told[0] if told else 0

    def stop(self) -> None:
        for worker in self.workers:
            worker.stop()

    def dismiss(self, *, at_once: bool = False) -> None:
        for worker in self.workers:
            worker.dismiss(at_once=at_once)
        self.workers = []


def _together(processes: int) -> list[dict[str, str]]:
    """What tells processes on this machine that they train together, as torchrun would say it."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sizes = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [{**shared, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


# What a job gets of the machine -----------------------------------------------------------------------------------


def cores() -> int:
    """Processor cores that this process may use; under Slurm those of its task."""
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs that jobs may use, as CUDA_VISIBLE_DEVICES names them: what it allows, else all that nvidia-smi sees."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        return [name for name in names if name and name != "-1"]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        asked = subprocess.run(
            [program, "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in asked.stdout.splitlines() if line.strip().isdigit()]


@contextmanager
def gpus(count: int, beat: Callable[[], None] = lambda: None) -> Iterator[dict[str, str]]:
    """So many GPUs that no other job of this user on this machine has; yields the environment that says which.

    Waits until they are free; nothing where there is no GPU. Raises KdlabError if the machine has fewer.
    """
    names = visible_gpus()
    if not names:
        yield {}
        return
    if len(names) < count:
        raise KdlabError(
            f"the job wants {count} GPUs, one for each of its processes, and there are {len(names)}",
            where="hardware.processes, CUDA_VISIBLE_DEVICES",
            fix="fewer processes, or hardware=cpu",
        )
    held = _claim(names, count)
    said = time.monotonic()
    while held is None:
        time.sleep(BEAT_SECONDS)
        beat()
        if time.monotonic() - said > 60:
            said = time.monotonic()
            print("wait  every GPU has a job", flush=True)
        held = _claim(names, count)
    try:
        order = (
            {} if "CUDA_VISIBLE_DEVICES" in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        )  # nvidia-smi's order
        yield {"CUDA_VISIBLE_DEVICES": ",".join(held), **order}
    finally:
        for lock in held.values():
            lock.release()


def _claim(names: Sequence[str], count: int) -> dict[str, FileLock] | None:
    """Locks of so many of the GPUs, all or none: two jobs that each hold half would wait for ever."""
    from filelock import FileLock, Timeout

    allocation = os.environ.get("SLURM_JOB_ID", "")  # each counts its GPUs from 0
    folder = Path(tempfile.gettempdir()) / "-".join(filter(None, ["kdlab-gpus", str(os.getuid()), allocation]))
    folder.mkdir(mode=0o700, exist_ok=True)
    held: dict[str, FileLock] = {}
    for name in names:
        lock = FileLock(folder / f"{name.replace('/', '_')}.lock")
        with suppress(Timeout):
            lock.acquire(timeout=0)
            held[name] = lock
        if len(held) == count:
            return held
    for lock in held.values():
        lock.release()
    return None
