"""What `kdlab diff` says of two runs: real ones of the embedded task, and made ones whose answers are known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kdlab.errors import StoreError
from kdlab.graph import Graph, Stage
from kdlab.report import diff, predictions
from kdlab.report.predictions import Asked
from kdlab.report.settings import differences
from kdlab.runs import Record
from lab import TINY, Done, Lab, once

WORDS = {"one": "method=ft seed=1", "two": "method=ft seed=2"}


@pytest.fixture(scope="module")
def folders(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    run = once(lab, lambda name: f"{TINY} {WORDS[name]}", tmp_path_factory)
    return {name: run(name)[0] for name in WORDS}


def found(lab: Lab, a: Path, b: Path) -> dict[str, Any]:
    done = lab.command(f"diff '{a}' '{b}' --format json")
    assert done.code == 0, done.err
    said: dict[str, Any] = json.loads(done.out)
    return said


def table(lab: Lab, a: Path, b: Path, words: str = "") -> str:
    done = lab.command(f"diff '{a}' '{b}' {words}")
    assert done.code == 0, done.err
    return done.out


def failed(lab: Lab, *words: object) -> Done:
    done = lab.command(" ".join(["diff", *(f"'{word}'" for word in words)]))
    assert done.code == 2 and not done.out and "Traceback" not in done.err
    return done


def copied(folder: Path, place: Path, **files: str) -> Path:
    """A copy of a run's folder with other files; "" removes one."""
    shutil.copytree(folder, place)
    for name, text in files.items():
        file = next(file for file in place.iterdir() if file.name.partition(".")[0] == name)
        file.unlink()
        if text:
            file.write_text(text, encoding="utf-8")
    return place


# real runs


def test_two_seeds(lab: Lab, folders: dict[str, Path]) -> None:
    said = found(lab, folders["one"], folders["two"])
    assert said["config"] == [{"path": "seed", "a": 1, "b": 2}]
    assert {one["path"] for one in said["config_apart"]} <= {"outputs", "name"}
    assert "the seed alone differs" in said["verdict"] and not said["identical"]
    assert said["command"]["only_a"][0] == "seed=1" and said["command"]["only_b"][0] == "seed=2"
    graph = said["graph"]
    assert {"prepare", "tokenise"} <= {one["label"] for one in graph["same"]}
    assert graph["only_a"] == graph["only_b"] == []
    assert graph["differ"][0]["label"] == "student"
    assert graph["differ"][0]["causes"] == [{"stage": "student", "path": "seed", "a": 1, "b": 2}]
    (dev,) = [
        one for one in said["scores"] if (one["role"], one["split"], one["kind"]) == ("student", "dev", "selected")
    ]
    results = [json.loads((folders[name] / "result.json").read_text()) for name in ("one", "two")]
    expected = [result["scores"]["dev"]["accuracy"]["selected"] for result in results]
    assert [dev["a"], dev["b"]] == expected and dev["difference"] == pytest.approx(expected[1] - expected[0])
    by_split = {one["split"]: one for one in said["predictions"]}
    rows, right = by_split["dev"], by_split["dev"]["both_right"]
    assert [(right + rows[side]) / rows["rows"] for side in ("a_right", "b_right")] == pytest.approx(expected)


def test_identical_runs(lab: Lab, folders: dict[str, Path], tmp_path: Path) -> None:
    other = copied(folders["one"], tmp_path / "other")
    said = found(lab, folders["one"], other)
    assert said["identical"] and said["verdict"].startswith("identical")
    assert said["config"] == said["data"] == said["versions"] == []
    assert all(one["disagree"] == 0 and one["p"] == 1 for one in said["predictions"])
    out = table(lab, folders["one"], other)
    assert "identical" in out and "settings" not in out.splitlines()
    assert "A and B are the same folder" in table(lab, folders["one"], folders["one"])


def test_another_machine_is_no_other_run(lab: Lab, folders: dict[str, Path], tmp_path: Path) -> None:
    told = json.loads((folders["one"] / "graph.json").read_text())
    for stage in told:
        if stage["label"] == "measure_student":
            stage["values"]["machine"]["processor"] = "another"
            stage["fingerprint"] = stage["fingerprint"][::-1]
    said = found(lab, folders["one"], copied(folders["one"], tmp_path / "other", graph=json.dumps(told)))
    assert [one["label"] for one in said["graph"]["differ"]] == ["measure_student"]
    assert said["identical"] and said["verdict"].endswith("measured on two machines")


def test_the_terminal_gets_80_columns(
    lab: Lab, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        shutil.copytree(folders[name], tmp_path / name)
    monkeypatch.chdir(tmp_path)
    found_now = diff.compared(diff.opened(Path("one")), diff.opened(Path("two")))
    from rich.console import Console

    for everything in (False, True):
        console = Console(width=80, record=True, highlight=False)
        for part in diff.shown(found_now, everything=everything):
            console.print(part)
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= 80
        assert ("  the same: prepare" in "\n".join(lines)) == everything
        assert any("best" in line for line in lines) == everything


def test_an_older_run_and_other_versions(lab: Lab, folders: dict[str, Path], tmp_path: Path) -> None:
    told = json.loads((folders["one"] / "run.json").read_text())
    del told["config"]["precision"], told["sha256"]
    result = json.loads((folders["one"] / "result.json").read_text())
    result["versions"]["torch"] = "1.0"
    del result["seconds_of_stages"], result["warnings"], result["sha256"]
    old = copied(folders["one"], tmp_path / "old", run=json.dumps(told), result=json.dumps(result))
    said = found(lab, old, folders["one"])
    assert [one["path"] for one in said["config"]] == ["precision"] and said["config"][0]["a"] == "(absent)"
    assert [(one["path"], one["a"]) for one in said["versions"]] == [("versions.torch", "1.0")]
    assert said["seconds"]["total"]["a"] is None
    assert "versions.torch" in table(lab, old, folders["one"])


def test_runs_that_have_not_finished(lab: Lab, folders: dict[str, Path], tmp_path: Path) -> None:
    stopped = copied(folders["two"], tmp_path / "stopped", result="")
    out = table(lab, stopped, folders["one"])
    assert "A has not finished" in out and "the seed alone differs" in out and "student" in out
    (stopped / "failure.txt").write_text("the disk [is] full\nmore", encoding="utf-8")
    assert "B has failed (the disk [is] full)" in table(lab, folders["one"], stopped)
    said = found(lab, stopped, copied(folders["two"], tmp_path / "again", result=""))
    assert said["verdict"].startswith("no setting and no stage differs") and not said["identical"]
    assert said["scores"] == said["predictions"] == said["versions"] == []


def test_what_is_gone_is_told_and_the_rest_compared(lab: Lab, folders: dict[str, Path], tmp_path: Path) -> None:
    words = f"diff '{folders['one']}' '{folders['two']}' --format json"
    done = lab.command(f"{words} --store '{tmp_path / 'nowhere'}'")
    said = json.loads(done.out)
    assert done.code == 0 and said["predictions"] == [] and said["scores"]
    assert "are no longer in the store" in said["notes"][0]
    for text in ("", "[1, 2", '{"a": 1}', '[{"label": "teacher"}]'):
        broken = copied(folders["one"], tmp_path / f"broken{len(text)}", graph=text)
        said = found(lab, broken, folders["one"])
        assert "are not compared" in said["notes"][0] and not any(said["graph"].values())
        assert said["verdict"] == "no setting differs; the stages are not known"


def test_what_is_no_run(lab: Lab, folders: dict[str, Path], tmp_path: Path) -> None:
    sweep = tmp_path / "my sweep"
    sweep.mkdir()
    job = copied(folders["one"], sweep / "a job")
    err = failed(lab, sweep, job).err
    assert "folder of 1 runs" in err and f"kdlab compare '{sweep}'" in err
    assert "no run.json" in failed(lab, job, tmp_path).err
    assert "no run.json" in failed(lab, tmp_path / "absent", job).err
    texts = {"run": ["", "{", "[{}]", '{"config": {}, "overrides": [], "run_id": "1"}'], "result": ["[", "[]", "{}"]}
    for name, broken in texts.items():
        for number, text in enumerate(broken):
            place = copied(folders["one"], tmp_path / f"{name}{number}", **{name: text})
            assert place.name in failed(lab, place, job).err


# made runs


def made(
    root: Path,
    name: str,
    said: Mapping[str, Sequence[Any]],
    labels: Sequence[Any],
    *,
    classes: Sequence[str] | None = ("no", "yes"),
    source: str = "nli",
    ids: Sequence[int] | None = None,
    lr: float = 0.1,
    layers: bool = False,
) -> Record:
    """A finished run in a folder of its own, which has its store too.

    said: the student's answers by set (dev, or test.es), all with `labels`. lr: the teacher's. layers: it has that
    stage.
    """
    read = Stage("m:prepare", "prepare", values={"source": {"demo": source}})
    tokens = Stage("m:tokenise", "tokenise", inputs={"data": read})
    teacher = Stage("m:finetune", "teacher", values={"fit": {"lr": lr, "epochs": 3}}, inputs={"data": tokens})
    more = {"layers": Stage("m:distill", "layers", inputs={"teacher": teacher})} if layers else {}
    student = Stage("m:logits", "logits", inputs={"data": tokens, "teacher": teacher, **more})
    scored = Stage("m:evaluate", "evaluate_student", values={"name": name}, inputs={"data": tokens, "model": student})
    graph = Graph.of({"scores": scored})
    store, folder = root / name / "artifacts", root / name
    for stage in graph:
        (store / stage.artifact).mkdir(parents=True)
    (store / tokens.artifact / "facts.json").write_text(json.dumps({"labels": classes}), encoding="utf-8")
    numbers = list(range(len(labels)) if ids is None else ids)
    for place, answers in said.items():
        file = place if place.count(".") == 0 else f"{place}.original"
        column = [None if one is None else classes.index(one) for one in labels] if classes else list(labels)
        rows = pa.table({"id": numbers, "label": pa.array(column, pa.int64() if classes else pa.float64())})
        with pa.ipc.new_file(store / tokens.artifact / f"{file}.arrow", rows.schema) as writer:
            writer.write_table(rows)
        lines = [json.dumps({"id": row, "prediction": one}) for row, one in zip(numbers, answers, strict=True)]
        (store / scored.artifact / f"predictions-{place}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        **{key: {"name": key} for key in ("task", "model")},
        "method": {"name": name, "family": "distillation"},
        "seed": 1,
        "store": str(store),
    }
    result = {"run": {}, "artifacts": {stage.label: stage.artifact for stage in graph}, "scores": {}}
    files = {
        "run.json": {"config": config, "overrides": [f"method={name}"], "run_id": name},
        "graph.json": graph.describe(),
        "result.json": result,
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
    return Record.open(folder)


def test_a_difference_is_traced_to_its_first_cause(tmp_path: Path) -> None:
    a = made(tmp_path, "a", {}, [])
    b = made(tmp_path, "b", {}, [], lr=0.2)
    graph = diff.compared(a, b)["graph"]
    assert [one["label"] for one in graph["same"]] == ["prepare", "tokenise"]
    differ = {one["label"]: one for one in graph["differ"]}
    cause = {"stage": "teacher", "path": "fit.lr", "a": 0.1, "b": 0.2}
    assert differ["teacher"]["own"] == [{"path": "fit.lr", "a": 0.1, "b": 0.2}] and not differ["teacher"]["through"]
    assert differ["logits"]["own"] == [] and differ["logits"]["through"] == ["teacher"]
    assert differ["logits"]["causes"] == [cause]
    assert differ["logits"]["because"] == "logits differs because teacher differs because of fit.lr: 0.1 -> 0.2"
    name = {"stage": "evaluate_student", "path": "name", "a": "a", "b": "b"}
    assert differ["evaluate_student"]["causes"] == [name, cause]


def test_stages_of_one_run_only(tmp_path: Path) -> None:
    graph = diff.compared(made(tmp_path, "a", {}, []), made(tmp_path, "b", {}, [], layers=True))["graph"]
    assert (graph["only_a"], graph["only_b"]) == ([], ["layers"])
    logits = next(one for one in graph["differ"] if one["label"] == "logits")
    assert logits["own"] == [{"path": "input layers", "a": "(absent)", "b": "layers"}] and not logits["through"]


def test_the_exact_test_of_mcnemar(tmp_path: Path) -> None:
    """Of 12 rows 1 is right in A only and 6 in B only: p = 2 * (C(7,0) + C(7,1)) / 2^7 = 16 / 128."""
    labels = ["yes"] * 12
    a = made(tmp_path, "a", {"dev": ["yes"] * 4 + ["no"] * 8}, labels)
    b = made(tmp_path, "b", {"dev": ["no"] + ["yes"] * 9 + ["no"] * 2}, labels)
    (dev,) = diff.compared(a, b)["predictions"]
    counts = {name: dev[name] for name in ("rows", "both_right", "a_right", "b_right", "both_wrong", "disagree")}
    assert counts == {"rows": 12, "both_right": 3, "a_right": 1, "b_right": 6, "both_wrong": 2, "disagree": 7}
    assert dev["p"] == pytest.approx(16 / 128)


def test_two_wrong_classes_are_a_disagreement_without_a_winner(tmp_path: Path) -> None:
    classes = ("no", "yes", "maybe")
    a = made(tmp_path, "a", {"dev": ["no", "yes"]}, ["maybe", "yes"], classes=classes)
    b = made(tmp_path, "b", {"dev": ["yes", "yes"]}, ["maybe", "yes"], classes=classes)
    (dev,) = diff.compared(a, b)["predictions"]
    assert (dev["disagree"], dev["a_right"], dev["b_right"], dev["p"]) == (1, 0, 0, 1.0)


def test_numbers_are_compared_by_which_is_nearer(tmp_path: Path) -> None:
    """B is nearer on all five rows that differ: p = 2 / 2^5."""
    labels = [1.0, 2.0, 3.0, 4.0, 5.0, 0.0]
    a = made(tmp_path, "a", {"dev": [2.0, 4.0, 1.0, 9.0, 4.0, 0.5]}, labels, classes=None)
    b = made(tmp_path, "b", {"dev": [1.5, 3.0, 2.0, 5.0, 5.0, 0.5]}, labels, classes=None)
    (dev,) = diff.compared(a, b)["predictions"]
    assert (dev["disagree"], dev["a_right"], dev["b_right"]) == (5, 0, 5)
    assert dev["p"] == pytest.approx(2 / 32) and "both_right" not in dev


def test_only_rows_that_both_have_count(tmp_path: Path) -> None:
    a = made(tmp_path, "a", {"dev": ["yes", "no", "no"]}, ["yes"] * 3, ids=[1, 2, 3])
    b = made(tmp_path, "b", {"dev": ["yes", "yes"]}, ["yes"] * 2, ids=[3, 9])
    (dev,) = diff.compared(a, b)["predictions"]
    assert (dev["rows"], dev["rows_a"], dev["rows_b"], dev["b_right"]) == (1, 3, 2, 1)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"source": "snli"}, "read from two sources"),
        ({"labels": ["yes", "no", "no"]}, "1 of 3 rows have another label"),
    ],
)
def test_other_data_is_not_compared(other: dict[str, Any], why: str, tmp_path: Path) -> None:
    usual: dict[str, Any] = {"labels": ["yes", "yes", "no"]}
    a = made(tmp_path, "a", {"dev": ["yes"] * 3}, **usual)
    b = made(tmp_path, "b", {"dev": ["yes"] * 3}, **{**usual, **other})
    said = diff.compared(a, b)
    assert said["predictions"] == [] and any(why in note for note in said["notes"])


def test_rows_without_labels_have_no_winner(tmp_path: Path) -> None:
    a = made(tmp_path, "a", {"dev": ["yes", "no"]}, [None, None])
    b = made(tmp_path, "b", {"dev": ["yes", "yes"]}, [None, None])
    (dev,) = diff.compared(a, b)["predictions"]
    assert (dev["disagree"], dev["a_right"], dev["p"]) == (1, None, None)


def test_predictions_in_several_languages(tmp_path: Path) -> None:
    said = {
        "test.es": [{"original": "yes", "both": "no"}, {"original": "no", "both": "no"}],
        "test.en": [{"original": "yes", "both": "yes"}, {"original": "yes", "both": "yes"}],
    }
    loaded = predictions.load(made(tmp_path, "a", said, ["yes", "no"]))
    assert list(loaded) == [Asked("test", one, mode) for one in ("en", "es") for mode in ("original", "both")]
    right = [row.right for row in loaded[Asked("test", "es", "both")].rows.values()]
    assert right == [False, True]


def test_a_table_that_is_gone(tmp_path: Path) -> None:
    record = made(tmp_path, "a", {"dev": ["yes"]}, ["yes"])
    for file in tmp_path.glob("a/artifacts/tokenise-*/dev.arrow"):
        file.unlink()
    with pytest.raises(StoreError, match="the rows of dev are no longer in the store"):
        predictions.load(record)


def test_rows_and_classes_are_counted(tmp_path: Path) -> None:
    for name, source, noisy, labels in (("a", "nli", 0, [0, 0, 1, None]), ("b", "snli", 2, [1, 0, 1])):
        made(tmp_path, name, {"dev": ["yes"]}, ["yes"], source=source)
        (read,) = (tmp_path / name / "artifacts").glob("prepare-*")
        facts = {"labels": ["no", "yes"], "noisy": {"train": noisy}, "warnings": []}
        (read / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        rows = pa.table({"label": pa.array(labels, pa.int64())})
        with pa.ipc.new_file(read / "train.arrow", rows.schema) as writer:
            writer.write_table(rows)
    a, b = (Record.open(tmp_path / name) for name in "ab")
    said = diff.compared(a, b)
    assert {one["path"]: (one["a"], one["b"]) for one in said["data"]} == {
        "source (prepare).demo": ("nli", "snli"),
        "facts.noisy.train": (0, 2),
        "classes.train.no": (2, 1),
        "classes.train.yes": (1, 2),
    }


def test_each_run_is_asked_in_its_own_way(tmp_path: Path) -> None:
    """A in the original, B with translations: A is right on one row, B on both."""
    answers = [{"original": "yes", "both": "yes"}, {"original": "no", "both": "yes"}]
    a, b = (made(tmp_path, name, {"test.es": answers}, ["yes", "yes"]) for name in "ab")
    for record, mode in ((a, "original"), (b, "both")):
        assert record.result is not None
        record.result["inference"] = {"mode": mode}
    said = diff.compared(a, b)
    assert any("A is asked in the mode original, B in both" in note for note in said["notes"])
    (own,) = [one for one in said["predictions"] if one["own"]]
    assert (own["mode_a"], own["mode_b"], own["a_right"], own["b_right"]) == ("original", "both", 0, 1)
    same = [one for one in said["predictions"] if not one["own"]]
    assert [one["disagree"] for one in same] == [0, 0]


def test_the_store_is_found_from_elsewhere(tmp_path: Path) -> None:
    """Beside runs/ or sweeps/, also where a sweep has the store's name."""
    record = made(tmp_path, "a", {"dev": ["yes"]}, ["yes"])
    job = tmp_path / "outputs" / "sweeps" / "first" / "job"
    job.parent.mkdir(parents=True)
    (tmp_path / "outputs" / "sweeps" / "artifacts").mkdir()
    (record.folder / "artifacts").rename(tmp_path / "outputs" / "artifacts")
    record.folder.rename(job)
    told = json.loads((job / "run.json").read_text())
    told["config"]["store"] = "outputs/artifacts"
    (job / "run.json").write_text(json.dumps(told), encoding="utf-8")
    assert len(predictions.load(Record.open(job))) == 1


# settings


def test_settings_that_differ() -> None:
    a = {"task": {"name": "x", "splits": {"dev": None}}, "model": {"config": {}}, "seed": 1, "supplement": None}
    b = {
        "task": {"name": "x", "splits": {"dev": "d"}},
        "model": {"config": {"n": 2}},
        "seed": 1,
        "supplement": {"k": 1},
    }
    assert differences([a, b]) == {
        "task.splits.dev": [None, "d"],
        "model.config.n": ["(absent)", 2],
        "supplement": [None, {"k": 1}],
    }
    assert differences([a, a, {**a, "seed": 3}]) == {"seed": [1, 1, 3]}
    assert differences([{"on": 1}, {"on": True}]) == {}
