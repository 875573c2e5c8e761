"""Processes that do jobs for another: one that dies costs one job, and none outlives who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdlab import workers
from kdlab.errors import KdlabError
from kdlab.workers import Died, Team, gpus, visible_gpus

ROOT = Path(__file__).parents[1]


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Callable[..., Team]]:
    made: list[Team] = []

    def make(work: Callable[[int], int], **named: bool) -> Team:
        made.append(Team(work, **named))
        return made[-1]

    yield make
    for one in made:
        one.dismiss(at_once=True)


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_one_process_does_job_after_job_until_one_fails(
    team: Callable[..., Team], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(number: int) -> int:
        (tmp_path / str(number)).write_text(str(os.getpid()))
        print(f"job {number}")
        os.system(f"echo from a program {number} >&2")  # what writes to the stream itself is shown, too
        return 2 if number == 2 else 0

    one = team(work)
    assert [one.do(number) for number in range(4)] == [0, 0, 2, 0]
    pids = [int((tmp_path / str(number)).read_text()) for number in range(4)]
    assert pids[0] == pids[1] == pids[2] != pids[3] and os.getpid() not in pids
    shown = capfd.readouterr()
    assert shown.out.splitlines() == [f"job {number}" for number in range(4)]
    assert shown.err.splitlines() == [f"from a program {number}" for number in range(4)]
    one.dismiss()
    assert gone(pids[3])


@pytest.mark.parametrize(
    ("number", "says", "killed"), [(0, "killed by SIGKILL, as the system does when memory", True), (1, "code 7", False)]
)
def test_a_process_that_dies_is_told_and_replaced(
    team: Callable[..., Team], number: int, says: str, killed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(job: int) -> int:
        print("about to die", file=sys.stderr)
        if job == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if job == 1:
            os._exit(7)
        return 0

    one = team(work, quiet=True)
    with pytest.raises(Died, match=says) as death:
        one.do(number)
    assert death.value.killed is killed and "| about to die" in death.value.how
    assert one.do(2) == 0
    assert capfd.readouterr() == ("", "")


def test_processes_that_train_together_are_told_so(team: Callable[..., Team], tmp_path: Path) -> None:
    def work(number: int) -> int:
        rank = os.environ["RANK"]
        words = [os.environ[name] for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")]
        (tmp_path / f"{number}-{rank}").write_text(" ".join(words))
        if number == 1:
            time.sleep(0.1 if rank == "0" else 60)
            return 2 if rank == "0" else 0
        if number == 2 and rank == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return 1 if number == 2 else 0  # the first process only notices that the other is gone

    one = team(work, quiet=True)
    assert one.do(0, processes=2) == 0
    told = [(tmp_path / f"0-{rank}").read_text().split() for rank in range(2)]
    assert [words[:3] for words in told] == [["2", "0", "127.0.0.1"], ["2", "1", "127.0.0.1"]]
    assert told[0][3] == told[1][3]
    with pytest.raises(Died, match="SIGKILL"):
        one.do(2, processes=2)


def test_a_job_whose_process_hangs_after_another_failed_ends(
    team: Callable[..., Team], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "GRACE_SECONDS", 0.2)

    def work(number: int) -> int:
        if os.environ["RANK"] == "1":
            time.sleep(60)
        return 2

    started = time.monotonic()
    assert team(work).do(0, processes=2) == 2
    assert time.monotonic() - started < 20


ORPHAN = """
import os, sys, time
from kdlab.workers import Team

def work(number):
    print(os.getpid(), flush=True)
    time.sleep(60)
    return 0

Team(work).do(0, processes=2)
"""


def test_no_worker_outlives_the_process_that_started_it() -> None:
    command = [sys.executable, "-c", ORPHAN]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert all(map(gone, pids))


# GPUs


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two GPUs, as nvidia-smi lists them; returns the folder that nvidia-smi is in."""
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "locks").mkdir()
    monkeypatch.setattr(workers.tempfile, "gettempdir", lambda: str(tmp_path / "locks"))
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0\necho 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_no_two_jobs_have_the_same_gpu(machine: Path) -> None:
    with gpus(1) as first, gpus(1) as second:
        assert first == {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        assert second["CUDA_VISIBLE_DEVICES"] == "1"
        assert workers._claim(["0", "1"], 1) is None
    with gpus(2) as both:
        assert both["CUDA_VISIBLE_DEVICES"] == "0,1"
    held = workers._claim(["0"], 1)
    assert held is not None and workers._claim(["0", "1"], 2) is None  # all or none
    assert workers._claim(["1"], 1) is not None


def test_a_job_waits_for_a_gpu_that_another_process_has(machine: Path, team: Callable[..., Team]) -> None:
    seen = machine / "seen"

    def work(number: int) -> int:
        with seen.open("a") as file:
            file.write(f"{os.environ['CUDA_VISIBLE_DEVICES']} {os.getpid()}\n")
        return 0

    first = workers._claim(["0"], 1)
    second = workers._claim(["1"], 1)
    assert first is not None and second is not None
    waits = 0

    def beat() -> None:
        nonlocal waits
        waits += 1
        if waits == 2:
            second["1"].release()

    one = team(work)
    assert one.do(0, on_gpu=True, beat=beat) == 0 and waits >= 2
    assert one.do(1, on_gpu=True) == 0
    (gpu, pid), (again, other) = (line.split() for line in seen.read_text().splitlines())
    assert gpu == again == "1"
    assert pid != other  # a process keeps the GPU it began with: the next job has one of its own


def test_what_the_user_lets_jobs_see_is_respected(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_gpus() == ["0", "1"]
    for given, names in (("1", ["1"]), ("", []), ("-1", []), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert visible_gpus() == names
    with gpus(2) as both:
        assert both == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}
    with pytest.raises(KdlabError, match="wants 3 GPUs, one for each of its processes, and there are 2"), gpus(3):
        pass
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with gpus(1) as none:
        assert none == {}


def test_allocations_of_slurm_count_their_gpus_from_0(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gpus(2):
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        with gpus(1) as own:
            assert own["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize("says", ["exit 9", "echo No devices were found", "exit 0"])
def test_a_machine_without_gpus(machine: Path, says: str) -> None:
    (machine / "nvidia-smi").write_text(f"#!/bin/sh\n{says}\n")
    assert visible_gpus() == []
    with gpus(1) as none:
        assert none == {}


def test_cores_are_those_that_slurm_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert workers.cores() == 6
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "")
    assert workers.cores() == len(os.sched_getaffinity(0))
