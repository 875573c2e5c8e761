"""A corpus becomes rows: sentences are found, paired, counted; and what is wrong with a corpus is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdlab.context import Context
from kdlab.data.passages import pairs, sentence_pairs, sentences
from kdlab.errors import DataError, HubError
from kdlab.stages.prepare import prepare_texts


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("He said: “Go.” She went.", ["He said: “Go.”", "She went."]),
        ('"Why?" he asked. "Because."', ['"Why?" he asked.', '"Because."']),
        ('It ended. "Next," she said.', ["It ended.", '"Next," she said.']),
        ("Dr. Smith met Mr. J. R. Jones vs. the U.S. Army.", ["Dr. Smith met Mr. J. R. Jones vs. the U.S. Army."]),
        ("Use e.g. Python (i.e. CPython). It works.", ["Use e.g. Python (i.e. CPython).", "It works."]),
        ("See No. 5 and pp. 3 to 7. No. Not that.", ["See No. 5 and pp. 3 to 7.", "No.", "Not that."]),
        ("Born in 1999. In 2001 it grew 3.5 times.", ["Born in 1999.", "In 2001 it grew 3.5 times."]),
        ("Wait... What? no way. 20 came.", ["Wait...", "What? no way.", "20 came."]),
        ("A heading\nA line. Another\n\n  last  ", ["A heading", "A line.", "Another", "last"]),
        ("She holds a Ph.D. He does not.", ["She holds a Ph.D. He does not."]),  # can be both: no end
        ("Über alles. Älter wird man. été.", ["Über alles.", "Älter wird man. été."]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text: str, found: list[str]) -> None:
    assert sentences(text) == found


def test_pairs_are_of_long_sentences_two_by_two() -> None:
    document = "One two three. Short. Four five six. Seven eight nine. Ten eleven twelve! Last of all."
    assert pairs(document, min_words=3) == [
        ("One two three.", "Four five six."),
        ("Seven eight nine.", "Ten eleven twelve!"),
    ]
    assert pairs(document, min_words=4) == [] and pairs("Only this one.", min_words=1) == []


def test_no_pair_spans_two_documents() -> None:
    found, counts = sentence_pairs(["A aa. B bb. C cc.", "D dd. E ee."], min_words=2, keep=1.0, limit=None, seed=0)
    assert found == [("A aa.", "B bb."), ("D dd.", "E ee.")]
    assert counts == {"documents": 2, "used": 2}


def test_no_more_documents_are_read_than_the_limit_needs() -> None:
    read = []

    def documents() -> Iterator[str]:
        for number in range(100):
            read.append(number)
            yield f"First of {number}. Second of {number}. Third of {number}. Fourth of {number}."

    found, counts = sentence_pairs(documents(), min_words=3, keep=1.0, limit=5, seed=0)
    assert found[-1] == ("First of 2.", "Second of 2.") and len(found) == 5
    assert read == [0, 1, 2] and counts == {"documents": 3, "used": 3}


def test_which_documents_are_used_is_drawn_with_the_seed() -> None:
    documents = [f"First of {number}. Second of {number}." for number in range(2000)]

    def used(seed: int, limit: int | None = None) -> list[tuple[str, ...]]:
        return sentence_pairs(documents, min_words=3, keep=0.7, limit=limit, seed=seed)[0]

    assert abs(len(used(0)) - 1400) < 3 * (2000 * 0.7 * 0.3) ** 0.5
    assert used(0) == used(0) != used(1)
    assert used(0)[:50] == used(0, limit=50), "a limit only cuts"


# the stage

Texts = tuple[pa.Table, dict[str, Any]]
PASSAGES = {"unit": "row", "min_words": 3, "keep": 1.0, "limit": None, "seed": 0}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Texts]:
    count = iter(range(100))

    def call(path: Path, rows: int | None = None, text: tuple[str, ...] = ("text",), **passages: Any) -> Texts:
        ctx = Context(out=tmp_path / f"out{next(count)}", stage="prepare_supplement")
        ctx.out.mkdir()
        given = PASSAGES | passages
        prepare_texts(ctx, source={"path": str(path)}, split="train", text=text, passages=given, rows=rows)
        assert sorted(file.name for file in ctx.out.iterdir()) == ["facts.json", "train.arrow"]
        assert json.loads((ctx.out / "facts.json").read_text(encoding="utf-8")) == ctx.facts
        return pa.ipc.open_file(pa.memory_map(str(ctx.out / "train.arrow"))).read_all(), ctx.facts

    return call


def write(path: Path, documents: list[str]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"title": ["t"] * len(documents), "text": documents}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    elif path.suffix == ".txt":
        path.write_text("\n\n".join(documents) + "\n")
    else:
        path.write_text("\n".join(["text", *(f'"{document}"' for document in documents)]) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_pairs(run: Callable[..., Texts], tmp_path: Path, suffix: str) -> None:
    path = write(
        tmp_path / f"corpus{suffix}",
        ["One two three. Four five six. Seven.", "Short. Too.", "Ann met Tom. Dan ate pie."],
    )
    table, facts = run(path, unit="pair")
    assert table.schema.names == ["id", "text_a", "text_b", "label"]
    assert table.schema.types == [pa.int64(), pa.string(), pa.string(), pa.int64()]
    assert table["id"].to_pylist() == [0, 1] and table["label"].null_count == 2
    assert table["text_a"].to_pylist() == ["One two three.", "Ann met Tom."]
    assert table["text_b"].to_pylist() == ["Four five six.", "Dan ate pie."]
    assert facts == {
        "rows": {"train": 2},
        "unlabelled": {"train": 2},
        "empty_texts": {"train": 0},
        "shared_with_train": {},
        "labels": None,
        "majority": {},
        "warnings": [],
        "passages": {"documents": 3, "used": 3},
    }


def test_blank_lines_part_documents(run: Callable[..., Texts], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf\r\nfirst\r\n  goes on \r\n\r\n \r\nsecond\r\n\r\n")
    assert run(path)[0]["text_a"].to_pylist() == ["first goes on", "second"]


def test_without_blank_lines_each_line_is_a_document(run: Callable[..., Texts], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\nfirst one here. And\nsecond two there. Or what\n\n\n")
    assert run(path)[0]["text_a"].to_pylist() == ["first one here. And", "second two there. Or what"]
    path.write_text("only one")
    assert run(path)[0]["text_a"].to_pylist() == ["only one"]


def test_rows_as_they_are(run: Callable[..., Texts], tmp_path: Path) -> None:
    path = tmp_path / "corpus.csv"
    path.write_text("a,b,label\n" + "".join(f"one {n},two {n},x\n" for n in range(9)))
    table, facts = run(path, text=("a", "b"))
    assert table["text_b"].to_pylist() == [f"two {n}" for n in range(9)] and table["label"].null_count == 9
    assert run(path, text=("a",))[0]["text_b"].null_count == 9
    assert run(path, text=("a",), limit=4)[0].num_rows == 4
    assert run(path, text=("a",), limit=4, rows=2)[0]["text_a"].to_pylist() == ["one 0", "one 1"]
    assert run(path, text=("a",), rows=2)[1]["warnings"] == []
    assert facts["passages"] == {"documents": 9, "used": 9}


def test_warnings(run: Callable[..., Texts], tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "x"}\n{"text": " "}\n')
    assert run(path, limit=1000)[1]["warnings"] == [
        "1000 rows were asked for, and the corpus gives 2",
        "1 of 2 rows of train have an empty text",
    ]


FAULTS: list[tuple[str, bytes, dict[str, Any], str, str]] = [
    ("a.txt", b"", {}, "The file is empty", "a.txt"),
    ("a.txt", b" \n\n", {}, "'train' has no rows", "a.txt"),
    ("a.txt", b"x\0y", {}, "NUL byte", "line 1"),
    ("a.txt", b"words", {"text": ("body",)}, "no column 'body'", "There are: 'text'"),
    ("a.txt", b"One two. Three.", {"unit": "pair"}, "None of the 1 documents used (of 1 read)", "passages.min_words"),
    ("a.txt", b"A b c. D e f.", {"unit": "pair", "keep": 1e-9}, "None of the 0 documents", "passages.keep"),
    ("a.csv", b"a,b\nx,y\n", {"unit": "pair", "text": ("a", "b")}, "one column of documents", "passages.unit=row"),
    ("a.csv", b"a,b\n ,y\n", {"text": ("a", "b")}, "All texts of train are empty", "task.text"),
]


@pytest.mark.parametrize(("name", "data", "changes", "what", "place"), FAULTS, ids=[fault[3] for fault in FAULTS])
def test_faults(
    run: Callable[..., Texts], tmp_path: Path, name: str, data: bytes, changes: dict[str, Any], what: str, place: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        run(tmp_path / name, **changes)
    message = str(caught.value)
    assert what in message and place in message and len(message.splitlines()) <= 3, message


@pytest.mark.parametrize("limit", [None, 10])
def test_hub_that_is_offline(tmp_path: Path, limit: int | None) -> None:
    ctx = Context(out=tmp_path, stage="prepare_supplement")
    passages = PASSAGES | {"limit": limit}
    source = {"hub": "nobody/nothing", "revision": "0" * 40}
    with pytest.raises(HubError, match="not in the cache") as caught:
        prepare_texts(ctx, source=source, split="train", text=["text"], passages=passages, rows=None)
    assert "HF_HUB_OFFLINE" in str(caught.value)
