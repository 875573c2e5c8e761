"""From a task's source to the splits of a run: conditions, held-out rows, limits, checks, majority baselines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdlab.context import Context
from kdlab.data import corruption, tasks
from kdlab.data.metrics import CLASSIFICATION, REGRESSION, majority
from kdlab.data.passages import read_passages
from kdlab.errors import DataError

SPLIT_SEED = 0  # of the held-out and the cut dev rows: the same for every seed of a run
CUT_DEV = 0.1  # share of train that becomes dev where the source has none
SPLITS = ("train", "heldout", "dev", "test")


def prepare(
    ctx: Context,
    *,
    source: Mapping[str, Any],
    splits: Mapping[str, Any],
    text: Sequence[str],
    label: str,
    labels: Sequence[str] | None,
    kind: str,
    heldout: float,
    few: Mapping[str, Any] | None = None,
    imbalance: Mapping[str, Any] | None = None,
    noise: Mapping[str, Any] | None = None,
    dev_limit: int | None,
    rows: int | None,
    seed: int,
) -> None:
    """Write `{train,heldout,dev}.arrow` in the canonical columns of `kdlab.data.tasks`.

    In this order: where the source has no dev (a single local file, or `splits.dev` null), a tenth of train becomes
    dev (where `splits` has no key dev, none is wanted); `few` of the training rows are drawn with `seed`; `imbalance`
    thins out their classes; the share `heldout` of what is left is set aside; `noise` changes labels of train and
    held-out rows, which get a column `clean_label`; `dev_limit` draws from dev, `rows` from every split. What is cut,
    set aside or limited is drawn by a fixed seed, so that all runs are scored on the same rows; a part of train by
    class, and none by a noisy label. Rows stay in the order of the source.

    few, imbalance, noise: as in `kdlab.config`, without `teacher`; None is off. A row's noise is that of its place in
    the source, whatever else is chosen: so runs that share rows share their noise.

    Facts, also in facts.json: rows, unlabelled, noisy (changed labels) and empty_texts per split; labels;
    majority[split][metric]: the score on each fully labelled split of the answer that is most frequent among train's
    clean labels; shared_with_train: rows with the texts of a train or held-out row; conditions: what few, imbalance
    and noise did; warnings.

    Raises DataError for data that can't be trained or scored on, or that a condition leaves too little of, HubError
    where the Hub can't give them.
    """
    warnings: list[str] = []
    tables, labels, done = training_tables(
        source,
        splits,
        text=text,
        label=label,
        labels=labels,
        kind=kind,
        heldout=heldout,
        few=few,
        imbalance=imbalance,
        noise=noise,
        dev_limit=dev_limit,
        rows=rows,
        seed=seed,
        warnings=warnings,
    )
    facts = facts_of(tables, tables, labels, kind, warnings)
    publish(ctx, tables, {**facts, "noisy": changes(tables), "conditions": done})


def prepare_sets(
    ctx: Context,
    *,
    data: Path,
    source: Mapping[str, Any],
    splits: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Any]],
    text: Sequence[str],
    label: str,
    kind: str,
    rows: int | None,
) -> None:
    """Write `test.arrow`, where `splits.test` names a split, and `<evaluation>.arrow`, with the labels of `data`.

    evaluations: as in `kdlab.config`, by name; a set's data_dir and language take the place of the source's.
    data: what `prepare` wrote. Sets may be without labels. Facts as those of `prepare`; majority and
    shared_with_train go by the rows of `data`. `rows` of each set are drawn by a fixed seed.
    """
    _check_names(evaluations)
    labels = json.loads((data / "facts.json").read_text(encoding="utf-8"))["labels"]
    asked: dict[str, Mapping[str, Any]] = {"test": {"split": splits["test"]}} if splits.get("test") else {}
    tables: dict[str, pa.Table] = {}
    for name, value in {**asked, **evaluations}.items():
        own = {**source, **{key: value[key] for key in ("data_dir", "language") if value.get(key)}}
        raw = tasks.read_raw(own, value["split"], config=value.get("config"), text=text, label=label)
        table = tasks.canonical(raw, text=text, label=label, labels=labels, kind=kind)
        tables[name] = limited(table, rows)
    publish(ctx, tables, facts_of(tables, read_trained(data), labels, kind, []))


def prepare_texts(
    ctx: Context,
    *,
    source: Mapping[str, Any],
    split: str,
    text: Sequence[str],
    passages: Mapping[str, Any],
    rows: int | None,
) -> None:
    """Write `train.arrow`: the rows of a corpus without labels, in canonical columns with null labels.

    passages: as in `kdlab.config`. rows: the first ones only. Facts as those of `prepare`, and passages: how many
    documents were read and used.
    """
    limit = min([number for number in (passages["limit"], rows) if number is not None], default=None)
    table, counts = read_passages(source, split, text=text, passages={**passages, "limit": limit})
    warnings: list[str] = []
    if passages["limit"] is not None and rows is None and table.num_rows < passages["limit"]:
        warnings.append(f"{passages['limit']} rows were asked for, and the corpus gives {table.num_rows}")
    tables = {"train": table}
    publish(ctx, tables, {**facts_of(tables, tables, None, "text", warnings), "passages": counts})


def training_tables(
    source: Mapping[str, Any],
    splits: Mapping[str, Any],
    *,
    text: Sequence[str],
    label: str,
    labels: Sequence[str] | None,
    kind: str,
    heldout: float,
    few: Mapping[str, Any] | None,
    imbalance: Mapping[str, Any] | None,
    noise: Mapping[str, Any] | None,
    dev_limit: int | None,
    rows: int | None,
    seed: int,
    warnings: list[str],
) -> tuple[dict[str, pa.Table], list[str] | None, dict[str, Any]]:
    """(train, and dev and heldout where they are wanted; the classes; what the conditions did), as `prepare` says.

    warnings: gets what there is to say.
    """
    # train decides on the labels
    raw = tasks.read_raw(source, splits["train"], text=text, label=label)
    if kind == "classification" and labels is None:
        labels = tasks.find_labels(raw, label)
    train = tasks.canonical(raw, text=text, label=label, labels=labels, kind=kind)
    tasks.require_labels(raw, train, label)
    _check_variety(train, labels, raw.where, warnings)
    clean = train["label"].to_numpy()  # by row number

    dev: pa.Table | None = None
    if "dev" not in splits:
        pass
    elif splits["dev"] is None or tasks.is_single_file(source):
        train, dev = _set_aside(train, CUT_DEV, kind, what="dev")
    else:
        dev, where = dev_table(source, splits["dev"], text=text, label=label, labels=labels, kind=kind)
        if shared_rows(dev, train) == dev.num_rows:
            raise DataError(
                f"All {dev.num_rows} rows of dev are rows of train: their scores would mean nothing.",
                where=f"{raw.where} and {where}",
                fix="Set task.splits.dev to another split, or to null to cut a dev part from train.",
            )

    # the conditions
    found = pc.unique(train["label"]).to_pylist()
    conditions: dict[str, Any] = {"few": None, "imbalance": None, "noise": None}
    if few and few["examples"] is not None:
        train, conditions["few"] = _few(train, few, kind, labels, seed, warnings)
    if imbalance and imbalance["ratio"] != 1:
        train, conditions["imbalance"] = _imbalance(train, imbalance, labels)
    tables = {"train": train} if dev is None else {"train": train, "dev": dev}
    if heldout:
        tables["train"], tables["heldout"] = _set_aside(train, heldout, kind, what="the held-out part")
    _check_left(tables["train"], found, labels, conditions, warnings)
    if noise and noise["rate"]:
        classes = None if labels is None else len(labels)
        noisy, _ = corruption.noise(clean, rate=noise["rate"], classes=classes, seed=noise["seed"])
        for name in ("train", "heldout"):
            if name in tables:
                tables[name] = _relabelled(tables[name], noisy)

    # the limits
    limits = {name: [dev_limit, rows] if name == "dev" else [rows] for name in tables}
    tables = {name: limited(table, *limits[name]) for name, table in tables.items()}
    if noise and noise["rate"]:
        counts = {name: count for name, count in changes(tables).items() if name != "dev"}
        conditions["noise"] = {"rate": noise["rate"], "seed": noise["seed"], "changed": counts}
    return tables, None if labels is None else list(labels), conditions


def dev_table(
    source: Mapping[str, Any],
    split: str,
    *,
    text: Sequence[str],
    label: str,
    labels: Sequence[str] | None,
    kind: str,
) -> tuple[pa.Table, str]:
    """A split that is scored and so must have labels, and where it was found."""
    raw = tasks.read_raw(source, split, text=text, label=label)
    table = tasks.canonical(raw, text=text, label=label, labels=labels, kind=kind)
    tasks.require_labels(raw, table, label)
    return table, raw.where


def publish(ctx: Context, tables: Mapping[str, pa.Table], facts: Mapping[str, Any]) -> None:
    for name, table in tables.items():
        write_table(ctx, name, table)
    (ctx.out / "facts.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    ctx.facts.update(facts)


def read_trained(folder: Path) -> dict[str, pa.Table]:
    """The training and held-out rows of what one of these stages wrote."""
    names = sorted(file.stem for file in folder.glob("*.arrow") if _part(file.stem) in ("train", "heldout"))
    return {name: read_table(folder, name) for name in names}


def read_table(folder: Path, name: str) -> pa.Table:
    """The split `name` of what one of these stages wrote."""
    return pa.ipc.open_file(pa.memory_map(str(folder / f"{name}.arrow"))).read_all()


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


def _few(
    train: pa.Table,
    few: Mapping[str, Any],
    kind: str,
    labels: Sequence[str] | None,
    seed: int,
    warnings: list[str],
) -> tuple[pa.Table, dict[str, Any]]:
    if few["examples"] > train.num_rows:
        warnings.append(f"few.examples={few['examples']}: there are only {train.num_rows} training rows, all are used")
    chosen = corruption.few(
        train["label"].to_numpy(),
        examples=few["examples"],
        balanced=few["balanced"],
        regression=kind == "regression",
        seed=seed,
    )
    left = train.take(pa.array(chosen))
    return left, {**few, "seed": seed, "before": _sizes(train, labels), "after": _sizes(left, labels)}


def _imbalance(
    train: pa.Table, imbalance: Mapping[str, Any], labels: Sequence[str] | None
) -> tuple[pa.Table, dict[str, Any]]:
    chosen = corruption.imbalance(train["label"].to_numpy(), ratio=imbalance["ratio"], seed=imbalance["seed"])
    left = train.take(pa.array(chosen))
    return left, {**imbalance, "before": _sizes(train, labels), "after": _sizes(left, labels)}


def _sizes(table: pa.Table, labels: Sequence[str] | None) -> dict[str, int] | int:
    """Rows of each class; of a regression, rows."""
    if labels is None:
        return int(table.num_rows)
    counts = np.bincount(table["label"].to_numpy(), minlength=len(labels))
    return {name: int(count) for name, count in zip(labels, counts, strict=True)}


def _check_left(
    train: pa.Table,
    found: Sequence[Any],
    labels: Sequence[str] | None,
    conditions: Mapping[str, Any],
    warnings: list[str],
) -> None:
    """Refuse training rows of one class only, and an imbalance that leaves a class out."""
    present = pc.unique(train["label"]).to_pylist()
    fix = "Give more rows (task.few.examples)"
    if labels is not None:
        fix += ", draw them balanced (task.few.balanced=true), lower task.imbalance.ratio"
    if len(present) < 2:
        only = labels[present[0]] if labels is not None else present[0]
        raise DataError(
            f"The {train.num_rows} rows that are left to train on all have the label {only!r}.",
            where="train",
            fix=f"{fix}, or set aside less (task.heldout).",
        )
    if labels is None:
        return
    lost = ", ".join(repr(name) for number, name in enumerate(labels) if number in found and number not in present)
    if lost and conditions["imbalance"]:
        raise DataError(
            f"No row with the label {lost} is left to train on: imbalance leaves"
            f" {conditions['imbalance']['after']} rows, of which some are held out.",
            where="task.imbalance",
            fix=f"{fix}, or set aside less (task.heldout).",
        )
    if lost:
        warnings.append(f"no row with the label {lost} is left to train on")


def _relabelled(table: pa.Table, noisy: np.ndarray[Any, Any]) -> pa.Table:
    """noisy: labels by row number of the source."""
    position = table.column_names.index("label")
    labels = pa.array(noisy[table["id"].to_numpy()])
    return table.append_column("clean_label", table["label"]).set_column(position, "label", labels)


def changes(tables: Mapping[str, pa.Table]) -> dict[str, int]:
    """How many labels of each table noise has changed."""
    return {name: _changed(table) for name, table in tables.items()}


def _changed(table: pa.Table) -> int:
    if "clean_label" not in table.column_names:
        return 0
    return int(pc.sum(pc.not_equal(table["label"], table["clean_label"])).as_py() or 0)


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


def limited(table: pa.Table, *limits: int | None) -> pa.Table:
    """The table cut to each limit in turn, by rows drawn with a fixed seed; None is no limit."""
    for limit in limits:
        if limit is not None and limit < table.num_rows:
            drawn = np.random.default_rng(SPLIT_SEED).permutation(table.num_rows)[:limit]
            table = table.take(pa.array(np.sort(drawn)))
    return table


def same_texts(one: pa.Table, other: pa.Table) -> bool:
    return bool(one.num_rows == other.num_rows and _keys(one).equals(_keys(other)))


def _keys(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table["text_a"], pc.fill_null(table["text_b"], ""), "\x1f")


def shared_rows(table: pa.Table, *trained: pa.Table) -> int:
    """Rows with the texts of a row of `trained`."""
    known = pa.chunked_array([chunk for part in trained for chunk in _keys(part).chunks])
    return int(pc.sum(pc.is_in(_keys(table), value_set=known.combine_chunks())).as_py() or 0)


def _empty_texts(table: pa.Table) -> int:
    empty = pc.equal(pc.utf8_trim_whitespace(table["text_a"]), "")
    if table["text_b"].null_count < table.num_rows:
        empty = pc.or_(empty, pc.equal(pc.utf8_trim_whitespace(table["text_b"]), ""))
    return int(pc.sum(empty).as_py() or 0)


def facts_of(
    tables: Mapping[str, pa.Table],
    trained: Mapping[str, pa.Table],
    labels: Sequence[str] | None,
    kind: str,
    warnings: list[str],
) -> dict[str, Any]:
    """What is known of `tables`, and `warnings` with what there is to say of them.

    trained: the tables of training and held-out rows, perhaps with others.
    """
    known = [table for name, table in trained.items() if _part(name) in ("train", "heldout")]
    train = [table for name, table in trained.items() if _part(name) == "train"]
    shared = {
        name: shared_rows(table, *known) for name, table in tables.items() if _part(name) not in ("train", "heldout")
    }
    for name, count in shared.items():
        if count:
            warnings.append(f"{count} of {tables[name].num_rows} rows of {name} have the same texts as a row of train")
    empty = {name: _empty_texts(table) for name, table in tables.items()}
    for name, count in empty.items():
        if count == tables[name].num_rows:
            raise DataError(
                f"All texts of {name} are empty.", where="task.text", fix="Name the columns with the texts."
            )
        if count:
            warnings.append(f"{count} of {tables[name].num_rows} rows of {name} have an empty text")
    return {
        "rows": {name: table.num_rows for name, table in tables.items()},
        "unlabelled": {name: table["label"].null_count for name, table in tables.items()},
        "empty_texts": empty,
        "shared_with_train": shared,
        "labels": list(labels) if kind == "classification" and labels is not None else None,
        "majority": {} if kind == "text" else _majorities(tables, train, kind, labels),
        "warnings": warnings,
    }


def _majorities(
    tables: Mapping[str, pa.Table], train: Sequence[pa.Table], kind: str, labels: Sequence[str] | None
) -> dict[str, dict[str, float]]:
    """The scores of the answer that is most frequent in all of `train`."""
    clean = [table["clean_label" if "clean_label" in table.column_names else "label"].to_numpy() for table in train]
    answers = np.concatenate(clean)
    metrics = REGRESSION if kind == "regression" else CLASSIFICATION
    names = [name for name in metrics if name != "f1" or (labels is not None and len(labels) == 2)]
    return {
        split: {name: majority(name, answers, table["label"].to_numpy(), kind) for name in names}
        for split, table in tables.items()
        if _part(split) != "train" and not table["label"].null_count
    }


def _part(name: str) -> str:
    """The split of a table, whose name may go on with a language and a form (`kdlab.data.languages.View`)."""
    return name.partition(".")[0]
