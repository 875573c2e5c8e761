"""Which stages a run's data has, what they share, and what tells them apart."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from kdlab import compose
from kdlab.config import Few, Imbalance, Noise, Source, Task
from kdlab.graph import Stage
from kdlab.methods.data import Data, conditions, data_stages
from kdlab.pins import Pinned, Pins

COMMIT = "task.source.revision=" + "0" * 40  # needs no look-up
PRETRAINED = {"teacher": Pinned({"id": "big", "revision": "1"}), "student": Pinned({"id": "small", "revision": "2"})}
NAMES = ("student", "teacher", "sets", "supplement")


def data_of(line: str = "", *, pretrained: bool = False) -> Data:
    """The stages for the embedded task, which has a test set, read with words or with two pretrained models."""
    words = ["task=demo/nli", "model=tiny", "method=l_ild", *shlex.split(line)]
    (job,) = compose.jobs(words).jobs
    if pretrained:
        job.run.model.tokenizer = "pretrained"
    models = PRETRAINED if pretrained else {"teacher": Pinned({}), "student": Pinned({})}
    return data_stages(job.run, Pins(), models, teacher_seed=42)


def prepared(stage: Stage | None) -> Stage:
    assert stage is not None
    return stage.inputs["data"]


def labels(data: Data) -> list[str]:
    """Of all stages, in the order in which they are found."""
    found: dict[str, None] = {}

    def visit(stage: Stage) -> None:
        for other in stage.inputs.values():
            visit(other)
        found[stage.label] = None

    for stage in (data.student, data.teacher, data.sets, data.supplement):
        if stage is not None:
            visit(stage)
    return list(found)


def changed(line: str, base: str = "", *, pretrained: bool = False) -> set[str]:
    """Which data is another one after a change of the command line."""
    before, after = data_of(base, pretrained=pretrained), data_of(f"{base} {line}", pretrained=pretrained)
    stages = [(name, getattr(before, name), getattr(after, name)) for name in NAMES]
    assert all((one is None) == (other is None) for _, one, other in stages)
    return {name for name, one, other in stages if one is not None and one.fingerprint != other.fingerprint}


def test_a_plain_run() -> None:
    data = data_of()
    assert data.teacher is data.student and data.supplement is None
    assert labels(data) == ["prepare", "tokenise", "prepare_sets", "tokenise_sets"]
    values = dict(prepared(data.student).values)
    assert values == {
        "source": {"demo": "nli", "config": None},
        "splits": {"train": "train", "dev": "validation"},
        "text": ["premise", "hypothesis"],
        "label": "label",
        "labels": ["entailment", "neutral", "contradiction"],
        "kind": "classification",
        "heldout": 0.1,
        "few": None,
        "imbalance": None,
        "noise": None,
        "dev_limit": None,
        "rows": None,
        "seed": 0,
    }
    assert prepared(data.sets).inputs == {"data": prepared(data.student)}
    assert prepared(data.student).notes == ()
    assert data_of("task.splits.test=null").sets is None


# what changes a number is in the identity, and nothing else


EVERYTHING = {"student", "teacher", "sets"}


@pytest.mark.parametrize(
    ("line", "base", "expected"),
    [
        ("seed=7", "", set()),
        ("seed=7", "task.imbalance.ratio=3 task.noise.rate=0.1", set()),
        ("task.few.balanced=false task.few.teacher=own", "task.few.examples=100 seed=42", set()),
        ("task.noise.teacher=noisy", "task.noise.rate=0.1", set()),
        ("seed=7", "task.few.examples=100", EVERYTHING),
        ("task.few.balanced=true", "task.few.examples=100", EVERYTHING),
        ("task.few.examples=100", "", EVERYTHING),
        ("task.imbalance.ratio=3", "", EVERYTHING),
        ("task.imbalance.seed=3", "task.imbalance.ratio=3", EVERYTHING),
        ("task.noise.rate=0.1", "", EVERYTHING),
        ("task.noise.seed=3", "task.noise.rate=0.1", EVERYTHING),
        ("task.noise.rate=0.2", "task.noise.rate=0.1 task.noise.teacher=clean", {"student", "sets"}),
        ("seed=7", "task.dev_limit=50", set()),
        ("task.heldout=0.2", "", EVERYTHING),
        ("debug=fast", "", EVERYTHING),
        ("task.splits.test=validation", "", {"sets"}),
    ],
)
def test_identity(line: str, base: str, expected: set[str]) -> None:
    assert changed(line, base) == expected


def test_settings_of_what_is_off_do_not_count() -> None:
    """Read from a file; the command line refuses them as keys without effect."""

    def fingerprints(task: Task) -> list[str]:
        (job,) = compose.jobs(["task=demo/nli", "model=tiny", "method=ft"]).jobs
        job.run.task = task
        data = data_stages(job.run, Pins(), {"student": Pinned({})}, teacher_seed=1)
        return [data.student.fingerprint, data.teacher.fingerprint]

    def task(**conditions: Any) -> Task:
        return Task(name="t", source=Source(demo="nli"), text=["premise", "hypothesis"], **conditions)

    off = task(few=Few(balanced=True, teacher="own"), imbalance=Imbalance(seed=3), noise=Noise(seed=3, teacher="clean"))
    assert fingerprints(off) == fingerprints(task())


def test_tasks_that_differ_in_their_sets_share_the_rest() -> None:
    one, other = data_of(f"task=glue/mnli {COMMIT}"), data_of(f"task=glue/ax {COMMIT}")
    assert one.student.fingerprint == other.student.fingerprint
    assert one.sets is not None and other.sets is not None and one.sets.fingerprint != other.sets.fingerprint
    assert set(prepared(one.sets).values["evaluations"]) == {"mismatched"}
    assert set(prepared(other.sets).values["evaluations"]) == {"mismatched", "ax"}


# a teacher with data of its own


OWN = "task.few.examples=100 task.few.teacher=own"
CLEAN = "task.noise.rate=0.3 task.noise.teacher=clean"


def test_a_teacher_with_examples_of_its_own() -> None:
    one, other = data_of(f"{OWN} seed=1"), data_of(f"{OWN} seed=2")
    assert labels(one)[:4] == ["prepare", "tokenise", "prepare_teacher", "tokenise_teacher"]
    assert prepared(one.student).values["seed"] == 1 and prepared(one.teacher).values["seed"] == 42
    assert prepared(one.teacher).fingerprint == prepared(other.teacher).fingerprint
    same = data_of(f"{OWN} seed=42")
    assert same.teacher is same.student
    assert prepared(same.student).fingerprint == prepared(one.teacher).fingerprint


def test_pretrained_tokenizers_let_all_seeds_share_the_teacher() -> None:
    found = {data_of(f"{OWN} seed={seed}", pretrained=True).teacher.fingerprint for seed in (1, 2, 42)}
    assert len(found) == 1
    values = data_of(f"{OWN} seed=1", pretrained=True).teacher.values
    assert values["tokenizer"] == {"id": "big", "revision": "1"}
    assert values["partner"] == {"id": "small", "revision": "2"}


def test_a_teacher_of_words_reads_with_the_words_of_the_student() -> None:
    data = data_of(f"{OWN} seed=1")
    assert data.teacher.values == {"tokenizer": None, "max_length": 32}
    assert data.teacher.inputs == {"data": prepared(data.teacher), "reader": data.student}
    assert data.sets is not None and data.sets.inputs["reader"] is data.student


def test_a_teacher_on_its_own_examples_serves_all_seeds_on_a_limited_dev() -> None:
    one, other = (data_of(f"{OWN} seed={seed} task.dev_limit=50") for seed in (1, 2))
    assert (prepared(one.student).values["seed"], prepared(one.teacher).values["seed"]) == (1, 42)
    assert prepared(one.teacher).fingerprint == prepared(other.teacher).fingerprint
    assert prepared(one.student).fingerprint != prepared(other.student).fingerprint


def test_a_teacher_with_clean_labels() -> None:
    data = data_of(f"{CLEAN} seed=1")
    assert prepared(data.student).values["noise"] == {"rate": 0.3, "seed": 0}
    assert prepared(data.teacher).values["noise"] is None
    assert prepared(data.teacher).fingerprint == prepared(data_of().student).fingerprint, "as without noise"
    assert data.teacher.fingerprint == data_of().student.fingerprint, "words of the same texts are the same"
    both = data_of(f"{CLEAN} {OWN} seed=1")
    assert both.teacher.inputs["reader"] is both.student
    assert prepared(both.teacher).values["noise"] is None and prepared(both.teacher).values["seed"] == 42


# supplements


def corpus(tmp_path: Path, text: str = "One. Two.") -> str:
    (tmp_path / "corpus.txt").write_text(text)
    return f"task@supplement=corpus/text supplement.source.path={tmp_path / 'corpus.txt'}"


def test_a_corpus(tmp_path: Path) -> None:
    data = data_of(corpus(tmp_path))
    assert data.supplement is not None and data.supplement.label == "tokenise_supplement"
    stage = prepared(data.supplement)
    assert (stage.name, stage.label) == ("prepare_texts", "prepare_supplement")
    assert stage.arguments()["source"]["path"] == str(tmp_path / "corpus.txt") and "content" in stage.values["source"]
    passages = {"unit": "pair", "min_words": 11, "keep": 1.0, "limit": None, "seed": 0}
    assert stage.values["passages"] == passages and stage.values["split"] == "train"
    assert data.supplement.inputs["reader"] is data.student, "the words are those of the task"
    assert data.student.fingerprint == data_of().student.fingerprint


def test_a_pretrained_tokenizer_lets_tasks_and_seeds_share_a_corpus(tmp_path: Path) -> None:
    line, change = corpus(tmp_path), "task.few.examples=100"
    assert changed(change, line, pretrained=True) == EVERYTHING
    assert changed(change, line) == {*EVERYTHING, "supplement"}, "other words"


@pytest.mark.parametrize(
    ("line", "base", "changes"),
    [
        ("seed=7", "", False),
        ("supplement.passages.seed=3", "supplement.passages.keep=0.5", True),
        ("supplement.passages.keep=0.5", "", True),
        ("supplement.passages.min_words=3", "", True),
        ("supplement.passages.limit=3", "", True),
        ("task.max_length=16", "", True),
        ("debug=fast", "", True),
    ],
)
def test_identity_of_a_corpus(tmp_path: Path, line: str, base: str, changes: bool) -> None:
    found = changed(line, f"{corpus(tmp_path)} {base}", pretrained=True)
    assert ("supplement" in found) == changes


def test_what_has_no_effect_on_rows_as_they_are(tmp_path: Path) -> None:
    stage = prepared(data_of(f"{corpus(tmp_path)} supplement.passages.unit=row").supplement)
    (job,) = compose.jobs(shlex.split(f"task=demo/nli model=tiny method=l_ild {corpus(tmp_path)}")).jobs
    assert job.run.supplement is not None
    job.run.supplement.passages.unit, job.run.supplement.passages.seed = "row", 3
    job.run.supplement.passages.keep, job.run.supplement.passages.min_words = 0.5, 4
    other = data_stages(job.run, Pins(), {"teacher": Pinned({}), "student": Pinned({})}, teacher_seed=42)
    assert prepared(other.supplement).fingerprint == stage.fingerprint


def test_a_labelled_task_as_supplement() -> None:
    """All its training rows, without noise, held-out rows or dev: its labels serve to draw them only."""
    line = f"task=demo/nli task@supplement=glue/mnli supplement.source.revision={'0' * 40}"
    data = data_of(f"{line} supplement.few.examples=1000 seed=3")
    stage = prepared(data.supplement)
    assert (stage.name, stage.label) == ("prepare", "prepare_supplement")
    assert stage.values["splits"] == {"train": "train"} and stage.values["heldout"] == 0.0
    alone = data_of(f"task=glue/mnli {COMMIT} task.few.examples=1000 seed=3")
    assert {name for name, value in stage.values.items() if prepared(alone.student).values[name] != value} == {
        *("splits", "heldout")
    }
    (job,) = compose.jobs(shlex.split(f"model=tiny method=l_ild {line} supplement.few.examples=1000 seed=3")).jobs
    assert job.run.supplement is not None
    job.run.supplement.noise = Noise(rate=0.3)
    noisy = data_stages(job.run, Pins(), {"teacher": Pinned({}), "student": Pinned({})}, teacher_seed=42)
    assert prepared(noisy.supplement).fingerprint == stage.fingerprint
    assert prepared(noisy.supplement).notes == ("the texts of glue/mnli", "few: 1000 examples")


# what a plan says


def a_task(**changes: Any) -> Task:
    return Task(name="t", text=["a"], **changes)


def test_conditions_in_words() -> None:
    assert conditions(a_task(), teacher_seed=42) == []
    few = Few(examples=1000, balanced=True, teacher="own")
    noise = Noise(rate=0.3, teacher="clean")
    every = a_task(few=few, imbalance=Imbalance(ratio=10, seed=2), noise=noise)
    assert conditions(every, teacher_seed=42) == [
        "few: 1000 examples, balanced; teacher on its own 1000 (seed 42)",
        "imbalance: 10 of the most frequent class for 1 of the rarest (seed 2)",
        "noise: 30 % of training labels changed (seed 0); teacher on clean labels",
    ]
    plain = a_task(few=Few(examples=5), noise=Noise(rate=0.125, seed=4))
    assert conditions(plain, teacher_seed=42) == [
        "few: 5 examples; teacher on the same",
        "noise: 12.5 % of training labels changed (seed 4); teacher on noisy labels",
    ]
    assert conditions(plain) == ["few: 5 examples", "noise: 12.5 % of training labels changed (seed 4)"]


def test_conditions_are_shown_but_do_not_count() -> None:
    stage = prepared(data_of("task.few.examples=100").student)
    assert stage.notes == ("few: 100 examples; teacher on the same",)
    alone = prepared(data_of("task.few.examples=100 method=ft").student)
    assert alone.notes == ("few: 100 examples",) and alone.fingerprint == stage.fingerprint


def test_a_corpus_in_words(tmp_path: Path) -> None:
    def notes(line: str) -> tuple[str, ...]:
        return prepared(data_of(f"{corpus(tmp_path)} {line}").supplement).notes

    assert notes("") == ("corpus/text: pairs of sentences of 11 words or more",)
    assert notes("supplement.passages.keep=0.7 supplement.passages.limit=9") == (
        "corpus/text: pairs of sentences of 11 words or more, of 70 % of the documents (seed 0), at most 9",
    )
    assert notes("supplement.passages.unit=row") == ("corpus/text: rows as they are",)
