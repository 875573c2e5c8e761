"""Reads the questions of a reasoning task from the Hub, local files, a folder of reasoning-teacher or a generator.

A question is a dict: `id` (its place in the whole data set: train's rows, then test's), `question` (with the options of
a choice), `answer` (as the data set has it, but a choice is its letter, true and false are yes and no), and where
they exist `rationale` (the data set's own) and `facts` (what an embedded task knows of it).

Questions of reasoning-teacher's folders are taken character for character. Those of other sources are built as its
notebooks/old/Data Preparation.ipynb (at de0a327) builds them.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdlab.data import tasks
from kdlab.data.answers import Form, can_be_right
from kdlab.data.archive import dataset_file, read_dataset
from kdlab.errors import DataError

DEMOS = {  # modules with questions(split, generate) -> list of rows with question, answer and facts
    "coin_flip": "kdlab.data.demo.coin_flip",
    "last_letter": "kdlab.data.demo.last_letter",
    "shuffled_objects": "kdlab.data.demo.shuffled_objects",
    "arithmetic": "kdlab.data.demo.arithmetic",
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_YES_NO = {"yes": "yes", "no": "no", "true": "yes", "false": "no"}

Place = Callable[[int], str]  # from a row's number to what the reader of an error has to open


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The whole data set, or the part of it that the source has."""

    rows: list[dict[str, Any]]
    stems: list[str]  # the questions without suffix and options, where the source has them apart
    train: int | None  # so many rows are of the source's own train split, the first; None: it has one split only
    choices: str | None  # the letters of a choice
    where: str


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Rows of one split as the source has them; lists of equal length."""

    texts: list[str]
    answers: list[str | None]
    options: list[Any]  # None: there are none
    rationales: list[str | None]
    place: Place
    where: str
    ids: list[int] | None = None  # None: the places in the data set
    facts: list[Any] | None = None


def read_questions(
    source: Mapping[str, Any],
    *,
    splits: Mapping[str, Any],
    text: Sequence[str],
    label: str,
    answer: str,
    choices: str | None,
    options: str | None,
    suffix: str,
    after: str | None,
    compare: str,
    generate: Mapping[str, int] | None,
) -> Questions:
    """All questions of a task; the arguments are the fields of `config.Task`.

    splits: train, and test or None; a single local file and a folder of reasoning-teacher have no test of their own.
    Of the latter only `answer`, `choices` and `compare` are used: its columns are fixed, its options in the question.

    Raises DataError for questions and answers that can't be used, HubError where the Hub can't give them.
    """
    if source.get("demo"):
        assert generate is not None
        parts = [_read_demo(str(source["demo"]), split, generate) for split in ("train", "test")]
    elif source.get("path") and source.get("key"):
        file = dataset_file(Path(source["path"]), source["key"])
        parts, suffix, options, after = [_read_archive(file, source["key"])], "", None, None
    else:
        parts = _read_table(source, splits, text=text, label=label, options=options)
    rows = [(part, row) for part in (_answers_apart(part, after) for part in parts) for row in range(len(part.texts))]
    stems = [_filled(part, row) for part, row in rows]
    answers = [_given(part, row) for part, row in rows]
    listed: list[list[str]] | None = None
    if answer == "yes_no":
        answers = [_YES_NO[given.lower()] if given.lower() in ("true", "false") else given for given in answers]
    elif answer == "choice" and options is None:
        answers = [_letter(given) or given for given in answers]
    elif answer == "choice":
        read = [_options(part.options[row], part.place(row)) for part, row in rows]
        choices = choices or LETTERS[: max(len(texts) for _, texts in read)]
        listed = [texts for _, texts in read]
        answers = _lettered(answers, read, choices, [(part.place, row) for part, row in rows])
    form = Form(kind=answer, choices=choices, compare=compare)
    made: list[dict[str, Any]] = []
    for number, (part, row) in enumerate(rows):
        _check_answer(answers[number], form, part.place(row))
        question = stems[number] + suffix + ("" if listed is None else _listed(listed[number]))
        made.append(
            {"id": number if part.ids is None else part.ids[row], "question": question, "answer": answers[number]}
            | ({"rationale": part.rationales[row]} if part.rationales[row] else {})
            | ({} if part.facts is None else {"facts": part.facts[row]})
        )
    return Questions(
        rows=made,
        stems=stems,
        train=len(parts[0].texts) if len(parts) > 1 else None,
        choices=choices if answer == "choice" else None,
        where=" and ".join(part.where for part in parts),
    )


# Folders of reasoning-teacher


def _read_archive(file: Path, key: str) -> _Part:
    rows = sorted(read_dataset(file, key), key=lambda row: int(row["sample_index"]))
    ids = [int(row["sample_index"]) for row in rows]
    where = str(file)

    def place(row: int) -> str:
        return f"{where}, sample_index {ids[row]}"

    def column(name: str) -> list[str | None]:
        values: list[str | None] = []
        for number, row in enumerate(rows):
            value = row.get(name)
            if value is not None and not isinstance(value, str | int | float):
                raise DataError(f"The {name} is no text but {type(value).__name__}.", where=place(number))
            try:
                values.append(_text(value))
            except UnicodeEncodeError as error:
                raise DataError(f"The {name} holds half of a surrogate pair.", where=place(number)) from error
        return values

    return _Part(
        texts=[value or "" for value in column("question")],
        answers=column("answer"),
        options=[None] * len(rows),
        rationales=column("rationale"),
        place=place,
        where=where,
        ids=ids,
    )


def _text(value: str | float | None) -> str | None:
    if value is None or value != value:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    text.encode("utf-8")
    return text


# Embedded tasks


def _read_demo(name: str, split: str, generate: Mapping[str, int]) -> _Part:
    if name not in DEMOS:
        raise DataError(
            f"There is no embedded reasoning task {name!r}. There are: {', '.join(DEMOS)}.", where="task.source.demo"
        )
    rows = importlib.import_module(DEMOS[name]).questions(split, generate)
    where = f"embedded task {name}, split {split}"
    return _Part(
        texts=[row["question"] for row in rows],
        answers=[row["answer"] for row in rows],
        options=[None] * len(rows),
        rationales=[None] * len(rows),
        place=lambda row: f"{where}, row {row}",
        where=where,
        facts=[row["facts"] for row in rows],
    )


# The Hub and local files


def _read_table(
    source: Mapping[str, Any], splits: Mapping[str, Any], *, text: Sequence[str], label: str, options: str | None
) -> list[_Part]:
    names = [splits["train"]]
    if splits.get("test") and not tasks.is_single_file(source):
        names.append(splits["test"])
    further = [*([] if options is None else [options]), *({"rationale"} - {label, options, *text})]
    parts = []
    for name in names:
        raw = tasks.read_raw(source, name, text=text, label=label, further=further)
        columns = [tasks.strings(raw, column, "task.text") for column in text]
        if options is not None:
            tasks.require_column(raw, options, "task.options")
        rationales: list[str | None] = [None] * len(columns[0])
        if "rationale" in raw.columns:
            with suppress(DataError):  # a column of that name may hold anything
                rationales = tasks.strings(raw, "rationale", "rationale")
        parts.append(
            _Part(
                texts=[_joined(values) for values in zip(*columns, strict=True)],
                answers=tasks.strings(raw, label, "task.label"),
                options=[None] * len(columns[0]) if options is None else raw.columns[options].to_pylist(),
                rationales=rationales,
                place=raw.place,
                where=raw.where,
            )
        )
    return parts


def _joined(values: Sequence[str | None]) -> str:
    """A question of several columns: SVAMP's body and its question."""
    return " ".join(filter(None, ((value or "").strip() for value in values)))


# Answers


def _answers_apart(part: _Part, after: str | None) -> _Part:
    """With `after`: the answer is what follows the last one in its column, the rationale what stands before it."""
    if after is None:
        return part
    answers: list[str | None] = []
    rationales: list[str | None] = []
    for row, value in enumerate(part.answers):
        before, mark, answer = (value or "").rpartition(after)
        if value and not mark:
            raise DataError(
                f"The answer has no {after!r}, behind which it should stand: {_short(value)!r}.",
                where=part.place(row),
                fix="Correct the row, or set task.after=null.",
            )
        answers.append(answer)
        rationales.append(before.strip())
    return replace(part, answers=answers, rationales=rationales)


def _filled(part: _Part, row: int) -> str:
    question = part.texts[row]
    if not question.strip():
        raise DataError(
            "The question is empty.", where=part.place(row), fix="Name the columns of the question in task.text."
        )
    return question


def _given(part: _Part, row: int) -> str:
    answer = (part.answers[row] or "").strip()
    if not answer:
        raise DataError(
            "The answer is missing.",
            where=part.place(row),
            fix="Give it, or leave the row out; where answers are hidden, name another split in task.splits.",
        )
    return answer


def _lettered(
    found: Sequence[str],
    read: Sequence[tuple[list[str], list[str]]],
    letters: str,
    places: Sequence[tuple[Place, int]],
) -> list[str]:
    """The letter of each answer, which all rows write in the same way: as letter, as text, or as number from 0."""
    for (place, row), (_, texts) in zip(places, read, strict=True):
        if len(texts) > len(letters):
            raise DataError(
                f"There are {len(texts)} options, and only the letters {letters}.",
                where=place(row),
                fix=f"Give more: task.choices={LETTERS[: len(texts)]}.",
            )
    ways: list[list[int | None]] = [[], [], []]
    for value, (names, texts) in zip(found, read, strict=True):
        letter = value if value in names else _letter(value)
        ways[0].append(names.index(letter) if letter in names else None)
        ways[1].append(texts.index(value) if texts.count(value) == 1 else None)
        ways[2].append(int(value) if re.fullmatch(r"\d{1,2}", value) and int(value) < len(texts) else None)
    whole = [way for way in ways if None not in way]
    if not whole:
        most = max(ways, key=lambda way: len(way) - way.count(None))
        row = most.index(None)
        place, number = places[row]
        raise DataError(
            f"The answer {_short(found[row])!r} is none of the options{_listed(read[row][1], lead='')}",
            where=place(number),
            fix="Correct it. Answers are letters, the texts of options, or their numbers from 0; all in the same way.",
        )
    if whole[0] is not ways[0] and len(whole) == 2 and whole[0] != whole[1]:
        row = next(row for row, (text, number) in enumerate(zip(*whole, strict=True)) if text != number)
        place, number = places[row]
        raise DataError(
            f"The answer {found[row]!r} is the text of one option and the number of another.",
            where=place(number),
            fix="Write answers as letters: A, B, ...",
        )
    return [LETTERS[position] for position in whole[0] if position is not None]


def _letter(value: str) -> str | None:
    match = re.fullmatch(r"\(?([A-Z])\)?", value)
    return match[1] if match else None


def _options(value: Any, place: str) -> tuple[list[str], list[str]]:
    """(names, texts) of a row's options: a list of texts, {"label": [...], "text": [...]}, or {"A": ..., "B": ...}.

    In text files they are written as JSON. Letters before the texts ("A)21", "(A) 21") are cut off.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    names: list[Any] = []
    texts: Any = value
    if isinstance(value, Mapping) and set(value) == {"label", "text"}:
        names, texts = value["label"], value["text"]
    elif isinstance(value, Mapping):
        kept = {name: text for name, text in value.items() if text is not None}
        names, texts = list(kept), list(kept.values())
    fits = isinstance(texts, list) and isinstance(names, list) and 2 <= len(texts) <= len(LETTERS)
    if not fits or not all(isinstance(text, str | int | float) for text in texts):
        raise DataError(
            "The options are no list of 2 to 26 texts.",
            where=place,
            fix='Write them as ["...", "..."] or {"label": ["A", "B"], "text": ["...", "..."]}, or name another column'
            " in task.options.",
        )
    plain = [str(int(text) if isinstance(text, float) and text.is_integer() else text).strip() for text in texts]
    if all(re.match(r"\(?[A-Z]\)", text) for text in plain):
        plain = [re.sub(r"^\(?[A-Z]\)", "", text).strip() for text in plain]
    names = [str(name).strip() for name in names] or list(LETTERS[: len(plain)])
    if len(names) != len(plain) or len(set(names)) < len(names):
        raise DataError(f"The options have {len(plain)} texts and the labels {', '.join(names)}.", where=place)
    return names, plain


def _listed(options: Sequence[str], lead: str = " Answer choices") -> str:
    return f"{lead}: " + ", ".join(f"({LETTERS[n]}) {option}" for n, option in enumerate(options)) + "."


def _check_answer(answer: str, form: Form, place: str) -> None:
    """Refuse an answer that no completion can give, and that is of another kind than the task says."""
    if form.kind == "choice" and answer not in (form.choices or ""):
        raise DataError(
            f"The answer {_short(answer)!r} is none of the letters {form.choices}.",
            where=place,
            fix="Correct it, or set task.choices; options in a column of their own are named in task.options.",
        )
    if form.kind == "yes_no" and answer.lower() not in _YES_NO:
        raise DataError(
            f"The answer {_short(answer)!r} is neither yes nor no.",
            where=place,
            fix="Write yes, no, true or false, or set task.answer=text.",
        )
    if form.kind == "number" and not _is_number(answer, form):
        raise DataError(
            f"The answer {_short(answer)!r} is no number.",
            where=place,
            fix="Write digits alone (1,234.5), name what stands before them in task.after, or set task.answer=text.",
        )


def _is_number(answer: str, form: Form) -> bool:
    try:
        return can_be_right(answer, form)
    except DataError:
        return False


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[:length]}..."
