"""The runner re-uses what is there, continues what was interrupted, and runs the rest in order."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kdlab import provenance, runner
from kdlab.artifacts import Artifact, Store
from kdlab.config import Hardware
from kdlab.context import Context
from kdlab.errors import HubError, StoreError, TrainingError
from kdlab.graph import UNPINNED, Graph, Stage, Work

CALLS: list[str] = []  # labels of the stages whose functions were called
FAIL: dict[str, BaseException] = {}  # what the stage of a label ends with, after it left its checkpoint
SLOW = threading.Event()


def make(context: Context, *, text: str = "", **inputs: Path) -> None:
    """A stage: writes its own text after those of its inputs, in two halves with a checkpoint between them."""
    CALLS.append(context.stage)
    half = context.work / "half"
    assert half.exists() or sorted(path.name for path in context.out.iterdir()) == ["work"]
    if not half.exists():
        (context.out / "first.txt").write_text(f"{text} first, attempt {CALLS.count(context.stage)}")
        if context.stage in FAIL:
            half.touch()
            raise FAIL[context.stage]
    parts = [(path / "out.txt").read_text() for _, path in sorted(inputs.items())]
    (context.out / "out.txt").write_text(" ".join([*parts, text]))
    context.facts["parts"] = len(parts)


def careless(context: Context) -> None:
    """A stage that fails without a checkpoint."""
    CALLS.append(context.stage)
    (context.out / f"attempt-{len(CALLS)}").touch()
    if len(CALLS) == 1:
        raise TrainingError("not this time", fix="again")


def warned(context: Context) -> None:
    context.warn("thin ice")
    context.note("just so")
    context.track({"step": 1})
    context.facts |= {"trained_tokens": 10, "steps": 1}


def slow(context: Context) -> None:
    CALLS.append(context.stage)
    SLOW.wait(30)


class Screen:
    """Remembers what the user is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage_started(self, label: str, why: str = "") -> None:
        self.lines.append(f"run {label}: {why}")

    def stage_hit(self, label: str, age: float, note: str = "") -> None:
        assert 0 <= age < 3600
        self.lines.append(f"hit {label}" + (f": {note}" if note else ""))

    def stage_waiting(self, label: str) -> None:
        self.lines.append(f"wait {label}")

    def stage_done(self, label: str, seconds: float) -> None:
        assert seconds >= 0
        self.lines.append(f"done {label}")

    def update(self, point: Mapping[str, Any]) -> None:
        self.lines.append(f"point {dict(point)}")

    def note(self, text: str) -> None:
        self.lines.append(text)


class Walk:
    """One store, walked again and again."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.finished: list[str] = []
        self.tracked: list[tuple[str, dict[str, Any]]] = []
        self.screen = Screen()

    def run(self, graph: Graph, *fresh: str) -> runner.Outcome:
        self.screen = Screen()
        self.finished, self.tracked = [], []
        return runner.run(
            graph,
            self.store,
            hardware=Hardware(name="cpu"),
            fresh=list(fresh),
            screen=self.screen,
            track=lambda stage, point: self.tracked.append((stage.label, dict(point))),
            finished=lambda stage, artifact: self.finished.append(stage.label),
        )

    def states(self, graph: Graph, *fresh: str) -> dict[str, str]:
        found = runner.states(graph, self.store, list(fresh))
        return {stage.label: found[stage.fingerprint] for stage in graph}

    def text(self, stage: Stage) -> str:
        return (self.store.path(stage.artifact) / "out.txt").read_text()

    def manifest(self, stage: Stage) -> dict[str, Any]:
        found = self.store.find(stage.artifact)
        assert found is not None
        return found.manifest


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    CALLS.clear()
    FAIL.clear()
    SLOW.clear()
    yield Walk(tmp_path / "store")


def stage(label: str, *, text: str | None = None, after: tuple[Stage, ...] = (), **inputs: Stage) -> Stage:
    return Stage(
        f"{__name__}:make",
        label,
        values={"text": text or label},
        inputs=inputs,
        after=after,
    )


def chain(text: str = "teacher") -> tuple[Graph, Stage, Stage, Stage]:
    data = stage("data")
    teacher = stage("teacher", text=text, data=data)
    student = stage("student", data=data, teacher=teacher)
    return Graph.of({"student": student}), data, teacher, student


def test_everything_runs_once_and_in_order(walk: Walk) -> None:
    graph, _, _, student = chain()
    assert set(walk.states(graph).values()) == {"run"}
    outcome = walk.run(graph)
    assert CALLS == outcome.ran == walk.finished == ["data", "teacher", "student"]
    assert walk.text(student) == "data data teacher student"
    assert walk.screen.lines[:3] == [
        "run data: needed by teacher, student",
        "done data",
        "run teacher: needed by student",
    ]
    assert walk.screen.lines[-2:] == ["run student: needed by result", "done student"]
    assert outcome.artifacts[student.fingerprint].facts == {"parts": 2}


def test_the_second_walk_has_only_hits(walk: Walk) -> None:
    graph, *_ = chain()
    walk.run(graph)
    CALLS.clear()
    assert set(walk.states(graph).values()) == {"cached"}
    outcome = walk.run(graph)
    assert CALLS == outcome.ran == []
    assert walk.screen.lines == ["hit data", "hit teacher", "hit student"]
    assert walk.finished == ["data", "teacher", "student"]
    assert set(outcome.artifacts) == {one.fingerprint for one in graph}


def test_a_changed_stage_and_what_follows_run(walk: Walk) -> None:
    walk.run(chain()[0])
    CALLS.clear()
    graph, *_, student = chain("another teacher")
    assert walk.states(graph) == {"data": "cached", "teacher": "run", "student": "run"}
    walk.run(graph)
    assert CALLS == ["teacher", "student"]
    assert walk.text(student) == "data data another teacher student"
    assert walk.run(chain()[0]).ran == []  # the first teacher is still there


def test_nothing_that_only_a_cached_stage_needs_is_made_again(walk: Walk) -> None:
    graph, data, teacher, student = chain()
    walk.run(graph)
    for one in (data, teacher):
        walk.store.path(one.artifact).rename(walk.store.root / "building" / one.artifact)
    assert walk.states(graph) == {"data": "idle", "teacher": "idle", "student": "cached"}
    CALLS.clear()
    outcome = walk.run(graph)
    assert CALLS == [] and walk.screen.lines == ["hit student"]
    assert set(outcome.artifacts) == {student.fingerprint}


def test_after_makes_a_stage_wait_without_being_an_input(walk: Walk) -> None:
    data = stage("data")
    vet = stage("vet", data=data)
    end = stage("end", data=data, after=(vet,))
    FAIL["vet"] = TrainingError("weak", fix="train longer")
    with pytest.raises(TrainingError):
        walk.run(Graph.of({"end": end}))
    assert CALLS == ["data", "vet"]
    FAIL.clear()
    walk.run(Graph.of({"end": end}))
    assert CALLS == ["data", "vet", "vet", "end"] and walk.text(end) == "data end"


# interruption


@pytest.mark.parametrize("end", [TrainingError("loss is nan", fix="lower lr"), KeyboardInterrupt(), ValueError("bug")])
def test_an_interrupted_stage_continues(walk: Walk, end: BaseException) -> None:
    graph, _, teacher, student = chain()
    FAIL["teacher"] = end
    with pytest.raises(type(end)):
        walk.run(graph)
    assert walk.finished == ["data"] and CALLS == ["data", "teacher"]
    assert walk.store.find(teacher.artifact) is None
    assert walk.states(graph) == {"data": "cached", "teacher": "resume", "student": "run"}
    FAIL.clear()
    assert walk.run(graph).ran == ["teacher", "student"]
    assert "run teacher: needed by student, continues" in walk.screen.lines
    assert walk.manifest(teacher)["made"]["continued"] is True
    assert walk.manifest(student)["made"]["continued"] is False
    left = walk.store.path(teacher.artifact)
    assert (left / "first.txt").read_text() == "teacher first, attempt 1" and not (left / "work").exists()


def test_what_an_attempt_without_a_checkpoint_left_is_thrown_away(walk: Walk) -> None:
    one = Stage(f"{__name__}:careless", "one")
    graph = Graph.of({"one": one})
    with pytest.raises(TrainingError):
        walk.run(graph)
    assert walk.states(graph) == {"one": "run"}
    walk.run(graph)
    assert walk.manifest(one)["files"].keys() == {"attempt-2"}
    assert walk.manifest(one)["made"]["continued"] is False


def test_a_failed_stage_frees_its_lock(walk: Walk) -> None:
    graph, *_, student = chain()
    FAIL["student"] = TrainingError("no", fix="yes")
    with pytest.raises(TrainingError):
        walk.run(graph)
    with walk.store.locked(student.artifact, waiting=lambda: pytest.fail("still held")):
        pass


def test_a_full_disk_names_the_stage_and_keeps_the_checkpoint(walk: Walk) -> None:
    graph, *_ = chain()
    FAIL["teacher"] = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StoreError, match="stage 'teacher' failed: No space left") as caught:
        walk.run(graph)
    assert "free some space" in str(caught.value.fix)
    assert walk.states(graph)["teacher"] == "resume"


def test_a_damaged_input_is_named_and_made_anew(walk: Walk) -> None:
    graph, data, *_ = chain()
    walk.run(Graph.of({"data": data}))
    file = walk.store.path(data.artifact) / "out.txt"
    before = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(b"\xff")
    assert walk.states(graph)["data"] == "run"
    assert walk.run(graph).ran == ["data", "teacher", "student"]
    line = f"damaged: {data.artifact}/out.txt: changed since it was published: 1 bytes, and it had {len(before)}"
    assert f"{line}; it is made anew" in walk.screen.lines
    assert file.read_bytes() == before and walk.store.verify() == []


# fresh


def test_fresh_runs_a_stage_and_its_dependents_again(walk: Walk) -> None:
    graph, data, teacher, student = chain()
    walk.run(graph)
    before = {one.label: walk.manifest(one) for one in graph}
    CALLS.clear()
    assert walk.states(graph, "teacher") == {"data": "cached", "teacher": "run", "student": "run"}
    assert walk.run(graph, "teacher").ran == CALLS == ["teacher", "student"]
    assert walk.manifest(data) == before["data"]
    assert walk.states(graph) == dict.fromkeys(before, "cached")
    assert walk.run(graph).ran == []
    assert [folder.name for folder in walk.store.unfinished()] == [] and walk.store.verify() == []
    assert walk.manifest(teacher)["files"] == before["teacher"]["files"]
    assert walk.text(student) == "data data teacher student"


def test_fresh_keeps_the_old_artifact_until_the_new_one_is_done(walk: Walk) -> None:
    graph, _, teacher, _ = chain()
    walk.run(graph)
    before = walk.manifest(teacher)
    FAIL["teacher"] = TrainingError("no", fix="yes")
    with pytest.raises(TrainingError):
        walk.run(graph, "teacher")
    assert walk.manifest(teacher) == before and walk.store.verify() == []
    assert set(walk.states(graph).values()) == {"cached"}
    assert walk.run(graph).ran == []
    FAIL.clear()
    assert walk.states(graph, "teacher")["teacher"] == "resume"
    assert walk.run(graph, "teacher").ran == ["teacher", "student"]


# what is remembered


def test_the_manifest_tells_where_an_artifact_came_from(walk: Walk) -> None:
    graph, data, teacher, student = chain()
    walk.run(graph)
    told = walk.manifest(student)
    assert (told["label"], told["function"], told["version"]) == ("student", f"{__name__}:make", 1)
    assert told["fingerprint"] == student.fingerprint and told["values"] == {"text": "student"}
    assert told["inputs"] == {"data": data.artifact, "teacher": teacher.artifact}
    made = told["made"]
    assert made["versions"]["kdlab"] == provenance.code() and made["versions"]["torch"] != "absent"
    assert set(made["git"]) == {"commit", "dirty"} and made["hardware"]["device"] == "auto"
    assert made["seconds"] >= 0 and made["peak_memory_mb"] > 1
    assert told["warnings"] == []


def test_warnings_facts_and_points(walk: Walk) -> None:
    one = Stage(f"{__name__}:warned", "one", work=Work(parameters=5, cost=3.0))
    walk.run(Graph.of({"one": one}))
    told = walk.manifest(one)
    assert told["warnings"] == ["thin ice"]
    assert told["facts"] == {"trained_tokens": 10, "steps": 1, "trained_flops": 300}
    assert walk.tracked == [("one", {"step": 1})]
    assert walk.screen.lines == ["run one: needed by result", "warning: thin ice", "just so", "done one"]


def test_a_hit_made_by_other_code_is_marked(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, *_ = chain()
    walk.run(graph)
    monkeypatch.setattr(provenance, "code", lambda: "9.9.9+abc")
    mine = provenance.versions()["kdlab"]
    assert walk.run(graph).ran == []
    assert walk.screen.lines == [
        f"hit {label}: by other code: kdlab {mine}" for label in ("data", "teacher", "student")
    ]


def test_the_code_version_is_that_of_the_sources() -> None:
    version, _, digest = provenance.code().partition("+")
    assert version == provenance.versions()["kdlab"].partition("+")[0] and len(digest) == 12


def test_nothing_runs_while_a_revision_is_unknown(walk: Walk) -> None:
    loose = Stage(
        f"{__name__}:make", "teacher", values={"text": "", "revision": UNPINNED}, inputs={"data": stage("data")}
    )
    graph = Graph.of({"teacher": loose})
    assert walk.states(graph) == {"data": "run", "teacher": "run"}
    with pytest.raises(HubError, match="stage 'teacher'") as caught:
        walk.run(graph)
    assert CALLS == [] and "kdlab doctor" in str(caught.value.fix)


# two at once


def test_the_second_of_two_waits_and_takes_what_the_first_made(walk: Walk) -> None:
    graph = Graph.of({"one": Stage(f"{__name__}:slow", "one")})
    other = Walk(walk.store.root)
    outcomes: list[runner.Outcome] = []
    threads = [threading.Thread(target=lambda each=each: outcomes.append(each.run(graph))) for each in (walk, other)]
    threads[0].start()
    _until(lambda: CALLS == ["one"])
    threads[1].start()
    _until(lambda: other.screen.lines == ["wait one"])
    SLOW.set()
    for thread in threads:
        thread.join(30)
    assert CALLS == ["one"] and sorted(outcome.ran for outcome in outcomes) == [[], ["one"]]
    assert other.screen.lines == ["wait one", "hit one"]
    assert other.finished == walk.finished == ["one"]


def _until(seen: Any) -> None:
    limit = time.monotonic() + 30
    while not seen():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_manifest_is_plain_json(walk: Walk) -> None:
    graph, *_, student = chain()
    walk.run(graph)
    found = walk.store.find(student.artifact)
    assert isinstance(found, Artifact)
    told = json.loads((found.path / "manifest.json").read_text())
    assert len(told.pop("sha256")) == 64 and told == found.manifest
