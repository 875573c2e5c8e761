"""The splits of a run, and one clear message for everything that data can do wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdlab.context import Context
from kdlab.data import corruption
from kdlab.errors import DataError
from kdlab.stages.prepare import prepare, prepare_sets

Prepared = tuple[dict[str, pa.Table], dict[str, Any], Path]
Prepare = Callable[..., Prepared]


@pytest.fixture
def run(tmp_path: Path) -> Prepare:
    count = iter(range(100))

    def call(path: Path, **changes: Any) -> Prepared:
        out = tmp_path / f"out{next(count)}"
        out.mkdir()
        ctx = Context(out=out, stage="data")
        settings: dict[str, Any] = {
            "source": {"path": str(path)},
            "splits": {"train": "train", "dev": "validation"},
            "text": ["text"],
            "label": "label",
            "labels": None,
            "kind": "classification",
            "heldout": 0.1,
            "few": None,
            "imbalance": None,
            "noise": None,
            "dev_limit": None,
            "rows": None,
            "seed": 1,
        }
        prepare(ctx, **(settings | changes))
        assert json.loads((out / "facts.json").read_text(encoding="utf-8")) == ctx.facts
        tables = {file.stem: pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in out.glob("*.arrow")}
        return tables, ctx.facts, out

    return call


def csv_file(path: Path, start: int, count: int, classes: int = 2) -> Path:
    """Row i has the text "row i" and the label i mod 4 == 0 ? b : a (or one of more classes)."""
    names = ["b", "a", "a", "a"] if classes == 2 else [str(number) for number in range(classes)]
    lines = [f"row {number},{names[number % len(names)]}" for number in range(start, start + count)]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    csv_file(data / "train.csv", 0, 200)
    csv_file(data / "validation.csv", 1000, 40)
    return data


def test_splits_and_facts(run: Prepare, folder: Path) -> None:
    tables, facts, _ = run(folder)
    assert facts["rows"] == {"train": 180, "dev": 40, "heldout": 20}
    assert facts["labels"] == ["a", "b"] and facts["warnings"] == []
    assert facts["unlabelled"] == facts["noisy"] == {"train": 0, "dev": 0, "heldout": 0}
    assert facts["conditions"] == {"few": None, "imbalance": None, "noise": None}
    assert all(table.schema.names == ["id", "text_a", "text_b", "label"] for table in tables.values())
    assert Counter(tables["heldout"]["label"].to_pylist()) == {0: 15, 1: 5}, "stratified"
    together = tables["train"]["id"].to_pylist() + tables["heldout"]["id"].to_pylist()
    assert sorted(together) == list(range(200))
    assert facts["majority"]["dev"] == {
        "accuracy": 0.75,
        "f1": 0.0,
        "macro_f1": pytest.approx(3 / 7),
        "mcc": 0.0,
    }


def test_same_bytes_twice(run: Prepare, folder: Path) -> None:
    conditions = {"few": few(100), "imbalance": {"ratio": 4.0, "seed": 0}, "noise": NOISE, "dev_limit": 20}
    (_, _, first), (_, _, second) = run(folder, **conditions), run(folder, **conditions)
    files = sorted(file.name for file in first.iterdir())
    assert files == ["dev.arrow", "facts.json", "heldout.arrow", "train.arrow"]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)


def test_heldout_and_dev_do_not_depend_on_the_seed(run: Prepare, folder: Path) -> None:
    (one, _, _), (other, _, _) = run(folder, dev_limit=20), run(folder, dev_limit=20, seed=2)
    assert all(one[name].equals(other[name]) for name in ("train", "heldout", "dev"))
    assert one["dev"].num_rows == 20
    ids = one["dev"]["id"].to_pylist()
    assert ids == sorted(ids) and ids != list(range(20))


def test_without_a_word_of_dev_train_is_whole(run: Prepare, folder: Path) -> None:
    """A supplement: nothing is cut, nothing set aside, and no dev is read."""
    tables, facts, _ = run(folder, splits={"train": "train"}, heldout=0.0, dev_limit=None)
    assert set(tables) == {"train"} and facts["rows"] == {"train": tables["train"].num_rows}
    whole, _, _ = run(folder, heldout=0.0)
    assert tables["train"].equals(whole["train"])


def test_debug_rows_limit_every_split(run: Prepare, folder: Path) -> None:
    _, facts, _ = run(folder, rows=8, few=few(100), dev_limit=12)
    assert facts["rows"] == {"train": 8, "dev": 8, "heldout": 8}


def test_single_file_gets_a_dev_part(run: Prepare, tmp_path: Path) -> None:
    tables, facts, _ = run(csv_file(tmp_path / "all.csv", 0, 200))
    assert facts["rows"] == {"train": 162, "dev": 20, "heldout": 18}
    rows = [number for table in tables.values() for number in table["id"].to_pylist()]
    assert sorted(rows) == list(range(200))
    assert Counter(tables["dev"]["label"].to_pylist()) == {0: 15, 1: 5}


def test_no_heldout_and_dev_cut_from_a_folder(run: Prepare, folder: Path) -> None:
    assert run(folder, heldout=0, splits={"train": "train", "dev": None})[1]["rows"] == {"train": 180, "dev": 20}


def test_rare_classes_are_split_without_loss(run: Prepare, tmp_path: Path) -> None:
    data = csv_file(tmp_path / "all.csv", 0, 100, classes=7)
    with data.open("a") as file:
        file.write("lonely,7\n")
    tables, facts, _ = run(data, heldout=0.2)
    assert facts["labels"] == [str(number) for number in range(8)]
    assert sum(facts["rows"].values()) == 101 and facts["rows"]["dev"] == 10 and facts["rows"]["heldout"] == 18
    assert 7 in tables["train"]["label"].to_pylist(), "the only row of a class stays in train"


def test_regression(run: Prepare, tmp_path: Path) -> None:
    data = tmp_path / "all.jsonl"
    data.write_text("".join(json.dumps({"text": f"t{n}", "label": n / 2}) + "\n" for n in range(50)))
    tables, facts, _ = run(data, kind="regression")
    assert tables["train"]["label"].type == pa.float64() and facts["labels"] is None
    assert facts["majority"]["dev"] == {"pearson_spearman": 0.0, "pearson": 0.0, "spearman": 0.0}


# few, imbalance, noise


def few(examples: int, *, balanced: bool = False) -> dict[str, Any]:
    return {"examples": examples, "balanced": balanced}


NOISE = {"rate": 0.3, "seed": 0}


def ids(table: pa.Table) -> set[int]:
    return set(table["id"].to_pylist())


def test_few_holds_the_heldout_rows_and_is_drawn_with_the_seed(run: Prepare, folder: Path) -> None:
    tables, facts, _ = run(folder, few=few(100))
    assert facts["rows"] == {"train": 90, "heldout": 10, "dev": 40}
    assert tables["train"]["id"].to_pylist() == sorted(ids(tables["train"]))
    drawn = ids(tables["train"]) | ids(tables["heldout"])
    labels = np.array([int(number % 4 == 0) for number in range(200)])
    expected = corruption.few(labels, examples=100, balanced=False, regression=False, seed=1)
    assert drawn == set(expected.tolist())
    after = facts["conditions"]["few"].pop("after")
    assert facts["conditions"]["few"] == few(100) | {"seed": 1, "before": {"a": 150, "b": 50}}
    assert after == {"a": 100 - after["b"], "b": sum(number % 4 == 0 for number in drawn)}
    same, _, _ = run(folder, few=few(100), heldout=0)
    assert ids(same["train"]) == drawn, "the same hundred, whatever is held out of them"
    other, _, _ = run(folder, few=few(100), seed=2)
    assert ids(other["train"]) | ids(other["heldout"]) != drawn and other["dev"].equals(tables["dev"])


def test_few_balanced(run: Prepare, folder: Path) -> None:
    tables, facts, _ = run(folder, few=few(60, balanced=True))
    assert facts["conditions"]["few"]["after"] == {"a": 30, "b": 30}
    assert Counter(tables["train"]["label"].to_pylist()) == {0: 27, 1: 27}
    assert run(folder, few=few(120, balanced=True))[1]["conditions"]["few"]["after"] == {"a": 70, "b": 50}


def test_few_of_more_than_there_are(run: Prepare, folder: Path) -> None:
    _, facts, _ = run(folder, few=few(201))
    assert facts["rows"]["train"] + facts["rows"]["heldout"] == 200
    assert facts["warnings"] == ["few.examples=201: there are only 200 training rows, all are used"]
    assert run(folder, few=few(200))[1]["warnings"] == []


def test_imbalance(run: Prepare, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    csv_file(data / "train.csv", 0, 300, classes=3)
    csv_file(data / "validation.csv", 1000, 30, classes=3)
    tables, facts, _ = run(data, imbalance={"ratio": 4.0, "seed": 0})
    after = {"0": 100, "1": 50, "2": 25}
    before = {"0": 100, "1": 100, "2": 100}
    assert facts["conditions"]["imbalance"] == {"ratio": 4.0, "seed": 0, "before": before, "after": after}
    assert facts["rows"] == {"train": 157, "heldout": 18, "dev": 30}, "a tenth of 175 is held out"
    together = Counter(tables["train"]["label"].to_pylist()) + Counter(tables["heldout"]["label"].to_pylist())
    assert together == {0: 100, 1: 50, 2: 25}
    fewer, facts, _ = run(data, few=few(90, balanced=True), imbalance={"ratio": 4.0, "seed": 0}, heldout=0)
    assert Counter(fewer["train"]["label"].to_pylist()) == {0: 30, 1: 15, 2: 7}, "of the few, not of all"
    assert facts["conditions"]["imbalance"]["before"] == {"0": 30, "1": 30, "2": 30}
    assert run(data, imbalance={"ratio": 1.0, "seed": 0})[1]["conditions"]["imbalance"] is None


def test_noise_changes_labels_and_nothing_else(run: Prepare, folder: Path) -> None:
    (clean, plain, _), (noisy, facts, _) = run(folder), run(folder, noise=NOISE)
    assert noisy["dev"].equals(clean["dev"])
    for name in ("train", "heldout"):
        columns = ["id", "text_a", "text_b", "label"]
        assert noisy[name].schema.names == [*columns, "clean_label"]
        assert noisy[name].select(columns[:3]).equals(clean[name].select(columns[:3])), "the same rows"
        assert noisy[name]["clean_label"].equals(clean[name]["label"])
        labels, before = noisy[name]["label"].to_numpy(), clean[name]["label"].to_numpy()
        assert facts["noisy"][name] == (labels != before).sum() > 0
    counts = {name: facts["noisy"][name] for name in ("train", "heldout")}
    assert facts["conditions"]["noise"] == {"rate": 0.3, "seed": 0, "changed": counts}
    assert abs(sum(counts.values()) - 60) < 3 * (200 * 0.3 * 0.7) ** 0.5
    assert facts["noisy"]["dev"] == 0 and facts["majority"]["dev"] == plain["majority"]["dev"]
    assert run(folder, noise={"rate": 0.0, "seed": 0})[0]["train"].equals(clean["train"])


def test_majority_goes_by_clean_labels(run: Prepare, folder: Path) -> None:
    """Of 180 labels 135 are a; with so much noise most are b, but the answer to beat on dev is still a."""
    tables, facts, _ = run(folder, noise={"rate": 0.9, "seed": 0})
    assert Counter(tables["train"]["label"].to_pylist())[1] > 90
    assert facts["majority"]["dev"]["accuracy"] == 0.75


def test_a_row_has_the_same_noise_in_every_run(run: Prepare, folder: Path) -> None:
    def labels(**changes: Any) -> dict[int, int]:
        tables, _, _ = run(folder, noise=NOISE, **changes)
        both = pa.concat_tables([tables["train"], tables["heldout"]]) if "heldout" in tables else tables["train"]
        return dict(zip(both["id"].to_pylist(), both["label"].to_pylist(), strict=True))

    whole = labels()
    for changes in ({"heldout": 0}, {"few": few(80)}, {"few": few(80), "seed": 5}, {"few": few(60, balanced=True)}):
        found = labels(**changes)
        assert found == {number: whole[number] for number in found}
    assert labels(splits={"train": "train", "dev": None}).items() <= whole.items(), "dev is cut from train here"
    tables, _, _ = run(folder, noise=NOISE | {"seed": 1}, heldout=0)
    assert tables["train"]["label"].to_pylist() != [whole[number] for number in range(200)]


def test_noise_of_a_regression(run: Prepare, tmp_path: Path) -> None:
    data = tmp_path / "all.jsonl"
    data.write_text("".join(json.dumps({"text": f"t{n}", "label": n / 2}) + "\n" for n in range(200)))
    tables, facts, _ = run(data, kind="regression", noise=NOISE, few=few(100))
    assert tables["train"]["label"].type == tables["train"]["clean_label"].type == pa.float64()
    assert 15 < facts["noisy"]["train"] + facts["noisy"]["heldout"] < 45
    assert set(tables["train"]["label"].to_pylist()) <= {n / 2 for n in range(200)}
    assert facts["conditions"]["few"]["before"] == 180 and facts["conditions"]["few"]["after"] == 100


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"few": few(1, balanced=True)}, "1 examples can't hold one of each of the 2 classes", "task.few.balanced=false"),
    ({"few": few(4)}, "4 training rows are too few to set aside 10%", "task.heldout=0"),
    ({"few": few(1), "heldout": 0}, "The 1 rows that are left to train on all have the label", "task.few.examples"),
    (
        {"imbalance": {"ratio": 150.0, "seed": 0}, "heldout": 0.6},
        "The 60 rows that are left to train on all have the label 'a'",
        "task.imbalance.ratio",
    ),
]


@pytest.mark.parametrize(("changes", "what", "fix"), REFUSED, ids=[case[1][:20] for case in REFUSED])
def test_conditions_that_leave_too_little(
    run: Prepare, folder: Path, changes: dict[str, Any], what: str, fix: str
) -> None:
    with pytest.raises(DataError) as caught:
        run(folder, **changes)
    assert what in str(caught.value) and fix in str(caught.value), str(caught.value)


def test_an_imbalance_that_leaves_a_class_out(run: Prepare, tmp_path: Path) -> None:
    data = csv_file(tmp_path / "all.csv", 0, 300, classes=3)
    with pytest.raises(DataError, match="No row with the label '2' is left to train on") as caught:
        run(data, imbalance={"ratio": 80.0, "seed": 0}, heldout=0.6)
    assert "imbalance leaves {'0': 90, '1': 10, '2': 1} rows, of which some are held out" in str(caught.value)


def test_a_class_that_few_leaves_out_is_named(run: Prepare, tmp_path: Path) -> None:
    data = csv_file(tmp_path / "all.csv", 0, 200)
    with data.open("a") as file:
        file.write("lonely,c\n")
    _, facts, _ = run(data, few=few(50), heldout=0, seed=1)
    assert facts["warnings"] == ["no row with the label 'c' is left to train on"]


# test and further evaluation sets


@pytest.fixture
def sets(tmp_path: Path) -> Callable[..., Prepared]:
    count = iter(range(100))

    def call(path: Path, data: Path, evaluations: dict[str, Any], **changes: Any) -> Prepared:
        ctx = Context(out=tmp_path / f"sets{next(count)}", stage="prepare_sets")
        ctx.out.mkdir()
        settings: dict[str, Any] = {
            "source": {"path": str(path)},
            "splits": {"test": None},
            "text": ["text"],
            "label": "label",
            "kind": "classification",
            "rows": None,
        }
        prepare_sets(ctx, data=data, evaluations=evaluations, **(settings | changes))
        assert json.loads((ctx.out / "facts.json").read_text(encoding="utf-8")) == ctx.facts
        tables = {file.stem: pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in ctx.out.glob("*.arrow")}
        return tables, ctx.facts, ctx.out

    return call


def test_sets_may_be_without_labels(run: Prepare, sets: Callable[..., Prepared], folder: Path) -> None:
    (folder / "ax.csv").write_text("text,label\nhidden,-1\nalso,-1\n")
    (folder / "hard.csv").write_text("text,label\nx,a\ny,b\n")
    (folder / "test.csv").write_text("text\nx\ny\nz\n")
    evaluations = {"ax": {"split": "ax", "config": None}, "hard": {"split": "hard", "config": None}}
    tables, facts, out = sets(folder, run(folder)[2], evaluations, splits={"test": "test"})
    assert sorted(file.name for file in out.iterdir()) == ["ax.arrow", "facts.json", "hard.arrow", "test.arrow"]
    assert facts["rows"] == {"test": 3, "ax": 2, "hard": 2} and facts["labels"] == ["a", "b"]
    assert facts["unlabelled"] == {"test": 3, "ax": 2, "hard": 0}
    assert set(facts["majority"]) == {"hard"} and facts["majority"]["hard"]["accuracy"] == 0.5
    assert tables["ax"]["label"].to_pylist() == [None, None] and tables["hard"]["label"].to_pylist() == [0, 1]


def test_sets_take_labels_and_majority_from_the_data(run: Prepare, sets: Callable[..., Prepared], folder: Path) -> None:
    """`hard` alone would give the labels [b, c], and noise would make b train's most frequent one."""
    (folder / "hard.csv").write_text("text,label\nx,b\ny,c\nz,a\n")
    data = run(folder, labels=["c", "b", "a"], noise={"rate": 0.9, "seed": 0})[2]
    tables, facts, _ = sets(folder, data, {"hard": {"split": "hard"}})
    assert tables["hard"]["label"].to_pylist() == [1, 0, 2] and tables["hard"].schema.names[-1] == "label"
    assert facts["majority"]["hard"]["accuracy"] == pytest.approx(1 / 3)
    assert facts["labels"] == ["c", "b", "a"]


def test_sets_that_share_rows_with_train(run: Prepare, sets: Callable[..., Prepared], folder: Path) -> None:
    """Only the rows that are trained or selected on count: 50 of 200 here."""
    tables, _, data = run(folder, few=few(50))
    used = ids(tables["train"]) | ids(tables["heldout"])
    csv_file(folder / "hard.csv", 0, 100)
    _, facts, _ = sets(folder, data, {"hard": {"split": "hard"}})
    count = sum(number < 100 for number in used)
    assert facts["shared_with_train"] == {"hard": count} and 10 < count < 40
    assert facts["warnings"] == [f"{count} of 100 rows of hard have the same texts as a row of train"]


def test_sets_with_few_rows(run: Prepare, sets: Callable[..., Prepared], folder: Path) -> None:
    data = run(folder)[2]
    once, again = (sets(folder, data, {"more": {"split": "validation"}}, rows=8) for _ in range(2))
    assert once[1]["rows"] == {"more": 8} and once[0]["more"].equals(again[0]["more"])


def test_sets_of_a_regression(run: Prepare, sets: Callable[..., Prepared], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "validation", "test"):
        rows = [{"text": f"{name} {n}", "label": n / 2} for n in range(50)]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = run(data, kind="regression")[2]
    _, facts, _ = sets(data, whole, {}, kind="regression", splits={"test": "test"})
    assert facts["labels"] is None and facts["majority"]["test"]["pearson"] == 0.0


def test_warnings(run: Prepare, folder: Path) -> None:
    with (folder / "validation.csv").open("a") as file:
        file.write("row 3,a\nrow 4,b\n  ,a\n")
    _, facts, _ = run(folder, labels=["a", "b", "c"])
    assert facts["shared_with_train"] == {"dev": 2} and facts["empty_texts"]["dev"] == 1
    assert facts["warnings"] == [
        "no training row has the label 'c'",
        "2 of 43 rows of dev have the same texts as a row of train",
        "1 of 43 rows of dev have an empty text",
    ]


GOOD = b"text,label\nx,a\ny,b\n"
FAULTS: list[tuple[str, str, bytes, dict[str, Any], str, str]] = [
    ("empty file", "train.csv", b"", {}, "The file is empty", "train.csv"),
    ("only a mark", "train.csv", b"\xef\xbb\xbf", {}, "no header and no rows", "train.csv"),
    ("only a header", "train.csv", b"text,label\n", {}, "'train' has no rows", "train.csv"),
    ("only blank lines", "train.jsonl", b"\n\n", {}, "no column 'text'", "train.jsonl"),
    ("too many fields", "train.csv", GOOD + b"a, b,a\n", {}, "has 3 fields, the header has 2", "line 4"),
    ("too few fields", "train.csv", b'text,label\n"x\ny",a\nz\n', {}, "has 1 fields", "line 4"),
    ("ragged tsv", "train.tsv", b"text\tlabel\nx\ta\tb\n", {}, "has 3 fields", "line 2"),
    ("open quote", "train.csv", GOOD + b'"z,a\nw,b\n', {}, "quotes of a field", "line 4"),
    ("text after quote", "train.csv", GOOD + b'"z" z,a\n', {}, "quotes of a field", "line 4"),
    ("NUL", "train.csv", GOOD + b"z\0z,a\n", {}, "NUL byte", "line 4"),
    ("Latin-1", "train.csv", GOOD + b"caf\xe9,a\n", {}, "0xe9 is no UTF-8", "line 4"),
    ("Latin-1 JSON", "train.jsonl", b'{"text": "caf\xe9"}\n', {}, "0xe9 is no UTF-8", "line 1"),
    ("UTF-16", "train.csv", GOOD.decode().encode("utf-16"), {}, "UTF-16", "train.csv"),
    ("no JSON", "train.jsonl", b'{"text": "x", "label": "a"}\n{"text": \n', {}, "no JSON", "line 2"),
    ("JSON list", "train.jsonl", b'["x", "a"]\n', {}, "no JSON object", "line 1"),
    ("JSON nested", "train.jsonl", b'{"text": {"en": "x"}, "label": "a"}\n', {}, "but dict", "line 1"),
    (
        "JSON gap",
        "train.jsonl",
        b'{"text": "x", "label": "a"}\n{"label": "b"}\n',
        {},
        "missing or null",
        "line 2",
    ),
    ("JSON surrogate", "train.jsonl", b'{"text": "\\ud800", "label": "a"}\n', {}, "surrogate", "line 1"),
    ("no Parquet", "train.parquet", b"PAR1 is no table", {}, "no readable Parquet", "train.parquet"),
    ("wrong suffix", "train.xlsx", b"x", {}, "end in '.xlsx'", "train.xlsx"),
    (
        "no text column",
        "train.csv",
        GOOD,
        {"text": ["txet"]},
        "There are: 'text', 'label'",
        "Did you mean 'text'",
    ),
    ("no label column", "train.csv", GOOD, {"label": "gold"}, "no column 'gold'", "task.label"),
    (
        "no label column, named",
        "train.csv",
        GOOD,
        {"label": "gold", "labels": ["a"]},
        "no column 'gold'",
        "train",
    ),
    ("twice the same column", "train.csv", b"text,text,label\nx,y,a\n", {}, "'text' twice", "train.csv"),
    ("unknown label", "train.csv", GOOD + b"z,bb\n", {"labels": ["a", "b"]}, "'bb' is none of", "line 4"),
    (
        "id too high",
        "train.csv",
        b"text,label\nx,0\ny,2\n",
        {"labels": ["a", "b"]},
        "'2' is none of",
        "line 3",
    ),
    ("label twice", "train.csv", GOOD, {"labels": ["a", "a"]}, "appears twice", "task.labels"),
    ("missing label", "train.csv", GOOD + b"z,\n", {}, "1 of 3 rows have no label", "line 4"),
    ("one class", "train.csv", b"text,label\nx,a\ny,a\n", {}, "the same label, 'a'", "train.csv"),
    (
        "one value",
        "train.csv",
        b"text,label\nx,1\ny,1\n",
        {"kind": "regression"},
        "the same label, 1.0",
        "train",
    ),
    (
        "no number",
        "train.csv",
        b'text,label\nx,1\ny,"2,5"\n',
        {"kind": "regression"},
        "'2,5' is no number",
        "line 3",
    ),
    ("nan", "train.csv", b"text,label\nx,1\ny,nan\n", {"kind": "regression"}, "not finite", "line 3"),
    (
        "inf",
        "train.jsonl",
        b'{"text": "x", "label": 1e999}\n',
        {"kind": "regression"},
        "not finite",
        "line 1",
    ),
    (
        "numbers as classes",
        "train.csv",
        b"text,label\n" + b"".join(b"x,%d.5\n" % n for n in range(50)),
        {},
        "50 different values",
        "task.kind=regression",
    ),
    ("too few rows", "train.csv", GOOD, {}, "too few to set aside", "task.heldout=0"),
    (
        "dev of a single file",
        "train.csv",
        GOOD,
        {"splits": {"train": "all", "dev": None}},
        "'train', not 'all'",
        "train.csv",
    ),
]


@pytest.mark.parametrize(
    ("name", "data", "changes", "what", "place"),
    [pytest.param(*fault[1:], id=fault[0]) for fault in FAULTS],
)
def test_faults(
    run: Prepare, tmp_path: Path, name: str, data: bytes, changes: dict[str, Any], what: str, place: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        run(path, **changes)
    message = str(caught.value)
    assert what in message and place in message, message
    assert "Traceback" not in message and len(message.splitlines()) <= 4, message


def test_missing_path(run: Prepare, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        run(tmp_path / "nothing.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="It has: no data file"):
        run(tmp_path / "empty")


def test_parquet_with_lists_for_text(run: Prepare, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [["a", "b"], ["c"]], "label": ["a", "b"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="holds no text but list"):
        run(tmp_path / "train.parquet")


def test_dev_that_is_train(run: Prepare, folder: Path) -> None:
    with pytest.raises(DataError, match="All 200 rows of dev are rows of train"):
        run(folder, splits={"train": "train", "dev": "train"})


def test_dev_must_be_labelled(run: Prepare, folder: Path) -> None:
    (folder / "validation.csv").write_text("text,label\nx,a\ny,-1\n")
    with pytest.raises(DataError, match="1 of 2 rows have no label") as caught:
        run(folder)
    assert "validation.csv, line 3" in str(caught.value)


def test_all_texts_empty(run: Prepare, folder: Path) -> None:
    (folder / "validation.csv").write_text("text,label\n ,a\n ,b\n")
    with pytest.raises(DataError, match="All texts of dev are empty"):
        run(folder)


@pytest.mark.parametrize("name", ["dev", "train", "../x", "a b"])
def test_names_of_evaluations(sets: Callable[..., Prepared], folder: Path, name: str) -> None:
    with pytest.raises(DataError, match="can't be called"):
        sets(folder, folder, {name: {"split": "validation"}})


def test_configuration_of_a_local_source(run: Prepare, sets: Callable[..., Prepared], folder: Path) -> None:
    with pytest.raises(DataError, match="only the Hub"):
        sets(folder, run(folder)[2], {"hard": {"split": "validation", "config": "hard"}})
