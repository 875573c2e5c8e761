"""From a task's source to the splits of a run: held-out rows, limits, checks, majority baselines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdlab.context import Context
from kdlab.data import tasks
from kdlab.data.metrics import CLASSIFICATION, REGRESSION, majority
from kdlab.errors import DataError

SPLIT_SEED = 0  # of the held-out and the cut dev rows: the same for every seed of a run
CUT_DEV = 0.1  # share of train that becomes dev where the source has none
SPLITS = ("train", "heldout", "dev", "test")


def prepare(
    ctx: Context,
    *,
    source: Mapping[str, Any],
    splits: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Any]],
    text: Sequence[str],
    label: str,
    labels: Sequence[str] | None,
    kind: str,
    heldout: float,
    train_limit: int | None,
    dev_limit: int | None,
    rows: int | None,
    seed: int,
) -> None:
    """Write `{train,heldout,dev,test,<evaluation>}.arrow` in the canonical columns of `kdlab.data.tasks`.

    Where the source has no dev (a single local file, or `splits.dev` null), a tenth of train becomes dev.
    Then the share `heldout` of train is set aside; both are drawn by a fixed seed, stratified by class.
    `train_limit`, `dev_limit` and `rows` (every split) draw with the run's `seed`. Rows stay in the order of
    the source.

    Facts, also in facts.json: rows, unlabelled and empty_texts per split; labels; majority[split][metric]:
    the score of the majority answer on each fully labelled split; shared_with_train: rows with the same
    texts; warnings. Raises DataError for data that can't be trained or scored on, HubError where the Hub
    can't give them.
    """
    _check_names(evaluations)
    warnings: list[str] = []

    def read(split: str, config: str | None = None) -> tuple[tasks.Raw, pa.Table]:
        raw = tasks.read_raw(source, split, config=config, text=text, label=label)
        return raw, tasks.canonical(raw, text=text, label=label, labels=labels, kind=kind)

    # train decides on the labels
    raw = tasks.read_raw(source, splits["train"], text=text, label=label)
    if kind == "classification" and labels is None:
        labels = tasks.find_labels(raw, label)
    train = tasks.canonical(raw, text=text, label=label, labels=labels, kind=kind)
    tasks.require_labels(raw, train, label)
    _check_variety(train, labels, raw.where, warnings)

    # dev, test and further evaluations
    tables: dict[str, pa.Table] = {}
    cut_dev = splits.get("dev") is None or tasks.is_single_file(source)
    if cut_dev:
        train, tables["dev"] = _set_aside(train, CUT_DEV, kind, what="dev")
    else:
        dev_raw, tables["dev"] = read(splits["dev"])
        tasks.require_labels(dev_raw, tables["dev"], label)
    if splits.get("test"):
        tables["test"] = read(splits["test"])[1]
    for name, evaluation in evaluations.items():
        tables[name] = read(evaluation["split"], evaluation.get("config"))[1]
    shared = {name: _shared(table, train) for name, table in tables.items()}
    if not cut_dev and shared["dev"] == tables["dev"].num_rows:
        raise DataError(
            f"All {shared['dev']} rows of dev are rows of train: their scores would mean nothing.",
            where=f"{raw.where} and {dev_raw.where}",
            fix="Set task.splits.dev to another split, or to null to cut a dev part from train.",
        )
    for name, count in shared.items():
        if count:
            warnings.append(f"{count} of {tables[name].num_rows} rows of {name} have the same texts as a row of train")

    # what the run leaves of them
    tables = {"train": train, **tables}
    if heldout:
        tables["train"], tables["heldout"] = _set_aside(train, heldout, kind, what="the held-out part")
    limits = {"train": train_limit, "dev": dev_limit}
    for name, table in tables.items():
        bounds = [limit for limit in (limits.get(name), rows) if limit is not None]
        tables[name] = _draw(table, min(bounds), seed) if bounds else table

    empty = {name: _empty_texts(table) for name, table in tables.items()}
    for name, count in empty.items():
        if count == tables[name].num_rows:
            raise DataError(f"All texts of {name} are empty.", where=raw.where, fix="Check task.text.")
        if count:
            warnings.append(f"{count} of {tables[name].num_rows} rows of {name} have an empty text")
    facts: dict[str, Any] = {
        "rows": {name: table.num_rows for name, table in tables.items()},
        "unlabelled": {name: table["label"].null_count for name, table in tables.items()},
        "empty_texts": empty,
        "shared_with_train": shared,
        "labels": list(labels) if kind == "classification" and labels is not None else None,
        "majority": _majorities(tables, kind, labels),
        "warnings": warnings,
    }
    for name, table in tables.items():
        write_table(ctx, name, table)
    (ctx.out / "facts.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    ctx.facts.update(facts)


def write_table(ctx: Context, name: str, table: pa.Table) -> None:
    """One split as an uncompressed Arrow file, which readers map into memory."""
    with (
        pa.OSFile(str(ctx.out / f"{name}.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table.combine_chunks())


def _check_names(evaluations: Mapping[str, Any]) -> None:
    for name in evaluations:
        if name in SPLITS or not re.fullmatch(r"\w[\w-]*", name):
            raise DataError(
                f"An evaluation set can't be called {name!r}.",
                where="task.evaluations",
                fix=f"Use letters, digits, _ and -, and none of {', '.join(SPLITS)}.",
            )


def _check_variety(train: pa.Table, labels: Sequence[str] | None, where: str, warnings: list[str]) -> None:
    present = pc.unique(train["label"]).to_pylist()
    if len(present) < 2:
        only = labels[present[0]] if labels is not None else present[0]
        raise DataError(
            f"Every training row has the same label, {only!r}: there is nothing to learn.",
            where=where,
            fix="Check task.label. A label -1 counts as none unless task.labels lists it.",
        )
    if labels is not None and len(present) < len(labels):
        absent = [name for number, name in enumerate(labels) if number not in present]
        warnings.append(f"no training row has the label {', '.join(map(repr, absent))}")


def _set_aside(table: pa.Table, share: float, kind: str, *, what: str) -> tuple[pa.Table, pa.Table]:
    """(rest, the share set aside). Stratified: every class gives its share, largest remainders first."""
    rng = np.random.default_rng(SPLIT_SEED)
    count = round(table.num_rows * share)
    if not 0 < count < table.num_rows:
        raise DataError(
            f"{table.num_rows} training rows are too few to set aside {share:.0%} for {what}.",
            fix="Give more rows, or set task.heldout=0 and select_on=dev.",
        )
    labels = table["label"].to_numpy()
    groups = np.zeros(len(labels), dtype=np.int64) if kind == "regression" else labels
    sizes = np.bincount(groups)
    exact = sizes * share
    taken = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - taken), kind="stable")
    taken[order[: count - taken.sum()]] += 1
    chosen = np.zeros(table.num_rows, dtype=bool)
    for group, number in enumerate(taken):
        chosen[rng.permutation(np.flatnonzero(groups == group))[:number]] = True
    return table.filter(pa.array(~chosen)), table.filter(pa.array(chosen))


def _draw(table: pa.Table, limit: int, seed: int) -> pa.Table:
    if limit >= table.num_rows:
        return table
    return table.take(pa.array(np.sort(np.random.default_rng(seed).permutation(table.num_rows)[:limit])))


def _keys(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table["text_a"], pc.fill_null(table["text_b"], ""), "\x1f")


def _shared(table: pa.Table, train: pa.Table) -> int:
    return int(pc.sum(pc.is_in(_keys(table), value_set=_keys(train).combine_chunks())).as_py() or 0)


def _empty_texts(table: pa.Table) -> int:
    empty = pc.equal(pc.utf8_trim_whitespace(table["text_a"]), "")
    if table["text_b"].null_count < table.num_rows:
        empty = pc.or_(empty, pc.equal(pc.utf8_trim_whitespace(table["text_b"]), ""))
    return int(pc.sum(empty).as_py() or 0)


def _majorities(tables: Mapping[str, pa.Table], kind: str, labels: Sequence[str] | None) -> dict[str, dict[str, float]]:
    train = tables["train"]["label"].to_numpy()
    metrics = REGRESSION if kind == "regression" else CLASSIFICATION
    names = [name for name in metrics if name != "f1" or (labels is not None and len(labels) == 2)]
    return {
        split: {name: majority(name, train, table["label"].to_numpy(), kind) for name in names}
        for split, table in tables.items()
        if split != "train" and not table["label"].null_count
    }
