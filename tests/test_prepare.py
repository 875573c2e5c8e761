"""The splits of a run, and one clear message for everything that data can do wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdlab.context import Context
from kdlab.errors import DataError
from kdlab.stages.prepare import prepare

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
            "splits": {"train": "train", "dev": "validation", "test": None},
            "evaluations": {},
            "text": ["text"],
            "label": "label",
            "labels": None,
            "kind": "classification",
            "heldout": 0.1,
            "train_limit": None,
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
    assert facts["unlabelled"] == {"train": 0, "dev": 0, "heldout": 0}
    assert Counter(tables["heldout"]["label"].to_pylist()) == {0: 15, 1: 5}, "stratified"
    together = tables["train"]["id"].to_pylist() + tables["heldout"]["id"].to_pylist()
    assert sorted(together) == list(range(200))
    assert facts["majority"]["dev"] == {
        "accuracy": 0.75,
        "f1": 0.0,
        "macro_f1": pytest.approx(3 / 7),
        "mcc": 0.0,
    }


def test_same_bytes_twice_and_same_heldout_for_every_seed(run: Prepare, folder: Path) -> None:
    limited = {"train_limit": 50, "dev_limit": 20}
    (one, _, first), (two, _, second) = run(folder, **limited), run(folder, **limited)
    assert one["train"].num_rows == two["train"].num_rows == 50
    files = sorted(file.name for file in first.iterdir())
    assert files == ["dev.arrow", "facts.json", "heldout.arrow", "train.arrow"]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in files)
    other, _, _ = run(folder, **limited, seed=2)
    assert other["heldout"].equals(one["heldout"]), "held-out rows do not depend on the run's seed"
    assert not other["train"].equals(one["train"]) and not other["dev"].equals(one["dev"])
    assert not set(other["train"]["id"].to_pylist()) & set(one["heldout"]["id"].to_pylist())


def test_debug_rows_limit_every_split(run: Prepare, folder: Path) -> None:
    _, facts, _ = run(folder, rows=8, train_limit=100)
    assert facts["rows"] == {"train": 8, "dev": 8, "heldout": 8}


def test_single_file_gets_a_dev_part(run: Prepare, tmp_path: Path) -> None:
    tables, facts, _ = run(csv_file(tmp_path / "all.csv", 0, 200))
    assert facts["rows"] == {"train": 162, "dev": 20, "heldout": 18}
    rows = [number for table in tables.values() for number in table["id"].to_pylist()]
    assert sorted(rows) == list(range(200))
    assert Counter(tables["dev"]["label"].to_pylist()) == {0: 15, 1: 5}


def test_no_heldout_and_dev_cut_from_a_folder(run: Prepare, folder: Path) -> None:
    splits = {"train": "train", "dev": None, "test": "validation"}
    assert run(folder, heldout=0, splits=splits)[1]["rows"] == {"train": 180, "dev": 20, "test": 40}


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


def test_evaluations_may_be_without_labels(run: Prepare, folder: Path) -> None:
    (folder / "ax.csv").write_text("text,label\nhidden,-1\nalso,-1\n")
    (folder / "hard.csv").write_text("text,label\nx,a\ny,b\n")
    (folder / "test.csv").write_text("text\nx\ny\nz\n")
    evaluations = {"ax": {"split": "ax", "config": None}, "hard": {"split": "hard", "config": None}}
    splits = {"train": "train", "dev": "validation", "test": "test"}
    tables, facts, _ = run(folder, evaluations=evaluations, splits=splits)
    assert facts["unlabelled"] == {"train": 0, "dev": 0, "heldout": 0, "test": 3, "ax": 2, "hard": 0}
    assert set(facts["majority"]) == {"dev", "heldout", "hard"}
    assert tables["ax"]["label"].to_pylist() == [None, None]


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
def test_names_of_evaluations(run: Prepare, folder: Path, name: str) -> None:
    with pytest.raises(DataError, match="can't be called"):
        run(folder, evaluations={name: {"split": "validation"}})


def test_configuration_of_a_local_source(run: Prepare, folder: Path) -> None:
    with pytest.raises(DataError, match="only the Hub"):
        run(folder, evaluations={"hard": {"split": "validation", "config": "hard"}})
