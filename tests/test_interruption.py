"""SIGTERM and SIGINT: a checkpoint within a step, an exit code that says so; the same command goes on bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdlab import interruption
from kdlab.engine import checkpoint, loop
from kdlab.interruption import Interrupted, deferred, immediate, watched
from kdlab.stages import answer, prepare
from kdlab.verbs.verify_resume import Left, compared
from kdlab.workers import Team
from lab import Lab

RUN = (
    "method=ft task=demo/nli model=tiny debug=fast task.max_length=32 tracking=none hardware=cpu hardware.threads=1 "
    "curves=8 debug.steps=6 method.student.eval_steps=3"
)
STEPS = 6


def command(lab: Lab, outputs: Path, more: str = "") -> Any:
    """In a store of its own."""
    return lab.command(f"train {RUN} {more} outputs={outputs}/outputs store={outputs}/outputs/artifacts")


@pytest.fixture(autouse=True)
def reacting() -> Iterator[None]:
    """Also where the tests run in the background of a shell, which has its jobs ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Left:
    """What the run leaves that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    assert command(lab, folder).code == 0
    return Left.of(folder)


def at_step(number: int, act: Callable[[], None], patched: pytest.MonkeyPatch) -> None:
    """Act while that step is trained, the first time."""
    real, done = loop._Trainer.train_step, list[int]()

    def step(self: Any, *rest: Any) -> None:
        if self.step + 1 == number and not done:
            done.append(number)
            act()
        real(self, *rest)

    patched.setattr(loop._Trainer, "train_step", step)


def send(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


# one run


@pytest.mark.parametrize(("signum", "code", "step"), [(signal.SIGTERM, 143, 2), (signal.SIGINT, 130, STEPS)])
def test_a_checkpoint_is_written_at_the_end_of_the_step(
    lab: Lab,
    whole: Left,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
    signum: int,
    code: int,
    step: int,
) -> None:
    before = signal.getsignal(signum)
    at_step(step, send(signum), monkeypatch)
    done = command(lab, tmp_path)
    assert done.code == code and "give the same command again to continue" in done.err
    assert f"stopped at step {step} of {STEPS}, with a checkpoint" in done.out
    assert "Ctrl-C again ends at once" in capfd.readouterr().err
    assert signal.getsignal(signum) is before
    (work,) = (tmp_path / "outputs" / "artifacts" / "building").glob("finetune-*/work")
    assert [path.name for path in checkpoint.checkpoints(work)] == [f"checkpoint-{step}"]
    assert not list((tmp_path / "outputs").rglob("*.tmp"))
    again = command(lab, tmp_path)
    assert again.code == 0 and f"continues at step {step} of {STEPS}" in again.out
    assert compared(Left.of(tmp_path), whole) == []


@pytest.mark.parametrize("what", ["evaluate", "follow"])
def test_an_evaluation_is_broken_off_and_done_again(
    lab: Lab, whole: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It may take minutes, and Slurm does not wait so long: what was trained before it is kept."""
    real, calls = getattr(loop._Trainer, what), list[int]()

    def watching(self: Any, function: Callable[[], Any]) -> None:
        def broken_off() -> Any:
            if self.step == 3 and not calls:
                calls.append(self.step)
                os.kill(os.getpid(), signal.SIGTERM)
                pytest.fail("the evaluation went on")
            return function()

        real(self, broken_off)

    monkeypatch.setattr(loop._Trainer, what, watching)
    assert command(lab, tmp_path).code == 143
    (work,) = (tmp_path / "outputs" / "artifacts" / "building").glob("finetune-*/work")
    assert checkpoint.read_state(work / "checkpoint-3")["pending"]
    again = command(lab, tmp_path)
    assert again.code == 0 and "continues at step 3" in again.out
    assert compared(Left.of(tmp_path), whole) == []


def test_a_stage_that_does_not_train_ends_at_once(
    lab: Lab, whole: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(prepare, "write_table", lambda *_: (send(signal.SIGTERM)(), pytest.fail("went on")))
        assert command(lab, tmp_path).code == 143
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    (folder / "status.json.7.tmp").touch()  # as kill -9 leaves it
    assert command(lab, tmp_path).code == 0
    assert compared(Left.of(tmp_path), whole) == []


def test_the_speed_of_answers_is_that_of_all_attempts(tmp_path: Path) -> None:
    """Not 0 tokens a second if all had been given when the stage went on."""
    first = answer._Kept(tmp_path / "answers.jsonl", pytest.fail)
    first.add([{"sample_index": 3, "cut": True, "tokens": 7, "seconds": 0.5}])
    then = answer._Kept(tmp_path / "answers.jsonl", pytest.fail)
    then.add([{"sample_index": 4, "cut": False, "tokens": 5, "seconds": 0.25}])
    assert (then.tokens, then.seconds, then.cut) == (12, 0.75, {3})
    assert then.records == {3: {"sample_index": 3}, 4: {"sample_index": 4}}


# a sweep


@pytest.mark.parametrize("both", [False, True], ids=["the command", "its whole group"])
def test_a_sweep_stops_when_its_jobs_have_their_checkpoint(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    """As `kill` sends it to the command, and as Ctrl-C sends it to all processes."""
    pids = tmp_path / "pids"

    def act() -> None:
        pids.write_text(str(os.getpid()))
        os.kill(os.getppid(), signal.SIGINT)
        if both:
            os.kill(os.getpid(), signal.SIGINT)
        until = time.monotonic() + 10
        while not interruption.asked() and time.monotonic() < until:
            time.sleep(0.01)

    at_step(2, act, monkeypatch)
    done = command(lab, tmp_path, "-m seed=1,2 name=two")
    assert done.code == 130 and "give the same command again to continue" in done.err, done.err
    assert "job   " in done.out and done.out.count("job   ") == 1  # the second one did not begin
    (state,) = (tmp_path / "outputs" / "artifacts" / "building").glob("finetune-*/work/checkpoint-2")
    assert checkpoint.read_state(state)["reason"] == "signal"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids.read_text()), 0)
    assert not list((tmp_path / "outputs").glob("sweeps/*/*/failure.txt"))
    monkeypatch.undo()
    again = command(lab, tmp_path, "-m seed=1,2 name=two")
    assert again.code == 0 and "2 of 2 jobs finished" in again.out and "continues at step 2" in again.out


def test_processes_that_train_together_stop_together(tmp_path: Path) -> None:
    def work(number: int) -> int:
        with deferred():
            (tmp_path / os.environ["RANK"]).touch()
            while not interruption.asked():
                time.sleep(0.01)
        return 0

    def ask() -> None:
        while not all((tmp_path / str(rank)).exists() for rank in range(2)):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    team = Team(work, quiet=True)
    threading.Thread(target=ask).start()
    try:
        with watched(speaks=False), pytest.raises(Interrupted) as stop:
            team.do(0, processes=2)
    finally:
        team.dismiss(at_once=True)
    assert interruption.code(stop.value) == 143 and team.workers == []


def test_a_worker_that_is_asked_by_itself_says_so(tmp_path: Path) -> None:
    def work(number: int) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    team = Team(work, quiet=True)
    try:
        assert team.do(0) == 143
    finally:
        team.dismiss(at_once=True)


# the signals themselves


def test_a_second_ctrl_c_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "GAP_SECONDS", 0.05)

    def child() -> None:
        with watched(speaks=False), deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # Slurm's may come again
            os.kill(os.getpid(), signal.SIGINT)  # the same Ctrl-C, by way of torchrun
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(20)
    assert process.exitcode == -signal.SIGINT


@pytest.fixture
def ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


def test_what_was_ignored_stays_so(ignored: None) -> None:
    with watched(speaks=False):
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.asked() == 0


def test_only_the_first_of_processes_that_train_together_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with watched(speaks=False):
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.asked() == signal.SIGTERM
        with pytest.raises(Interrupted):
            interruption.check()


def test_a_signal_waits_for_the_end_of_what_defers_it() -> None:
    told: list[str] = []
    with watched(speaks=False):
        with pytest.raises(Interrupted), deferred(lambda: told.append("outer")), deferred(lambda: told.append("inner")):
            os.kill(os.getpid(), signal.SIGTERM)
            told.append("after")
        assert told == ["inner", "after"]
        with pytest.raises(Interrupted), deferred():
            pytest.fail("it had been asked before")
    with watched(speaks=False), pytest.raises(Interrupted), deferred(), immediate():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it may be broken off")
    assert interruption.asked() == 0


def test_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[Any] = []

    def look() -> None:
        with watched():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]
