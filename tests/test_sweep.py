"""Sweeps: each job once and in its folder, whatever happens to the others; who looks in sees where each stands."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kdlab import compose, sweep
from kdlab.artifacts import Store
from kdlab.compose import Launcher
from kdlab.errors import ConfigError, StoreError
from kdlab.report.jobs import FRAME, Standing, grouped, jobs_table, telling_names
from kdlab.rundir import RunDirectory, Status, alive
from kdlab.stages import finetune
from lab import TINY, Lab, read

ROOT = Path(__file__).parents[1]
KD = f"{TINY} method=kd method.weak_teacher=warn"
NOBODY = 2**22 + 1  # no process has this number: the kernel's limit is 2**22


def jobs(line: str) -> list[compose.Job]:
    return compose.jobs(["-m", *shlex.split(line)]).jobs


def folder(place: Path, **files: Any) -> Path:
    """A job's folder with these JSON files, and failure.txt."""
    place.mkdir(parents=True)
    for name, content in files.items():
        text = f"{content}\n" if name == "failure" else json.dumps(content)
        (place / (f"{name}.txt" if name == "failure" else f"{name}.json")).write_text(text)
    return place


def status(state: str, **values: Any) -> dict[str, Any]:
    known = {"stage": "layers", "step": 30, "steps": 120, "seconds_left": 95.0, "at": "2026-01-01T00:00:00+00:00"}
    return {"state": state, "pid": os.getpid(), "host": socket.gethostname(), **known, **values}


# sweep.json


def test_parts_of_a_sweep_make_one_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "topsecretvalue")
    store = f"store={tmp_path / 'store'}"
    place = tmp_path / "sweeps" / "mine"
    for seed in ("1,2", "2,3", "1,2"):
        words = ["-m", *shlex.split(f"{TINY} method=kd seed={seed} tracking.tags=[topsecretvalue] {store}")]
        sweep.announce(place, compose.jobs(words).jobs, words)
    found = read(place / "sweep.json")
    assert found["format"] == 1 and found["name"] == "mine"
    assert [job["seed"] for job in found["jobs"]] == [1, 2, 3]
    first = found["jobs"][0]
    assert (first["method"], first["task"], first["model"]) == ("kd", "demo/nli", "tiny")
    assert first["name"] == jobs(f"{TINY} method=kd seed=1")[0].name
    assert "seed=1" in first["overrides"] and "tracking.tags=[***]" in first["overrides"]
    assert len(found["commands"]) == 2 and found["commands"][0].startswith("kdlab train -m task=demo/nli")
    assert [path.name for path in place.iterdir()] == ["sweep.json"]


def test_parts_that_start_at_the_same_moment_are_all_in_the_list(tmp_path: Path) -> None:
    words = f"{TINY} method=kd store={tmp_path / 'store'}"
    parts = [jobs(f"{words} seed={seed}") for seed in range(8)]
    threads = [
        threading.Thread(target=sweep.announce, args=(tmp_path / "s", part, [str(n)])) for n, part in enumerate(parts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read(tmp_path / "s" / "sweep.json")
    assert sorted(job["seed"] for job in found["jobs"]) == list(range(8))
    assert sorted(found["commands"]) == [f"kdlab train {n}" for n in range(8)]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2, "commands": [], "jobs": []}'])
def test_a_list_that_cannot_be_read_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(StoreError, match="can't be read") as caught:
        sweep.announce(tmp_path, jobs(f"{TINY} seed=1 store={tmp_path / 'store'}"), [])
    assert "sweep.json" in str(caught.value) and (tmp_path / "sweep.json").read_text() == text


# where a job stands


def test_where_jobs_stand(tmp_path: Path) -> None:
    result = {"split": "dev", "metric": "accuracy", "scores": {"dev": {"accuracy": {"selected": 0.75}}}}
    found = {
        name: sweep.standing(folder(tmp_path / name, **files))
        for name, files in {
            "waiting": {},
            "running": {"status": status("running")},
            "held": {"status": status("waiting", stage="teacher", step=None)},
            "away": {"status": status("running", host="node7", pid=NOBODY)},
            "killed": {"status": status("running", pid=NOBODY)},
            "failed": {"status": status("failed"), "failure": "no rows"},
            "finished": {"status": status("finished"), "result": result},
            "before": {"result": result},
            "tried": {"failure": "no rows"},
        }.items()
    }
    states = {name: one.state for name, one in found.items()}
    assert states == {
        **dict.fromkeys(("running", "held", "away"), "running"),
        **dict.fromkeys(("waiting", "tried"), "waiting"),
        **{"killed": "stopped", "failed": "failed", "finished": "finished", "before": "finished"},
    }
    running = found["running"]
    assert (running.stage, running.step, running.steps, running.seconds_left) == ("layers", 30, 120, 95.0)
    assert found["away"].host == "node7" and running.host is None and found["held"].held_up
    assert found["failed"].error == "no rows" and found["before"].score == 0.75
    assert sweep.standing(tmp_path / "absent").state == "waiting"


@pytest.mark.parametrize("pid", [None, "x", 10**30, -5, 0, 0.5, NOBODY])
def test_a_status_with_an_odd_process_is_not_alive(pid: Any) -> None:
    assert not alive(status("running", pid=pid))


def test_a_status_is_written_at_most_once_a_second(tmp_path: Path) -> None:
    now = [100.0]
    told = Status(tmp_path, clock=lambda: now[0])
    seen = []
    with told:
        told.stage_started("layers")
        for step in range(1, 41):
            now[0] += 0.1
            told.update({"step": step, "steps": 40, "loss": 1.0, "seconds_left": 4.0 - step / 10})
            seen.append(read(tmp_path / "status.json")["step"])
        assert read(tmp_path / "status.json")["state"] == "running"
    assert len(set(seen)) <= 5 and seen[-1] in range(30, 41)
    last = read(tmp_path / "status.json")
    assert (last["state"], last["pid"], last["host"]) == ("finished", os.getpid(), socket.gethostname())
    assert last.keys() == {"state", "stage", "step", "steps", "seconds_left", "pid", "host", "at"}
    with pytest.raises(RuntimeError), Status(tmp_path):
        raise RuntimeError
    assert read(tmp_path / "status.json")["state"] == "failed"
    with pytest.raises(KeyboardInterrupt), Status(tmp_path):
        raise KeyboardInterrupt
    assert read(tmp_path / "status.json")["state"] == "running"  # of a process that will soon be gone: it was stopped
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    Status(tmp_path / "absent").write("running")  # no folder, or no space: nobody's problem


# the table


def shown(table: Any, *, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def test_the_table_says_where_each_job_is() -> None:
    table = jobs_table(
        "outputs/sweeps/x",
        [
            Standing(name="method=kd,seed=1", state="running", stage="layers", step=30, steps=120, seconds_left=95.0),
            Standing(name="method=kd,seed=2", state="running", stage="teacher", held_up=True),
            Standing(name="method=ft,seed=1", state="finished", score=0.6321),
            Standing(name="method=ft,seed=2", state="failed", error="There is no\n  column"),
            Standing(name="method=ft,seed=3"),
        ],
        height=40,
    )
    lines = [" ".join(line.split()) for line in shown(table, width=140).splitlines()]
    assert "method=kd,seed=1 layers 30/120 1 min 35 s" in lines
    assert "method=kd,seed=2 waits for teacher, which another job makes" in lines
    assert "method=ft,seed=1 finished 63.2" in lines and "method=ft,seed=3 waiting" in lines
    assert "method=ft,seed=2 failed: There is no column" in lines
    assert lines[-1] == "5 jobs: 2 running, 1 failed, 1 finished, 1 waiting"


@pytest.mark.parametrize("height", [1, 24, 60])
def test_two_hundred_jobs_fit_the_terminal(height: int) -> None:
    states = ["finished"] * 120 + ["running"] * 4 + ["failed"] * 3 + ["waiting"] * 73
    told = [Standing(name=f"method=kd,seed={n},task=glue_rte", state=state) for n, state in enumerate(states)]
    lines = shown(jobs_table("x", told, height=height)).splitlines()
    assert len(lines) <= max(height, 3 + FRAME)
    rows = [line.split() for line in lines if line.startswith(" seed=")]
    telling = ["running"] * 4 + ["failed"] * 3
    assert [row[1] for row in rows if row[1] in telling] == telling[: len(rows)] and len(rows) == max(3, height - FRAME)
    assert f"200 jobs: 4 running, 3 failed, 120 finished, 73 waiting; {200 - len(rows)} not shown" in " ".join(lines)


def test_names_without_what_all_have() -> None:
    names = ["experiment=x,method=kd,seed=1", "experiment=x,method=ft,seed=1"]
    assert list(telling_names(names).values()) == ["method=kd", "method=ft"]
    assert telling_names(["a=1,b=2"]) == {"a=1,b=2": "a=1,b=2"} and telling_names([]) == {}


def test_an_error_of_many_jobs_is_told_once() -> None:
    errors = [
        ("a", "no rows in task"),
        ("b", "no rows in task"),
        ("c", "c holds another run"),
        ("d", "d holds another run"),
    ]
    assert grouped([*errors, ("e", "e is odd")]) == [
        ("no rows in task", ["a", "b"]),
        ("JOB holds another run", ["c", "d"]),
        ("e is odd", ["e"]),
    ]


# names of jobs


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("hardware.threads=1,2", ["task=demo_nli,hardware.threads=1", "task=demo_nli,hardware.threads=2"]),
        (
            "tracking.tags=[a],[b] seed=3",
            ["seed=3,task=demo_nli,tracking.tags=_a_", "seed=3,task=demo_nli,tracking.tags=_b_"],
        ),
    ],
)
def test_jobs_that_differ_in_what_names_leave_out(line: str, names: list[str]) -> None:
    assert [job.name for job in jobs(f"task=demo/nli {line}")] == names


def test_long_names_tell_what_differs_and_do_not_depend_on_the_other_jobs() -> None:
    rest = " ".join(
        f"method.layers.{key}" for key in ("lr=1e-3", "mixup=0.5", "consistency.weight=0.25", "batch_size=8")
    )
    line = f"task=demo/nli method=cr_ild {rest} method.logits.temperature={{}} method.logits.alpha=0.2 seed={{}}"
    whole = [job.name for job in jobs(line.format("2,3", "1,2"))]
    assert len(set(whole)) == 4 and max(map(len, whole)) <= compose.LONGEST_NAME
    assert "temperature=2" in whole[0] and "temperature=3" in whole[-1] and "seed=1" in whole[0]
    assert [job.name for job in jobs(line.format("3", "2"))] == whole[-1:]


def test_the_seeds_of_a_sweep_are_as_if_each_was_composed_alone(tmp_path: Path) -> None:
    line = f"{TINY} method=kd,cr_ild seed=1,2,3 task.noise.rate=0.1,0.2"
    for job in jobs(line):
        (alone,) = jobs(" ".join(map(shlex.quote, job.overrides)))
        assert (job.run, job.name) == (alone.run, alone.name)
    (tmp_path / "task").mkdir()
    own = "defaults:\n  - /task/demo/nli@_here_\n  - _self_\nname: own\nnoise:\n  seed: ${seed}\n"
    (tmp_path / "task" / "own.yaml").write_text(own)
    words = ["-m", "--config-dir", str(tmp_path), "task=own", "model=tiny", "task.noise.rate=0.1", "seed=4,5"]
    found = [(job.run.seed, job.run.task.noise.seed) for job in compose.jobs(words).jobs]
    assert found == [(4, 4), (5, 5)]


# threads, launchers


def test_each_job_gets_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "cores", lambda: 8)
    four = jobs("task=demo/nli model=tiny seed=1,2,3,4")

    def threads(at_once: int, **hardware: int) -> list[int]:
        given = [replace(job, run=replace(job.run, hardware=replace(job.run.hardware, **hardware))) for job in four]
        return [job.run.hardware.threads for job in sweep.placed(given, at_once)]

    assert threads(1) == [0] * 4  # as torch chooses
    assert threads(2) == [4] * 4 and threads(3) == [2] * 4 and threads(100) == [1] * 4
    assert threads(2, threads=3) == [3] * 4
    assert threads(1, processes=2) == [4] * 4 and threads(2, processes=2) == [2] * 4

    def at_once(name: str, jobs: int = 4, **settings: Any) -> int:
        return sweep.at_once(Launcher(name=name, settings=settings), jobs)

    assert (
        at_once("joblib", n_jobs=3) == 3
        and at_once("joblib", n_jobs=16) == 4
        and at_once("joblib", 100, n_jobs=-1) == 8
    )
    assert at_once("joblib", 100, n_jobs=-2) == 7 and at_once("joblib", 100, n_jobs=-50) == 1
    assert at_once("joblib", n_jobs=None) == 1 and at_once("basic") == 1 and at_once("submitit_slurm") == 1
    assert (
        at_once("submitit_local", 100, cpus_per_task=3) == 2 and at_once("submitit_local", 100, cpus_per_task=None) == 8
    )
    with pytest.raises(ConfigError, match="n_jobs=0"):
        at_once("joblib", n_jobs=0)


def test_slurm_says_how_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = jobs("task=demo/nli model=tiny seed=1")
    assert sweep.under_slurm(job.run).hardware.threads == 0
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert sweep.under_slurm(job.run).hardware.threads == 6
    for hardware, threads in (({"threads": 2}, 2), ({"processes": 4}, 1)):
        run = replace(job.run, hardware=replace(job.run.hardware, **hardware))
        assert sweep.under_slurm(run).hardware.threads == threads


def test_slurm_takes_its_settings_from_the_command_line() -> None:
    words = "seed=1,2 hydra/launcher=submitit_slurm hydra.launcher.cpus_per_task=4 hydra.launcher.gpus_per_node=1"
    found = compose.launcher(["-m", *words.split(), "hydra.launcher.timeout_min=240", "hydra.launcher.partition=gpu"])
    told = {key: found.settings[key] for key in ("cpus_per_task", "gpus_per_node", "timeout_min", "partition")}
    assert found.name == "submitit_slurm"
    assert told == {"cpus_per_task": 4, "gpus_per_node": 1, "timeout_min": 240, "partition": "gpu"}


def test_a_launcher_without_its_plugin(lab: Lab, tmp_path: Path) -> None:
    done = lab.run(f"-m {KD} seed=1,2 hydra/launcher=ray", outputs=tmp_path)
    assert done.code == 2 and "pip install hydra-ray-launcher" in done.err and not list(tmp_path.iterdir())


def test_a_launcher_is_for_a_sweep(lab: Lab, tmp_path: Path) -> None:
    done = lab.run(f"{KD} hydra/launcher=joblib", outputs=tmp_path)
    assert done.code == 2 and "add -m" in done.err


def test_torchrun_and_a_launcher_are_refused(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for launcher in ("joblib", "submitit_local"):
        done = lab.run(f"-m {KD} seed=1,2 hydra/launcher={launcher}", outputs=tmp_path)
        assert done.code == 2 and "torchrun has started processes already" in done.err
    done = lab.run(f"{KD} hardware.processes=3", outputs=tmp_path)
    assert done.code == 2 and "hardware.processes=3: torchrun has started 2 already" in done.err
    assert not list(tmp_path.iterdir())


# runs


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tuning a student with seed 1 kills its process."""
    original = finetune.finetune

    def work(context: Any, **named: Any) -> None:
        if named["seed"] == 1 and context.stage == "student":
            os.kill(os.getpid(), signal.SIGKILL)
        original(context, **named)

    monkeypatch.setattr(finetune, "finetune", work)


def test_a_process_that_dies_stops_no_other_job(lab: Lab, tmp_path: Path, deadly: None) -> None:
    line = f"-m {TINY} method=ft seed=1,2 name=mine task.noise.rate=0.05"
    done = lab.run(line, outputs=tmp_path)
    assert done.code == 2 and "1 of 2 jobs finished" in done.out
    (said,) = [text for text in done.out.splitlines() if text.startswith("failed: ")]
    assert "seed=1" in said and "killed by SIGKILL" in said
    bad, good = sorted((tmp_path / "sweeps" / "mine").glob("*/"), key=lambda place: (place / "result.json").exists())
    assert "killed by SIGKILL" in (bad / "failure.txt").read_text() and read(bad / "status.json")["state"] == "failed"
    assert read(good / "status.json")["state"] == "finished" and not (good / "failure.txt").exists()
    listed = {job["name"]: job["seed"] for job in read(tmp_path / "sweeps" / "mine" / "sweep.json")["jobs"]}
    assert listed == {bad.name: 1, good.name: 2}
    again = lab.run(line, outputs=tmp_path)
    assert again.code == 2 and again.out.count("finished before") == 1


def test_what_stops_many_jobs_is_told_once(lab: Lab, tmp_path: Path) -> None:
    done = lab.run(f"-m {KD} seed=1,2,3 name=mine 'task.text=[txet]'", outputs=tmp_path)
    assert done.code == 2 and "0 of 3 jobs finished" in done.out
    (said,) = [text for text in done.out.splitlines() if text.startswith("failed: ")]
    assert said.startswith("failed: 3 jobs (") and "txet" in said
    assert done.out.count("There is no column") == 1
    assert all(f"seed={seed}" in said for seed in (1, 2, 3))


def test_a_changed_setting_meets_what_is_there(lab: Lab, tmp_path: Path) -> None:
    """As after a change of a yaml file: the names are the same, the runs are not."""
    task = "defaults:\n  - /task/demo/nli@_here_\n  - _self_\nname: changing\nmax_length: {}\n"
    words = f"{lab.task('changing', task.format(32))} model=tiny debug=fast tracking=none hardware.threads=1"
    line = f"-m {words} method=ft seed=1,2 name=mine"
    first = lab.run(line, outputs=tmp_path)
    assert first.code == 0, first.err
    finished, unfinished = sorted((tmp_path / "sweeps" / "mine").glob("*/"))
    (unfinished / "result.json").unlink()
    kept = (finished / "result.json").read_bytes()
    lab.task("changing", task.format(40))
    done = lab.run(line, outputs=tmp_path)
    assert done.code == 2 and "1 of 2 jobs finished" in done.out
    (said,) = [text for text in done.out.splitlines() if text.startswith("failed: ")]
    assert "holds another run: task.max_length is 32 there, here 40; give another name=" in said and "seed=1" in said
    assert (finished / "result.json").read_bytes() == kept and not (finished / "failure.txt").exists()
    assert read(unfinished / "run.json")["config"]["task"]["max_length"] == 40 and (unfinished / "result.json").exists()
    lab.task("changing", task.format(48))
    both = lab.run(line, outputs=tmp_path)
    said = both.out[both.out.index("failed: ") :]
    assert both.code == 2 and both.stages("run") == [] and said.count("holds another run") == 2
    assert "task.max_length is 32 there, here 48" in said and "task.max_length is 40 there, here 48" in said


def test_another_run_that_is_at_work_is_left_alone(tmp_path: Path) -> None:
    from kdlab.methods import plan
    from kdlab.pins import Pins

    (job,) = jobs(f"{TINY} seed=1")
    place = RunDirectory(tmp_path / "x", job.run, plan(job.run, Pins()), group=None, overrides=[])
    folder(tmp_path / "x", run={"identity": "another", "config": {}}, status=status("running"))
    with pytest.raises(ConfigError, match="holds another run"):
        place.refuse_another()
    (tmp_path / "x" / "status.json").write_text(json.dumps(status("running", pid=NOBODY)))
    place.refuse_another()


def test_another_version_of_the_code_is_told(lab: Lab, tmp_path: Path) -> None:
    line = f"-m {TINY} method=ft seed=1 name=mine"
    assert lab.run(line, outputs=tmp_path).code == 0
    (place,) = (tmp_path / "sweeps" / "mine").glob("*/")
    told, graph = read(place / "run.json"), read(place / "graph.json")
    (place / "run.json").write_text(json.dumps({**told, "identity": "of before"}))
    older = [{**stage, "fingerprint": "0" * 64} if stage["label"] == "student" else stage for stage in graph]
    (place / "graph.json").write_text(json.dumps(older))
    done = lab.run(line, outputs=tmp_path)
    assert done.code == 2 and "another version of the code or of the data (student)" in done.out


# launchers, kill -9: real commands

as_commands = pytest.mark.xdist_group("sweeps as commands")  # apart from the rest of this file, on whichever worker


def command(line: str, outputs: Path) -> list[str]:
    words = shlex.split(f"{line} outputs={outputs} store={outputs / 'artifacts'}")
    return [sys.executable, "-m", "kdlab", "train", "-m", *words]


def run(line: str, outputs: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "240"}
    return subprocess.run(
        command(line, outputs), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def kill_when_it_runs(place: Path, ended: threading.Event) -> None:
    """Kill the process of a job as soon as its status names one."""
    while not ended.is_set():
        try:
            os.kill(int(read(place / "status.json")["pid"]), signal.SIGKILL)
            return
        except (OSError, ValueError, KeyError):
            time.sleep(0.01)


@as_commands
@pytest.mark.timeout(400)
@pytest.mark.slow  # joblib: below
@pytest.mark.parametrize("launcher", ["joblib hydra.launcher.n_jobs=2", "submitit_local"])
def test_a_launcher_runs_what_can_run(launcher: str, tmp_path: Path) -> None:
    """Three jobs: one lacks a column, the process of one is killed, one finishes; then the killed one does, too."""
    line = f"{TINY} hardware.threads=0 method=ft name=mine hydra/launcher={launcher}"
    line += " seed=1,2 'task.text=[premise,hypothesis],[txet]' task.noise.rate=0.05"
    place = tmp_path / "sweeps" / "mine"
    names = {(job.run.seed, job.run.task.text[0]): job.name for job in jobs(line)}
    doomed, spared = place / names[1, "premise"], place / names[2, "premise"]
    ended = threading.Event()
    thread = threading.Thread(target=kill_when_it_runs, args=(doomed, ended))
    thread.start()
    done = run(line, tmp_path)
    ended.set()
    thread.join()
    assert done.returncode == 2, done.stderr
    assert "1 of 4 jobs finished" in done.stdout
    said = done.stdout[done.stdout.index("failed: ") :]
    assert "killed by SIGKILL" in said and said.count("There is no column 'txet'") == 1 and "2 jobs (" in said
    assert (spared / "result.json").exists() and read(doomed / "status.json")["state"] == "failed"
    share = max(1, sweep.cores() // (2 if "joblib" in launcher else sweep.cores()))
    assert read(spared / "run.json")["config"]["hardware"]["threads"] == share
    again = run(line, tmp_path)
    assert again.returncode == 2 and "2 of 4 jobs finished" in again.stdout, again.stderr
    assert again.stdout.count("finished before") == 1 and not (doomed / "failure.txt").exists()


@as_commands
@pytest.mark.timeout(400)
def test_all_processes_of_joblib_end_with_the_command(tmp_path: Path) -> None:
    """Its pool would go on with what it has, and then wait for ever."""
    line = f"{TINY} debug.steps=2000 debug.rows=null method=ft seed=1,2 name=mine hydra/launcher=joblib"
    with subprocess.Popen(
        command(f"{line} hydra.launcher.n_jobs=2", tmp_path),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        places = [tmp_path / "sweeps" / "mine" / job.name for job in jobs(line)]
        while process.poll() is None and not all(sweep.standing(place).state == "running" for place in places):
            time.sleep(0.05)
        process.kill()
    for _ in range(200):
        if all(sweep.standing(place).state == "stopped" for place in places):
            break
        time.sleep(0.05)
    assert [sweep.standing(place).state for place in places] == ["stopped", "stopped"]


@as_commands
@pytest.mark.slow  # a killed run: test_kill
@pytest.mark.timeout(400)
def test_a_sweep_that_is_killed_goes_on(tmp_path: Path) -> None:
    """kill -9 of the command while its second job trains: its processes end, and the same command finishes the rest."""
    line = f"{TINY} debug.steps=6 method=ft seed=1,2,3 name=mine hardware.checkpoint_seconds=0"
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    names = [job.name for job in jobs(line)]
    second = killed / "sweeps" / "mine" / names[1]
    with subprocess.Popen(
        command(line, killed), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not list(
            (killed / "artifacts" / "building").glob("finetune-*/work/checkpoint-*")
        ):
            time.sleep(0.005)
        while process.poll() is None and not (second / "run.json").exists():
            time.sleep(0.005)
        while process.poll() is None and not list(
            (killed / "artifacts" / "building").glob("finetune-*/work/checkpoint-*")
        ):
            time.sleep(0.005)
        process.kill()
    worker = read(second / "status.json")["pid"]
    for _ in range(100):
        if sweep.standing(second).state != "running":
            break
        time.sleep(0.05)
    assert sweep.standing(second).state == "stopped" and worker != process.pid
    assert not (second / "result.json").exists()
    again = run(line, killed)
    assert again.returncode == 0 and "3 of 3 jobs finished" in again.stdout, again.stderr
    assert f"done  {names[0]}: finished before" in again.stdout and "continues" in again.stdout
    assert run(line, whole).returncode == 0
    for name in names:
        found = [read(root / "sweeps" / "mine" / name / "result.json") for root in (killed, whole)]
        assert found[0]["scores"] == found[1]["scores"] and found[0]["artifacts"] == found[1]["artifacts"]
        weights = [root / "sweeps" / "mine" / name / "student" / "model.safetensors" for root in (killed, whole)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert Store(killed / "artifacts").verify() == []


TWO = f"{TINY} hardware=cpu method=ft name=mine 'task.text=[txet],[premise,hypothesis]'"


@as_commands
@pytest.mark.slow  # of one run: test_distributed
@pytest.mark.timeout(300)
def test_torchrun_runs_each_job_once(tmp_path: Path) -> None:
    """The first job fails, the second is trained by both processes; neither has two folders."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}", "-m"]
    python, minus, *rest = command(TWO, tmp_path)
    done = subprocess.run(
        [python, minus, *torchrun, *rest], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    shown = done.stdout + done.stderr
    assert done.returncode != 0 and shown.count("1 of 2 jobs finished") == 1
    assert shown.count("done  student:") == 1 and shown.count("error: There is no column") == 1
    place = tmp_path / "sweeps" / "mine"
    assert len(list(place.glob("*/"))) == len(read(place / "sweep.json")["jobs"]) == 2
    assert len(read(place / "sweep.json")["commands"]) == 1
    assert len(list((tmp_path / "artifacts").glob("finetune-*/manifest.json"))) == 1
    assert Store(tmp_path / "artifacts").verify() == []


@as_commands
@pytest.mark.slow  # by torchrun: test_distributed
@pytest.mark.timeout(300)
def test_a_run_in_processes_of_its_own(tmp_path: Path, lab: Lab) -> None:
    """hardware.processes=2 trains what one process trains, up to rounding, in one folder."""
    import torch
    from safetensors.torch import load_file

    line = f"{TINY} hardware=cpu method=ft name=mine"
    students = []
    for processes in (1, 2):
        outputs = tmp_path / str(processes)
        words = f"train {line} hardware.processes={processes} outputs={outputs} store={outputs / 'artifacts'}"
        done = (
            lab.command(words)
            if processes == 1
            else subprocess.run(
                [sys.executable, "-m", "kdlab", *shlex.split(words)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
        )
        assert (done.code if processes == 1 else done.returncode) == 0, done
        assert [path.name for path in (outputs / "runs").iterdir()] == ["mine"]
        students.append(load_file(outputs / "runs" / "mine" / "student" / "model.safetensors"))
    for name, wanted in students[0].items():
        torch.testing.assert_close(students[1][name], wanted, rtol=0, atol=1e-5)
