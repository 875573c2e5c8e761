"""What a run of the family of MUSC, and a task in several languages, must satisfy before any data or model is touched.

Used by `kdlab.checks`, which says how problems are worded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from kdlab.config import (
    Crosslingual,
    Evaluation,
    Run,
    Source,
    Task,
    Translator,
    asked_languages,
    read_languages,
    together,
    trained_languages,
)

LANGUAGE = "{language}"
PLACEHOLDER = r"\{[^{}]*\}"
CODE = re.compile(r"[a-z]{2,3}([_-][A-Za-z0-9]+)*")
SEVERAL = "demo/sentiment_xx, multilingual/tweet_sentiment"
DEMO = "sentiment_xx"  # the embedded task that translator=rules knows the words of
NEEDS = {  # views that a mode of inference takes
    "original": ("original",),
    "translated": ("translated",),
    "both": ("original", "translated"),
}

# keys of `translator` and the kinds that use them
TRANSLATORS = {
    "model": ("hf",),
    "revision": ("hf",),
    "path": ("recorded",),
    "codes": ("apertium", "hf", "recorded"),
    "pivots": ("apertium", "hf"),
    "beams": ("hf",),
    "max_tokens": ("hf",),
    "batch_size": ("hf",),
    "precision": ("hf",),
}


def check_task(task: Task, root: str = "task") -> Iterator[str]:
    """Of any task: its languages, and the keys of its source that came with them."""
    source = task.source
    if task.kind == "reasoning":
        columns = _listed(source.columns) if source.columns else None
        for key, value in (("data_dir", source.data_dir), ("language", source.language), ("columns", columns)):
            if value is not None:
                yield f"{root}.source.{key}={value}: is for tasks of encoders; a reasoning task is not read so"
    else:
        yield from _places(task, root)
        if source.columns:
            yield from _columns(task, root)
    if task.label_names and task.kind != "classification":
        yield f"{root}.label_names: names classes, and a {task.kind} task has none"
    for held, label in task.label_names.items():
        if task.labels is not None and label not in task.labels:
            yield f"{root}.label_names.{held}={label}: is none of {root}.labels={_listed(task.labels)}"
    if not task.languages:
        for path, value in _templates(task):
            if LANGUAGE in value:
                yield f"{root}.{path}={value}: {LANGUAGE} stands for one of {root}.languages, and that names none"
    elif task.kind == "reasoning":
        yield f"{root}.languages={_listed(task.languages)}: a reasoning task is in one language; leave them out"
    elif root == "supplement":
        yield f"task@supplement={task.name}: is in several languages; take one in one language, or a corpus"
    else:
        yield from _languages_of_a_task(task)


def _places(task: Task, root: str) -> Iterator[str]:
    """Folders and languages, of the task and of its further sets."""
    demo = task.source.demo
    places: list[tuple[str, Source | Evaluation]] = [(f"{root}.source", task.source), *_further(task, root)]
    for place, found in places:
        if found.data_dir is not None and task.source.hub is None:
            yield f"{place}.data_dir={found.data_dir}: only a data set on the Hub has it; else give {root}.source.path"
        if found.language is not None and demo != DEMO:
            yield f"{place}.language={found.language}: is for the embedded task {DEMO}"
        elif found.language is not None and task.languages:
            yield f"{place}.language={found.language}: {root}.languages={_listed(task.languages)} takes its place"
    if demo == DEMO and not task.languages and task.source.language is None:
        yield f"{root}.source.language=null: demo={DEMO} needs its language (en, ...), or {root}.languages"
    for place, evaluation in _further(task, root):
        for key in ("split", "config", "data_dir"):
            value = getattr(evaluation, key)
            if value is not None and LANGUAGE in value:
                yield f"{place}.{key}={value}: {LANGUAGE} is not filled in here; write what stands for it"


def _further(task: Task, root: str) -> list[tuple[str, Evaluation]]:
    return [(f"{root}.evaluations.{name}", evaluation) for name, evaluation in task.evaluations.items()]


def _columns(task: Task, root: str) -> Iterator[str]:
    columns, lead = task.source.columns, f"{root}.source.columns={_listed(task.source.columns)}"
    if task.source.path is None:
        yield f"{lead}: names the columns of local files without a header line, and needs {root}.source.path"
    for name in _twice(columns):
        yield f"{lead}: '{name}' is there twice"
    for key, names in (("text", task.text), ("label", [task.label] if task.kind != "text" else [])):
        for name in names:
            if name not in columns:
                yield f"{lead}: has no '{name}', which {root}.{key} asks for"


def _languages_of_a_task(task: Task) -> Iterator[str]:
    lead, source = f"task.languages={_listed(task.languages)}", task.source
    for language in _twice(task.languages):
        yield f"{lead}: '{language}' is there twice"
    for language in dict.fromkeys(task.languages):
        if not CODE.fullmatch(language):
            yield (
                f"{lead}: '{language}' is no code of a language (en, pt-BR, zho_Hant); what the source calls it goes "
                "into task.language_names"
            )
    if task.source_language not in task.languages:
        yield (
            f"task.source_language={task.source_language}: is not in {lead}; its rows have the labels: add it, "
            "or take one of these"
        )
    for name in task.evaluations:
        if name in task.languages:
            yield f"task.evaluations.{name}: take another name: that of a language is given to its rows"
    templates = dict(_templates(task))
    told = {path: value for path, value in templates.items() if re.search(PLACEHOLDER, value)}
    for path, value in told.items():
        for found in re.findall(PLACEHOLDER, value):
            if found != LANGUAGE:
                yield f"task.{path}={value}: {found} is not filled in; only {LANGUAGE} is"
    if not told.keys() & {"source.config", "source.data_dir"} and source.demo is None:
        alike = [path for path in templates if path.startswith("splits.") and path not in told]
        if alike and source.hub is not None:
            yield (
                f"{lead}: task.source.config={source.config or 'null'} and task.source.data_dir="
                f"{source.data_dir or 'null'} are the same for all, so each would have all rows of {source.hub}; write "
                f'"{LANGUAGE}" into one of them (or into {_shown_paths(alike)})'
            )
        elif alike and source.path is not None:
            yield (
                f"{lead}: {_shown_paths(alike)} {'is' if len(alike) == 1 else 'are'} the same for all; write "
                f'"{LANGUAGE}" into each: "{LANGUAGE}/train" is a folder a language'
            )
    names: dict[str, str] = {}
    for language in dict.fromkeys(task.languages):
        name = task.language_names.get(language, language)
        if told and name in names:
            yield f"task.language_names: {names[name]} and {language} are both '{name}', and would be the same rows"
        names[name] = language


def _templates(task: Task) -> Iterator[tuple[str, str]]:
    """(key, value) of what may be another for each language."""
    found = {
        "source.config": task.source.config,
        "source.data_dir": task.source.data_dir,
        "splits.train": task.splits.train,
        "splits.dev": task.splits.dev,
        "splits.test": task.splits.test,
    }
    for path, value in found.items():
        if value is not None:
            yield path, value


def check_method(run: Run, method: Crosslingual) -> Iterator[str]:
    task = run.task
    if task.kind not in ("classification", "text"):  # of texts without labels something is said already
        yield (
            f"task={task.name}: method={method.name} needs a classification task in several languages ({SEVERAL}), "
            f"this is a {task.kind} task"
        )
    elif task.kind == "classification" and not task.languages:
        yield (
            f"task={task.name}: is in one language (task.languages=[]); method={method.name} needs several, as in "
            f"{SEVERAL}; for one language take method=ft, kd or another that distils"
        )
    for name in task.evaluations if task.languages else ():
        yield f"task.evaluations.{name}: method={method.name} scores dev and test of each language, and no further sets"
    if run.supplement is not None:
        yield f"task@supplement={run.supplement.name}: is for layer distillation, method={method.name} has no layers"
    own_labels = labels(run, method)
    for name in run.fresh:
        if name not in own_labels:
            yield f"fresh=[{name}]: no such stage here; allowed: {', '.join(own_labels)}"
    if task.languages:
        yield from _languages(run, method)
    yield from _views(run, method)
    yield from _objective(run, method)
    if _translated(run, method):
        yield from _translator(task, run.translator)


def _languages(run: Run, method: Crosslingual) -> Iterator[str]:
    task, lead = run.task, f"method.languages={_listed(method.languages)}"
    unknown = [language for language in dict.fromkeys(method.languages) if language not in task.languages]
    for language in unknown:
        yield f"{lead}: '{language}' is not in task.languages={_listed(task.languages)}"
    for language in _twice(method.languages):
        yield f"{lead}: '{language}' is there twice"
    source, trained = task.source_language, trained_languages(task, method)
    if method.texts in ("translated", "back_translated") and not unknown and not set(trained) - {source}:
        where = lead if method.languages else f"task.languages={_listed(task.languages)}"
        yield (
            f"{where}: method.texts={method.texts} needs a language other than the source's ({source}); to train on "
            f"{source} alone take method.texts=original"
        )
    if run.select_on == "test" and task.splits.test is None:
        yield f"select_on=test: task={task.name} has no test (task.splits.test=null); take dev, heldout or last"
    own = read_languages(task, method)
    if method.select.languages == "source" and source not in own:
        of_own = run.select_on == "heldout" or (run.select_on == "dev" and task.splits.dev is None)
        if of_own:
            yield (
                f"method.select.languages=source: select_on={run.select_on} has rows of the trained languages only "
                f"({', '.join(own)}); take method.select.languages=all"
            )


def _views(run: Run, method: Crosslingual) -> Iterator[str]:
    if not method.views:
        yield "method.views=[]: nothing would be asked; allowed: original, translated, back_translated"
        return
    asked = [("method.inference", method.inference)]
    if run.select_on in ("dev", "test") and method.select.languages == "all":
        asked.append(("method.select.view", method.select.view))
    for path, mode in asked:
        lacking = [view for view in NEEDS.get(mode, ()) if view not in method.views]
        if lacking:
            yield f"{path}={mode}: needs {' and '.join(lacking)} in method.views={_listed(method.views)}"
    scored = "test" if run.task.splits.test is not None else "dev"
    alone = set(run.task.languages) <= {run.task.source_language}
    told = method.inference == "original" or "translated" not in method.views or alone
    if not told and scored not in asked_languages(run, method):
        of_train = "; recorded translations are those of train and test" if run.translator.kind == "recorded" else ""
        yield (
            f"method.inference={method.inference}: the task has no test, and none of its dev rows is translated"
            f"{of_train}; name task.splits.test, or take method.inference=original"
        )


def _objective(run: Run, method: Crosslingual) -> Iterator[str]:
    fit, micro = method.student, run.hardware.micro_batch
    if fit.mixup > 0 and method.texts == "translated" and not _mixed_weight(method):
        yield (
            f"method.student: mixed_source={fit.mixed_source:g} and mixed_target={fit.mixed_target:g} leave the mixed "
            f"texts no weight (alpha={fit.alpha:g}); set method.student.mixup=0 for none"
        )
    share = -(-fit.batch_size // together(run.hardware)) if fit.batch_size > 0 else 0
    if fit.contrast.weight > 0 and 0 < micro < share:
        yield (
            f"hardware.micro_batch={micro}: method.student.contrast compares all {share} rows of a batch with each "
            "other, and parts of it would be another loss; set hardware.micro_batch=0, or a smaller "
            "method.student.batch_size"
        )


def _mixed_weight(method: Crosslingual) -> bool:
    """Whether any term of paired texts that are mixed has a weight."""
    fit = method.student
    contrasted = fit.contrast.weight > 0
    source, target = fit.alpha > 0 or contrasted, fit.alpha < 1 or contrasted
    return (fit.mixed_source > 0 and source) or (fit.mixed_target > 0 and target)


def _translator(task: Task, translator: Translator) -> Iterator[str]:
    if translator.kind == "rules" and task.source.demo != DEMO:
        yield (
            f"translator={translator.name}: knows the words of demo/{DEMO} only, not those of task={task.name}; take "
            "translator=apertium, m2m100, nllb, marian, or recorded translator.path=FOLDER; or translate nothing: "
            "method=zero_shot_xlt method.views=[original]"
        )
    if translator.kind == "hf" and not translator.model:
        yield "translator.model=null: give a Hub id or a folder (translator=m2m100, nllb and marian have theirs)"
    if translator.kind == "recorded" and not translator.path:
        yield "translator.path=null: give the file of the recorded translations, or the folder with XTREME's"
    for key in ("model", "path"):
        value = getattr(translator, key)
        if value and translator.kind in TRANSLATORS[key]:
            for found in re.findall(PLACEHOLDER, value):
                if found not in ("{source}", "{target}"):
                    yield f"translator.{key}={value}: {found} is not filled in; only {{source}} and {{target}} are"
    if translator.kind not in TRANSLATORS["pivots"]:
        return
    for language, pivot in translator.pivots.items():
        lead = f"translator.pivots.{language}={pivot}"
        for code in (language, pivot):
            if not CODE.fullmatch(code):
                yield f"{lead}: '{code}' is no code of a language; write LANGUAGE: PIVOT, as in {{fr: es}}"
        way = _way(language, translator)
        if way[-1] == language:
            yield f"{lead}: leads back to itself ({' - '.join(way)}); a pivot is another language on the way"


def labels(run: Run, method: Crosslingual) -> list[str]:
    """Names of the stages that `fresh` may give."""
    task = run.task
    foreign = set(trained_languages(task, method)) - {task.source_language}
    found = ["prepare", *(["prepare_sets"] if task.splits.test else [])]
    if method.texts != "original" and foreign:
        found += ["translate_train", *(["back_train"] if method.texts == "back_translated" else [])]
    asked = asked_languages(run, method)
    if asked:
        found += ["translate_sets", *(["back_sets"] if "back_translated" in method.views else [])]
    found.append("tokenise")
    if asked or task.splits.test:
        found.append("tokenise_sets")
    return [*found, "student", "evaluate_student", "measure_student"]


def warnings(run: Run, method: Crosslingual) -> Iterator[str]:
    """What runs as configured, but contributes nothing."""
    fit = method.student
    if fit.mixup > 0 and (-(-fit.batch_size // together(run.hardware)) == 1 or run.hardware.micro_batch == 1):
        yield (
            "method.student mixes the rows of a forward pass, of which each has one: a row is mixed with itself; "
            "take 2 or more for method.student.batch_size (in each process) and hardware.micro_batch"
        )
    if fit.contrast.weight > 0 and fit.batch_size == 1:
        yield (
            "method.student.contrast compares the rows of a batch, of which each has one: its loss is always 0; "
            "take 2 or more for method.student.batch_size"
        )
    if method.texts == "translated" and fit.alpha == 1 and fit.contrast.weight == 0:
        yield (
            "method.student.alpha=1 leaves the translations no weight: the student learns from "
            f"{run.task.source_language} alone, as with method=zero_shot_xlt"
        )
    if method.inference == "both" and method.ensemble == "probabilities" and method.share in (0, 1):
        one = "translated" if method.share else "original"
        yield f"method.share={method.share:g} makes method.inference=both the same as {one}"


def no_effect(run: Run, method: Crosslingual, path: str, given: Sequence[str]) -> str | None:
    """Why a key that the command line gives changes nothing in this run; None if it does."""
    section, _, key = path.partition(".")
    if section in ("rationales", "budget"):
        return f"method={method.name} (nobody writes rationales)"
    if section == "translator":
        return _no_effect_of_translator(run, method, key)
    if path.startswith("model.teacher.") or path in ("task.few.teacher", "task.noise.teacher"):
        return f"method={method.name} (it has no teacher)"
    if path.startswith("task.epochs."):
        stage = path.rpartition(".")[2]
        if stage != "student":
            return f"method={method.name} (it has no stage '{stage}')"
        if "method.student.epochs" in given:
            return f"method.student.epochs={method.student.epochs}, which replaces it"
    if section == "method":
        return _no_effect_of_method(run, method, key)
    return None


def _no_effect_of_translator(run: Run, method: Crosslingual, key: str) -> str | None:
    task, translator = run.task, run.translator
    if not task.languages:
        return None  # refused for that already
    translated = _translated(run, method)
    if not translated:
        return f"method.texts={method.texts} and method.views={_listed(method.views)} (nothing is translated)"
    name, _, language = key.partition(".")
    if translator.kind not in TRANSLATORS.get(name, (translator.kind,)):
        return f"translator={translator.name} (it is for {', '.join(TRANSLATORS[name])})"
    ends = translated | {task.source_language}
    ways = [_way(one, translator) for one in ends] if translator.kind in TRANSLATORS["pivots"] else []
    if translator.kind == "apertium":  # goes by one pivot at most
        ways = [way[:2] for way in ways]
    passed = ends | {step for way in ways for step in way}
    known = {"pivots": ends if translator.kind == "apertium" else passed, "codes": passed}.get(name)
    if language and known is not None and language not in known:
        others = ", ".join(sorted(translated))
        return f"translations between {task.source_language} and {others} ({language} is not on the way)"
    return None


def _no_effect_of_method(run: Run, method: Crosslingual, key: str) -> str | None:
    fit, together = method.student, set(NEEDS["both"]) <= set(method.views)
    if key in ("ensemble", "share") and not together:
        return f"method.views={_listed(method.views)} (original and translated are not both asked)"
    if key == "share" and method.ensemble == "logits":
        return "method.ensemble=logits (they are summed)"
    if key.startswith("select.") and run.select_on == "last":
        return "select_on=last (no score chooses the checkpoint)"
    if key == "select.view":
        if run.select_on == "heldout":
            return "select_on=heldout (its rows are not translated)"
        if method.select.languages == "source":
            return "method.select.languages=source (its texts are asked as they are)"
    if key == "select.languages" and run.select_on == "heldout":
        own = read_languages(run.task, method)
        if len(own) == 1:
            return f"select_on=heldout (its rows are in {own[0]} alone)"
    if key == "student.patience" and run.select_on == "last":
        return "select_on=last (no score can stop a stage early)"
    if key.startswith("student.contrast.") and key != "student.contrast.weight":
        if fit.contrast.weight == 0:
            return "method.student.contrast.weight=0"
        if key == "student.contrast.epsilon" and fit.contrast.positives == "clamp":
            return "method.student.contrast.positives=clamp"
    if key == "student.normalise_terms" and fit.mixup == 0:
        return "method.student.mixup=0 (the terms' weights are scaled so already)"
    if key in ("student.mixed_source", "student.mixed_target") and fit.mixup == 0:
        return "method.student.mixup=0"
    if key in ("student.alpha", "student.mixed_source", "student.mixed_target") and method.texts != "translated":
        return f"method.texts={method.texts} (its texts have no translation beside them)"
    if fit.contrast.weight == 0 and (key, fit.alpha) in (("student.mixed_source", 0), ("student.mixed_target", 1)):
        return f"method.student.alpha={fit.alpha:g} (these labels have no weight)"
    return None


def no_effect_of_languages(task: Task, path: str) -> str | None:
    """The same of the keys that came with tasks in several languages, for any family."""
    section, _, language = path.removeprefix("task.").partition(".")
    if section not in ("source_language", "language_names", "test_limit") or not path.startswith("task."):
        return None
    if not task.languages:
        return f"task={task.name} (it is in one language)"
    if section == "test_limit" and task.splits.test is None:
        return "task.splits.test=null"
    if section == "language_names":
        if not any(LANGUAGE in value for _, value in _templates(task)):
            return f"task={task.name} (its source has no {LANGUAGE})"
        if language and language not in task.languages:
            return f"task.languages={_listed(task.languages)}"
    return None


def _translated(run: Run, method: Crosslingual) -> set[str]:
    """Languages that are translated from or into; the source language is the other side."""
    trained = set(trained_languages(run.task, method)) if method.texts != "original" else set()
    asked = {language for languages in asked_languages(run, method).values() for language in languages}
    return trained - {run.task.source_language} | asked


def _way(language: str, translator: Translator) -> list[str]:
    """The language and its pivots, one after the other, until one has none or comes again."""
    way = [language]
    while (pivot := translator.pivots.get(way[-1])) is not None:
        way.append(pivot)
        if pivot in way[:-1]:
            break
    return way


def _twice(words: Sequence[str]) -> list[str]:
    return sorted({word for word in words if words.count(word) > 1})


def _listed(words: Sequence[str]) -> str:
    return f"[{','.join(words)}]"


def _shown_paths(paths: Sequence[str]) -> str:
    return ", ".join(f"task.{path}" for path in paths)
