"""A split in canonical columns, whatever it is read from."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kdlab.data.tasks as tasks
from kdlab.errors import DataError, HubError

ROWS = [
    {"a": "plain", "b": "second", "label": "no"},
    {"a": 'says "hi", twice', "b": "tab\there", "label": "yes"},
    {"a": "two\nlines", "b": "ünïcode 猫", "label": "no"},
]


def write(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(
    path: Path,
    split: str = "train",
    *,
    text: tuple[str, ...] = ("a", "b"),
    labels: list[str] | None = None,
    kind: str = "classification",
) -> pa.Table:
    """A split as `stages.prepare` reads it."""
    raw = tasks.read_raw({"path": str(path)}, split, text=text, label="label")
    if kind == "classification" and labels is None:
        labels = tasks.find_labels(raw, "label")
    return tasks.canonical(raw, text=text, label="label", labels=labels, kind=kind)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same(tmp_path: Path, suffix: str) -> None:
    table = read(write(tmp_path / f"train{suffix}"))
    assert table.schema.names == ["id", "text_a", "text_b", "label"]
    assert table.schema.types == [pa.int64(), pa.string(), pa.string(), pa.int64()]
    assert table["id"].to_pylist() == [0, 1, 2]
    assert table["text_a"].to_pylist() == [row["a"] for row in ROWS]
    assert table["text_b"].to_pylist() == [row["b"] for row in ROWS]
    assert table["label"].to_pylist() == [0, 1, 0]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_byte_order_mark_and_windows_line_ends(tmp_path: Path, suffix: str) -> None:
    plain = [{"a": "one", "label": "x"}, {"a": "two", "label": "y"}]
    path = write(tmp_path / f"train{suffix}", plain)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    table = read(path, text=("a",))
    assert table["text_a"].to_pylist() == ["one", "two"] and table["label"].to_pylist() == [0, 1]
    assert table["text_b"].null_count == 2


def test_tsv_that_never_quotes(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text('a\tlabel\n"Why?" she said\t0\n"open\t1\nclose"\t0\n"whole ""field"""\t1\n')
    table = read(path, text=("a",), labels=["n", "p"])
    assert table["text_a"].to_pylist() == ['"Why?" she said', '"open', 'close"', 'whole "field"']
    assert table["label"].to_pylist() == [0, 1, 0, 1]


def test_a_very_long_field(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", [{"a": "x" * 200_000, "label": "n"}, {"a": "y", "label": "p"}])
    assert len(read(path, text=("a",))["text_a"][0].as_py()) == 200_000


@pytest.mark.parametrize(
    ("values", "labels", "expected"),
    [
        (["no", "yes", " no "], ["no", "yes"], [0, 1, 0]),
        (["no", "yes", "no"], ["yes", "no"], [1, 0, 1]),
        (["0", "1", "1"], ["no", "yes"], [0, 1, 1]),
        (["0", "-1", ""], ["no", "yes"], [0, None, None]),
        (["-1", "1", "1"], ["-1", "1"], [0, 1, 1]),
        (["10", "9", "10"], None, [1, 0, 1]),
        ([1, 0, None], ["no", "yes"], [1, 0, None]),
        ([1.0, 0.0, None], ["no", "yes"], [1, 0, None]),
        ([1.0, 0.0, float("nan")], None, [1, 0, None]),
        ([True, False, True], None, [1, 0, 1]),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_labels(tmp_path: Path, values: list[Any], labels: list[str] | None, expected: list[Any], suffix: str) -> None:
    path = write(tmp_path / f"train{suffix}", [{"a": "t", "label": value} for value in values])
    assert read(path, text=("a",), labels=labels)["label"].to_pylist() == expected


def test_ids_are_not_taken_where_names_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", [{"a": "t", "label": "0"}, {"a": "t", "label": "1"}])
    with pytest.raises(DataError, match="'0' is none of"):
        read(path, text=("a",), labels=["1", "2"])


def test_regression(tmp_path: Path) -> None:
    def labels(values: list[Any], suffix: str) -> Any:
        path = write(tmp_path / f"train{suffix}", [{"a": "t", "label": value} for value in values])
        return read(path, text=("a",), kind="regression")["label"].to_pylist()

    for suffix in (".csv", ".jsonl", ".parquet"):
        assert labels(["3.8", " 2 ", "", "1e-3"], suffix) == [3.8, 2.0, None, 0.001]
        assert labels(["-1.0", "-1"], suffix) == [None, None], "a whole split of -1 is hidden labels"
        assert labels(["-1", "1"], suffix) == [-1.0, 1.0]
    assert labels([1, 2.5, None], ".jsonl") == [1.0, 2.5, None]


def test_source_without_the_label_column(tmp_path: Path) -> None:
    path = write(tmp_path / "test.csv", [{"a": "t"}, {"a": "u"}])
    table = read(tmp_path, "test", text=("a",), labels=["x", "y"])
    assert path.exists() and table["label"].to_pylist() == [None, None]


def test_folder_with_one_file_per_split(tmp_path: Path) -> None:
    write(tmp_path / "train.csv")
    write(tmp_path / "validation.jsonl")
    assert read(tmp_path, "validation").num_rows == 3
    with pytest.raises(DataError, match=r"no file for the split 'dev'. It has: train.csv, validation.jsonl"):
        read(tmp_path, "dev")
    write(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="there 2 times"):
        read(tmp_path)


def test_embedded_task(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tests_demo")
    module.rows = lambda split: [{"a": split, "b": "x", "label": "no"}]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests_demo", module)
    monkeypatch.setitem(tasks.DEMOS, "toy", "tests_demo")
    raw = tasks.read_raw({"demo": "toy"}, "train", text=["a", "b"], label="label")
    table = tasks.canonical(raw, text=["a", "b"], label="label", labels=["no"], kind="classification")
    assert table["text_a"].to_pylist() == ["train"] and table["label"].to_pylist() == [0]
    with pytest.raises(DataError, match="no embedded task 'toi'"):
        tasks.read_raw({"demo": "toi"}, "train", text=["a"], label="label")


def test_texts_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv")
    raw = tasks.read_raw({"path": str(path)}, "train", text=["a"], label=None)
    assert list(raw.columns) == ["a"]
    assert tasks.canonical(raw, text=["a"], kind="text")["label"].to_pylist() == [None, None, None]
    labelled = tasks.read_raw({"path": str(path)}, "train", text=["a"], label="label")
    assert tasks.canonical(labelled, text=["a"], label="label", kind="text")["label"].null_count == 3
    texts = list(tasks.read_texts({"path": str(path)}, "train", text=["a", "b"], stream=True))
    assert texts == [(row["a"], row["b"]) for row in ROWS]


def test_a_text_file_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("one\ntwo\n")
    raw = tasks.read_raw({"path": str(tmp_path)}, "train", text=["text"], label=None)
    assert raw.columns["text"].to_pylist() == ["one", "two"]
    with pytest.raises(DataError, match=r"no column 'label'\. There are: 'text'"):
        read(tmp_path / "train.txt", text=("text",))


@pytest.mark.parametrize("source", [{}, {"hub": None}, {"path": "x", "demo": "nli"}])
def test_exactly_one_source(source: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="exactly one"):
        tasks.read_raw(source, "train", text=("a",), label="label")


def test_hub_that_is_offline_or_no_hub_at_all() -> None:
    with pytest.raises(HubError, match="not in the cache") as caught:
        tasks.read_raw({"hub": "nobody/nothing"}, "train", text=("a",), label="label")
    assert "HF_HUB_OFFLINE" in str(caught.value)
    for name in ("csv", "../data", "a/b/c"):
        with pytest.raises(DataError, match="is no data set on the Hub"):
            tasks.read_raw({"hub": name}, "train", text=("a",), label="label")


# Local files of tasks in several languages


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.csv", "train"),
        ("en/train.csv", "en/train"),
        ("jp/books/test.csv", "jp/books/test"),
        ("train.en.csv", "train.en"),
        ("english.train.1000.csv", "english.train.1000"),
    ],
)
def test_a_split_may_have_folders_and_dots(tmp_path: Path, name: str, split: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    file = write(tmp_path / name)
    assert tasks.find_file(tmp_path, split) == file
    assert read(tmp_path, split).num_rows == 3


def test_a_file_called_just_as_the_split(tmp_path: Path) -> None:
    (tmp_path / "english.train.1000").write_text("CCAT\tShares rose.\nGCAT\tRain fell.\n")
    assert tasks.find_file(tmp_path, "english.train.1000").name == "english.train.1000"
    with pytest.raises(DataError, match=r"end in '\.1000' can't be read") as caught:
        read(tmp_path, "english.train.1000", text=("text",))
    assert "task.source.columns" in str(caught.value)
    known = write(tmp_path / "english.train.1000.csv")
    assert tasks.find_file(tmp_path, "english.train.1000") == known, "a known format goes first"


def test_splits_that_are_not_there(tmp_path: Path) -> None:
    for language in ("de", "en"):
        (tmp_path / "data" / language).mkdir(parents=True)
    write(tmp_path / "data" / "en" / "train.csv")
    with pytest.raises(tasks.AbsentDataError, match=r"no folder for the split 'fr/train'\. There are: de, en\."):
        tasks.find_file(tmp_path / "data", "fr/train")
    with pytest.raises(tasks.AbsentDataError, match=r"no file for the split 'de/train'\. It has: no data file"):
        tasks.find_file(tmp_path / "data", "de/train")
    with pytest.raises(tasks.AbsentDataError, match=r"does not exist\. There are: data\."):
        tasks.find_file(tmp_path / "date", "train")
    for split in ("../train", str(tmp_path / "data" / "en" / "train"), "en/../../train"):
        with pytest.raises(DataError, match="outside of the data's folder"):
            tasks.find_file(tmp_path / "data", split)


LINES = 'CCAT\t"Buy," he said.\nMCAT\t"All of it."\n\nCCAT\tsays ""no\n'


@pytest.mark.parametrize("name", ["train.tsv", "train.txt", "english.train.1000", "english.dev"])
def test_tabs_without_a_header(tmp_path: Path, name: str) -> None:
    """A line is a row, whatever the quotes."""
    (tmp_path / name).write_text(LINES, encoding="utf-8")
    split = name if name.startswith("english") else "train"
    source = {"path": str(tmp_path), "columns": ["label", "text"]}
    raw = tasks.read_raw(source, split, text=["text"], label="label")
    assert raw.available == ["label", "text"] and raw.lines == [1, 2, 4]
    table = tasks.canonical(raw, text=["text"], label="label", labels=["CCAT", "MCAT"], kind="classification")
    assert table["text_a"].to_pylist() == ['"Buy," he said.', "All of it.", 'says ""no']
    assert table["label"].to_pylist() == [0, 1, 0]


def test_commas_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('1,"one, two"\n0,"three\nfour"\n')
    source = {"path": str(tmp_path), "columns": ["label", "text"]}
    raw = tasks.read_raw(source, "train", text=["text"], label="label")
    assert raw.columns["text"].to_pylist() == ["one, two", "three\nfour"]
    assert raw.columns["label"].to_pylist() == ["1", "0"]


@pytest.mark.parametrize(
    ("name", "content", "columns", "what", "place"),
    [
        ("train.tsv", "a\tb\na\tb\tc\n", ["label", "text"], "3 fields, and 2 columns are named: label, text", "line 2"),
        ("train.csv", "a,b\n\n\na\n", ["label", "text"], "1 fields, and 2 columns are named", "line 4"),
        ("train.tsv", "a\tb\n", ["label", "body"], "no column 'text'. There are: 'label', 'body'", "task.text"),
        ("train.tsv", "a\tb\n", ["text", "text"], "'text' twice", "train.tsv"),
        ("train.jsonl", '{"text": "a"}\n', ["text"], ".jsonl file names its columns itself", "task.source.columns"),
        ("train.tsv", "\n\n", ["label", "text"], "'train' has no rows", "train.tsv"),
    ],
)
def test_faults_of_files_without_a_header(
    tmp_path: Path, name: str, content: str, columns: list[str], what: str, place: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        tasks.read_raw({"path": str(tmp_path), "columns": columns}, "train", text=["text"], label="label")
    assert what in str(caught.value) and place in str(caught.value)


def test_columns_are_for_local_files() -> None:
    for source in ({"demo": "nli"}, {"hub": "owner/name"}):
        with pytest.raises(DataError, match="have names already"):
            tasks.read_raw({**source, "columns": ["premise"]}, "train", text=["premise"], label=None)


REVIEWS = """<?xml version="1.0" encoding="UTF-8"?>
<items>
<item><category>books</category><rating>4.0</rating><url>u</url><text>Gut &amp; günstig.
Zweite Zeile.</text><title>T</title><summary>S</summary></item>

<item><summary>S</summary><rating>1.0</rating><text>二度と買わない</text></item>

<item><category>books</category><rating>5.0</rating></item>

</items>
"""


def test_reviews_of_cls(tmp_path: Path) -> None:
    """The official layout: fields in any order, entities, line ends inside; a field may be missing."""
    (tmp_path / "de" / "books").mkdir(parents=True)
    (tmp_path / "de" / "books" / "train.review").write_text(REVIEWS, encoding="utf-8")
    source = {"path": str(tmp_path), "label_names": {"1": "bad", "2": "bad", "4": "good", "5": "good"}}
    raw = tasks.read_raw(source, "de/books/train", text=["text"], label="rating")
    assert raw.available == ["category", "rating", "url", "text", "title", "summary"]
    assert raw.columns["rating"].to_pylist() == ["good", "bad", "good"]
    table = tasks.canonical(raw, text=["text"], label="rating", labels=["bad", "good"], kind="classification")
    assert table["text_a"].to_pylist() == ["Gut & günstig.\nZweite Zeile.", "二度と買わない", ""]
    assert table["label"].to_pylist() == [1, 0, 1]
    (tmp_path / "de" / "books" / "test.review").write_text("<items>\n<item><text>a & b</text></item>\n</items>\n")
    with pytest.raises(DataError, match="is no XML") as caught:
        tasks.read_raw(source, "de/books/test", text=["text"], label="rating")
    assert "test.review, line 2" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        ([0, 4, 2], {"0": "1", "2": "3", "4": "5"}, ["1", "5", "3"]),
        ([1.0, 5.0, None], {"1.0": "bad", "5": "good"}, ["bad", "good", None]),
        (["1", " 5.0", ""], {"1.0": "bad", "5": "good"}, ["bad", "good", ""]),
        (["contradictory", "neutral", "-1"], {"contradictory": "contradiction"}, ["contradiction", "neutral", "-1"]),
        ([True, False, True], {"true": "yes", "false": "no"}, ["yes", "no", "yes"]),
    ],
)
def test_label_names(tmp_path: Path, values: list[Any], names: dict[str, str], expected: list[Any]) -> None:
    path = write(tmp_path / "train.parquet", [{"a": "t", "label": value} for value in values])
    raw = tasks.read_raw({"path": str(path), "label_names": names}, "train", text=["a"], label="label")
    assert raw.columns["label"].to_pylist() == expected


def test_a_value_without_a_label_name(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", [{"a": "t", "label": "4"}, {"a": "t", "label": "3"}])
    raw = tasks.read_raw({"path": str(path), "label_names": {"4": "good"}}, "train", text=["a"], label="label")
    assert tasks.find_labels(raw, "label") == ["3", "good"]
    with pytest.raises(DataError, match=r"label '3' is none of \['bad', 'good'\]"):
        tasks.canonical(raw, text=["a"], label="label", labels=["bad", "good"], kind="classification")


def test_embedded_task_in_several_languages() -> None:
    rows = {
        language: tasks.read_raw(
            {"demo": "sentiment_xx", "language": language}, "train", text=["text"], label="label"
        ).columns["text"]
        for language in ("en", "es")
    }
    assert len(rows["en"]) == len(rows["es"]) and rows["en"] != rows["es"]
    with pytest.raises(DataError, match="has several languages: en, es"):
        tasks.read_raw({"demo": "sentiment_xx"}, "train", text=["text"], label="label")
    for demo, language, there in (("sentiment_xx", "tlh", "en, es"), ("nli", "en", "one only")):
        with pytest.raises(tasks.AbsentDataError, match=f"no language '{language}'. It has: {there}"):
            tasks.read_raw({"demo": demo, "language": language}, "train", text=["text"], label="label")
