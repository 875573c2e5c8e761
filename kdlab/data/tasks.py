"""Reads a task's rows from the Hub, a local file or an embedded task into one form.

Canonical columns: `id` (int64, row number in the source's split), `text_a` (string), `text_b` (string, null
for tasks with one text), `label` (int64 class or float64 target; null where the source has none, and for texts
without a question). Hidden labels, written as -1 in public benchmarks, become null: any -1 of a classification,
and a regression's whole split of -1.

A .txt file has one column, `text`: its documents, which blank lines part; without blank lines each line is one.
A .review file is XML with one element a row, whose children are the columns: CLS (Prettenhofer and Stein 2010, Zenodo
record 3251672). A file without a header line is read with the names in source["columns"]: .csv parted by commas,
everything else by tabs, where one line is one row.
"""

from __future__ import annotations

import difflib
import importlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kdlab import hub
from kdlab.data.delimited import plain_rows, quoted_rows
from kdlab.data.parquet import readable_parquet
from kdlab.errors import DataError, HubError, KdlabError, first_line

DEMOS = {  # modules with rows(split), or rows(split, language), -> list of dicts
    "nli": "kdlab.data.demo.nli",
    "sentiment_xx": "kdlab.data.demo.sentiment_xx",
}
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".txt", ".review")
NAMED = (".jsonl", ".parquet", ".review")  # formats that name their columns in any case
HIDDEN = ("", "-1")  # how a file or a benchmark writes "no label"


class AbsentDataError(DataError):
    """The source has no such file, folder, configuration or split."""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A split as its source holds it. Labels are strings, or numbers where the source is typed."""

    columns: Mapping[str, pa.Array]  # the columns asked for that exist
    available: Sequence[str]  # the names of all columns
    where: str  # what the reader of an error has to open
    names: Sequence[str] | None = None  # of the classes, where the source itself knows them
    lines: Sequence[int] | None = None  # first line of each row, for text files

    def place(self, row: int) -> str:
        return f"{self.where}, " + (f"line {self.lines[row]}" if self.lines else f"row {row}")


def read_raw(
    source: Mapping[str, Any],
    split: str,
    *,
    config: str | None = None,
    text: Sequence[str],
    label: str | None,
    further: Sequence[str] = (),
) -> Raw:
    """The asked columns of one split, as they stand in the source. label: None where nobody wants to know.

    source: as in `kdlab.config.Source`. Also `language` of an embedded task in several languages, and `label_names`:
    class names by what the label column holds, as text; a whole number may be written with or without ".0", and values
    that are not among them stay as they are.
    further: columns that are taken if they exist, and may hold lists and mappings (in text files as JSON).

    Raises DataError for anything the data does wrong (AbsentDataError for what is not there), HubError where the Hub
    can't give the split.
    """
    given = [key for key in ("hub", "path", "demo") if source.get(key)]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise DataError(
            f"A task's source must be exactly one of hub, path and demo, and is {found}.", where="task.source"
        )
    if config is not None and given != ["hub"]:
        raise DataError(
            f"The configuration {config!r} was asked of a {given[0]} source; only the Hub has them.",
            where="task.evaluations",
        )
    columns = source.get("columns") or ()
    if columns and given != ["path"]:
        raise DataError(
            f"The columns of a {given[0]} source have names already.",
            where="task.source.columns",
            fix="Leave it out; task.text and task.label choose columns.",
        )
    if given == ["hub"]:
        raw = _read_hub(source, split, config or source.get("config"), [*text, *further], label)
    elif given == ["path"]:
        raw = _read_file(find_file(Path(source["path"]), split), text, label, further, columns)
    else:
        wanted = [*text, *([label] if label else []), *further]
        raw = _read_demo(source["demo"], split, wanted, source.get("language"))
    if absent := [column for column in text if column not in raw.columns]:
        raise _absent(absent[0], raw, "task.text")
    if not len(raw.columns[text[0]]):
        raise DataError(f"The split {split!r} has no rows.", where=raw.where)
    names = source.get("label_names")
    return raw if label is None or label not in raw.columns or not names else _renamed(raw, label, names)


def read_texts(
    source: Mapping[str, Any], split: str, *, text: Sequence[str], stream: bool
) -> Iterator[tuple[str, ...]]:
    """The texts of each row. stream: of a data set on the Hub only the blocks are fetched that hold the rows taken.

    Raises as `read_raw` does.
    """
    if stream and source.get("hub"):
        yield from _stream_hub(source, split, text)
    else:
        raw = read_raw(source, split, text=text, label=None)
        yield from zip(*(_texts(raw, column).to_pylist() for column in text), strict=True)


def strings(raw: Raw, column: str, key: str) -> list[str | None]:
    """A column as the text that a CSV file would hold; None for null. key: where the task names the column."""
    require_column(raw, column, key)
    values: list[str | None] = _text_column(raw, column, key).to_pylist()
    return values


def require_column(raw: Raw, column: str, key: str) -> None:
    """key: where the task names the column."""
    if column not in raw.columns:
        raise _absent(column, raw, key)


def is_single_file(source: Mapping[str, Any]) -> bool:
    """Whether the source is one local file, which holds nothing but training rows."""
    return bool(source.get("path")) and not Path(source["path"]).expanduser().is_dir()


def find_labels(raw: Raw, label: str) -> list[str]:
    """The class names: the source's own, else the distinct labels in sorted order (numbers by value)."""
    if label not in raw.columns:
        raise _absent(label, raw, "task.label")
    if raw.names:
        return list(raw.names)
    column = _as_strings(raw.columns[label])
    found = {str(name).strip() for name in column.unique().to_pylist() if name is not None} - set(HIDDEN)
    if len(found) > max(20, len(column) // 2):
        raise DataError(
            f"The column {label!r} holds {len(found)} different values in {len(column)} rows: no classes.",
            where=raw.where,
            fix="Set task.kind=regression to predict numbers, or name another column in task.label.",
        )
    if all(re.fullmatch(r"-?\d+", name) for name in found):
        return sorted(found, key=int)
    return sorted(found)


def canonical(
    raw: Raw, *, text: Sequence[str], label: str | None = None, labels: Sequence[str] | None = None, kind: str
) -> pa.Table:
    """`raw` in canonical columns. A source without the label column gives null labels, kind "text" nothing else."""
    assert kind in ("classification", "regression", "text"), kind
    texts = [_texts(raw, column) for column in text]
    count = len(texts[0])
    if kind == "text" or label is None or label not in raw.columns:
        values = pa.nulls(count, pa.float64() if kind == "regression" else pa.int64())
    elif kind == "classification":
        assert labels is not None
        values = _classes(raw, label, labels)
    else:
        values = _targets(raw, label)
    return table(*texts, label=values)


def table(text_a: pa.Array, text_b: pa.Array | None = None, *, label: pa.Array | None = None) -> pa.Table:
    """Canonical columns of rows in the order of their source. Absent: null."""
    count = len(text_a)
    return pa.table(
        {
            "id": pa.array(np.arange(count, dtype=np.int64)),
            "text_a": text_a,
            "text_b": pa.nulls(count, pa.string()) if text_b is None else text_b,
            "label": pa.nulls(count, pa.int64()) if label is None else label,
        }
    )


def require_labels(raw: Raw, table: pa.Table, label: str) -> None:
    """Refuse rows without a label, where each needs one."""
    if label not in raw.columns:
        raise _absent(label, raw, "task.label")
    missing = table["label"].null_count
    if missing:
        first = int(np.flatnonzero(table["label"].is_null().to_numpy())[0])
        raise DataError(
            f"{missing} of {table.num_rows} rows have no label (empty or -1).",
            where=f"{raw.place(first)} (the first)",
            fix="Remove these rows, choose another split, or list -1 in task.labels if it is a class.",
        )


def _absent(column: str, raw: Raw, key: str) -> DataError:
    close = difflib.get_close_matches(column, raw.available, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return DataError(
        f"There is no column {column!r}. There are: {', '.join(map(repr, raw.available)) or 'none'}.",
        where=raw.where,
        fix=f"{hint}Set {key} to a column that exists.",
    )


def _flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _scalar(value: Any) -> str | None:
    """A JSON or Parquet scalar as the text a CSV file would hold; None for NaN, as pandas writes a missing value."""
    if value is None or isinstance(value, str):
        return value
    if value != value:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _as_strings(array: pa.Array) -> pa.Array:
    if pa.types.is_string(array.type):
        return array
    if pa.types.is_floating(array.type) or pa.types.is_boolean(array.type):
        encoded = array.dictionary_encode()
        names = pa.array([_scalar(value) for value in encoded.dictionary.to_pylist()], pa.string())
        return names.take(encoded.indices)
    return array.cast(pa.string())


def _texts(raw: Raw, column: str) -> pa.Array:
    return pc.fill_null(_text_column(raw, column, "task.text"), "")


def _text_column(raw: Raw, column: str, key: str) -> pa.Array:
    try:
        return _as_strings(raw.columns[column])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"The column {column!r} holds no text but {raw.columns[column].type}.",
            where=raw.where,
            fix=f"Set {key} to columns of text.",
        ) from error


def _classes(raw: Raw, label: str, labels: Sequence[str]) -> pa.Array:
    """Class ids [rows], int64. Ids are taken as such only if no class name is itself a number."""
    ids = {name: number for number, name in enumerate(labels)}
    if len(ids) < len(labels):
        raise DataError(f"A name appears twice in the labels {list(labels)}.", where="task.labels")
    numbered = not any(re.fullmatch(r"-?\d+", name) for name in labels)
    encoded = _encoded(raw, label)
    codes: list[int] = []
    for position, value in enumerate(encoded.dictionary.to_pylist()):
        name = value.strip()
        if name in ids:
            codes.append(ids[name])
        elif name in HIDDEN:
            codes.append(-1)
        elif numbered and not raw.names and name.isdecimal() and int(name) < len(labels):
            codes.append(int(name))
        else:
            first = pc.index(encoded.indices, position).as_py()
            close = difflib.get_close_matches(name, labels, n=1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            owner = f" The source's own names are {list(raw.names)}." if raw.names else ""
            raise DataError(
                f"The label {value!r} is none of {list(labels)}.{owner}",
                where=raw.place(first),
                fix=f"{hint}Correct the row, or set task.labels.",
            )
    indices = encoded.indices.fill_null(len(codes)).to_numpy(zero_copy_only=False)
    values = np.array([*codes, -1], dtype=np.int64)[indices]
    return pa.array(values, mask=values < 0) if (values < 0).any() else pa.array(values)


def _encoded(raw: Raw, label: str) -> pa.DictionaryArray:
    try:
        return _as_strings(raw.columns[label]).dictionary_encode()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"The column {label!r} holds no labels but {raw.columns[label].type}.", where=raw.where
        ) from error


def _targets(raw: Raw, label: str) -> pa.Array:
    """Regression targets [rows], float64."""
    column = raw.columns[label]
    if pa.types.is_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(column, ""), None, column)
    try:
        values = column.cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        values = None
    if values is None or pa.types.is_boolean(column.type):
        for row, value in enumerate(column.to_pylist()):
            try:
                if isinstance(value, bool):
                    raise TypeError
                _ = value is None or float(value)
            except (TypeError, ValueError):
                raise DataError(
                    f"The label {value!r} is no number, and the task is a regression.",
                    where=raw.place(row),
                    fix="Correct the row (decimals take a point), or set task.kind=classification.",
                ) from None
        values = pa.array([None if value is None else float(value) for value in column.to_pylist()], pa.float64())
    missing = values.is_null().to_numpy(zero_copy_only=False)
    numbers = values.fill_null(0.0).to_numpy()
    if (bad := np.flatnonzero(~np.isfinite(numbers))).size:
        raise DataError(
            f"The label {numbers[bad[0]]} is not finite; {bad.size} rows have such labels.",
            where=f"{raw.place(int(bad[0]))} (the first)",
            fix="Remove these rows, or leave their label empty in a set that is only predicted.",
        )
    if (numbers == -1.0).all() and not missing.any():
        return pa.nulls(len(numbers), pa.float64())
    return pa.array(numbers, mask=missing) if missing.any() else pa.array(numbers)


def _renamed(raw: Raw, label: str, names: Mapping[str, str]) -> Raw:
    """`raw` with class names in place of what its label column holds."""
    known = {_whole(value): name for value, name in names.items()}

    def name_of(value: str) -> str:
        return known.get(_whole(value), value)

    encoded = _encoded(raw, label)
    values = pa.array(list(map(name_of, encoded.dictionary.to_pylist())), pa.string())
    owned = None if raw.names is None else list(dict.fromkeys(map(name_of, raw.names)))
    return replace(raw, columns={**raw.columns, label: values.take(encoded.indices)}, names=owned)


def _whole(value: str) -> str:
    """The value without blanks around it, and of a whole number without ".0"."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", value.strip())


# The Hub


def _read_hub(source: Mapping[str, Any], split: str, config: str | None, text: Sequence[str], label: str | None) -> Raw:
    # imported here, because it takes seconds that local data should not pay
    from datasets import ClassLabel

    with _hub_errors(source, split, config) as where:
        builder = _local_builder(hub_part(source, config))
        builder.download_and_prepare()
        data = builder.as_dataset(split=split)
    columns = {column: _flat(data.data.column(column)) for column in text if column in data.column_names}
    names = None
    if label is not None and label in data.column_names:
        columns[label] = _flat(data.data.column(label))
        feature = data.features[label]
        if isinstance(feature, ClassLabel):
            names = list(feature.names)
            codes = columns[label].cast(pa.int64())
            known = pc.and_(pc.greater_equal(codes, 0), pc.less(codes, len(names)))
            columns[label] = pa.array(names, pa.string()).take(pc.if_else(known, codes, None))
    return Raw(columns=columns, available=data.column_names, where=where, names=names)


def _stream_hub(source: Mapping[str, Any], split: str, text: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The texts of one row after the other, fetched as they are asked for; from the cache, if all is there."""
    from datasets import load_dataset

    name, config, revision = str(source["hub"]), source.get("config"), source.get("revision")
    folder = source.get("data_dir")
    with _hub_errors(source, split, config, asking=True) as where:
        part = hub_part(source, config)
        if hub.absent(part) is None:
            data = _local_builder(part).as_streaming_dataset(split=split)
        else:
            hub.refuse_offline(part)
            data = hub.patiently(
                lambda: load_dataset(name, config, data_dir=folder, split=split, revision=revision, streaming=True)
            )
        available = data.column_names or list(next(iter(data), {}))
        if absent := [column for column in text if column not in available]:
            raise _absent(absent[0], Raw(columns={}, available=available, where=where), "task.text")
        for row, values in enumerate(data.select_columns(list(text))):
            for column in text:
                if isinstance(values[column], dict | list):
                    raise DataError(
                        f"The column {column!r} holds no text but {type(values[column]).__name__}.",
                        where=f"{where}, row {row}",
                        fix="Set task.text to columns of text.",
                    )
            yield tuple(_scalar(values[column]) or "" for column in text)


def hub_part(source: Mapping[str, Any], config: str | None) -> hub.Part:
    """What is read of a data set on the Hub."""
    name, folder = str(source["hub"]), source.get("data_dir")
    commit = hub.commit("dataset", name, source.get("revision") or "main")
    return hub.Part("dataset", name, commit, "rows", config=config, folder=folder)


def hub_files(part: hub.Part) -> hub.Splits:
    """The files that hold the rows of a part, as the Hub has them, by split. Raises as `read_raw` does."""
    from datasets import load_dataset_builder

    source = {"hub": part.name, "revision": part.commit, "data_dir": part.folder}
    with _hub_errors(source, None, part.config, asking=True), TemporaryDirectory() as empty:
        # With the usual cache an answer that does not come would be taken from there, of whatever revision.
        found = hub.patiently(
            lambda: load_dataset_builder(
                part.name, part.config, data_dir=part.folder, revision=part.commit, cache_dir=empty
            )
        )
    root = f"hf://datasets/{part.name}@{part.commit}/"
    files = found.config.data_files or {}
    return {str(split): [str(file).removeprefix(root) for file in some] for split, some in files.items()}


def _local_builder(part: hub.Part) -> Any:
    """What reads a part's rows from the cache, where all its files are then."""
    from datasets import load_dataset_builder

    folder = hub.get(part, ask=hub_files)
    # All are named: the data set's card finds them among others, which are not here.
    files = {name: [str(folder / file) for file in some] for name, some in (hub.splits(part) or {}).items() if name}
    return load_dataset_builder(str(folder), part.config, data_files=files)


@contextmanager
def _hub_errors(
    source: Mapping[str, Any], split: str | None, config: str | None, *, asking: bool = False
) -> Iterator[str]:
    """Gives the place for messages; what the Hub's client raises inside becomes an error that can be mended.

    split: None for all. asking: whether the Hub is asked inside, and not only files of the cache are read.
    """
    from datasets.exceptions import DatasetsError

    name, revision, folder = str(source["hub"]), source.get("revision"), source.get("data_dir")
    parts = [
        f"{name}{f'/{config}' if config else ''}",
        f"folder {folder}" if folder else "",
        f"split {split}" if split else "",
    ]
    where = ", ".join(filter(None, [*parts, f"revision {revision}" if revision else ""]))
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise DataError(
            f"{name!r} is no data set on the Hub.",
            where="task.source.hub",
            fix="Give owner/name, or use task.source.path for a local file.",
        )
    try:
        yield where
    except KdlabError:
        raise
    except Exception as error:
        if refusal := hub.disk_trouble(error, f"preparing {name}"):
            raise refusal from error
        if asking and (trouble := hub.trouble(error, "dataset", name, revision=revision)):
            raise trouble from error
        if not isinstance(error, DatasetsError | ValueError | RuntimeError | OSError):
            raise
        raise _hub_problem(error, source, config, split, where) from error


def _hub_problem(
    error: Exception, source: Mapping[str, Any], config: str | None, split: str | None, where: str
) -> DataError | HubError:
    name, folder, said = str(source["hub"]), source.get("data_dir"), first_line(error)
    listed = re.search(r"\[.*?\]", str(error), flags=re.DOTALL)
    exists = listed.group(0) if listed else "unknown"
    if said.startswith(("Unknown split", "Bad split")):
        part = ", ".join(filter(None, (config, f"folder {folder}" if folder else "")))
        return AbsentDataError(
            f"{name}{f' ({part})' if part else ''} has no split {split!r}. It has: {exists}.",
            where=where,
            fix="Set task.splits and task.evaluations to splits that exist.",
        )
    if said.startswith("BuilderConfig"):
        folders = "" if folder else ", or task.source.data_dir where its parts are folders (refs/convert/parquet)"
        return AbsentDataError(
            f"{name} has no configuration {config!r}. It has: {exists}.",
            where=where,
            fix=f"Set task.source.config to one of them{folders}.",
        )
    if said.startswith("Config name is missing"):
        return DataError(
            f"{name} has several configurations: {exists}.",
            where=where,
            fix="Set task.source.config to one of them.",
        )
    if folder and (isinstance(error, FileNotFoundError) or said.startswith("Couldn't find cache")):
        there = _hub_folders(name, PurePosixPath(folder).parent, str(source["revision"]))
        if folder.strip("/") not in there:
            return AbsentDataError(
                f"{name} has no folder {folder!r}. It has: {', '.join(there) or 'no folders'}.",
                where=where,
                fix="Set task.source.data_dir to one of them.",
            )
    return HubError(
        f"The Hub's data set {name} can't be loaded: {said}",
        where=where,
        fix="Data sets must be plain files (Parquet, CSV, JSON): loading scripts are not run.",
    )


def _hub_folders(name: str, parent: PurePosixPath, commit: str) -> list[str]:
    """The folders in the folder `parent` of a data set on the Hub. Raises HubError."""
    found = {folder for file in hub.listing("dataset", name, commit) for folder in PurePosixPath(file).parents}
    return sorted(str(folder) for folder in found if folder.parent == parent and folder != parent)


# Embedded tasks


def _read_demo(name: str, split: str, wanted: Sequence[str], language: str | None) -> Raw:
    if name not in DEMOS:
        raise DataError(f"There is no embedded task {name!r}. There are: {', '.join(DEMOS)}.", where="task.source.demo")
    module = importlib.import_module(DEMOS[name])
    where = f"embedded task {name}, split {split}" + (f", language {language}" if language else "")
    spoken = getattr(module, "LANGUAGES", ())
    if language is None and spoken:
        raise DataError(
            f"The embedded task {name} has several languages: {', '.join(spoken)}.",
            where=where,
            fix="Set task.source.language to one of them, or task.languages to several.",
        )
    if language is not None and language not in spoken:
        raise AbsentDataError(
            f"The embedded task {name} has no language {language!r}. It has: {', '.join(spoken) or 'one only'}.",
            where=where,
            fix="Set task.languages to languages that it has.",
        )
    rows = module.rows(split) if language is None else module.rows(split, language)
    available = list(rows[0]) if rows else []
    columns = {key: pa.array([_scalar(row[key]) for row in rows], pa.string()) for key in wanted if key in available}
    return Raw(columns=columns, available=available, where=where)


# Local files


def find_file(path: Path, split: str) -> Path:
    """The file with a split: `path` itself for `train`, or the one of that name in the folder `path`.

    A split may stand in a folder ("en/train"). Its file is called as the split is, with a suffix (train.csv) or, if
    there is none such, exactly so (MLDoc's english.train.1000).
    """
    path = path.expanduser()
    if not path.exists():
        raise AbsentDataError(
            f"The data's file or folder does not exist.{_neighbours(path)}",
            where=str(path),
            fix="Check task.source.path.",
        )
    if not path.is_dir():
        if split != "train":
            raise AbsentDataError(
                f"A single file holds only the split 'train', not {split!r}.",
                where=str(path),
                fix=f"Give a folder with train{path.suffix} and {split}{path.suffix} as task.source.path.",
            )
        return path
    inner = Path(split)
    if inner.is_absolute() or ".." in inner.parts:
        raise DataError(
            f"The split {split!r} is outside of the data's folder.",
            where=str(path),
            fix="Name a split inside it.",
        )
    folder = path / inner.parent
    if not folder.is_dir():
        raise AbsentDataError(
            f"There is no folder for the split {split!r}.{_neighbours(folder)}",
            where=str(folder),
            fix="Check task.source.path and task.splits.",
        )
    files = sorted(child for child in folder.iterdir() if child.is_file())
    known = [child for child in files if child.suffix.lower() in SUFFIXES]
    found = [child for child in known if child.stem == inner.name]
    found = found or [child for child in files if child.name == inner.name]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"The split {split!r} is there {len(found)} times: {', '.join(child.name for child in found)}.",
            where=str(folder),
            fix="Keep one of them.",
        )
    there = ", ".join(child.name for child in known) or "no data file"
    raise AbsentDataError(
        f"The folder has no file for the split {split!r}. It has: {there}.",
        where=str(folder),
        fix=f"Name one {inner.name}.csv (or {', '.join(SUFFIXES[1:])}), or set task.splits.",
    )


def _neighbours(path: Path) -> str:
    """What there is in place of a file or folder that is not there; nothing if its own folder is not there either."""
    if not path.parent.is_dir():
        return ""
    there = sorted(child.name for child in path.parent.iterdir() if not child.name.startswith("."))
    return f" There are: {', '.join([*there[:20], *(['...'] if len(there) > 20 else [])])}." if there else ""


def _read_file(path: Path, text: Sequence[str], label: str | None, further: Sequence[str], names: Sequence[str]) -> Raw:
    """names: of the columns, where the file has no header line."""
    wanted = [*text, *([] if label is None else [label]), *further]
    suffix = path.suffix.lower()
    if names and suffix in NAMED:
        raise DataError(
            f"A {suffix} file names its columns itself.",
            where=str(path),
            fix="Leave out task.source.columns: it is for csv and tsv files without a header line.",
        )
    if suffix not in SUFFIXES and not names:
        raise DataError(
            f"Files that end in {suffix or 'nothing'!r} can't be read.",
            where=str(path),
            fix=f"Convert it to one of {', '.join(SUFFIXES)}; if its columns are parted by tabs and have no names, "
            "name them in task.source.columns.",
        )
    try:
        if not path.is_file():
            raise DataError("A pipe or a device is no file of rows.", where=str(path), fix="Save its rows to a file.")
        if path.stat().st_size == 0:
            raise DataError("The file is empty.", where=str(path))
        if suffix == ".parquet":
            return _read_parquet(path, wanted)
        content = _decode(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"The file can't be read: {error.strerror or error}.", where=str(path)) from error
    if names:
        return _read_unnamed(content, str(path), wanted, names, tabs=suffix != ".csv")
    if suffix == ".review":
        return _read_elements(content, str(path), wanted)
    if suffix == ".jsonl":
        return _read_jsonl(content, str(path), wanted, required=text, nested=further)
    if suffix == ".txt":
        return _read_documents(content, str(path))
    return _read_delimited(content, str(path), wanted, tabs=suffix == ".tsv")


def _read_parquet(path: Path, wanted: Sequence[str]) -> Raw:
    with readable_parquet(path):
        available = pq.read_schema(path).names
        there = [column for column in dict.fromkeys(wanted) if column in available]
        table = pq.read_table(path, columns=there, partitioning=None)
        table.validate(full=True)  # texts that are no UTF-8
    columns = {name: _flat(table[name]) for name in table.column_names}
    return Raw(columns=columns, available=available, where=str(path))


def _decode(data: bytes, where: str) -> str:
    """UTF-8, with or without a byte order mark."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError("The file is UTF-16, not UTF-8.", where=where, fix="Save it as UTF-8.")
    if (position := data.find(b"\0")) >= 0:
        raise DataError(
            "There is a NUL byte: the file is damaged or no text.",
            where=f"{where}, line {_line(data, position)}",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"The byte 0x{data[error.start]:02x} is no UTF-8.",
            where=f"{where}, line {_line(data, error.start)}",
            fix="Save the file as UTF-8 (from Latin-1: iconv -f latin1 -t utf-8).",
        ) from error


def _line(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


def _read_jsonl(text: str, where: str, wanted: Sequence[str], *, required: Sequence[str], nested: Sequence[str]) -> Raw:
    values: dict[str, list[str | None]] = {column: [] for column in wanted}
    available: dict[str, None] = {}
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"The line is no JSON: {first_line(error)}.", where=place) from error
        if not isinstance(row, dict):
            raise DataError("The line is no JSON object.", where=place, fix='Write rows as {"text": "...", ...}.')
        available.update(dict.fromkeys(row))
        lines.append(number)
        for column, column_values in values.items():
            value = row.get(column)
            if isinstance(value, dict | list) and column in nested:
                value = json.dumps(value, ensure_ascii=False)
            elif isinstance(value, dict | list):
                raise DataError(f"The field {column!r} is no text or number but {type(value).__name__}.", where=place)
            column_values.append(_scalar(value))
    columns: dict[str, pa.Array] = {}
    for column, column_values in values.items():
        if column not in available:
            continue
        try:
            columns[column] = pa.array(column_values, pa.string())
        except UnicodeEncodeError as error:
            row_number = column_values.index(error.object)
            raise DataError(
                f"The field {column!r} holds half of a surrogate pair.",
                where=f"{where}, line {lines[row_number]}",
            ) from error
    raw = Raw(columns=columns, available=list(available), where=where, lines=lines)
    for column in required:
        if column in columns and columns[column].null_count:
            first = _first_null(columns[column])
            raise DataError(f"The field {column!r} is missing or null.", where=raw.place(first))
    return raw


def _first_null(array: pa.Array) -> int:
    return int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])


def _read_documents(text: str, where: str) -> Raw:
    """Paragraphs between blank lines, their lines joined; without blank lines inside, each line by itself."""
    numbered = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    filled = [number for number, line in numbered if line]
    parted = bool(filled) and len(filled) <= filled[-1] - filled[0]
    documents: list[list[str]] = []
    lines: list[int] = []
    for number, line in numbered:
        if not line:
            continue
        if parted and documents and numbered[number - 2][1]:
            documents[-1].append(line)
        else:
            documents.append([line])
            lines.append(number)
    column = pa.array([" ".join(document) for document in documents], pa.string())
    return Raw(columns={"text": column}, available=["text"], where=where, lines=lines)


def _read_delimited(text: str, where: str, wanted: Sequence[str], *, tabs: bool) -> Raw:
    """CSV with a header; quoted fields may hold separators and line ends.

    In a TSV file of which every line has as many fields as the header, one line is one row, and quotes matter
    only where they enclose a whole field: so files that never quote are read as they were written.
    """
    rows, lines = _plain_tsv(text) if tabs else ([], [])
    if not rows:
        rows, lines = _quoted(text, where, "\t" if tabs else ",")
    if not rows:
        raise DataError("The file has no header and no rows.", where=where)
    header = [name.strip() for name in rows[0]]
    return _of_fields(rows[1:], lines[1:], where, wanted, header)


def _read_unnamed(text: str, where: str, wanted: Sequence[str], names: Sequence[str], *, tabs: bool) -> Raw:
    """CSV or TSV without a header. names: of all columns, in their order. Of TSV one line is one row."""
    rows, lines = _lines(text) if tabs else _quoted(text, where, ",", names)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(names):
            raise DataError(
                f"The row has {len(row)} fields, and {len(names)} columns are named: {', '.join(names)}.",
                where=f"{where}, line {line}",
                fix="Name every column of the file in task.source.columns, in the order of the file.",
            )
    return _of_fields(rows, lines, where, wanted, names)


def _of_fields(
    rows: Sequence[Sequence[str]], lines: Sequence[int], where: str, wanted: Sequence[str], names: Sequence[str]
) -> Raw:
    for column in wanted:
        if names.count(column) > 1:
            raise DataError(f"The file's columns have the name {column!r} twice.", where=where)
    columns = {
        column: pa.array([row[names.index(column)] for row in rows], pa.string())
        for column in wanted
        if column in names
    }
    return Raw(columns=columns, available=names, where=where, lines=lines)


def _read_elements(text: str, where: str, wanted: Sequence[str]) -> Raw:
    """XML whose root holds one element a row, and each of these one a column. A column that a row lacks is null."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(
            f"The file is no XML: {error}.", where=f"{where}, line {error.position[0]}", fix="Fetch it again."
        ) from error
    rows = [{field.tag: "".join(field.itertext()) for field in element} for element in root]
    available = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: pa.array([row.get(name) for row in rows], pa.string()) for name in wanted if name in available}
    return Raw(columns=columns, available=available, where=where)


def _plain_tsv(text: str) -> tuple[list[list[str]], list[int]]:
    """Nothing if its lines differ in how many fields they have."""
    rows, lines = _lines(text)
    return (rows, lines) if len({len(row) for row in rows}) == 1 else ([], [])


def _lines(text: str) -> tuple[list[list[str]], list[int]]:
    """The fields of each line that is not empty, parted by tabs, and the lines' numbers."""
    found = list(plain_rows(text.split("\n")))
    return [row for _, row in found], [line for line, _ in found]


def _quoted(
    text: str, where: str, delimiter: str, names: Sequence[str] | None = None
) -> tuple[list[list[str]], list[int]]:
    """names: of the columns, where there is no header line."""
    rows: list[list[str]] = []
    lines: list[int] = []
    with closing(quoted_rows(io.StringIO(text, newline=""), where, delimiter)) as found:
        for line, row in found:
            if names is None and rows and len(row) != len(rows[0]):
                raise DataError(
                    f"The row has {len(row)} fields, the header has {len(rows[0])}.",
                    where=f"{where}, line {line}",
                    fix="Put fields that hold the separator in double quotes.",
                )
            rows.append(row)
            lines.append(line)
    return rows, lines
