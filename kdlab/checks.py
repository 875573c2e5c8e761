"""What a composed run must satisfy before any data or model is touched: pure functions of the configuration.

`check` finds what can't run, `warnings` what runs in vain, `idle` what the command line asks for in vain.
A problem is one line that starts with the key and what was given: "method.layers.lr=0: must be more than 0".
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import islice
from typing import Any

from kdlab import checks_crosslingual, checks_reasoning
from kdlab.config import Crosslingual, Distillation, Encoder, Fit, JointFit, LayerObjective, Reasoning, Run, Task, walk

TRAINED = ("teacher", "student", "layers", "logits", "joint")  # stages that train, as method.stages names them
PLANS = (
    ("student",),
    ("teacher",),
    ("teacher", "logits"),
    ("teacher", "layers"),
    ("teacher", "layers", "logits"),
    ("teacher", "joint"),
)
KEYED = ("query", "key", "value")  # relations of a projection with itself
STATES = ("hidden", "embedding", "patient")  # relations that compare states
METRICS = {
    "classification": ("accuracy", "f1", "macro_f1", "mcc"),
    "regression": ("pearson_spearman", "pearson", "spearman"),
    "reasoning": ("accuracy",),
}
OF_REASONING = tuple(
    f"task.{name}" for name in ("answer", "choices", "options", "suffix", "after", "compare", "source.key")
)
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
    ("curves", _at_least(0), "must be 0 (none) or more"),
    ("*.seed", lambda value: 0 <= value < 2**32, "must be between 0 and 4294967295"),
    ("task.epochs.*", _at_least(0), "must be 0 or more"),
    ("*.max_length", _at_least(4), "must be 4 or more"),
    ("*.heldout", _part, "is a share of the training rows: at least 0, less than 1"),
    ("*.few.examples", _at_least(1), "must be 1 or more"),
    ("*.imbalance.ratio", _at_least(1), "must be 1 (off) or more: the most frequent class over the rarest"),
    ("*.noise.rate", _part, "is a share of the labels: at least 0, less than 1"),
    ("*.passages.keep", lambda value: 0 < value <= 1, "is a share of the documents: more than 0, at most 1"),
    ("*.passages.limit", _at_least(1), "must be 1 or more"),
    ("*.passages.min_words", _at_least(1), "must be 1 or more"),
    ("*.dev_limit", _at_least(1), "must be 1 or more"),
    ("*.test_limit", _at_least(1), "must be 1 or more"),
    ("*.rows", _at_least(1), "must be 1 or more"),
    ("model.*.num_layers", _at_least(1), "must be 1 or more"),
    ("method.*.lora.rank", _at_least(0), "must be 0 (off) or more"),
    ("method.*.lora.alpha", _positive, "must be more than 0"),
    ("method.*.lora.dropout", _part, "must be at least 0 and less than 1"),
    ("model.epochs", _at_least(1), "must be 1 or more"),
    ("model.price.*", _at_least(0), "is in US dollars per million tokens: 0 or more"),
    ("method.*.epochs", _at_least(0), "must be 0 or more"),
    ("method.*.lr", _positive, "must be more than 0"),
    ("method.*.batch_size", _at_least(1), "must be 1 or more"),
    ("method.*.warmup", _share, "is a share of the steps: between 0 and 1"),
    ("method.*.weight_decay", _at_least(0), "must be 0 or more"),
    ("method.*.clip", _at_least(0), "must be 0 (off) or more"),
    ("method.*.eval_steps", _at_least(0), "must be 0 (once an epoch) or more"),
    ("method.*.patience", _at_least(0), "must be 0 (never stop early) or more"),
    ("method.*.mixup", _at_least(0), "must be 0 (off) or more"),
    ("method.student.mixed_*", _at_least(0), "must be 0 or more"),
    ("method.*.contrast.weight", _part, "is lambda: at least 0 (off), less than 1; labels get 1 - lambda"),
    ("method.*.base_temperature", _positive, "must be more than 0"),
    ("method.*.epsilon", _positive, "must be more than 0"),
    ("method.*.contrast.size", _at_least(1), "must be 1 or more"),
    ("method.share", _share, "is of the translated view in the mean: between 0 and 1"),
    ("method.*.relation_heads", _at_least(0), "must be 0 (the model's own) or more"),
    ("method.*.layer_weight", _positive, "must be more than 0; without layers it is method=kd"),
    ("method.*.logit_weight", _positive, "must be more than 0: nothing else trains the classifier"),
    ("method.*.clean", _at_least(0), "must be 0 or more"),
    ("method.*.mixed.logit", _at_least(0), "must be 0 or more"),
    ("method.*.mixed.label", _at_least(0), "must be 0 or more"),
    ("method.*.consistency.weight", _at_least(0), "must be 0 (off) or more"),
    ("method.*.decay", _part, "must be at least 0 and less than 1"),
    ("method.temperature", _at_least(0), "must be 0 (greedy) or more"),
    ("method.*.temperature", _positive, "must be more than 0"),
    ("method.*.alpha", _share, "must be between 0 and 1"),
    ("*.partition.train", _at_least(1), "must be 1 or more"),
    ("*.partition.limit", _at_least(1), "must be 1 or more"),
    ("*.generate.objects", lambda value: 2 <= value <= 26, "must be 2 to 26"),
    ("*.generate.*", _at_least(1), "must be 1 or more"),
    ("model.vocabulary", _at_least(300), "must be 300 or more: 256 bytes, the special tokens, and some pieces"),
    ("method.samples", _at_least(1), "must be 1 or more"),
    ("method.prompt.max_prompt", _at_least(8), "must be 8 or more"),
    ("method.student.max_steps", _at_least(1), "must be 1 or more"),
    ("method.student.max_target", _at_least(2), "must be 2 or more"),
    ("method.answer.max_tokens*", _at_least(1), "must be 1 or more"),
    ("method.curation.*", _at_least(1), "must be 1 or more"),
    ("rationales.error_rate", _share, "is a share of the rationales: between 0 and 1"),
    ("rationales.timeout", _positive, "must be more than 0 seconds"),
    ("rationales.price.*", _at_least(0), "is in US dollars per million tokens: 0 or more"),
    ("rationales.*", _at_least(1), "must be 1 or more"),
    ("budget.*", _positive, "must be more than 0"),
    ("translator.max_missing", _share, "is a share of a language's texts: between 0 and 1"),
    ("translator.*", _at_least(1), "must be 1 or more"),
    ("hardware.threads", lambda value: 0 <= value <= 1024, "must be 0 (as torch chooses) to 1024"),
    ("hardware.processes", lambda value: 1 <= value <= 1024, "must be 1 to 1024"),
    ("hardware.micro_batch", _at_least(0), "must be 0 (the whole batch) or more"),
    ("hardware.eval_batch", _at_least(1), "must be 1 or more"),
    ("hardware.checkpoint_seconds", _at_least(0), "must be 0 (after every step) or more"),
    ("debug.steps", _at_least(1), "must be 1 or more"),
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
    if run.task.kind == "text":
        problems.append(
            f"task={run.task.name}: has no labels; it can only be a supplement for the layer stage: "
            f"task@supplement={run.task.name}"
        )
    problems += _task(run.task)
    if run.supplement is not None:
        problems += _supplement(run.supplement)
    if isinstance(run.method, Distillation):
        problems += _model(run, run.method.stages)
        problems += _distillation(run, run.method)
        if run.select_on == "test":
            problems.append(
                "select_on=test: is for the families reasoning and crosslingual, whose papers' code selects so; "
                "take heldout, dev or last"
            )
    if isinstance(run.method, Crosslingual):
        problems += _model(run, ["student"])
        problems += checks_crosslingual.check_method(run, run.method)
    if isinstance(run.method, Reasoning):
        problems += checks_reasoning.check_method(run, run.method)
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
    if run.hardware.compile != "off" and run.hardware.device in ("cpu", "mps"):
        problems.append(
            f"hardware.compile={run.hardware.compile}: is for GPUs; on a processor it costs minutes and saves next to "
            "nothing, leave it out"
        )
    world = os.environ.get("WORLD_SIZE", "1")
    if run.hardware.processes > 1 and world not in ("1", str(run.hardware.processes)):
        problems.append(
            f"hardware.processes={run.hardware.processes}: torchrun has started {world} already; leave one of them out"
        )
    problems += _expected(run)
    return problems


def warnings(run: Run) -> list[str]:
    """What runs as configured, but contributes nothing."""
    method = run.method
    if isinstance(method, Crosslingual):
        return list(checks_crosslingual.warnings(run, method))
    found: list[str] = []
    if not isinstance(method, Distillation):
        return found
    for stage, fit in _layer_fits(method):
        for view in fit.consistency.terms if fit.consistency.weight > 0 else []:
            if view not in fit.relations:
                found.append(
                    f"method.{stage}.consistency.terms has '{view}', which method.{stage}.relations has not: "
                    "this term contributes exactly nothing"
                )
    if "logits" in method.stages and method.logits.alpha == 1 and not method.logits.mixed.mixup:
        found.append("method.logits.alpha=1 leaves the teacher's logits no weight: the stage is plain fine-tuning")
    mixing: list[tuple[str, Fit, float]] = [(stage, fit, fit.mixup) for stage, fit in _layer_fits(method)]
    if "logits" in method.stages:
        mixing.append(("logits", method.logits, method.logits.mixed.mixup))
    for stage, trained, mixup in mixing:
        if mixup > 0 and 1 in (trained.batch_size, run.hardware.micro_batch):
            found.append(
                f"method.{stage} mixes the rows of a forward pass, of which each has one: a row is mixed with itself; "
                f"take 2 or more for method.{stage}.batch_size and hardware.micro_batch"
            )
    if run.supplement is not None and "layers" not in method.stages:
        found.append(
            f"task@supplement={run.supplement.name} has no effect for method={method.name}: it has no stage 'layers'"
        )
    return found


OF_TRAINING = (  # keys of a task that only say how a model is trained on it
    *("task.heldout", "task.few", "task.imbalance", "task.noise", "task.passages", "task.epochs", "task.rows"),
)


def check_question(run: Run, paths: Iterable[str]) -> list[str]:
    """Why the finished model of a run can't be asked the run's task, perhaps another than it was trained on.

    paths: keys that were given for this; those that say how to train are problems too.
    """
    task, writes = run.task, isinstance(run.method, Reasoning)
    problems = [*_words(run), *_ranges(run), *_task(task)]
    if task.kind == "text":
        problems.append(f"task={task.name}: is a corpus without labels: there is nothing to score")
    elif (task.kind == "reasoning") != writes:
        answers = "writes its answers" if writes else "is an encoder, which classifies or gives a number"
        problems.append(f"task={task.name}: is a {task.kind} task, and the model {answers}")
    for path in paths:
        if any(f"{path}.".startswith(f"{key}.") for key in OF_TRAINING):
            problems.append(f"{path} has no effect: the model is finished, and is trained on nothing")
    return problems


def _layer_fits(method: Distillation) -> Iterator[tuple[str, LayerObjective]]:
    """The stages of the method that distil layers."""
    if "layers" in method.stages:
        yield "layers", method.layers
    if "joint" in method.stages:
        yield "joint", method.joint


def labels(run: Run) -> list[str]:
    """Names of the stages that `fresh` may give."""
    if isinstance(run.method, Reasoning):
        return checks_reasoning.labels(run, run.method)
    if isinstance(run.method, Crosslingual):
        return checks_crosslingual.labels(run, run.method)
    found = ["prepare", "tokenise"]
    task = run.task
    others = set(task.languages) - {task.source_language} if task.splits.dev is not None else set()
    if task.evaluations or task.splits.test or others:
        found += ["prepare_sets", "tokenise_sets"]
    if isinstance(run.method, Distillation):
        stages = run.method.stages
        own = task.few.examples is not None and task.few.teacher == "own" and run.seed != run.method.teacher_seed
        if "teacher" in stages and (own or (task.noise.rate > 0 and task.noise.teacher == "clean")):
            found += ["prepare_teacher", "tokenise_teacher"]
        if "layers" in stages and run.supplement is not None:
            found += ["prepare_supplement", "tokenise_supplement"]
        found += [stage for stage in TRAINED if stage in stages]
        if "teacher" in stages and len(stages) > 1:
            found += ["evaluate_teacher", "vet", "measure_teacher"]
        if "logits" in stages and run.method.logits.learns_clean and not run.debug.short:
            found.append("teacher_logits")
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
    reason = _no_effect_of_condition(run.task, path, "task")
    if reason is None and run.supplement is not None:
        reason = _no_effect_in_supplement(run.supplement, path)
    if reason is None:
        reason = checks_crosslingual.no_effect_of_languages(run.task, path)
    if reason is not None:
        return reason
    if path == "task.heldout" and run.select_on != "heldout":
        return f"select_on={run.select_on}"
    if parts[0] == "translator" and not isinstance(method, Crosslingual):
        return f"method={method.name} (it translates nothing)"
    if isinstance(method, Reasoning):
        return checks_reasoning.no_effect(run, method, path, given)
    if parts[:2] in (["task", "partition"], ["task", "generate"]) or path in OF_REASONING:
        return f"task={run.task.name} (it is for reasoning tasks)"
    if path in ("model.vocabulary", "model.base_url", "model.api", "model.epochs") or path.startswith("model.price."):
        return f"model={run.model.name} (it is for models that generate)"
    if isinstance(method, Crosslingual):
        return checks_crosslingual.no_effect(run, method, path, given)
    if not isinstance(method, Distillation):
        return None
    if parts[0] in ("rationales", "budget"):
        return f"method={method.name} (its teacher writes no rationales)"
    if path == "task.test_limit":
        return f"method={method.name} (it scores whole tests)"
    if path == "seed" and method.stages == ["teacher"] and run.task.few.examples is None:
        return "method.stages=[teacher] (a teacher is trained with method.teacher_seed)"
    lacks = {
        stage: f"method={method.name} (it has no stage '{stage}')" for stage in TRAINED if stage not in method.stages
    }
    if path in ("task.few.teacher", "task.noise.teacher") and "teacher" in lacks:
        return lacks["teacher"]
    if parts[0] == "supplement" and "layers" in lacks:
        return lacks["layers"]
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


def _no_effect_of_condition(task: Task, path: str, root: str) -> str | None:
    if path in (f"{root}.few.balanced", f"{root}.few.teacher", f"{root}.few.seed") and task.few.examples is None:
        return f"{root}.few.examples=null (all rows are used)"
    if path == f"{root}.imbalance.seed" and task.imbalance.ratio == 1:
        return f"{root}.imbalance.ratio=1"
    if path in (f"{root}.noise.seed", f"{root}.noise.teacher") and task.noise.rate == 0:
        return f"{root}.noise.rate=0"
    if path.startswith(f"{root}.passages."):
        if task.kind != "text":
            return f"{root}.kind={task.kind} (passages are for texts without labels)"
        if path.rpartition(".")[2] in ("min_words", "keep", "seed") and task.passages.unit == "row":
            return f"{root}.passages.unit=row"
    return None


UNUSED_OF_A_SUPPLEMENT = (
    *("metric", "metrics", "noise", "dev_limit", "pad_to_max", "max_length", "epochs", "evaluations", "heldout"),
    *("source_language", "language_names", "test_limit"),
)


def _no_effect_in_supplement(task: Task, path: str) -> str | None:
    parts = path.split(".")
    if parts[0] != "supplement":
        return None
    if parts[1] in UNUSED_OF_A_SUPPLEMENT or path == "supplement.few.teacher":
        return "a supplement (only its training texts are used, and cut as those of the task)"
    if task.kind == "text" and parts[1] in ("few", "imbalance", "label", "labels"):
        return "supplement.kind=text (it has no labels); for fewer rows set supplement.passages.limit"
    return _no_effect_of_condition(task, path, "supplement")


def _no_effect_of_term(run: Run, method: Distillation, path: str) -> str | None:
    logits = method.logits
    for stage, fit in _layer_fits(method):
        if path.startswith(f"method.{stage}."):
            return _no_effect_of_layer_term(run, fit, f"method.{stage}", path.removeprefix(f"method.{stage}."))
    if path == "method.logits.regression_scale" and run.task.kind != "regression":
        return f"task={run.task.name} (a {run.task.kind} task)"
    if path.startswith("method.logits.mixed.") and not path.endswith("mixup") and logits.mixed.mixup == 0:
        return "method.logits.mixed.mixup=0"
    if path == "method.logits.alpha" and logits.clean == 0:
        return "method.logits.clean=0 (clean inputs have no weight)"
    soft = (logits.clean and logits.alpha < 1) or (logits.mixed.mixup and logits.mixed.logit)
    if path == "method.logits.temperature" and not soft:
        return "method.logits.alpha=1 (the teacher's logits have no weight)"
    return None


def _no_effect_of_layer_term(run: Run, fit: LayerObjective, root: str, key: str) -> str | None:
    if key.startswith("consistency.") and key != "consistency.weight":
        if fit.consistency.weight == 0:
            return f"{root}.consistency.weight=0"
        if key == "consistency.decay" and fit.consistency.target == "student":
            return f"{root}.consistency.target=student (it keeps no moving average)"
    if key == "relation_mask" and fit.mixup == 0 and fit.relation_mask != "none":
        return f"{root}.mixup=0 (without mixing own and union are the same)"
    if key == "transport.reset_each_epoch" and not fit.transport.update_weights:
        return f"{root}.transport.update_weights=false (they never move)"
    if key == "transport.separate" and len(set(fit.relations) - {"embedding"}) < 2:
        return f"{root}.relations={_shown(fit.relations)} (there is one relation to transport)"
    if key in ("layer_map", "pairs") and fit.relations == ["embedding"]:
        return f"{root}.relations=[embedding] (it has no layers)"
    if key == "pad_rows" and fit.relations == ["patient"]:
        return f"{root}.relations=[patient] (it has no padded rows)"
    if key == "pairs" and fit.layer_map != "pairs":
        return f"{root}.layer_map={fit.layer_map}"
    if key.startswith("transport.") and fit.layer_map != "transport":
        return f"{root}.layer_map={fit.layer_map}"
    wanted = {
        "relation_divergence": ("attention", *KEYED),
        "relation_mask": ("attention", *KEYED),
        "projection": STATES,
        "relation_heads": KEYED,
        "hidden_divergence": STATES,
        "normalise": ("patient",),
    }.get(key)
    if wanted is not None and not set(wanted) & set(fit.relations):
        return f"{root}.relations={_shown(fit.relations)} (it is for {', '.join(wanted)})"
    if isinstance(fit, JointFit):
        if key == "regression_scale" and run.task.kind != "regression":
            return f"task={run.task.name} (a {run.task.kind} task)"
        if key == "temperature" and fit.alpha == 1:
            return f"{root}.alpha=1 (the teacher's logits have no weight)"
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
        if isinstance(value, dict) and not path.startswith("expected."):  # `_expected` says it in its own words
            yield from (f"{where}={number}: must be a finite number" for where, number in _endless(path, value))
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        holds, words = _range_of(path)
        if not holds(value):
            yield f"{path}={value}: {words}"


def _endless(path: str, value: Any) -> Iterator[tuple[str, float]]:
    """(path, number) of what is not finite in a section of free keys, which no fingerprint can hold."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in inner:
            yield from _endless(f"{path}.{key}", one)


@cache
def _range_of(path: str) -> tuple[Callable[[float], bool], str]:
    """The first of RANGES that a key is in, or one that holds whatever is given."""
    found = ((holds, words) for pattern, holds, words in RANGES if fnmatchcase(path, pattern))
    return next(found, (lambda _: True, ""))


def _task(task: Task, root: str = "task") -> Iterator[str]:
    source = task.source
    given = [name for name in ("hub", "path", "demo") if getattr(source, name) is not None]
    archive = task.kind == "reasoning" and source.key is not None and not given  # said by check_task
    if len(given) != 1 and not archive:
        lead = " and ".join(given) + " are given" if given else "nothing is given"
        yield f"{root}.source: {lead}; exactly one of hub, path, demo is needed"
    if source.config is not None and "hub" not in given:
        yield f"{root}.source.config={source.config}: only a data set on the Hub has configurations"
    if source.revision is not None and "hub" not in given:
        yield f"{root}.source.revision={source.revision}: only a data set on the Hub has revisions"
    yield from checks_crosslingual.check_task(task, root)
    if task.kind == "reasoning":
        yield from checks_reasoning.check_task(task)
        if not task.text:
            yield f"{root}.text=[]: the column with the question is needed"
    elif not 1 <= len(task.text) <= 2:
        yield f"{root}.text=[{','.join(task.text)}]: one or two columns are needed"
    elif len(set(task.text)) < len(task.text):
        yield f"{root}.text=[{','.join(task.text)}]: the same column twice"
    if root != "task":
        return
    if given == ["hub"] and task.splits.dev is None and task.kind != "reasoning":
        yield "task.splits.dev=null: a data set on the Hub needs one; only a local file is split by kdlab"
    if task.label in task.text:
        yield f"task.label={task.label}: is a column of task.text too, so the text would hold the answer"
    yield from _answers(task)
    yield from _conditions(task)
    for name in task.evaluations:
        if name in OWN_SPLITS or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            yield (
                f"task.evaluations.{name}: take another name: letters, digits, _ and -, "
                f"and none of {', '.join(OWN_SPLITS)}"
            )


def _supplement(task: Task) -> Iterator[str]:
    yield from _task(task, "supplement")
    if task.kind == "reasoning":
        yield f"task@supplement={task.name}: is a reasoning task; texts for an encoder are needed"
    if task.kind == "text" and task.passages.unit == "pair" and len(task.text) > 1:
        yield "supplement.passages.unit=pair: makes pairs out of one column of documents; supplement.text has two"


def _conditions(task: Task) -> Iterator[str]:
    if task.kind == "regression":
        if task.few.balanced:
            yield "task.few.balanced=true: a regression task has no classes to balance"
        if task.imbalance.ratio > 1:
            yield f"task.imbalance.ratio={task.imbalance.ratio}: a regression task has no classes"
    if task.few.examples is not None and task.labels and task.few.examples < len(task.labels):
        yield f"task.few.examples={task.few.examples}: the task has {len(task.labels)} classes; give that many or more"


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


def _expected(run: Run) -> Iterator[str]:
    """The first thing that is wrong with the papers' numbers."""
    axes, scores = run.expected.axes, run.expected.scores
    known = {path: value for path, value, _ in walk(run) if not path.startswith("expected")}
    for axis in axes:
        if axis not in known or (is_dataclass(known[axis]) and not hasattr(known[axis], "name")):
            yield f"expected.axes={_shown(axes)}: '{axis}' is no group and no key with a value{suggest(axis, known)}"
            return
    if len(set(axes)) < len(axes):
        yield f"expected.axes={_shown(axes)}: the same twice"
    elif scores and not run.expected.source:
        yield "expected.source: must say where the numbers of expected.scores come from"
    elif scores and not axes:
        yield "expected.axes=[]: name what the levels of expected.scores are, for example [method,task]"
    else:
        yield from islice(_wrong_scores(scores, axes, "expected.scores"), 1)


def _wrong_scores(node: Mapping[Any, Any], axes: Sequence[str], where: str) -> Iterator[str]:
    for key, inner in node.items():
        path = f"{where}.{key}"
        if not isinstance(key, str):
            yield f"{path}: write the key in quotes; keys are compared as text"
        elif isinstance(inner, Mapping):
            if len(axes) > 1:
                yield from _wrong_scores(inner, axes[1:], path)
            else:
                yield f"{path}: has keys below it, but expected.axes ends here: a number or null is wanted"
        elif len(axes) > 1:
            yield f"{path}: keys of '{axes[1]}' are wanted below it, as expected.axes says, not a value"
        elif inner is not None and (isinstance(inner, bool) or not isinstance(inner, int | float)):
            yield f"{path}={inner}: a number is wanted, or null where the paper has none"
        elif inner is not None and not -100 <= inner <= 100:
            yield f"{path}={inner}: scores are x 100, as papers print them: 0 to 100 (MCC from -100)"


def _model(run: Run, stages: Sequence[str]) -> Iterator[str]:
    """Of the families of encoders, whose `stages` these are."""
    model, method = run.model, run.method
    if model.kind != "encoder":
        kind = "a decoder" if model.kind == "decoder" else "an endpoint"
        yield (
            f"model={model.name}: is {kind}; method={method.name} is of the family {method.family}, "
            "which needs an encoder"
        )
        return
    student, teacher = model.student, model.teacher
    if isinstance(method, Crosslingual) and student.init == "cut":
        yield (
            f"model.student.init=cut: method={method.name} has no teacher to cut it from; take model=mbert, xlmr_base, "
            "e5_small or tiny_multilingual, or model.student.init=pretrained model.student.num_layers=null and a "
            "model.student.id"
        )
        return
    wants_student = list(stages) != ["teacher"]
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
    if model.tokenizer == "pieces":
        yield "model.tokenizer=pieces: is for models that generate; take pretrained or words"
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
    for stage, fit in _layer_fits(method):
        yield from _layers(f"method.{stage}", fit)
    mixed = method.logits.mixed
    if "logits" in stages:
        if method.logits.clean == 0 and mixed.mixup == 0:
            yield "method.logits.clean=0: no input is left; give method.logits.mixed.mixup=1.0 too"
        if mixed.mixup > 0 and mixed.logit == 0 and mixed.label == 0:
            yield "method.logits.mixed: logit=0 and label=0 leave the mixed inputs no weight; set mixup=0 for none"
        if mixed.mixup > 0 and mixed.target == "clean" and mixed.logit == 0:
            yield (
                "method.logits.mixed.logit=0: leaves target=clean without effect; "
                "set method.logits.mixed.target=mixed too"
            )
    known = labels(run)
    for name in run.fresh:
        if name not in known:
            yield f"fresh=[{name}]: no such stage here; allowed: {', '.join(known)}{suggest(name, known)}"


def _layers(root: str, fit: LayerObjective) -> Iterator[str]:
    if not fit.relations:
        yield (
            f"{root}.relations=[]: at least one of attention, hidden, embedding, patient, query, key, value is needed"
        )
    if fit.consistency.weight > 0 and fit.mixup == 0:
        yield (
            f"{root}.consistency.weight={fit.consistency.weight}: needs mixed inputs; "
            f"set {root}.mixup=1.0, or the weight to 0"
        )
    if fit.consistency.weight > 0 and not fit.consistency.terms:
        yield f"{root}.consistency.terms=[]: nothing to hold consistent; allowed: attention, hidden"
    if fit.relation_mask == "none" and fit.pad_rows == "exclude" and set(fit.relations) - set(STATES):
        yield (
            f"{root}.relation_mask=none: without a mask padded rows can't be told from others; "
            f"set {root}.pad_rows=include"
        )
    if fit.layer_map == "transport":
        if fit.relations and not set(fit.relations) - {"embedding", "patient"}:
            yield f"{root}.layer_map=transport: {_shown(fit.relations)} are not transported; add attention or hidden"
        if "patient" in fit.relations:
            yield f"{root}.layer_map=transport: patient is one vector of given layers; take hidden, or another map"
        if fit.consistency.weight > 0:
            yield f"{root}.layer_map=transport: consistency needs given layers; set its weight to 0, or another map"


def _both(encoder: Encoder) -> str:
    return "" if encoder.layers is None else ", not both"


def _shown(value: Any) -> str:
    return "[" + ",".join(str(item) for item in value) + "]" if isinstance(value, list) else str(value)
