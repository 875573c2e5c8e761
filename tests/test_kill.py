"""`kdlab verify-resume`: what is killed and given again ends with the same bytes; and what does not is found."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from urllib.request import Request, urlopen

import pytest
from filelock import FileLock

from kdlab import compose
from kdlab.verbs import verify_resume
from kdlab.verbs.verify_resume import (
    CHECKPOINT,
    CLOCK,
    PUBLICATION,
    Attempt,
    Left,
    Moment,
    attempt,
    compared,
    drawn,
    kind_of,
)
from lab import Lab, script

CPU = "hardware=cpu hardware.threads=1 tracking=none"
LAYERS = f"method=ft task=demo/nli model=tiny debug=fast task.max_length=32 curves=8 {CPU}"
ALIKE = {
    "reasoning": (
        "method=ft_cot task=demo/coin_flip task.generate.train=24 task.generate.test=8 task.generate.steps=2 "
        "model=tiny_decoder method.student.epochs=1 method.answer.max_tokens=8 "
        "'model.student.config={hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, "
        "num_key_value_heads: 2, intermediate_size: 64}'"
    ),
    "languages": (
        "method=musc task=demo/sentiment_xx model=tiny_multilingual translator=rules task.languages=[en,es] "
        "task.few.examples=48 task.dev_limit=16 task.test_limit=16 curves=8 method.student.epochs=1"
    ),
}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    place = tmp_path / "kept"
    place.mkdir()
    monkeypatch.setattr(verify_resume.tempfile, "tempdir", str(place))
    return place


# whole runs


def test_kills_leave_no_trace(lab: Lab, kept: Path) -> None:
    done = lab.command(f"verify-resume --kills 2 --seed 3 {LAYERS}")
    assert done.code == 0, done.out + done.err
    assert "2 of 2 kills left no trace" in done.out and "kills by stage: " in done.out
    assert "and once more: the same bytes" in done.out and done.out.count("kill  killed-") == 2
    assert list(kept.glob("kdlab-verify-*")) == []


@pytest.mark.parametrize("family", ALIKE)
def test_the_same_command_twice_gives_the_same_bytes(lab: Lab, kept: Path, family: str) -> None:
    """Layer distillation's first stage is in the test above, all of it in scripts/kill.py."""
    done = lab.command(f"verify-resume --kills 0 {ALIKE[family]} {CPU}")
    assert done.code == 0 and "and once more: the same bytes" in done.out, done.out + done.err


def test_a_difference_is_found_and_kept(lab: Lab, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With attempts that only write files: the one that was killed ends with other weights."""

    def fake(folder: Path, words: Sequence[str], moment: Moment | None = None) -> Attempt:
        weights = "height" if folder.name == "killed-0" else "weights"
        left(folder, {**WHOLE, "runs/ft/student/model.safetensors": weights})
        return Attempt(0 if moment is None else None, 1.0)

    monkeypatch.setattr(verify_resume, "attempt", fake)
    done = lab.command(f"verify-resume --kills 1 {LAYERS}")
    assert done.code == 1, done.out + done.err
    assert "differs: killed-0: runs/ft/student/model.safetensors: other bytes" in done.out
    assert "once more: the same bytes" in done.out and "0 of 1 kills left no trace" in done.out
    (folder,) = kept.glob("kdlab-verify-*")
    assert f"kept: {folder}" in done.out and (folder / "killed-0" / "outputs").is_dir()


def test_what_fails_by_itself_is_not_killed(lab: Lab, kept: Path) -> None:
    done = lab.command(f"verify-resume --kills 1 {LAYERS} task.text=[premise,txet]")
    assert done.code == 2 and "failed with exit code 2, unbroken" in done.err and "no column 'txet'" in done.err
    assert list(kept.glob("kdlab-verify-*")) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--kills -1", "--kills -1: must be 0 or more"),
        ("outputs=here", "outputs=here: the command runs in folders of its own"),
        ("+store=here", "from an empty store; leave it out"),
        ("-m seed=1,2 hydra/launcher=submitit_local", "only what runs on this machine can be killed"),
        ("method=nothing", "nothing"),
        ("--folder {full}", "is not an empty folder"),
    ],
)
def test_bad_input(lab: Lab, tmp_path: Path, words: str, says: str) -> None:
    (tmp_path / "full").write_text("")
    done = lab.command(f"verify-resume {words.format(full=tmp_path)}")
    assert done.code == 2 and says in done.err and "Traceback" not in done.err


# moments


def test_moments_are_of_the_clock_and_of_each_kind_of_file() -> None:
    moments = list(itertools.islice(drawn(verify_resume.random.Random(1), 8.0, {"wandb": 2, CHECKPOINT: 50}), 40))
    assert [moment.kind for moment in moments[:4]] == [CLOCK, CHECKPOINT, CLOCK, "wandb"]
    seconds = [moment.seconds for moment in moments[::2]]
    assert min(seconds) < 1 and max(seconds) > 7
    assert {moment.number for moment in moments if moment.kind == "wandb"} == {1, 2}
    assert len({moment.number for moment in moments if moment.kind == CHECKPOINT}) > 5


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("artifacts/building/finetune-1/work/checkpoint-3.tmp/state.json", CHECKPOINT),
        ("artifacts/building/finetune-1/model/config.json", "stage's files"),
        ("artifacts/building/finetune-1/manifest.json.7.tmp", PUBLICATION),
        ("artifacts/building/finetune-1.done-7", PUBLICATION),
        ("artifacts/finetune-1", PUBLICATION),
        ("artifacts/building/finetune-1", "stage's files"),
        ("artifacts/locks/finetune-1.lock", "lock"),
        ("artifacts/journals/oracle-1.jsonl", "journal"),
        ("runs/ft/metrics.jsonl.7.tmp", "run's folder"),
        ("runs/ft/wandb/offline-run-1/logs/debug.log", "wandb"),
        ("../elsewhere", None),
    ],
)
def test_kinds_of_files(path: str, kind: str | None) -> None:
    root = "/scratch/outputs"
    assert kind_of(os.path.normpath(f"{root}/{path}"), root) == kind


def test_a_process_is_killed_where_it_should_be(tmp_path: Path) -> None:
    ended = attempt(tmp_path, LAYERS.split(), Moment(PUBLICATION, number=2))
    assert ended.code is None
    store = tmp_path / "outputs" / "artifacts"
    assert list(store.glob("building/prepare-*/facts.json")) and not list(store.glob("prepare-*"))


def test_half_a_line_of_the_journal(tmp_path: Path) -> None:
    """The kill comes in the middle of the second write."""
    read, write = os.pipe()
    file = os.open(tmp_path / "journal", os.O_RDWR | os.O_CREAT)
    if os.fork() == 0:
        os.setsid()
        seen = verify_resume.Operations(tmp_path, ("journal", 2))
        seen.torn(os.pwrite, file, b"first\n", 0)
        seen.torn(os.pwrite, file, b"second\n", 6)
        os._exit(0)
    os.close(write)
    os.close(read)
    _, status = os.wait()
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert (tmp_path / "journal").read_bytes() == b"first\nsec"


# what is compared


def left(folder: Path, files: dict[str, str]) -> Left:
    for name, text in files.items():
        path = folder / "outputs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Left.of(folder)


POINT = '{"stage": "student", "step": 1, "loss": 0.5}\n'
ANSWER = '{"key": "k", "time": "12:00", "completion": "yes"}\n'
WHOLE = {
    "runs/ft/result.json": '{"scores": 1, "seconds": 2.5, "student": {"latency_ms": 3}}',
    "runs/ft/metrics.jsonl": POINT,
    "runs/ft/console.log": "one",
    "runs/ft/student/model.safetensors": "weights",
    "artifacts/journals/oracle.jsonl": ANSWER,
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"runs/ft/result.json": '{"scores": 1, "seconds": 9, "student": {"latency_ms": 9}}'}, None),
        ({"runs/ft/console.log": "two"}, None),
        ({"artifacts/journals/oracle.jsonl": ANSWER.replace("12:00", "13:00")}, None),
        ({"runs/ft/wandb/offline-run-2/debug.log": ""}, None),
        ({"runs/ft/result.json": '{"scores": 2, "seconds": 2.5, "student": {"latency_ms": 3}}'}, "differs in scores"),
        ({"runs/ft/student/model.safetensors": "height"}, "model.safetensors: other bytes"),
        ({"runs/ft/status.json.7.tmp": ""}, "status.json.7.tmp: left behind"),
        ({"runs/ft/metrics.jsonl": POINT + POINT}, "logged twice: student step 1"),
        ({"artifacts/journals/oracle.jsonl": ANSWER + ANSWER}, "asked twice: k"),
        ({"artifacts/building/finetune-1/work/x": ""}, "unfinished work was left: finetune-1"),
    ],
)
def test_what_differs(tmp_path: Path, change: dict[str, str], says: str | None) -> None:
    whole = left(tmp_path / "whole", WHOLE)
    found = compared(left(tmp_path / "killed", {**WHOLE, **change}), whole)
    assert (found == []) == (says is None)
    assert says is None or any(says in line for line in found), found


def test_a_file_that_is_missing_and_a_lock_that_is_held(tmp_path: Path) -> None:
    files = {**WHOLE, "artifacts/locks/finetune-1.lock": ""}
    whole = left(tmp_path / "whole", files)
    less = {name: text for name, text in files.items() if "student" not in name}
    left(tmp_path / "killed", less)
    with FileLock(tmp_path / "killed" / "outputs" / "artifacts" / "locks" / "finetune-1.lock"):
        found = compared(Left.of(tmp_path / "killed"), whole)
    assert found == ["a lock is still held: finetune-1.lock", "runs/ft/student/model.safetensors: missing"]


# scripts/kill.py


@pytest.fixture(scope="module")
def kill() -> ModuleType:
    return script("kill")


def test_the_script_has_a_command_of_each_family(kill: ModuleType) -> None:
    families = [compose.jobs([*words, *kill.CPU]).jobs[0].run.method.family for words in kill.FAMILIES.values()]
    assert families == ["distillation", "reasoning", "crosslingual"]


def test_the_scripts_endpoint_knows_the_answer_and_counts(kill: ModuleType) -> None:
    oracle = kill.Oracle()
    threading.Thread(target=oracle.serve_forever, args=(0.02,), daemon=True).start()
    prompt = "Q: A coin is heads up. Ann flips the coin. Is it still heads up?\nA: ... Therefore, the answer is"
    body = json.dumps({"model": "oracle", "prompt": prompt}).encode()
    with urlopen(Request(f"{oracle.url}/completions", body)) as answer:
        told = json.load(answer)
    oracle.shutdown()
    oracle.server_close()
    assert told["choices"][0]["text"] == " no." and oracle.asked == 1
