"""A finished model on another task, or on other rows of its own: stages on top of its run's, which are never run.

    encoder       prepare -> [prepare_sets] -> tokenise, tokenise_sets -> evaluate
    MUSC          the same in every language, with translations where there are any -> evaluate_languages
    reasoning     questions -> answers -> student_scores

Texts are read with the tokenizer that the model was trained with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdlab.config import Crosslingual, Debug, Evaluation, Few, Imbalance, Noise, Reasoning, Run, Task
from kdlab.data.glue import evaluation, hidden_sets
from kdlab.errors import ConfigError, KdlabError, ModelError, StoreError
from kdlab.graph import Graph, Stage
from kdlab.methods import crosslingual, reasoning
from kdlab.methods.data import in_source_language, prepare_stage, sets_stage
from kdlab.pins import Pinned, Pins

OPEN = {  # what of a finished run's configuration may be another when its model is asked
    "distillation": ("task", "hardware", "debug.rows"),
    "crosslingual": (
        *("task", "hardware", "debug.rows", "translator"),
        *("method.views", "method.inference", "method.ensemble", "method.share"),
    ),
    "reasoning": (
        *("task", "hardware", "debug.rows", "budget", "method.answer"),
        *("method.prompt.exemplars", "method.prompt.overlap", "method.prompt.max_prompt", "method.prompt.too_long"),
    ),
}
KEPT = ("train", "heldout", "dev", "test")  # names that a further set can't have


@dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """A finished model as its run's graph has it."""

    graph: Graph
    stage: Stage | None  # what made it; None: a model that was prompted as it is
    read: Stage | None  # texts that it read, with their tokenizer; None: of a model that writes
    asked: Stage  # the stage that asked it in its own run

    @classmethod
    def of(cls, graph: Graph, *, family: str, side: str = "student") -> Model:
        """Raises StoreError if there is no such model in the graph."""
        label = "answers" if family == "reasoning" else f"evaluate_{side}"
        asked = next((stage for stage in graph if stage.label == label), None)
        if asked is None or (family == "reasoning" and side != "student"):
            raise StoreError(
                f"the run has no {side} that can be asked",
                fix="leave --side out" if side != "student" else "run it again, under another name",
            )
        if family == "reasoning":
            return cls(graph=graph, stage=asked.inputs.get("student"), read=None, asked=asked)
        return cls(graph=graph, stage=asked.inputs["model"], read=asked.inputs["data"], asked=asked)


def asked(run: Run, *, changed: bool, rows: int | None) -> Run:
    """The run as its model is asked: every row of every set (but for `rows`).

    changed: on another task than it was trained on, whose training rows only tell what the classes are, and how
    frequent: whatever is done to training rows is not done to these.
    """
    run = replace(run, debug=Debug(rows=rows))
    if not changed:
        return run
    task = replace(run.task, few=Few(), imbalance=Imbalance(), noise=Noise())
    method = run.method
    if isinstance(method, Crosslingual):
        method = replace(method, texts="translated", languages=[])  # of train, the source language is read alone
    return replace(run, task=task, method=method, select_on="last")


def chosen(run: Run, names: Sequence[str]) -> tuple[Task, list[str]]:
    """The task with those sets only that are asked for, and what they are called; without names all that it has.

    A name is dev, test, a further set of the task, a hidden set of GLUE, or a split of the source.
    """
    method, task = run.method, run.task
    if isinstance(method, Reasoning):
        own = ["test"]
    elif isinstance(method, Crosslingual) and task.languages:
        own = ["dev", *(["test"] if task.splits.test is not None else [])]
    else:
        task = in_source_language(task)
        own = ["dev", *(["test"] if task.splits.test is not None else []), *task.evaluations]
        return (task, own) if not names else _with_sets(task, names)
    wrong = [name for name in names if name not in own]
    if wrong:
        raise ConfigError([f"--split {name}: of task={task.name} there is: {', '.join(own)}" for name in wrong])
    return task, list(names) or own


def _with_sets(task: Task, names: Sequence[str]) -> tuple[Task, list[str]]:
    hidden = hidden_sets(task)
    test: str | None = None
    further: dict[str, Evaluation] = {}
    called = []
    for name in names:
        if name == "dev":
            called.append(name)
        elif name == "test" and (task.splits.test is not None or len(hidden) < 2):
            test = task.splits.test or "test"
            called.append(name)
        elif name == "test":
            further |= {own: evaluation(one) for own, one in hidden.items()}
            called += hidden
        elif name in hidden:
            further[name] = evaluation(hidden[name])
            called.append(name)
        else:
            own = re.sub(r"[^\w-]", "_", name)
            own = f"{own}_rows" if own in KEPT else own
            further[own] = task.evaluations.get(name, Evaluation(split=name))
            called.append(own)
    return replace(task, splits=replace(task.splits, test=test), evaluations=further), list(dict.fromkeys(called))


def pinned(run: Run, model: Model) -> Pins:
    """What the run has pinned stays so: its data set's commit, also for another part of that, and its model's."""
    pins = Pins()
    for stage in model.graph:
        source = stage.values.get("source")
        if isinstance(source, Mapping) and "hub" in source:
            for revision in (None, run.task.source.revision):
                same = revision in (None, source["revision"])
                if same:
                    found = Pinned({"id": source["hub"], "revision": source["revision"]})
                    pins.known.setdefault(("dataset", source["hub"], revision), found)
    spec = (model.asked if model.stage is None else model.stage).values.get("model")
    student = run.model.student
    if isinstance(spec, Mapping) and student.id is not None and (model.stage is not None or "revision" in spec):
        values = {key: spec[key] for key in ("id", "revision", "content") if key in spec}
        pins.known[("model", student.id, student.revision)] = Pinned(values)
    return pins


def prepare(run: Run, pins: Pins) -> Stage:
    """The stage that reads the task, and so knows its classes."""
    method = run.method
    if isinstance(method, Reasoning):
        return reasoning.Builder(run, method, pins).questions()
    if isinstance(method, Crosslingual) and run.task.languages:
        return crosslingual.Builder(run, method, pins).prepared()
    task = in_source_language(run.task)
    own = run.seed if task.few.seed is None else task.few.seed
    return prepare_stage(replace(run, task=task), pins, task, "prepare", few_seed=own, noisy=True)


def encoder(
    run: Run, pins: Pins, model: Model, prepared: Stage, names: Sequence[str], classes: Sequence[str] | None
) -> dict[str, Stage]:
    """The stages behind `prepare`, by label. classes: the model's, where the task has them in another order."""
    task = run.task
    folders = []
    if "dev" in names:
        folders.append(_tokenised(model, prepared, "tokenise", task.max_length, only=["dev"]))
    made: dict[str, Stage] = {}
    if task.splits.test is not None or task.evaluations:
        made["prepare_sets"] = sets_stage(run, pins, prepared)
        folders.append(_tokenised(model, made["prepare_sets"], "tokenise_sets", task.max_length))
    assert model.stage is not None
    scored = Stage(
        "kdlab.stages.evaluate:evaluate",
        "evaluate",
        values={"pad_to_max": task.pad_to_max, **_ordered(classes)},
        inputs={"model": model.stage, **dict(zip(("data", "sets"), folders, strict=False))},
    )
    return made | {stage.label: stage for stage in (*folders, scored)}


def languages(
    run: Run,
    pins: Pins,
    model: Model,
    prepared: Stage,
    names: Sequence[str],
    classes: Sequence[str] | None,
    *,
    there: Callable[[Stage], bool],
    translate: bool,
) -> tuple[dict[str, Stage], str | None]:
    """(the stages behind `prepare`, by label; why the texts are asked as they are only, or None).

    there: whether a stage is done. translate: whether translations are to be made where they are not there.
    """
    method, task = run.method, run.task
    assert isinstance(method, Crosslingual) and model.stage is not None
    build = crosslingual.Builder(run, method, pins)
    sets = build.sets(prepared) if task.splits.test is not None else None
    why = None
    views: list[Stage] = []
    try:
        views = [stage for stage in build.views_of_sets(prepared, sets) if stage is not None]
    except KdlabError as problem:
        if translate:
            raise
        why = problem.what
    if views and not translate and not all(there(stage) for stage in views):
        why = "the store has no translations of these rows"
    if why is not None:
        views = []
        build.method = replace(method, views=["original"])
        why = f"asked in the original texts only: {why}; translator=NAME makes them"
    forms = dict(zip(("translated", "back"), views, strict=False))
    length = task.max_length
    folders = [_tokenised(model, prepared, "tokenise", length, only=["dev"], more=forms)] if "dev" in names else []
    if sets is not None and "test" in names:
        folders.append(_tokenised(model, sets, "tokenise_sets", length, only=["test"], more=forms))
    scored = build.scored(model.stage, folders[0], folders[1] if len(folders) > 1 else None)
    scored = replace(scored, label="evaluate", values={**scored.values, **_ordered(classes)})
    made = [*([sets] if sets is not None else []), *views, *folders, scored]
    return {stage.label: stage for stage in made}, why


def questions(run: Run, pins: Pins, model: Model, prepared: Stage) -> dict[str, Stage]:
    """The stages behind `questions`, by label; the model is asked in the form in which its own run asked it."""
    method = run.method
    assert isinstance(method, Reasoning)
    build = reasoning.Builder(run, method, pins)
    build.style = dict(model.asked.values["style"])
    answers = build.answers(prepared, model.stage)
    if model.stage is None and answers.values.get("model") != model.asked.values.get("model"):
        raise ModelError(
            "the model that the run has prompted is no longer the same",
            where=str(run.model.student.id),
            fix="put it back, or prompt the new one in a run of its own",
        )
    return {stage.label: stage for stage in (answers, build.scored("student", answers, prepared))}


def _tokenised(
    model: Model,
    data: Stage,
    label: str,
    max_length: int,
    *,
    only: list[str] | None = None,
    more: Mapping[str, Stage] | None = None,
) -> Stage:
    assert model.read is not None
    values: dict[str, Any] = {"tokenizer": None, "max_length": max_length}
    return Stage(
        "kdlab.stages.tokenise:tokenise",
        label,
        values=values if only is None else {**values, "only": only},
        inputs={"data": data, **(more or {}), "reader": model.read},
    )


def _ordered(classes: Sequence[str] | None) -> dict[str, Any]:
    return {} if classes is None else {"classes": list(classes)}
