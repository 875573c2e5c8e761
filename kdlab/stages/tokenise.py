"""From texts to token ids, once per run, with the one tokenizer that teacher and student read with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kdlab.context import Context
from kdlab.errors import DataError, ModelError
from kdlab.models.loading import fetched
from kdlab.stages.prepare import read_table, write_table

CHUNK = 20_000  # rows a call, so that the encodings of a large split are never all in memory
COMPARED = 100  # texts on which two tokenizers must agree
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def tokenise(
    ctx: Context,
    *,
    data: Path,
    translated: Path | None = None,
    back: Path | None = None,
    tokenizer: Mapping[str, Any] | None,
    max_length: int,
    partner: Mapping[str, Any] | None = None,
    reader: Path | None = None,
    only: Sequence[str] | None = None,
) -> None:
    """Write `{split}.arrow` for every split in `data`, `translated` and `back`, and the tokenizer as a plain Hugging
    Face folder `tokenizer/`. only: of these splits (dev: of all its languages) alone.

    Columns: id (int64), input_ids (list<int32>), token_type_ids (list<int8>, if the model takes them), label, and
    clean_label where `data` has it. Pairs are encoded as the tokenizer does it; texts over `max_length` tokens are
    cut, the longer of a pair first.

    tokenizer: {"id", "revision"} on the Hub, {"path"} a folder, or {"kind": "words"}: a token per word of train; None:
    that of `reader`, another artifact of this stage. partner: the tokenizer of a student that was pre-trained apart
    from its teacher; it must read as `tokenizer` does.

    Facts, also in facts.json beside those of `data`: tokens, longest and cut (share of rows) per split, vocabulary,
    max_length. Raises ModelError where the two tokenizers differ.
    """
    folders = [folder for folder in (data, translated, back) if folder is not None]
    found = {path.stem: folder for folder in folders for path in folder.glob("*.arrow")}
    places = {name: folder for name, folder in found.items() if only is None or name.partition(".")[0] in only}
    if not places:
        raise DataError("There is no prepared split.", where=str(data))
    tables = {name: read_table(places[name], name) for name in sorted(places)}
    train = [table for name, table in tables.items() if name.partition(".")[0] == "train"]
    tokenizer = {"path": str(reader / "tokenizer")} if reader is not None else tokenizer
    assert tokenizer is not None, "one of tokenizer and reader"
    fast = _words(train) if tokenizer.get("kind") == "words" else _pretrained(tokenizer)
    fast.backend_tokenizer.no_truncation()
    fast.backend_tokenizer.no_padding()
    if partner is not None:
        _compare(fast, _pretrained(partner), [*train, *tables.values()][0])
    fast.save_pretrained(ctx.out / "tokenizer")
    facts: dict[str, Any] = {
        "tokens": {},
        "longest": {},
        "cut": {},
        "vocabulary": len(fast),
        "max_length": max_length,
    }
    fast.backend_tokenizer.enable_truncation(max_length)
    for name, table in tables.items():
        with _on_threads(ctx.hardware.threads):
            encoded, cut = encode(fast, table)
        lengths = np.diff(encoded["input_ids"].chunk(0).offsets.to_numpy())
        facts["tokens"][name] = int(lengths.sum())
        facts["longest"][name] = int(lengths.max())
        facts["cut"][name] = round(cut / table.num_rows, 6)
        write_table(ctx, name, encoded)
    prepared = json.loads((data / "facts.json").read_text(encoding="utf-8"))
    facts["rows"] = {name: table.num_rows for name, table in tables.items()}
    written = json.dumps({**prepared, **facts}, indent=1, ensure_ascii=False)
    (ctx.out / "facts.json").write_text(written + "\n", encoding="utf-8")
    ctx.facts.update(facts)


@contextmanager
def _on_threads(threads: int) -> Iterator[None]:
    """Let the tokenizer encode a batch on so many threads (0: one for each core); elsewhere it stays on one.

    It reads the environment at each call, and how many threads there are at its first parallel one in a process.
    """
    before = {name: os.environ.get(name) for name in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS")}
    os.environ.update(TOKENIZERS_PARALLELISM="false" if threads == 1 else "true", RAYON_NUM_THREADS=str(threads))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _words(train: Sequence[pa.Table]) -> PreTrainedTokenizerBase:
    """A vocabulary of all lower-cased words between blanks in the training tables, the frequent first."""
    backend = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    columns = [table[column] for table in train for column in ("text_a", "text_b")]
    texts = [text for column in columns for text in column.to_pylist() if text]
    trainer = trainers.WordLevelTrainer(
        vocab_size=2**31 - 1, min_frequency=1, special_tokens=list(SPECIAL.values()), show_progress=False
    )
    backend.train_from_iterator(texts, trainer, length=len(texts))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    build: Callable[..., PreTrainedTokenizerBase] = PreTrainedTokenizerFast
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return build(tokenizer_object=backend, model_input_names=inputs, **SPECIAL)


def _pretrained(tokenizer: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    fast = load_tokenizer(tokenizer)
    if fast.pad_token_id is None:
        where = str(tokenizer.get("path") or tokenizer["id"])
        raise ModelError("The tokenizer has no padding token.", where=where, fix="Use the tokenizer of an encoder.")
    return fast


def load_tokenizer(tokenizer: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The fast tokenizer of {"id", "revision"} on the Hub, or of a folder {"path"}. Raises HubError or ModelError."""
    name = str(tokenizer.get("path") or tokenizer["id"])
    revision = tokenizer.get("revision")
    where = name + (f", revision {revision}" if revision else "")
    if tokenizer.get("path") and not Path(name).is_dir():
        raise ModelError("The tokenizer's folder does not exist.", where=where, fix="Check the model's id.")
    folder = fetched(name, revision, "tokenizer")
    try:
        fast = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except OSError as error:
        said = str(error).strip().splitlines()[0]
        raise ModelError(f"There is no tokenizer: {said}", where=where) from error
    except Exception as error:  # whatever broken files make a parser raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"The tokenizer can't be loaded: {said}",
            where=where,
            fix="Use a model with a stock fast tokenizer (tokenizer.json); code from the Hub is never run.",
        ) from error
    if not fast.is_fast:
        raise ModelError("The model has no fast tokenizer (tokenizer.json).", where=where)
    if len(fast) <= len(fast.all_special_tokens):  # transformers makes one up where a folder has no tokenizer files
        raise ModelError(
            "The model has no tokenizer: its vocabulary is empty.",
            where=where,
            fix="Put tokenizer.json (or vocab.txt) beside config.json.",
        )
    loaded: PreTrainedTokenizerBase = fast
    return loaded


def _compare(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, rows: pa.Table) -> None:
    """Refuse two tokenizers that give different ids: on the vocabulary, and on the first texts of these rows."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    different = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    texts = rows["text_a"].slice(0, COMPARED).to_pylist()
    if not different:
        different = [text for text in texts if student.encode(text) != teacher.encode(text)]
    if different:
        raise ModelError(
            f"Teacher and student read different tokens: {len(different)} differ, first {different[0]!r}.",
            where="model.student.id",
            fix="Choose a student pre-trained with the teacher's tokenizer, or cut one from it (init=cut).",
        )


def encode(fast: PreTrainedTokenizerBase, table: pa.Table) -> tuple[pa.Table, int]:
    """(the encoded rows, how many were cut). fast: with the truncation that is wanted, and no padding."""
    pairs = table["text_b"].null_count < table.num_rows
    typed = "token_type_ids" in fast.model_input_names
    ids: list[np.ndarray[Any, Any]] = []
    types: list[np.ndarray[Any, Any]] = []
    lengths: list[int] = []
    cut = 0
    for start in range(0, table.num_rows, CHUNK):
        part = table.slice(start, CHUNK)
        first = part["text_a"].to_pylist()
        batch = list(zip(first, part["text_b"].to_pylist(), strict=True)) if pairs else first
        encodings = fast.backend_tokenizer.encode_batch_fast(batch)
        lengths += [len(encoding) for encoding in encodings]
        cut += sum(1 for encoding in encodings if encoding.overflowing)
        ids.append(np.concatenate([np.array(encoding.ids, dtype=np.int32) for encoding in encodings]))
        if typed:
            types.append(np.concatenate([np.array(encoding.type_ids, dtype=np.int8) for encoding in encodings]))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    columns = {"id": table["id"], "input_ids": pa.ListArray.from_arrays(offsets, np.concatenate(ids))}
    if typed:
        columns["token_type_ids"] = pa.ListArray.from_arrays(offsets, np.concatenate(types))
    labels = {name: table[name] for name in ("label", "clean_label") if name in table.column_names}
    return pa.table({**columns, **labels}), cut
