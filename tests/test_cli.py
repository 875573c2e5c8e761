"""The command `kdlab` from the outside: what it prints, how fast, what it leaves, and its exit codes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdlab import __version__, catalog, cli
from kdlab.artifacts import Store
from kdlab.errors import TrainingError
from kdlab.rundir import used_artifacts
from lab import PAIR, TINY, Lab, points, read, run_folder
from wandb_file import read as read_wandb

FEW = "model=tiny debug.steps=2 tracking=none hardware.threads=1"
SECRETS = {"WANDB_API_KEY": "secret-of-wandb-0123456789abcdef0123456789", "HF_TOKEN": "hf_SecretOfTheHub0123456789"}

ROWS = """\
# Is a number even?
defaults:
  - /schema@_here_: task
  - _self_
name: even
source: {{path: {path}}}
text: [text]
labels: ["no", "yes"]
max_length: 8
"""


@pytest.fixture(scope="module")
def even(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Words for a task so small that its rows need no limit: the seed then changes no data."""
    file = tmp_path_factory.mktemp("even") / "even.csv"
    lines = [f"{number} {number % 7},{'no' if number % 2 else 'yes'}" for number in range(80)]
    file.write_text("\n".join(["text,label", *lines]) + "\n")
    return lab.task("even", ROWS.format(path=file)) + f" {FEW}"


# small verbs


def test_version_and_help(lab: Lab) -> None:
    assert lab.command("--version").out == f"kdlab {__version__}\n"
    for line in ("--help", "-h", "help"):
        done = lab.command(line)
        assert done.code == 0 and done.err == ""
        assert all(f"\n  {verb} " in done.out for verb in cli.VERBS)
    empty = lab.command("")
    assert empty.code == 2 and "usage: kdlab VERB" in empty.out


@pytest.mark.parametrize(("word", "meant"), [("trian", "train"), ("plann", "plan"), ("stores", "store"), ("xyz", None)])
def test_an_unknown_verb(lab: Lab, word: str, meant: str | None) -> None:
    done = lab.command(f"{word} method=kd")
    assert done.code == 2 and done.out == ""
    first = done.err.splitlines()[0]
    assert first == f"error: kdlab has no verb '{word}'" + (f"; did you mean {meant}?" if meant else "")


@pytest.mark.parametrize("group", list(catalog.GROUPS))
def test_lists(lab: Lab, group: str) -> None:
    done = lab.command(f"list {group}")
    assert done.code == 0
    found = [line.split(maxsplit=1) for line in done.out.splitlines()]
    assert [tuple(words) for words in found] == catalog.entries(group) and found
    assert all(len(about) > 10 for _, about in found)


def test_every_verb_has_help() -> None:
    for verb in ("list", "doctor", "store", "sync", "completion"):
        with pytest.raises(SystemExit) as caught:
            cli.main([verb, "--help"])
        assert caught.value.code == 0


def test_the_whole_command_as_a_module(tmp_path: Path) -> None:
    for words, start in ((["--version"], f"kdlab {__version__}"), (["--help"], "usage: kdlab VERB")):
        done = subprocess.run(
            [sys.executable, "-m", "kdlab", *words], capture_output=True, text=True, check=True, cwd=tmp_path
        )
        assert done.stdout.startswith(start)
    bad = subprocess.run([sys.executable, "-m", "kdlab", "nothing"], capture_output=True, text=True)
    assert bad.returncode == 2


def processor_seconds(*words: str, times: int = 5) -> float:
    """Processor time of a command, the best of some: the clock on the wall also counts the neighbours."""
    found = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "kdlab", *words], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(found)


def test_help_and_list_are_quick() -> None:
    assert processor_seconds("--help") < 0.4
    assert processor_seconds("list", "tasks") < 0.4


def test_a_plan_is_quick() -> None:
    assert processor_seconds("plan", "task=demo/nli", "model=tiny", "-m", "seed=1,2,3", times=3) < 2.5


# one run


@pytest.fixture(scope="module")
def trained(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run: its outputs and its folder."""
    outputs = tmp_path_factory.mktemp("trained")
    assert lab.run(f"method=kd {TINY}", outputs=outputs).code == 0
    return outputs, run_folder(outputs)


def test_a_second_run_has_only_hits(lab: Lab, trained: tuple[Path, Path]) -> None:
    outputs, folder = trained
    result = (folder / "result.json").read_bytes()
    started = time.process_time()
    done = lab.run(f"method=kd {TINY}", outputs=outputs)
    assert time.process_time() - started < 5
    assert done.code == 0 and done.stages("run") == []
    assert set(done.stages("hit")) == {entry["label"] for entry in json.loads((folder / "graph.json").read_text())}
    assert (folder / "result.json").read_bytes() == result and run_folder(outputs) == folder
    assert "student" in done.out and "majority" in done.out  # the table is shown again


def test_the_run_folder_tells_what_was_asked(trained: tuple[Path, Path], lab: Lab) -> None:
    _, folder = trained
    told = read(folder / "run.json")
    assert told["name"] == folder.name and told["job_type"] == "kd" and told["group"] == "demo/nli"
    assert {"kd", "demo/nli", "tiny"} <= set(told["tags"])
    assert told["config"]["method"]["logits"]["temperature"] == 2.0
    assert "method=kd" in told["overrides"]
    log = (folder / "console.log").read_text(encoding="utf-8")
    assert all(f"   {label}" in log for label in ("prepare", "teacher", "logits")) and "result.json" in log
    assert "\x1b" not in log


def test_fresh_runs_again(lab: Lab, trained: tuple[Path, Path]) -> None:
    outputs, folder = trained
    before = read(folder / "result.json")
    done = lab.run(f"method=kd {TINY} fresh=[logits]", outputs=outputs)
    assert done.code == 0
    assert done.stages("run") == ["logits", "evaluate_student", "measure_student"]
    after = read(folder / "result.json")
    assert after["scores"] == before["scores"] and after["artifacts"] == before["artifacts"]
    assert run_folder(outputs) == folder


def test_a_name_that_holds_another_run_is_refused(lab: Lab, tmp_path: Path) -> None:
    line = f"method=ft {TINY} name=mine"
    assert lab.run(line, outputs=tmp_path).code == 0
    kept = (tmp_path / "runs" / "mine" / "result.json").read_bytes()
    done = lab.run(f"{line} seed=7", outputs=tmp_path)
    assert done.code == 2 and "holds another run" in done.err and "name=mine" in done.err
    assert (tmp_path / "runs" / "mine" / "result.json").read_bytes() == kept
    again = lab.run(line, outputs=tmp_path)
    assert again.code == 0 and again.stages("run") == []


# errors


def test_an_error_has_no_traceback_unless_asked(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"method=kd task=demo/nli {PAIR} tracking=none model.student.config.num_hidden_layers=6"
    done = lab.run(line, outputs=tmp_path)
    assert done.code == 2 and done.err.startswith("error: 1 problem") and "Traceback" not in done.err
    monkeypatch.setenv("KDLAB_DEBUG", "1")
    told = lab.run(line, outputs=tmp_path)
    assert told.code == 2 and "Traceback (most recent call last)" in told.err and "error: 1 problem" in told.err


@pytest.mark.parametrize(
    ("problem", "code", "words"),
    [
        (TrainingError("no", fix="do so"), 2, "error: no\n  fix:   do so"),
        (KeyError("lost"), 1, "error: kdlab itself failed: KeyError: 'lost'"),
        (KeyboardInterrupt(), 130, "interrupted; give the same command again"),
    ],
)
def test_exit_codes(lab: Lab, monkeypatch: pytest.MonkeyPatch, problem: BaseException, code: int, words: str) -> None:
    def fail(_: list[str]) -> int:
        raise problem

    monkeypatch.setitem(cli.VERBS, "plan", fail)
    done = lab.command("plan")
    assert done.code == code and words in done.err and "Traceback" not in done.err
    if isinstance(problem, Exception):
        monkeypatch.setenv("KDLAB_DEBUG", "1")
        told = lab.command("plan")
        assert told.code == code and words in told.err and "Traceback (most recent call last)" in told.err


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    line = f"{sys.executable} -m kdlab list tasks | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, cwd=tmp_path)
    assert len(done.stdout.splitlines()) == 1 and "Traceback" not in done.stderr


def test_a_run_that_fails_says_why_in_its_folder(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def weak(*_: Any, **__: Any) -> None:
        raise TrainingError("the loss is not finite", fix="a smaller lr")

    line = f"method=kd {TINY} method.logits.lr=1.5e-3"
    with monkeypatch.context() as patch:
        patch.setattr("kdlab.stages.distill.distill_logits", weak)
        done = lab.run(line, outputs=tmp_path)
    assert done.code == 2 and "the loss is not finite" in done.err and "Traceback" not in done.err
    folder = run_folder(tmp_path)
    assert "a smaller lr" in (folder / "failure.txt").read_text() and not (folder / "result.json").exists()
    again = lab.run(line, outputs=tmp_path)
    assert again.code == 0 and "teacher" in again.stages("hit") and "logits" in again.stages("run")
    assert not (folder / "failure.txt").exists() and (folder / "result.json").exists()


# sweeps


def test_a_sweep_shares_its_teacher_and_skips_what_is_done(lab: Lab, even: str, tmp_path: Path) -> None:
    line = f"-m {even} method=ft,kd seed=1,2 method.weak_teacher=warn"
    done = lab.run(line, outputs=tmp_path)
    assert done.code == 0, done.err
    assert done.stages("run").count("teacher") == 1 and done.stages("run").count("prepare") == 1
    assert done.stages("run").count("student") == done.stages("run").count("logits") == 2
    assert "4 of 4 jobs finished" in done.out
    table = done.out[: done.out.index("4 of 4")].splitlines()[-12:]
    assert any(line.split()[:1] == ["ft"] for line in table) and any(line.split()[:1] == ["kd"] for line in table)
    (sweep,) = (tmp_path / "sweeps").iterdir()
    folders = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert len(folders) == 4 and all((folder / "result.json").exists() for folder in folders)
    results = [read(folder / "result.json") for folder in folders]
    teachers = {result["artifacts"].get("teacher") for result in results} - {None}
    assert len(teachers) == 1
    assert {(result["run"]["method"], result["run"]["seed"]) for result in results} == {
        (method, seed) for method in ("ft", "kd") for seed in (1, 2)
    }
    assert read(folders[0] / "run.json")["group"] == sweep.name

    (folders[0] / "result.json").unlink()  # as if it had been killed before its end
    again = lab.run(line, outputs=tmp_path)
    assert again.code == 0 and again.stages("run") == []
    assert again.out.count("finished before") == 3 and (folders[0] / "result.json").exists()
    assert [path.name for path in (tmp_path / "sweeps").iterdir()] == [sweep.name]


def test_a_failing_job_stops_no_other(lab: Lab, even: str, tmp_path: Path) -> None:
    line = f"-m {even} method=kd seed=3 name=mixed method.weak_teacher=warn 'task.text=[text],[txet]'"
    done = lab.run(line, outputs=tmp_path)
    assert done.code == 2
    assert "1 of 2 jobs finished" in done.out and "give the same command again" in done.out
    (failed,) = [words for words in done.out.splitlines() if words.startswith("failed: ")]
    assert "txet" in failed and "txet" in done.err
    sweep = tmp_path / "sweeps" / "mixed"
    bad, good = sorted(sweep.glob("*/"), key=lambda folder: (folder / "result.json").exists())
    assert "text" in (bad / "failure.txt").read_text() and not (bad / "result.json").exists()
    assert (good / "result.json").exists() and not (good / "failure.txt").exists()
    again = lab.run(line, outputs=tmp_path)
    assert again.code == 2 and again.out.count("finished before") == 1


# the store


def test_what_runs_and_their_analyses_are_made_of_is_used(tmp_path: Path) -> None:
    folders = ("runs/a", "runs/a/analysis", "sweeps/s/job", "sweeps/s/job/analysis", "analysis/both")
    for number, folder in enumerate((*folders, "elsewhere/x")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "graph.json").write_text(json.dumps([{"artifact": f"stage-{number}"}]))
    (tmp_path / "runs" / "a" / "torn").mkdir()
    assert used_artifacts(tmp_path) == {f"stage-{number}" for number in range(len(folders))}


def test_store_ls_verify_prune(lab: Lab, even: str, tmp_path: Path) -> None:
    store, outputs = tmp_path / "store", tmp_path / "outputs"
    assert lab.command(f"train {even} method=ft store={store} outputs={outputs}").code == 0
    listed = lab.command(f"store ls --store {store}")
    names = sorted(path.name for path in store.iterdir() if (path / "manifest.json").exists())
    assert len(names) == 5 and all(name in listed.out for name in names)
    assert "5 artifacts, 0 damaged" in lab.command(f"store verify --store {store}").out
    kept = lab.command(f"store prune --store {store} --outputs {outputs} --yes")
    assert kept.code == 0 and kept.out.startswith("0 artifacts")

    damaged = next(store.glob("finetune-*")) / "history.json"
    damaged.chmod(0o644)
    damaged.write_text("{}")
    checked = lab.command(f"store verify --store {store}")
    assert checked.code == 2 and f"damaged: {damaged.parent.name}/history.json: changed" in checked.out
    assert "fix:" in checked.out

    refused = lab.command(f"store prune --store {store} --outputs {tmp_path / 'elsewhere'} --yes")
    assert refused.code == 2 and "would look unused" in refused.err and "--outputs" in refused.err
    (tmp_path / "elsewhere").mkdir()
    tried = lab.command(f"store prune --store {store} --outputs {tmp_path / 'elsewhere'}")
    assert tried.out.count("unused") == 5 and "--yes removes them" in tried.out
    assert sorted(path.name for path in store.iterdir() if (path / "manifest.json").exists()) == names
    assert lab.command(f"store prune --store {store} --outputs {outputs} --older-than 1 --yes").out.startswith("0 ")
    with Store(store).locked("run-of-somebody"):
        busy = lab.command(f"store prune --store {store} --outputs {tmp_path / 'elsewhere'} --yes")
        assert busy.code == 2 and "a run is in progress" in busy.err
    removed = lab.command(f"store prune --store {store} --outputs {tmp_path / 'elsewhere'} --yes")
    assert removed.out.count("removed") == 5 and not list(store.glob("*/manifest.json"))


def test_a_store_that_is_not_there(lab: Lab, tmp_path: Path) -> None:
    for action in ("ls", "verify", "prune"):
        assert lab.command(f"store {action} --store {tmp_path / 'absent'}").code == 0
    assert not (tmp_path / "absent").exists()


# tracking


def test_no_secret_enters_a_file(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    line = f"method=ft {TINY} tracking=wandb tracking.mode=offline".replace("tracking=none ", "")
    done = lab.run(f"{line} method.student.lr=3e-4 tracking.tags=[{SECRETS['HF_TOKEN']}]", outputs=tmp_path)
    assert done.code == 0, done.err
    files = [file for root in (tmp_path, lab.store) for file in root.rglob("*") if file.is_file()]
    wandb = [file for file in files if file.suffix == ".wandb"]
    assert len(wandb) == 1 and len(files) > 20
    for file in files:
        content = file.read_bytes()
        for value in SECRETS.values():
            assert value.encode() not in content, file
    for value in SECRETS.values():
        assert value not in done.out + done.err
    tracked = read_wandb(wandb[0])
    losses = [point["student/loss"] for point in tracked.points if "student/loss" in point]
    assert losses == [point["loss"] for point in points(run_folder(tmp_path)) if "loss" in point]
    assert len(losses) == 4 and tracked.config["method"]["student"]["lr"] == 3e-4


def test_fresh_in_a_sweep_runs_a_shared_stage_again_once(lab: Lab, tmp_path: Path) -> None:
    line = f"-m method=kd seed=1,2 {TINY}"
    assert lab.run(line, outputs=tmp_path).code == 0
    again = lab.run(f"{line} fresh=[teacher]", outputs=tmp_path)
    assert again.code == 0
    assert again.stages("run").count("teacher") == 1
    assert again.stages("run").count("logits") == 2
