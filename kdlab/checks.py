"""What a composed run must satisfy before any data or model is touched: pure functions of the configuration.

`check` finds what can't run, `warnings` what runs in vain, `idle` what the command line asks for in vain.
A problem is one line that starts with the key and what was given: "method.layers.lr=0: must be more than 0".
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from kdlab.config import Distillation, Encoder, Run, Task, walk

TRAINED = ("teacher", "student", "layers", "logits")  # stages that train, as method.stages names them
PLANS = (
    ("student",),
    ("teacher",),
    ("teacher", "logits"),
    ("teacher", "layers"),
    ("teacher", "layers", "logits"),
)
METRICS = {
    "classification": ("accuracy", "f1", "macro_f1", "mcc"),
    "regression": ("pearson_spearman", "pearson", "spearman"),
}
OWN_SPLITS = ("train", "heldout", "dev", "test")


def _at_least(least: float) -> Callable[[float], bool]:
    return lambda value: least <= value < math.inf


def _share(value: float) -> bool:
    return 0 <= value <= 1


def _part(value: float) -> bool:
    return 0 <= value < 1


def _positive(value: float) -> bool:
    return 0 < value < math.inf


# (keys, what holds, in words); the first pattern that fits a key counts
RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("seed", lambda value: 0 <= value < 2**32, "must be between 0 and 4294967295"),
    ("task.epochs.*", _at_least(0), "must be 0 or more"),
    ("task.max_length", _at_least(4), "must be 4 or more"),
    ("task.heldout", _part, "is a share of the training rows: at least 0, less than 1"),
    ("task.train_limit", _at_least(1), "must be 1 or more"),
    ("task.dev_limit", _at_least(1), "must be 1 or more"),
    ("task.rows", _at_least(1), "must be 1 or more"),
    ("model.*.num_layers", _at_least(1), "must be 1 or more"),
    ("method.*.epochs", _at_least(0), "must be 0 or more"),
    ("method.*.lr", _positive, "must be more than 0"),
    ("method.*.batch_size", _at_least(1), "must be 1 or more"),
    ("method.*.warmup", _share, "is a share of the steps: between 0 and 1"),
    ("method.*.weight_decay", _at_least(0), "must be 0 or more"),
    ("method.*.clip", _at_least(0), "must be 0 (off) or more"),
    ("method.*.eval_steps", _at_least(0), "must be 0 (once an epoch) or more"),
    ("method.*.patience", _at_least(0), "must be 0 (never stop early) or more"),
    ("method.*.mixup", _at_least(0), "must be 0 (off) or more"),
    ("method.*.consistency.weight", _at_least(0), "must be 0 (off) or more"),
    ("method.*.decay", _part, "must be at least 0 and less than 1"),
    ("method.*.temperature", _positive, "must be more than 0"),
    ("method.*.alpha", _share, "must be between 0 and 1"),
    ("hardware.threads", lambda value: 0 <= value <= 1024, "must be 0 (as torch chooses) to 1024"),
    ("hardware.micro_batch", _at_least(0), "must be 0 (the whole batch) or more"),
    ("hardware.eval_batch", _at_least(1), "must be 1 or more"),
    ("hardware.checkpoint_seconds", _at_least(0), "must be 0 (after every step) or more"),
    ("debug.steps", _at_least(1), "must be 1 or more"),
    ("debug.rows", _at_least(1), "must be 1 or more"),
)


def suggest(word: str, options: Iterable[str], cutoff: float = 0.6) -> str:
    """'; did you mean x?' for the option that looks most like `word`, or ''."""
    by_lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def check(run: Run) -> list[str]:
    """Every reason why the run can't be planned, one line each."""
    problems = [*_words(run), *_ranges(run)]
    if run.task.kind == "reasoning" and run.method.family == "distillation":
        problems.append(
            f"task={run.task.name}: method={run.method.name} is of the family distillation, "
            "which needs an encoder task (classification, regression), not a reasoning task"
        )
    problems += _task(run.task)
    problems += _model(run)
    if isinstance(run.method, Distillation):
        problems += _distillation(run, run.method)
    if run.name is not None and not re.fullmatch(r"\w[\w.,=+-]*", run.name):
        problems.append(f"name={run.name}: names a folder; letters, digits and . , = + - _ only")
    for key in ("store", "outputs"):
        if not getattr(run, key).strip():
            problems.append(f"{key}=: names a folder; for the current one write {key}=.")
    if run.select_on == "heldout" and run.task.heldout == 0:
        problems.append(
            "select_on=heldout: task.heldout=0 keeps no training rows for it; "
            "set task.heldout=0.1, or select_on=dev or last"
        )
    if run.precision == "fp16" and run.hardware.device == "cpu":
        problems.append("precision=fp16: a processor can't train in it; take precision=bf16 or fp32")
    return problems


def warnings(run: Run) -> list[str]:
    """What runs as configured, but contributes nothing."""
    method = run.method
    found: list[str] = []
    if not isinstance(method, Distillation):
        return found
    if "layers" in method.stages and method.layers.consistency.weight > 0:
        for view in method.layers.consistency.terms:
            if view not in method.layers.relations:
                found.append(
                    f"method.layers.consistency.terms has '{view}', which method.layers.relations has not: "
                    "this term contributes exactly nothing"
                )
    if "logits" in method.stages and method.logits.alpha == 1:
        found.append("method.logits.alpha=1 leaves the teacher's logits no weight: the stage is plain fine-tuning")
    return found


def labels(run: Run) -> list[str]:
    """Names of the stages that `fresh` may give."""
    found = ["prepare", "tokenise"]
    if isinstance(run.method, Distillation):
        stages = run.method.stages
        found += [stage for stage in TRAINED if stage in stages]
        if "teacher" in stages and len(stages) > 1:
            found += ["evaluate_teacher", "vet", "measure_teacher"]
        found += ["evaluate_student", "measure_student"]  # the last model, also where it is the teacher
    return found


def idle(run: Run, paths: Iterable[str]) -> list[str]:
    """Keys among `paths`, those that the command line gave, that change nothing in this run."""
    return list(idle_paths(run, paths).values())


def idle_paths(run: Run, paths: Iterable[str]) -> dict[str, str]:
    """As `idle`, by path: a sweep refuses a key only if none of its jobs uses it."""
    given = list(paths)
    found = {}
    for path in given:
        reason = _no_effect(run, path, given)
        if reason:
            found[path] = f"{path} has no effect for {reason}"
    return found


def _no_effect(run: Run, path: str, given: Sequence[str]) -> str | None:
    method, parts = run.method, path.split(".")
    if path == "task.heldout" and run.select_on != "heldout":
        return f"select_on={run.select_on}"
    if not isinstance(method, Distillation):
        return None
    limits = (run.task.train_limit, run.task.dev_limit)
    if path == "seed" and method.stages == ["teacher"] and limits == (None, None):
        return "method.stages=[teacher] (a teacher is trained with method.teacher_seed)"
    lacks = {
        stage: f"method={method.name} (it has no stage '{stage}')" for stage in TRAINED if stage not in method.stages
    }
    if parts[0] == "method" and len(parts) > 1:
        if parts[1] in lacks:
            return lacks[parts[1]]
        if parts[1] in ("weak_teacher", "teacher_seed") and "teacher" in lacks:
            return lacks["teacher"]
        if parts[1] == "layers" and parts[-1] in ("eval_steps", "patience"):
            return "the stage 'layers' (it is not evaluated)"
        if parts[-1] == "patience" and run.select_on == "last":
            return "select_on=last (no score can stop a stage early)"
        return _no_effect_of_term(run, method, path)
    if path.startswith("model.teacher.") and "teacher" in lacks:
        cut = run.model.student.init == "cut"
        if not cut or parts[2] == "head":
            return lacks["teacher"]
    if path.startswith("model.student.") and method.stages == ["teacher"]:
        return f"method={method.name} (it trains no student)"
    if path.startswith("task.epochs.") and len(parts) == 3:
        if parts[2] in lacks:
            return lacks[parts[2]]
        if f"method.{parts[2]}.epochs" in given:
            return f"method.{parts[2]}.epochs={getattr(method, parts[2]).epochs}, which replaces it"
    return None


def _no_effect_of_term(run: Run, method: Distillation, path: str) -> str | None:
    layers, logits = method.layers, method.logits
    consistency = "method.layers.consistency."
    if path.startswith(consistency) and path != f"{consistency}weight":
        if layers.consistency.weight == 0:
            return f"{consistency}weight=0"
        if path == f"{consistency}decay" and layers.consistency.target == "student":
            return f"{consistency}target=student (it keeps no moving average)"
    if path == "method.layers.relation_mask" and layers.mixup == 0 and layers.relation_mask != "none":
        return "method.layers.mixup=0 (without mixing own and union are the same)"
    if path == "method.logits.regression_scale" and run.task.kind != "regression":
        return f"task={run.task.name} (a {run.task.kind} task)"
    if path == "method.logits.temperature" and logits.alpha == 1:
        return "method.logits.alpha=1 (the teacher's logits have no weight)"
    return None


def _words(run: Run) -> Iterator[str]:
    for path, value, metadata in walk(run):
        allowed = metadata.get("choices")
        if not allowed:
            continue
        given = value if isinstance(value, list) else [value]
        for word in given:
            if word not in allowed:
                yield f"{path}={word}: allowed: {', '.join(allowed)}{suggest(str(word), allowed)}"
        for word in sorted({word for word in given if given.count(word) > 1}):
            yield f"{path}: '{word}' is there twice"


def _ranges(run: Run) -> Iterator[str]:
    for path, value, _ in walk(run):
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        for pattern, holds, words in RANGES:
            if fnmatchcase(path, pattern):
                if not holds(value):
                    yield f"{path}={value}: {words}"
                break


def _task(task: Task) -> Iterator[str]:
    source = task.source
    given = [name for name in ("hub", "path", "demo") if getattr(source, name) is not None]
    if len(given) != 1:
        lead = " and ".join(given) + " are given" if given else "nothing is given"
        yield f"task.source: {lead}; exactly one of hub, path, demo is needed"
    if source.config is not None and "hub" not in given:
        yield f"task.source.config={source.config}: only a data set on the Hub has configurations"
    if source.revision is not None and "hub" not in given:
        yield f"task.source.revision={source.revision}: only a data set on the Hub has revisions"
    if given == ["hub"] and task.splits.dev is None:
        yield "task.splits.dev=null: a data set on the Hub needs one; only a local file is split by kdlab"
    if not 1 <= len(task.text) <= 2:
        yield f"task.text=[{','.join(task.text)}]: one or two columns are needed"
    elif len(set(task.text)) < len(task.text):
        yield f"task.text=[{','.join(task.text)}]: the same column twice"
    if task.label in task.text:
        yield f"task.label={task.label}: is a column of task.text too, so the text would hold the answer"
    yield from _answers(task)
    for name in task.evaluations:
        if name in OWN_SPLITS or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            yield (
                f"task.evaluations.{name}: take another name: letters, digits, _ and -, "
                f"and none of {', '.join(OWN_SPLITS)}"
            )


def _answers(task: Task) -> Iterator[str]:
    if task.kind == "classification":
        if task.labels is None and task.source.hub is not None:
            yield "task.labels=null: name the classes in the order of their ids, for example [no,yes]"
        elif task.labels is not None and len(task.labels) < 2:
            yield f"task.labels=[{','.join(task.labels)}]: classification needs two classes or more"
        elif task.labels is not None and len(set(task.labels)) < len(task.labels):
            yield f"task.labels=[{','.join(task.labels)}]: a class is named twice"
    if task.kind == "regression" and task.labels is not None:
        yield "task.labels: a regression task has no classes; set task.labels=null"
    fitting = METRICS.get(task.kind)
    if fitting is None:
        return
    everything = [metric for names in METRICS.values() for metric in names]
    for path, metric in [
        ("task.metric", task.metric),
        *(("task.metrics", metric) for metric in task.metrics),
    ]:
        if metric not in everything:
            continue  # reported as a word that is not allowed
        if metric not in fitting:
            yield f"{path}={metric}: does not fit a {task.kind} task; allowed: {', '.join(fitting)}"
        elif metric == "f1" and task.labels is not None and len(task.labels) > 2:
            yield f"{path}=f1: is for two classes, here are {len(task.labels)}; take macro_f1"


def _model(run: Run) -> Iterator[str]:
    model, method = run.model, run.method
    if model.kind == "decoder":
        if method.family == "distillation":
            yield (
                f"model={model.name}: is a decoder; method={method.name} is of the family distillation, "
                "which needs an encoder"
            )
        return
    if run.task.kind == "reasoning" and method.family != "distillation":
        yield f"task={run.task.name}: a reasoning task needs a decoder; model={model.name} is an encoder"
    stages = method.stages if isinstance(method, Distillation) else list(TRAINED)
    student, teacher = model.student, model.teacher
    wants_student = stages != ["teacher"]
    if "teacher" in stages or student.init == "cut":
        if teacher.init != "cut":
            yield from _weights("model.teacher", teacher)
        else:
            yield "model.teacher.init=cut: only a student is cut; allowed: pretrained, random"
    if wants_student:
        yield from _weights("model.student", student)
    has_id = (teacher.id if "teacher" in stages or student.init == "cut" else None) or student.id
    if model.tokenizer == "pretrained" and not has_id:
        yield "model.tokenizer=pretrained: no model has an id; give one, or model.tokenizer=words"
    if model.tokenizer == "words":
        for path, encoder in (("model.teacher", teacher), ("model.student", student)):
            if encoder.init == "pretrained" and (path != "model.teacher" or "teacher" in stages) and wants_student:
                yield (
                    f"model.tokenizer=words: {path}.init=pretrained knows only its own tokenizer; "
                    "take model.tokenizer=pretrained, or models from scratch (init=random)"
                )


def _weights(path: str, encoder: Encoder) -> Iterator[str]:
    if encoder.init == "cut":
        if (encoder.num_layers is None) == (encoder.layers is None):
            yield f"{path}.init=cut: give one of {path}.num_layers and {path}.layers{_both(encoder)}"
        if encoder.id is not None:
            yield (
                f"{path}.id={encoder.id}: has no effect with init=cut; for a model of its own "
                f"set {path}.init=pretrained {path}.num_layers=null"
            )
    else:
        for name in ("num_layers", "layers"):
            if getattr(encoder, name) is not None:
                yield f"{path}.{name}={_shown(getattr(encoder, name))}: is for {path}.init=cut only"
    if encoder.init == "pretrained" and not encoder.id:
        yield f"{path}.id=null: a pre-trained model needs its name on the Hub or a folder"
    if encoder.init == "random" and not encoder.id and not encoder.config:
        yield f"{path}.init=random: give {path}.config (all of config.json), or {path}.id to take it from"
    if encoder.revision is not None and not encoder.id:
        yield f"{path}.revision={encoder.revision}: needs {path}.id"
    if encoder.layers is not None:
        if not encoder.layers:
            yield f"{path}.layers=[]: at least one layer is needed"
        elif encoder.layers != sorted(set(encoder.layers)) or encoder.layers[0] < 0:
            yield f"{path}.layers={_shown(encoder.layers)}: must rise, each layer once, counted from 0"


def _distillation(run: Run, method: Distillation) -> Iterator[str]:
    stages = tuple(method.stages)
    if stages not in PLANS and set(stages) <= set(TRAINED):
        allowed = ", ".join(f"[{','.join(plan)}]" for plan in PLANS)
        yield f"method.stages={_shown(method.stages)}: allowed: {allowed}"
    if "layers" in stages:
        layers = method.layers
        if not layers.relations:
            yield "method.layers.relations=[]: at least one of attention, hidden, query, key, value is needed"
        if layers.consistency.weight > 0 and layers.mixup == 0:
            yield (
                f"method.layers.consistency.weight={layers.consistency.weight}: needs mixed inputs; "
                "set method.layers.mixup=1.0, or the weight to 0"
            )
        if layers.consistency.weight > 0 and not layers.consistency.terms:
            yield "method.layers.consistency.terms=[]: nothing to hold consistent; allowed: attention, hidden"
    known = labels(run)
    for name in run.fresh:
        if name not in known:
            yield f"fresh=[{name}]: no such stage here; allowed: {', '.join(known)}{suggest(name, known)}"


def _both(encoder: Encoder) -> str:
    return "" if encoder.layers is None else ", not both"


def _shown(value: Any) -> str:
    return "[" + ",".join(str(item) for item in value) + "]" if isinstance(value, list) else str(value)
