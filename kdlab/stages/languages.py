"""From the source of a task in several languages to each language's rows: `kdlab.stages.prepare`, language by language.

Tables are called as `kdlab.data.languages.View` says: train.en.original, dev.es.original, test.es.original.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa

from kdlab.context import Context
from kdlab.data import tasks
from kdlab.data.languages import View
from kdlab.errors import DataError, HubError
from kdlab.stages.prepare import (
    changes,
    dev_table,
    facts_of,
    limited,
    publish,
    read_trained,
    same_texts,
    shared_rows,
    training_tables,
)


def prepare_languages(
    ctx: Context,
    *,
    source: Mapping[str, Any],
    languages: Mapping[str, Mapping[str, Any]],
    trained: Sequence[str],
    text: Sequence[str],
    label: str,
    labels: Sequence[str] | None,
    label_names: Mapping[str, str],
    kind: str,
    heldout: float,
    few: Mapping[str, Any] | None = None,
    imbalance: Mapping[str, Any] | None = None,
    noise: Mapping[str, Any] | None = None,
    dev_limit: int | None,
    rows: int | None,
    seed: int,
) -> None:
    """Write train, held-out and dev rows of the languages in `trained`, and dev rows of the others.

    languages: by code {"config", "data_dir", "splits": {"train", "dev"}}, each as the source has it. Where splits.dev
    is null, a tenth of a trained language's train becomes its dev, and another language has none.
    labels: None for those that the first of `trained` has.

    Each language by itself goes through what `prepare` does, with the same arguments: so languages that are parallel,
    with the same labels in the same order, keep the same rows and get the same noise.

    Facts, also in facts.json: languages; and as those of `prepare`, by table: rows, unlabelled, noisy, empty_texts,
    majority (of the most frequent label in all train tables together), shared_with_train (with a train or held-out row
    of any language); by trained language: conditions. labels and warnings are of all.

    Raises as `prepare` does and names the language; also DataError where two languages are the same rows.
    """
    assert trained and set(trained) <= set(languages), (trained, list(languages))
    shared: dict[str, Any] = {"text": text, "label": label, "kind": kind}
    warnings: list[str] = []
    tables: dict[str, pa.Table] = {}
    conditions: dict[str, Any] = {}
    for language in trained:
        own = _source(source, language, languages, label_names)
        said: list[str] = []
        with _naming(language):
            found, labels, conditions[language] = training_tables(
                own,
                languages[language]["splits"],
                **shared,
                labels=labels,
                heldout=heldout,
                few=few,
                imbalance=imbalance,
                noise=noise,
                dev_limit=dev_limit,
                rows=rows,
                seed=seed,
                warnings=said,
            )
        tables |= {str(View(split, language)): table for split, table in found.items()}
        warnings += [f"{language}: {line}" for line in said]
    train = [table for name, table in tables.items() if View.of(name).split != "dev"]
    for language, entry in languages.items():
        if language in trained or entry["splits"]["dev"] is None:
            continue
        own = _source(source, language, languages, label_names)
        with _naming(language):
            table, where = dev_table(own, entry["splits"]["dev"], **shared, labels=labels)
            if shared_rows(table, *train) == table.num_rows:
                raise DataError(
                    f"All {table.num_rows} rows of dev are training rows of {', '.join(trained)}.",
                    where=where,
                    fix="Let {language} stand in task.source.config, task.source.data_dir or task.splits.",
                )
        tables[str(View("dev", language))] = limited(table, dev_limit, rows)
    tables = _ordered(tables, languages)
    _check_different(tables)
    facts = facts_of(tables, tables, labels, kind, warnings)
    more = {"noisy": changes(tables), "conditions": conditions, "languages": list(languages)}
    publish(ctx, tables, {**facts, **more})


def prepare_language_sets(
    ctx: Context,
    *,
    data: Path,
    source: Mapping[str, Any],
    languages: Mapping[str, Mapping[str, Any]],
    text: Sequence[str],
    label: str,
    label_names: Mapping[str, str],
    kind: str,
    test_limit: int | None,
    rows: int | None,
) -> None:
    """Write the test rows of every language, with the labels of `data`. They may be without labels.

    data: what `prepare_languages` wrote. languages: by code {"config", "data_dir", "splits": {"test"}}. `test_limit`
    and `rows` of each language are drawn by a fixed seed. Facts as those of `prepare_languages`; majority and
    shared_with_train go by the rows of `data`.
    """
    labels = json.loads((data / "facts.json").read_text(encoding="utf-8"))["labels"]
    tables: dict[str, pa.Table] = {}
    for language, entry in languages.items():
        own = _source(source, language, languages, label_names)
        with _naming(language):
            raw = tasks.read_raw(own, entry["splits"]["test"], text=text, label=label)
            table = tasks.canonical(raw, text=text, label=label, labels=labels, kind=kind)
        tables[str(View("test", language))] = limited(table, test_limit, rows)
    _check_different(tables)
    facts = facts_of(tables, read_trained(data), labels, kind, [])
    publish(ctx, tables, {**facts, "languages": list(languages)})


def _source(
    source: Mapping[str, Any],
    language: str,
    languages: Mapping[str, Mapping[str, Any]],
    label_names: Mapping[str, str],
) -> dict[str, Any]:
    """The source of one language, as `kdlab.data.tasks.read_raw` takes it."""
    entry = languages[language]
    spoken = {"language": language} if source.get("demo") else {}
    return {**source, "config": entry["config"], "data_dir": entry["data_dir"], "label_names": label_names, **spoken}


@contextmanager
def _naming(language: str) -> Iterator[None]:
    """Errors inside name the language; of one that the source does not have, they say where to leave it out."""
    try:
        yield
    except tasks.AbsentDataError as error:
        raise DataError(
            f"Language {language!r}: {error.what}",
            where=error.where,
            fix=f"Leave {language} out of task.languages, or correct task.source, task.splits or task.language_names.",
        ) from error
    except (DataError, HubError) as error:
        raise type(error)(f"Language {language!r}: {error.what}", where=error.where, fix=error.fix) from error


def _ordered(tables: Mapping[str, pa.Table], languages: Mapping[str, Any]) -> dict[str, pa.Table]:
    """By language in the task's order."""
    order = list(languages)
    return {name: tables[name] for name in sorted(tables, key=lambda name: order.index(View.of(name).language))}


def _check_different(tables: Mapping[str, pa.Table]) -> None:
    """Refuse two languages that have the same texts: both were read from one place."""
    for one, other in combinations(tables, 2):
        first, second = View.of(one), View.of(other)
        if first.split == second.split and same_texts(tables[one], tables[other]):
            raise DataError(
                f"The {first.split} rows of {first.language} and {second.language} are the same texts.",
                where="task.source",
                fix="Let {language} stand in task.source.config, task.source.data_dir or task.splits, so that each "
                "language is read from its own place.",
            )
