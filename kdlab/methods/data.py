"""The data side of a plan: which stages read, corrupt and tokenise what a run is trained and scored on.

    prepare -> tokenise                          train, held-out and dev rows
    prepare_teacher -> tokenise_teacher          the same for a teacher with examples or labels of its own
    prepare -> prepare_sets -> tokenise_sets     test and the further evaluation sets
    prepare_supplement -> tokenise_supplement    what the layer stage is trained on in place of the task

Test and further sets are apart, so that tasks which differ only in them (glue/mnli, glue/ax) share a teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kdlab.config import Distillation, Evaluation, Noise, Passages, Run, Splits, Task
from kdlab.graph import Stage
from kdlab.pins import Pinned, Pins


@dataclass(frozen=True, kw_only=True)
class Data:
    """Tokenised data, each a stage."""

    student: Stage  # what the student is trained on, and all models are scored on
    teacher: Stage  # the same stage, unless few.teacher=own or noise.teacher=clean
    sets: Stage | None  # test and further evaluation sets
    supplement: Stage | None  # in place of the student's training rows in the layer stage


def data_stages(run: Run, pins: Pins, models: Mapping[str, Pinned], *, teacher_seed: int) -> Data:
    """The stages of a run's data. `models`: the pinned encoders by side, one or both of teacher and student.

    A pre-trained tokenizer reads all data by itself, so that what is tokenised is shared between tasks and seeds. One
    that is made of words knows those of the student's training rows, and all other texts are read with it.
    """
    task, noisy = run.task, run.task.noise.teacher == "noisy"
    own_seed = run.seed if task.few.seed is None else task.few.seed
    few_seed = teacher_seed if task.few.teacher == "own" else own_seed
    taught = not isinstance(run.method, Distillation) or "teacher" in run.method.stages
    notes = conditions(task, teacher_seed=teacher_seed if taught else None)
    read = reader(run, models)

    prepared = prepare_stage(run, pins, task, "prepare", few_seed=own_seed, noisy=True, notes=tuple(notes))
    student = read.tokenised(prepared, "tokenise", task.max_length)
    own = prepare_stage(run, pins, task, "prepare_teacher", few_seed=few_seed, noisy=noisy)
    teacher = student
    if own.fingerprint != prepared.fingerprint:
        other_texts = prepared.values["seed"] != own.values["seed"]
        teacher = read.tokenised(own, "tokenise_teacher", task.max_length, words_of=student if other_texts else None)
    sets = supplement = None
    if task.splits.test or task.evaluations:
        sets = read.tokenised(sets_stage(run, pins, prepared), "tokenise_sets", task.max_length, words_of=student)
    if run.supplement is not None:
        texts = _supplement(run, pins, run.supplement)
        supplement = read.tokenised(texts, "tokenise_supplement", task.max_length, words_of=student)
    return Data(student=student, teacher=teacher, sets=sets, supplement=supplement)


def conditions(task: Task, *, teacher_seed: int | None = None) -> list[str]:
    """What is done to the training rows, a line each, in the order in which it is done.

    teacher_seed: of the run's teacher; None if it has none, then no line speaks of it.
    """
    few, imbalance, noise = task.few, task.imbalance, task.noise
    lines = []
    if few.examples is not None:
        whose = "the same" if few.teacher == "same" else f"its own {few.examples} (seed {teacher_seed})"
        lines.append(f"few: {few.examples} examples" + (", balanced" if few.balanced else ""))
        lines[-1] += "" if teacher_seed is None else f"; teacher on {whose}"
    if imbalance.ratio != 1:
        lines.append(
            f"imbalance: {imbalance.ratio:g} of the most frequent class for 1 of the rarest (seed {imbalance.seed})"
        )
    if noise.rate > 0:
        lines.append(f"noise: {100 * noise.rate:g} % of training labels changed (seed {noise.seed})")
        lines[-1] += "" if teacher_seed is None else f"; teacher on {noise.teacher} labels"
    return lines


def prepare_stage(
    run: Run,
    pins: Pins,
    task: Task,
    label: str,
    *,
    few_seed: int,
    noisy: bool,
    dev: bool = True,
    notes: tuple[str, ...] = (),
) -> Stage:
    """dev: whether the rows of dev are wanted too."""
    source = pins.source(task.source, "task" if dev else "supplement")
    return Stage(
        "kdlab.stages.prepare:prepare",
        label,
        values={
            "source": _source_values(source, task),
            "splits": {"train": task.splits.train} | ({"dev": task.splits.dev} if dev else {}),
            "text": task.text,
            "label": task.label,
            "labels": task.labels,
            "kind": task.kind,
            **drawn(run, task, few_seed=few_seed, noisy=noisy),
        },
        places={} if source.place is None else {"source": source.place},
        notes=notes,
    )


def drawn(run: Run, task: Task, *, few_seed: int, noisy: bool = True) -> dict[str, Any]:
    """Which rows are trained on and scored, and with which labels, as `prepare` takes it; what is off, at None."""
    few, imbalance, noise = task.few, task.imbalance, task.noise
    return {
        "heldout": task.heldout if run.select_on == "heldout" else 0.0,
        "few": None if few.examples is None else {"examples": few.examples, "balanced": few.balanced},
        "imbalance": None if imbalance.ratio == 1 else asdict(imbalance),
        "noise": {"rate": noise.rate, "seed": noise.seed} if noise.rate > 0 and noisy else None,
        "dev_limit": task.dev_limit,
        "rows": run.debug.rows,
        "seed": 0 if few.examples is None else few_seed,
    }


def sets_stage(run: Run, pins: Pins, prepared: Stage) -> Stage:
    task, source = run.task, pins.source(run.task.source)
    return Stage(
        "kdlab.stages.prepare:prepare_sets",
        "prepare_sets",
        values={
            "source": _source_values(source, task),
            "splits": {"test": task.splits.test},
            "evaluations": {name: _evaluation(value) for name, value in task.evaluations.items()},
            "text": task.text,
            "label": task.label,
            "kind": task.kind,
            "rows": run.debug.rows,
        },
        inputs={"data": prepared},
        places={} if source.place is None else {"source": source.place},
    )


def _supplement(run: Run, pins: Pins, supplement: Task) -> Stage:
    """A corpus; or the training rows of another task, whose labels serve to draw them only."""
    if supplement.kind != "text":
        plain = replace(supplement, noise=Noise(), dev_limit=None, heldout=0.0)
        notes = (f"the texts of {supplement.name}", *conditions(plain))
        seed = run.seed if plain.few.seed is None else plain.few.seed
        return prepare_stage(run, pins, plain, "prepare_supplement", few_seed=seed, noisy=False, dev=False, notes=notes)
    source, passages = pins.source(supplement.source, "supplement"), supplement.passages
    if passages.unit == "row":
        passages = Passages(limit=passages.limit)
    return Stage(
        "kdlab.stages.prepare:prepare_texts",
        "prepare_supplement",
        values={
            "source": _source_values(source, supplement),
            "split": supplement.splits.train,
            "text": supplement.text,
            "passages": {**asdict(passages), "seed": passages.seed if passages.keep < 1 else 0},
            "rows": run.debug.rows,
        },
        places={} if source.place is None else {"source": source.place},
        notes=(f"{supplement.name}: {_shown(passages)}",),
    )


def _shown(passages: Passages) -> str:
    parts = ["rows as they are"]
    if passages.unit == "pair":
        parts = [f"pairs of sentences of {passages.min_words} words or more"]
        if passages.keep < 1:
            parts.append(f"of {100 * passages.keep:g} % of the documents (seed {passages.seed})")
    if passages.limit is not None:
        parts.append(f"at most {passages.limit}")
    return ", ".join(parts)


@dataclass(frozen=True)
class Reader:
    """The tokenizer of a run. values: what tells it from others; places: where its local parts lie."""

    words: bool
    values: dict[str, Any]
    places: dict[str, str] = field(default_factory=dict)

    def tokenised(
        self,
        prepared: Stage,
        label: str,
        max_length: int,
        *,
        words_of: Stage | None = None,
        more: Mapping[str, Stage] | None = None,
    ) -> Stage:
        """words_of: the stage whose words a tokenizer of words has; None: those of the texts themselves.

        more: further texts that are read with it, by the names of the function's arguments: translated, back.
        """
        borrowed = self.words and words_of is not None
        values = {"tokenizer": None} if borrowed else self.values
        inputs = {"reader": words_of} if borrowed and words_of is not None else {}
        return Stage(
            "kdlab.stages.tokenise:tokenise",
            label,
            values={**values, "max_length": max_length},
            inputs={"data": prepared, **(more or {}), **inputs},
            places={} if borrowed else self.places,
        )


def reader(run: Run, models: Mapping[str, Pinned]) -> Reader:
    """The teacher's tokenizer, if it has one; a student that was pre-trained apart must read as it does."""
    if run.model.tokenizer == "words":
        return Reader(True, {"tokenizer": {"kind": "words"}})
    side = "teacher" if "teacher" in models and models["teacher"].values else "student"
    read = models[side if side in models else "teacher"]
    partner = models.get("student") if side == "teacher" else None
    if partner is not None and partner.values in (read.values, {}):
        partner = None
    places = {} if read.place is None else {"tokenizer": read.place}
    if partner is not None and partner.place is not None:
        places["partner"] = partner.place
    return Reader(False, {"tokenizer": read.values, "partner": None if partner is None else partner.values}, places)


def _source_values(source: Pinned, task: Task) -> dict[str, Any]:
    """What tells the rows of a task's source from others; what is rarely used, only where it is."""
    own = task.source
    rare = {
        "data_dir": own.data_dir,
        "columns": own.columns,
        "language": own.language,
        "label_names": task.label_names,
    }
    return {**source.values, "config": own.config, **{name: value for name, value in rare.items() if value}}


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    rare = {"data_dir": evaluation.data_dir, "language": evaluation.language}
    given = {name: value for name, value in rare.items() if value}
    return {"split": evaluation.split, "config": evaluation.config, **given}


def in_source_language(task: Task) -> Task:
    """A task in several languages as one in its source language, with the others as further sets, by their codes."""
    if not task.languages:
        return task
    demo = task.source.demo is not None
    further = {}
    for language in task.languages:
        there = in_language(task, language)
        split = there["splits"]["test"] or there["splits"]["dev"]
        if language != task.source_language and split is not None:
            further[language] = Evaluation(
                split=split,
                config=there["config"],
                data_dir=there["data_dir"],
                language=language if demo else None,
            )
    own = in_language(task, task.source_language)
    source = replace(
        task.source,
        config=own["config"],
        data_dir=own["data_dir"],
        language=task.source_language if demo else None,
    )
    sets = {**task.evaluations, **further}
    return replace(task, source=source, splits=Splits(**own["splits"]), evaluations=sets, languages=[])


def in_language(task: Task, language: str) -> dict[str, Any]:
    """{"config", "data_dir", "splits"} of one language: `{language}` is replaced by what the source calls it."""

    def filled(template: str | None) -> str | None:
        return template and template.replace("{language}", task.language_names.get(language, language))

    return {
        "config": filled(task.source.config),
        "data_dir": filled(task.source.data_dir),
        "splits": {name: filled(split) for name, split in asdict(task.splits).items()},
    }


def language_sources(run: Run, pins: Pins) -> tuple[dict[str, Any], str | None]:
    """({"source", "languages"} of a task in several languages, and where it lies if it is local).

    languages: by code what `in_language` gives.
    """
    task = run.task
    source = pins.source(task.source)
    languages = {language: in_language(task, language) for language in task.languages}
    return {"source": {**source.values, "columns": task.source.columns}, "languages": languages}, source.place
