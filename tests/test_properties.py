"""What holds for any input: parsers, fingerprints, batches, layer maps, draws, readers, configurations.

The examples are the same on every machine and every day (`derandomize`).
"""

from __future__ import annotations

import csv
import io
import json
import string
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from kdlab import compose
from kdlab.data import answers, corruption, rows, tasks
from kdlab.data.answers import Form
from kdlab.data.batches import IGNORED, Batches, EncodedSplit
from kdlab.data.delimited import plain_rows, quoted_rows
from kdlab.data.pairs import PairRows
from kdlab.data.sequences import Sequences
from kdlab.errors import ConfigError, DataError
from kdlab.graph import Stage, canonical
from kdlab.objectives.layer_map import layer_pairs
from kdlab.rationales.recorded import TEMPLATES
from lab import composed
from writers import table

settings.register_profile(
    "kdlab",
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("kdlab")

# Answers

FORMS = [
    Form(kind="number"),
    Form(kind="number", compare="number"),
    Form(kind="choice", choices="ABCDE"),
    Form(kind="choice", choices="]^-"),
    Form(kind="yes_no"),
    Form(kind="text", cleanse=True),
]
PIECES = [
    *("The answer is", "Therefore, the answer is", "-->", "\nQ:", "\n", "\r", " ", "(A)", "A or B", "yes", "No."),
    *("$1,234.50", "-", "−3", ".5", "1/2", "=", "%", "1e5", "٣٤", "½", "²", "𝟙", "9" * 400, "\u2028", "\0", "İ", "ß"),
]
SAID = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=8).map("".join)
STARTS = ["3.50", "-1,000", ".5", "٣٤", "= 7", "(B)", "A", "yes", "No", "«some» Words", "007"]
ANNOUNCED = st.builds("{}{}{}".format, st.sampled_from(["The answer is ", "--> "]), st.sampled_from(STARTS), SAID)


@settings(max_examples=300)
@given(
    text=SAID | ANNOUNCED,
    form=st.sampled_from(FORMS),
    template=st.sampled_from(TEMPLATES),
    parser=st.sampled_from(answers.PARSERS),
)
def test_any_completion_is_parsed(text: str, form: Form, template: str, parser: str) -> None:
    found = answers.parse(text, template=template, form=form, parser=parser)
    assert found == answers.parse(text, template=template, form=form, parser=parser)
    assert (found.prediction is None) == (not found.candidates)
    assert found.prediction is None or found.prediction in found.candidates
    if form.kind == "yes_no":
        assert set(found.candidates) <= {"yes", "no"}
    if form.kind == "choice":
        assert all(letter in (form.choices or "") for letter in found.candidates)


@given(text=SAID, answer=SAID, form=st.sampled_from(FORMS), parser=st.sampled_from(answers.PARSERS))
def test_any_completion_is_judged(text: str, answer: str, form: Form, parser: str) -> None:
    try:
        found = answers.judge(text, answer, template="zs_cot", form=form, parser=parser)
    except DataError:
        assert form.compare == "number" and parser == "official"
        return
    assert not found.correct or found.contains_answer
    assert not found.correct or answers.can_be_right(answer, form, parser=parser) or form.compare == "string"


@given(
    text=ANNOUNCED,
    form=st.sampled_from(FORMS),
)
def test_a_strict_answer_stays_what_it_is(text: str, form: Form) -> None:
    """Read once more, an answer in its normal form is itself."""
    once = answers.parse(text, template="zs_cot", form=form, parser="strict").prediction
    if once is not None:
        assert answers.gold(once, form, parser="strict") == once
    normal = answers.gold(text, form, parser="strict")
    assert answers.gold(normal, form, parser="strict") == normal


@given(
    whole=st.integers(-(10**12), 10**12),
    cents=st.integers(0, 99),
    comma=st.booleans(),
    money=st.sampled_from(["", "$"]),
)
def test_a_number_is_read_however_it_is_written(whole: int, cents: int, comma: bool, money: str) -> None:
    assume(whole or not cents)
    digits = f"{abs(whole):,}" if comma else str(abs(whole))
    written = f"{'-' if whole < 0 else ''}{money}{digits}.{cents:02d}"
    plain = f"{whole}.{cents:02d}".rstrip("0").rstrip(".")
    found = answers.parse(f"The answer is {written}.", template="zs_cot", form=FORMS[0], parser="strict")
    assert found.prediction == plain
    said = f"So it is. The answer is {written}."
    for form, parser in ((FORMS[0], "strict"), (FORMS[1], "official")):
        if parser == "strict" or not (money or (comma and abs(whole) > 999)):
            assert answers.judge(said, plain, template="zs_cot", form=form, parser=parser).correct


# Fingerprints

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
SETTINGS = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)


def alike(one: Any, other: Any) -> bool:
    """Equal in type and value; numbers are those that JSON writes apart."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(repr(one) == repr(other))


def backwards(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: backwards(inner) for key, inner in reversed(value.items())}
    return [backwards(inner) for inner in value] if isinstance(value, list) else value


def fingerprint(values: dict[str, Any], **more: Any) -> str:
    return Stage("kdlab.stages.x:x", "x", values=values, **more).fingerprint


@given(one=SETTINGS, other=SETTINGS)
@example(one={"a": 1}, other={"a": 1.0})
@example(one={"a": 0.0}, other={"a": -0.0})
@example(one={"a": True}, other={"a": 1})
@example(one={"a": None}, other={})
@example(one={"a": "1"}, other={"a": 1})
@example(one={"a": []}, other={"a": {}})
@example(one={"a": [1, 2]}, other={"a": [2, 1]})
@example(one={"a": "é"}, other={"a": "e\u0301"})
@example(one={"a": 1e16}, other={"a": 1e16 + 2})
def test_fingerprints_are_equal_where_values_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (fingerprint(one) == fingerprint(other)) == alike(one, other)
    assert fingerprint(one) == fingerprint(backwards(one)) == fingerprint(json.loads(canonical(one)))


@given(values=SETTINGS)
def test_neighbours_have_other_fingerprints(values: dict[str, Any]) -> None:
    leaf = Stage("kdlab.stages.x:y", "y")
    twins = [
        fingerprint(values),
        fingerprint({"": values, "other": 0}),
        fingerprint(values, version=2),
        fingerprint(values, inputs={"data": leaf}),
        fingerprint(values, inputs={"other": leaf}),
        Stage("kdlab.stages.x:z", "x", values=values).fingerprint,
    ]
    assert len(set(twins)) == len(twins)
    assert fingerprint(values, of_machine=True, after=(leaf,), places={"a": "/x"}) == twins[0]


# Batches

RAGGED = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=6), min_size=1, max_size=14)


def split(
    tokens: Sequence[Sequence[int]], labels: Sequence[int | None], ids: Sequence[int] | None = None
) -> EncodedSplit:
    columns = {
        "id": pa.array(ids if ids is not None else range(len(tokens)), pa.int64()),
        "input_ids": pa.array(tokens, pa.list_(pa.int32())),
        "token_type_ids": pa.array([[row[0] % 2] * len(row) for row in tokens], pa.list_(pa.int8())),
        "label": pa.array(labels, pa.int64()),
    }
    return EncodedSplit(pa.table(columns))


@given(tokens=RAGGED, more=st.integers(0, 3), data=st.data())
def test_collation_loses_nothing(tokens: list[list[int]], more: int, data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(0, 3) | st.none(), min_size=len(tokens), max_size=len(tokens)))
    chosen = data.draw(st.lists(st.integers(0, len(tokens) - 1), min_size=1, max_size=6))
    width = max(len(tokens[row]) for row in chosen) + more
    batch = split(tokens, labels).collate(np.array(chosen), pad_token_id=0, width=width)
    for place, row in enumerate(chosen):
        length = len(tokens[row])
        assert batch["input_ids"][place].tolist() == tokens[row] + [0] * (width - length)
        assert batch["attention_mask"][place].tolist() == [1] * length + [0] * (width - length)
        assert batch["token_type_ids"][place].tolist() == [tokens[row][0] % 2] * length + [0] * (width - length)
    assert batch["labels"].tolist() == [IGNORED if labels[row] is None else labels[row] for row in chosen]
    assert batch["index"].tolist() == chosen


@given(prompts=RAGGED, both=st.booleans(), data=st.data())
def test_prompts_and_targets_lose_nothing(prompts: list[list[int]], both: bool, data: st.DataObject) -> None:
    inner = st.lists(st.integers(1, 99), min_size=1, max_size=5)
    targets = data.draw(st.lists(inner, min_size=len(prompts), max_size=len(prompts)))
    found = Sequences(table(prompts, targets), encoder_decoder=both)
    numbers = np.arange(len(prompts))[::-1]
    batch = found.collate(numbers, pad_token_id=0, width=int(found.lengths.max()))
    for place, row in enumerate(numbers):
        asked = [token for token in batch["labels"][place].tolist() if token != IGNORED]
        mask = batch["attention_mask"][place].bool()
        assert asked == targets[row]
        assert batch["input_ids"][place][mask].tolist() == prompts[row] + ([] if both else targets[row])
        assert not batch["input_ids"][place][~mask].any()


@given(tokens=RAGGED, data=st.data())
def test_pairs_are_of_one_row(tokens: list[list[int]], data: st.DataObject) -> None:
    count = len(tokens)
    here = data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True))
    there = data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True))
    source = split([tokens[row] for row in here], here, here)
    target = split([[*tokens[row], 100] for row in there], there, there)
    shared = sorted(set(here) & set(there))
    if not shared:
        with pytest.raises(DataError, match="no row in common"):
            PairRows(source, target)
        return
    pairs = PairRows(source, target)
    batch = pairs.collate(np.arange(len(pairs)), pad_token_id=0, width=int(pairs.lengths.max()))
    assert batch["labels"].tolist() == shared
    texts = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert texts == [tokens[row] for row in shared] + [[*tokens[row], 100] for row in shared]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=60),
    size=st.integers(1, 9),
    bucket=st.integers(1, 4),
    world=st.integers(1, 3),
    micro=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_every_row_comes_once_an_epoch(
    lengths: list[int], size: int, bucket: int, world: int, micro: int, seed: int, shuffle: bool, drop_last: bool
) -> None:
    given_rows = split([[1] * length for length in lengths], [0] * len(lengths))
    named: dict[str, Any] = {"batch_size": size, "seed": seed, "shuffle": shuffle, "drop_last": drop_last}
    named |= {"bucket": bucket, "pad_token_id": 0, "world": world, "micro_batch": micro}
    if drop_last and len(lengths) < size:
        with pytest.raises(DataError, match="no whole batch"):
            Batches(given_rows, rank=0, **named)
        return
    processes = [list(Batches(given_rows, rank=rank, **named).epoch(1)) for rank in range(world)]
    whole, left = divmod(len(lengths), size)
    steps = whole + (1 if left and not drop_last else 0)
    assert {len(epoch) for epoch in processes} == {steps}
    seen: list[int] = []
    for step in range(steps):
        parts = [micros for epoch in processes for micros in epoch[step]]
        assert len({len(epoch[step]) for epoch in processes}) == 1  # all processes have equally many passes
        real = [part for part in parts if part["real"]]
        assert sum(part["share"] for part in real) == pytest.approx(1)
        assert all(micro == 0 or len(part["index"]) <= micro for part in parts)
        assert all(part["input_ids"].shape[1] == max(lengths[row] for row in part["index"].tolist()) for part in parts)
        seen += [row for part in real for row in part["index"].tolist()]
    assert len(seen) == len(set(seen)) == (whole * size if drop_last else len(lengths))
    middle = steps // 2
    later = list(Batches(given_rows, rank=0, **named).epoch(1, middle))
    assert [[part["index"].tolist() for part in step] for step in later] == [
        [part["index"].tolist() for part in step] for step in processes[0][middle:]
    ]


# Layer maps


@given(
    student=st.integers(1, 12),
    teacher=st.integers(1, 24),
    name=st.sampled_from(["last", "uniform", "skip", "top", "last_to_all", "transport"]),
)
def test_layer_maps(student: int, teacher: int, name: str) -> None:
    try:
        pairs = layer_pairs(name, student, teacher)
    except ConfigError:
        alone = name in ("skip", "top") and student == 1
        assert alone or (name == "top" and teacher < student) or (name in ("uniform", "skip") and teacher % student)
        return
    assert pairs and len(set(pairs)) == len(pairs)
    assert all(1 <= ours <= student and 1 <= theirs <= teacher for ours, theirs in pairs)
    assert pairs == sorted(pairs)
    learners = {ours for ours, _ in pairs}
    if name in ("uniform", "last_to_all", "transport"):
        assert learners == set(range(1, student + 1))
    if name in ("skip", "top"):
        assert learners == set(range(1, student))
    if name in ("uniform", "skip", "top"):
        assert [theirs for _, theirs in pairs] == sorted({theirs for _, theirs in pairs})
    if name in ("last", "uniform"):
        assert pairs[-1] == (student, teacher)
    if name == "transport":
        assert {theirs for _, theirs in pairs} == set(range(1, teacher + 1))


@given(pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)) | st.text(max_size=5), max_size=5))
@example(pairs=["1-2-3", "-1-2", "²-1", "1 - 2", "٣-٤", "9" * 5000 + "-1"])
def test_given_pairs_are_taken_or_named(pairs: list[Any]) -> None:
    words = [pair if isinstance(pair, str) else f"{pair[0]}-{pair[1]}" for pair in pairs]
    try:
        found = layer_pairs("pairs", 4, 5, pairs=words)
    except ConfigError as error:
        assert len(error.problems) >= 1
        return
    assert len(found) == len(words) == len(set(found))
    assert all(1 <= ours <= 4 and 1 <= theirs <= 5 for ours, theirs in found)


# Draws

LABELS = st.lists(st.integers(0, 3), min_size=2, max_size=60).map(lambda found: np.array(found, dtype=np.int64))
SEEDS = st.integers(0, 2**32 - 1)


@given(labels=LABELS, examples=st.integers(1, 70), balanced=st.booleans(), seed=SEEDS)
def test_few(labels: np.ndarray, examples: int, balanced: bool, seed: int) -> None:
    draw = {"examples": examples, "balanced": balanced, "regression": False, "seed": seed}
    sizes = np.bincount(labels, minlength=4)
    if balanced and examples < np.count_nonzero(sizes):
        with pytest.raises(DataError):
            corruption.few(labels, **draw)
        return
    chosen = corruption.few(labels, **draw)
    assert len(chosen) == min(examples, len(labels)) and np.all(np.diff(chosen) > 0)
    assert np.array_equal(chosen, corruption.few(labels, **draw))
    if balanced:
        taken = np.bincount(labels[chosen], minlength=4)
        most = taken.max()
        assert all(taken[number] >= most - 1 or taken[number] == sizes[number] for number in range(4))


@given(labels=LABELS, ratio=st.floats(1, 1000), seed=SEEDS)
def test_imbalance(labels: np.ndarray, ratio: float, seed: int) -> None:
    chosen = corruption.imbalance(labels, ratio=ratio, seed=seed)
    assert np.all(np.diff(chosen) > 0)
    before, after = (np.bincount(found, minlength=4) for found in (labels, labels[chosen]))
    assert np.array_equal(before > 0, after > 0)
    order = np.argsort(-before, kind="stable")
    assert after[order[0]] == before[order[0]]
    if ratio == 1:
        assert np.array_equal(before, after)
    classes = np.count_nonzero(before)
    assert all(
        after[number] <= max(before.max() * ratio ** (-k / max(classes - 1, 1)) + 1e-6, 1)
        for k, number in enumerate(order[:classes])
    )


@given(labels=LABELS, low=st.floats(0, 0.99), high=st.floats(0, 0.99), seed=SEEDS)
def test_noise(labels: np.ndarray, low: float, high: float, seed: int) -> None:
    low, high = sorted((low, high))
    little, some = corruption.noise(labels, rate=low, classes=4, seed=seed)
    much, many = corruption.noise(labels, rate=high, classes=4, seed=seed)
    assert set(little.tolist()) <= set(range(4))
    assert np.array_equal(some, little != labels) and np.array_equal(many, much != labels)
    assert np.all(many[some]) and np.array_equal(little[some], much[some])  # what is wrong stays as wrong
    targets = labels.astype(np.float64)
    shuffled, _ = corruption.noise(targets, rate=high, classes=None, seed=seed)
    assert set(shuffled) <= set(targets)


# Readers

CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
CELLS = st.lists(st.tuples(CELL, st.sampled_from(["yes", "no"])), min_size=1, max_size=6)


@given(
    cells=st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=6),
    always=st.booleans(),
    tabs=st.booleans(),
)
def test_delimited_round_trip(cells: list[list[str]], always: bool, tabs: bool) -> None:
    file, delimiter = io.StringIO(newline=""), "\t" if tabs else ","
    csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL if always else csv.QUOTE_MINIMAL).writerows(cells)
    file.seek(0)
    assert [row for _, row in quoted_rows(file, "x", delimiter)] == cells


@given(
    cells=st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters='\t\r\n"'), max_size=9),
            min_size=2,
            max_size=3,
        ),
        max_size=6,
    )
)
def test_plain_lines_round_trip(cells: list[list[str]]) -> None:
    assert [row for _, row in plain_rows("\t".join(row) + "\r\n" for row in cells)] == cells


@given(cells=CELLS, suffix=st.sampled_from([".csv", ".jsonl"]), mark=st.booleans())
def test_files_round_trip(cells: list[tuple[str, str]], suffix: str, mark: bool, tmp_path: Path) -> None:
    """What training reads of a file, and what `kdlab predict` does, is what was written."""
    path = tmp_path / f"train{suffix}"
    if suffix == ".csv":
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("text", "label"), *cells])
        content = text.getvalue()
    else:
        content = "".join(f"{json.dumps({'text': cell, 'label': label})}\n" for cell, label in cells)
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + content.encode())
    raw = tasks.read_raw({"path": str(path)}, "train", text=["text"], label="label")
    assert raw.columns["text"].to_pylist() == [cell for cell, _ in cells]
    canonical_rows = tasks.canonical(raw, text=["text"], label="label", labels=["no", "yes"], kind="classification")
    assert canonical_rows["label"].to_pylist() == [int(label == "yes") for _, label in cells]
    bad: list[str] = []
    found = rows.read_rows(path, suffix[1:], ["text"], bad=lambda line, why: bad.append(why))
    assert [row.texts[0] for row in found] == [cell for cell, _ in cells] and not bad


NAMES = (
    st.text(string.ascii_letters + string.digits + "-_. éß猫", min_size=1, max_size=6)
    .map(str.strip)
    .filter(lambda name: name not in ("", "-1"))
)


@given(names=st.lists(NAMES, min_size=2, max_size=5, unique=True), data=st.data())
def test_labels_are_what_they_are_called(names: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=10))
    around = data.draw(st.sampled_from(["", " "]))
    column = pa.array([f"{around}{name}{around}" for name in chosen], pa.string())
    raw = tasks.Raw(columns={"text": column, "label": column}, available=["text", "label"], where="x")
    labels = tasks.canonical(raw, text=["text"], label="label", labels=names, kind="classification")["label"]
    assert [names[number] for number in labels.to_pylist()] == chosen
    assert set(tasks.find_labels(raw, "label")) == set(chosen)


# Configurations

BASE = composed("method=cr_ild task=demo/nli model=tiny tracking=none")


@settings(max_examples=12)
@given(
    seed=SEEDS,
    lr=st.floats(0, 1, exclude_min=True),
    epochs=st.integers(0, 10**6),
    label=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
        lambda text: "${" not in text
    ),
    config=st.dictionaries(st.sampled_from(["layer_norm_eps", "classifier_dropout"]), st.floats(0, 1) | st.none()),
)
@example(seed=0, lr=1e-300, epochs=0, label="0", config={})
@example(seed=0, lr=5e-324, epochs=0, label="null", config={})
@example(seed=0, lr=0.1, epochs=0, label="1e3", config={"layer_norm_eps": -0.0})
@example(seed=0, lr=0.1, epochs=0, label="\\", config={})
def test_a_configuration_is_what_run_json_says(
    seed: int, lr: float, epochs: int, label: str, config: dict[str, Any]
) -> None:
    run = json.loads(json.dumps(asdict(BASE)))
    run["seed"], run["method"]["logits"]["lr"], run["method"]["logits"]["epochs"] = seed, lr, epochs
    run["task"]["label"], run["model"]["student"]["config"] = label, config
    again = compose.further(json.loads(json.dumps(run)), [], open_to=(), check=lambda run, paths: ())
    assert json.dumps(asdict(again), sort_keys=True) == json.dumps(run, sort_keys=True)
