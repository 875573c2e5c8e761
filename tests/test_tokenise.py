"""Token ids, and a tokenizer folder that plain transformers loads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from kdlab.config import Hardware
from kdlab.context import Context
from kdlab.data.batches import open_encoded
from kdlab.errors import DataError, HubError, ModelError
from kdlab.stages import tokenise as stage
from kdlab.stages.prepare import write_table
from kdlab.stages.tokenise import tokenise

TRAIN = [("The cat sat", "a dog sat"), ("the cat ran", "The bird sang loudly today"), ("", "the end")]
DEV = [("The zebra sat", "a cat")]
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cat",
    "sat",
    "a",
    "dog",
    "ran",
    "bird",
    "##s",
    "sang",
]


def table(rows: list[tuple[str, str | None]], labels: list[Any]) -> pa.Table:
    first, second = zip(*rows, strict=True)
    return pa.table(
        {
            "id": pa.array(range(len(rows)), pa.int64()),
            "text_a": pa.array(first, pa.string()),
            "text_b": pa.array(second, pa.string()),
            "label": pa.array(labels, pa.int64()),
        }
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    ctx = Context(out=tmp_path / "data", stage="data")
    ctx.out.mkdir()
    write_table(ctx, "train", table(list(TRAIN), [0, 1, 0]))
    write_table(ctx, "dev", table(list(DEV), [None]))
    (ctx.out / "facts.json").write_text(json.dumps({"labels": ["n", "p"]}))
    return ctx.out


def run(folder: Path, data: Path, **changes: Any) -> Context:
    folder.mkdir()
    ctx = Context(out=folder, stage="tokens")
    tokenise(ctx, **({"data": data, "tokenizer": {"kind": "words"}, "max_length": 16} | changes))
    return ctx


def tokens(folder: Path, split: str) -> list[list[int]]:
    rows: list[list[int]] = pa.ipc.open_file(folder / f"{split}.arrow").read_all()["input_ids"].to_pylist()
    return rows


def test_words(tmp_path: Path, data: Path) -> None:
    ctx = run(tmp_path / "out", data)
    plain = AutoTokenizer.from_pretrained(ctx.out / "tokenizer")
    vocabulary = plain.get_vocab()
    assert [vocabulary[token] for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the")] == [0, 1, 2, 3, 4]
    assert set(vocabulary) - {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} == set(
        ["the", "cat", "sat", "a", "dog", "ran", "bird", "sang", "loudly", "today", "end"]
    )
    read = plain.convert_ids_to_tokens(tokens(ctx.out, "dev")[0])
    assert read == ["[CLS]", "the", "[UNK]", "sat", "[SEP]", "a", "cat", "[SEP]"]
    types = pa.ipc.open_file(ctx.out / "dev.arrow").read_all()["token_type_ids"].to_pylist()
    assert types == [[0, 0, 0, 0, 0, 1, 1, 1]]
    expected = plain([a for a, _ in TRAIN], [b for _, b in TRAIN])
    assert expected["input_ids"] == tokens(ctx.out, "train")
    assert set(expected) == {"input_ids", "token_type_ids", "attention_mask"}
    assert ctx.facts["tokens"] == {"dev": 8, "train": 9 + 11 + 5} and ctx.facts["longest"]["train"] == 11
    assert ctx.facts["cut"] == {"dev": 0, "train": 0} and ctx.facts["vocabulary"] == len(plain) == 15
    assert json.loads((ctx.out / "facts.json").read_text())["labels"] == ["n", "p"]
    assert open_encoded(ctx.out, "dev").labels.tolist() == [-100]


def test_the_words_of_another_artifact(tmp_path: Path, data: Path) -> None:
    """A corpus, without labels, is read with the words of the task; so is a set that has no train."""
    task = run(tmp_path / "task", data).out
    corpus = Context(out=tmp_path / "corpus", stage="prepare_supplement")
    corpus.out.mkdir()
    write_table(corpus, "hard", table([("the zebra", "a dog"), ("today", "cat cat")], [None, None]))
    (corpus.out / "facts.json").write_text(json.dumps({"labels": None}))
    ctx = run(tmp_path / "out", corpus.out, tokenizer=None, reader=task)
    plain = AutoTokenizer.from_pretrained(task / "tokenizer")
    assert tokens(ctx.out, "hard") == plain(["the zebra", "today"], ["a dog", "cat cat"])["input_ids"]
    assert ctx.facts["rows"] == {"hard": 2} and ctx.facts["vocabulary"] == 15
    assert AutoTokenizer.from_pretrained(ctx.out / "tokenizer").get_vocab() == plain.get_vocab()
    assert open_encoded(ctx.out, "hard").labels.tolist() == [-100, -100]


def test_a_prepared_artifact_read_with_its_own_words_or_borrowed_ones_is_the_same(tmp_path: Path, data: Path) -> None:
    own = run(tmp_path / "own", data).out
    borrowed = run(tmp_path / "borrowed", data, tokenizer=None, reader=own).out
    for file in ("train.arrow", "dev.arrow", "facts.json", "tokenizer/tokenizer.json"):
        assert (own / file).read_bytes() == (borrowed / file).read_bytes()


def test_clean_labels_are_kept(tmp_path: Path, data: Path) -> None:
    noisy = table(list(TRAIN), [1, 1, 0]).append_column("clean_label", pa.array([0, 1, 0]))
    write_table(Context(out=data, stage="data"), "train", noisy)
    out = run(tmp_path / "out", data).out
    encoded = pa.ipc.open_file(out / "train.arrow").read_all()
    assert encoded["clean_label"].to_pylist() == [0, 1, 0]
    assert open_encoded(out, "train").labels.tolist() == [1, 1, 0], "what is trained on are the noisy ones"
    assert "clean_label" not in pa.ipc.open_file(out / "dev.arrow").read_all().column_names


def test_same_bytes_twice_and_in_chunks(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path / "one", data).out
    monkeypatch.setattr(stage, "CHUNK", 2)
    second = run(tmp_path / "two", data).out
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_long_rows_are_cut_as_transformers_does(tmp_path: Path, data: Path) -> None:
    ctx = run(tmp_path / "out", data, max_length=8)
    plain = AutoTokenizer.from_pretrained(ctx.out / "tokenizer")
    first, second = [a for a, _ in TRAIN], [b for _, b in TRAIN]
    assert plain(first, second)["input_ids"][1] == plain(first[1], second[1])["input_ids"], "no limit was saved"
    assert len(plain(first[1], second[1])["input_ids"]) == 11
    assert tokens(ctx.out, "train") == plain(first, second, truncation=True, max_length=8)["input_ids"]
    assert ctx.facts["cut"] == {"dev": 0, "train": round(2 / 3, 6)}


def test_single_texts(tmp_path: Path, data: Path) -> None:
    write_table(Context(out=data, stage="data"), "train", table([("The cat", None), ("a", None)], [0, 1]))
    write_table(Context(out=data, stage="data"), "dev", table([("the", None)], [0]))
    ctx = run(tmp_path / "out", data)
    assert [len(row) for row in tokens(ctx.out, "train")] == [4, 3]


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)})
    tokenizer.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    return tmp_path / "bert"


@pytest.mark.parametrize("key", ["path", "id"])
def test_pretrained_folder(tmp_path: Path, data: Path, bert: Path, key: str) -> None:
    ctx = run(tmp_path / "out", data, tokenizer={key: str(bert)})
    plain = AutoTokenizer.from_pretrained(bert)
    expected = plain([a for a, _ in TRAIN], [b for _, b in TRAIN])["input_ids"]
    assert tokens(ctx.out, "train") == expected
    assert AutoTokenizer.from_pretrained(ctx.out / "tokenizer").get_vocab() == plain.get_vocab()


def test_without_token_types(tmp_path: Path, data: Path, bert: Path) -> None:
    backend = AutoTokenizer.from_pretrained(bert).backend_tokenizer
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", model_input_names=names).save_pretrained(
        tmp_path / "plain"
    )
    ctx = run(tmp_path / "out", data, tokenizer={"path": str(tmp_path / "plain")})
    assert "token_type_ids" not in pa.ipc.open_file(ctx.out / "train.arrow").read_all().column_names


def test_a_student_that_reads_otherwise(tmp_path: Path, data: Path, bert: Path) -> None:
    run(tmp_path / "same", data, tokenizer={"path": str(bert)}, partner={"path": str(bert)})
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate([*VOCABULARY, "zebra"])})
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="different tokens: 1 differ, first 'zebra'"):
        run(tmp_path / "out", data, tokenizer={"path": str(bert)}, partner={"path": str(tmp_path / "other")})


def test_refused(tmp_path: Path, data: Path, bert: Path) -> None:
    with pytest.raises(ModelError, match="folder does not exist"):
        run(tmp_path / "a", data, tokenizer={"path": str(tmp_path / "none")})
    with pytest.raises(HubError, match="nobody/nothing: not in the cache"):
        run(tmp_path / "b", data, tokenizer={"id": "nobody/nothing", "revision": None})
    (tmp_path / "broken").mkdir()
    with pytest.raises(ModelError):
        run(tmp_path / "c", data, tokenizer={"path": str(tmp_path / "broken")})
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="its vocabulary is empty"):  # transformers makes one up
        run(tmp_path / "g", data, tokenizer={"path": str(tmp_path / "broken")})
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError):
        run(tmp_path / "d", data, tokenizer={"path": str(tmp_path / "broken")})
    backend = AutoTokenizer.from_pretrained(bert).backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "padless")
    with pytest.raises(ModelError, match="no padding token"):
        run(tmp_path / "e", data, tokenizer={"path": str(tmp_path / "padless")})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no prepared split"):
        run(tmp_path / "f", tmp_path / "empty")


def test_threads_change_no_token_and_leave_the_environment_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    texts = [(f"the cat {number} sat", f"a dog {number % 7}" * (number % 3)) for number in range(500)]
    write_table(Context(out=data, stage="data"), "train", table(list(texts), [0] * len(texts)))
    found = {}
    for threads in (1, 2):
        ctx = Context(out=tmp_path / f"{threads}", stage="tokenise", hardware=Hardware(name="cpu", threads=threads))
        ctx.out.mkdir()
        tokenise(ctx, data=data, tokenizer={"kind": "words"}, max_length=8)
        found[threads] = {file.name: file.read_bytes() for file in ctx.out.glob("*.arrow")}
    assert found[1] == found[2]
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false" and "RAYON_NUM_THREADS" not in os.environ
