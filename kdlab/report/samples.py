"""Single questions of a reasoning run: the teacher's rationales, the student's answer, right or wrong.

What `kdlab samples RUN` shows and what Weights & Biases gets as a table. Questions and completions are shown as they
are: markup in them is text, and a control character is written as its escape.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from kdlab.artifacts import Store
from kdlab.errors import ConfigError, DataError, StoreError
from kdlab.runs import Record, read_lines
from kdlab.showing import visible

Sample = dict[
    str, Any
]  # a row of samples.jsonl, see kdlab.stages.score; of a training question only the teacher's part

SCORED = "student_scores"  # label of the stage that leaves samples.jsonl
TRACKED_ROWS = 200  # of the table for Weights & Biases

# Kinds of samples by name: whether a sample is of it, and what to call it in a line.
KINDS: dict[str, tuple[str, Callable[[Sample], bool]]] = {
    "right": ("right", lambda sample: answered(sample) and sample["correct"]),
    "wrong": ("wrong", lambda sample: answered(sample) and not sample["correct"]),
    "no_answer": ("no answer in it", lambda sample: answered(sample) and sample["prediction"] is None),
    "bad_format": ("not in the format", lambda sample: answered(sample) and not sample["correct_format"]),
    "incomplete": ("cut at the limit", lambda sample: answered(sample) and not sample["complete"]),
    "contains": (
        "the right answer is in it",
        lambda sample: answered(sample) and not sample["correct"] and sample["contains_answer"],
    ),
    "teacher_wrong": (
        "teacher never right",
        lambda sample: bool(sample["teacher"]) and not any(one["correct"] for one in sample["teacher"]),
    ),
}


def answered(sample: Sample) -> bool:
    """Whether the student was asked."""
    return sample["text"] is not None


def load(folder: Path, store: str | Path | None = None) -> list[Sample]:
    """All samples of a finished run, in the order of its data; test questions first.

    store: where the run's artifacts are; None: as the run says. Raises StoreError if the folder is not that of a
    finished reasoning run, or its samples are no longer in the store.
    """
    record = Record.open(folder)
    try:
        family, root = record.family, record.store(store)
    except (KeyError, TypeError) as problem:
        raise StoreError(
            "run.json is not whole, or was written by another kdlab",
            where=str(folder / "run.json"),
            fix="run it again, under another name",
        ) from problem
    if family != "reasoning":
        raise StoreError(
            f"the run has no samples to look at: its method is of the family {family}, and its students do not write",
            where=str(folder),
            fix="give a run of a reasoning method (ft_cot, ft_answer, zs, ...); `kdlab analyze` looks at others",
        )
    name = (record.finished.get("artifacts") or {}).get(SCORED)
    shelf = Store(root)
    if name:
        shelf.refuse_damaged(name, thorough=False)
    artifact = shelf.find(name) if name else None
    if artifact is None:
        raise StoreError(
            f"the samples are no longer in the store: {name}" if name else f"the result names no {SCORED}",
            where=str(Store(root).root),
            fix=f"make them again with `{record.command}`, or give the store that has them: --store FOLDER",
        )
    return read_samples(artifact.path / "samples.jsonl")


def read_samples(file: Path) -> list[Sample]:
    """The rows of samples.jsonl. Raises StoreError if it can't be read."""
    return read_lines(file, what="samples")


def select(
    samples: Sequence[Sample],
    *,
    only: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
) -> list[Sample]:
    """Those of one kind (a name in KINDS) and one split, at most `limit`; seed: in an order drawn with it.

    Raises ConfigError for an unknown word, DataError if there is none of that kind.
    """
    splits = list(dict.fromkeys(sample["split"] for sample in samples))
    problems = []
    if only is not None and only not in KINDS:
        problems.append(f"--only {only}: choose among {', '.join(KINDS)}")
    if split is not None and split not in ("test", "train"):
        problems.append(f"--split {split}: choose test or train")
    if limit is not None and limit < 1:
        problems.append(f"--limit {limit}: give 1 or more")
    if problems:
        raise ConfigError(problems)
    found = [
        sample for sample in samples if split in (None, sample["split"]) and (only is None or KINDS[only][1](sample))
    ]
    if not found:
        have = [f"{one}: {_counted(counts(samples, one))}" for one in splits]
        wanted = {"--only": only, "--split": split}
        told = " ".join(f"{option} {word}" for option, word in wanted.items() if word is not None)
        fix = "choose another kind (--only) or another split (--split)"
        if split == "train":
            fix = "students answer test questions only; of train there is what a teacher wrote, if the run has one"
        raise DataError(
            f"no sample is of that kind: {told or 'the run has none'}", where="; ".join(have) or None, fix=fix
        )
    if seed is not None:
        random.Random(seed).shuffle(found)
    return found if limit is None else found[:limit]


def counts(samples: Iterable[Sample], split: str | None = None) -> dict[str, int]:
    """How many samples there are of each kind, and in all; kinds that there are none of are left out."""
    chosen = [sample for sample in samples if split in (None, sample["split"])]
    found = {name: sum(is_of(sample) for sample in chosen) for name, (_, is_of) in KINDS.items()}
    return {"all": len(chosen), **{name: number for name, number in found.items() if number}}


def _counted(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in numbers.items())


# on the terminal ---------------------------------------------------------------------------------------------------


def show(console: Console, chosen: Sequence[Sample], samples: Sequence[Sample]) -> None:
    """Print the chosen samples, then how many of each kind the run has."""
    for sample in chosen:
        console.print(Rule(_head(sample), align="left", characters="-"))
        console.print(_body(sample))
    console.print(Rule(Text(f"{len(chosen)} of {len(samples)} questions shown"), align="left", characters="-"))
    console.print(_count_table(samples))


def _head(sample: Sample) -> Text:
    names = ["right", "wrong", "no_answer", "bad_format", "incomplete", "contains"]
    told = [KINDS[name][0] for name in names if KINDS[name][1](sample)]
    head = f"{sample['split']} {sample['id']}" + (f": {', '.join(told)}" if told else "")
    return Text(head, style=_style(sample["correct"]))


def _body(sample: Sample) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    rows: list[tuple[str, RenderableType]] = [
        ("question", Text(visible(sample["question"]))),
        ("gold", Text(visible(sample["answer"]))),
    ]
    for one in sample["teacher"]:
        rows.append((f"teacher {one['completion_index'] + 1}", Text(visible(_written(one)))))
        rows.append(("", _verdict(one, dropped=one["why"])))
    if answered(sample):
        rows += [("student", Text(visible(sample["text"].strip()))), ("", _verdict(sample))]
    for label, cell in rows:
        grid.add_row(Text(label, style="dim"), cell)
    return grid


def _written(one: Mapping[str, Any]) -> str:
    """A teacher's rationale, and what it gave as the answer when it was asked for it."""
    rationale, completion = str(one["rationale"]).strip(), str(one["completion"]).strip()
    if completion in ("", rationale) or completion.startswith(rationale):
        return completion or rationale
    return f"{rationale} [...] {completion}"


def _verdict(one: Mapping[str, Any], dropped: str | None = None) -> Text:
    told = "no answer" if one["prediction"] is None else f"answer {visible(one['prediction'])}"
    told += ": right" if one["correct"] else ": wrong"
    if dropped is not None:
        told += f"; dropped: {dropped}"
    return Text(f"-> {told}", style=_style(one["correct"]))


def _style(correct: bool | None) -> str:
    return "" if correct is None else "green" if correct else "red"


def _count_table(samples: Sequence[Sample]) -> Table:
    splits = {split: counts(samples, split) for split in dict.fromkeys(sample["split"] for sample in samples)}
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("", *splits, "--only"):
        table.add_column(column, justify="right" if column in splits else "left")
    table.add_row("questions", *(str(found["all"]) for found in splits.values()), "")
    for name, (told, _) in KINDS.items():
        numbers = [found.get(name, 0) for found in splits.values()]
        if any(numbers):
            table.add_row(told, *(str(number) if number else "" for number in numbers), name)
    return table


def json_lines(samples: Iterable[Sample]) -> str:
    """One sample a line, in ASCII: what is not is escaped."""
    return "".join(f"{json.dumps(sample)}\n" for sample in samples)


# Weights & Biases --------------------------------------------------------------------------------------------------

COLUMNS = (
    *("split", "id", "question", "gold", "rationale", "teacher_prediction", "teacher_right", "rationales", "dropped"),
    *("text", "prediction", "right", "contains_answer", "correct_format", "complete"),
)


def tables(samples: Sequence[Sample]) -> tuple[str, list[str], list[list[Any]]]:
    """(name, columns, rows) for `Tracker.table`: at most 200 questions, the student's errors first, then the teacher's.

    Of the teacher's rationales the first is shown, with why it was dropped; `rationales` says how many there are.
    """
    ordered = sorted(
        samples, key=lambda one: (not answered(one), bool(one["correct"]), not KINDS["teacher_wrong"][1](one))
    )
    rows = []
    for sample in ordered[:TRACKED_ROWS]:
        first = sample["teacher"][0] if sample["teacher"] else {}
        rows.append(
            [
                *(sample["split"], sample["id"], sample["question"], sample["answer"]),
                *(first.get(name) for name in ("rationale", "prediction", "correct")),
                *(len(sample["teacher"]), first.get("why")),
                *(sample[name] for name in ("text", "prediction", "correct")),
                *(sample[name] for name in ("contains_answer", "correct_format", "complete")),
            ]
        )
    return "samples", list(COLUMNS), rows
