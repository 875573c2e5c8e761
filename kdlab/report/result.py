"""`result.json`: every number of a run, and where each came from."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlab import provenance
from kdlab.artifacts import Artifact
from kdlab.config import Crosslingual, Distillation, Run
from kdlab.data.languages import ORIGINAL, View
from kdlab.report.samples import Sample, read_samples

REASONING_METRICS = ("accuracy", "contains_answer", "correct_format", "complete")
TRANSLATED = ("translated_train", "back_train", "translated_sets", "back_sets")  # targets that a translator has made
CHOSEN_ON_TEST = "chosen on the test set, as the official code does: optimistic"
COSTS = ("requests", "prompt_tokens", "completion_tokens", "trained_tokens", "usd")  # facts of a stage at an endpoint

NEARLY_ALL = 0.9  # share of one answer among all predictions that makes a student degenerate
FREQUENT = 0.1  # share of the questions; scores meet that of a rarer answer by chance
FREQUENT_ROWS = 10


def build(run: Run, targets: Mapping[str, Artifact], stages: Mapping[str, Artifact], seconds: float) -> dict[str, Any]:
    """The result of a run.

    targets: artifacts by the names that the plan gave them; stages: artifacts by stage label.
    Scores are fractions: `selected` is of the published student, reloaded; `last` and `best` are of its last
    training stage's evaluations, and `best` is chosen on the very set that it reports.
    `split` is the set that methods are compared on.
    """
    return FAMILIES[run.method.family](run, targets, stages, seconds)


def build_distillation(
    run: Run, targets: Mapping[str, Artifact], stages: Mapping[str, Artifact], seconds: float
) -> dict[str, Any]:
    """The result of a run of the distillation family."""
    method = run.method
    assert isinstance(method, Distillation)
    facts = _read(targets["data"].path / "facts.json")
    further = _read(targets["sets"].path / "facts.json") if "sets" in targets else {"majority": {}, "rows": {}}
    student = _side(run, targets, "student")
    return {
        **_common(run, stages, seconds),
        "metric": run.task.metric,
        "split": "dev",
        "scores": student["scores"],
        "student": {**student, "path": "student"},
        "teacher": _side(run, targets, "teacher") if "teacher" in targets else None,
        "majority": {**facts["majority"], **further["majority"]},
        "rows": {**facts["rows"], **further["rows"]},
        "conditions": facts["conditions"],
        "seeds": {"run": run.seed} | ({"teacher": method.teacher_seed} if "teacher" in targets else {}),
    }


def build_crosslingual(
    run: Run, targets: Mapping[str, Artifact], stages: Mapping[str, Artifact], seconds: float
) -> dict[str, Any]:
    """The result of a run of the family of MUSC.

    `scores` are means over all languages, the source's among them, in the run's own inference. Besides what every
    result has: languages (split -> mode -> language -> metric), means (split -> mode -> all, without_source -> metric),
    inference and its fallbacks (split -> language -> view -> rows without such a text, which their original answered),
    training (kind of texts, languages), translator, translations (counts by table), and the majority of each language.
    """
    method = run.method
    assert isinstance(method, Crosslingual)
    prepared = [_read(targets[name].path / "facts.json") for name in ("data", "sets") if name in targets]
    majority = majority_of_languages([facts.get("majority", {}) for facts in prepared])
    scored = targets["student_scores"].path
    means = _read(scored / "means.json")
    student = _multilingual(run, targets, means)
    translated = [targets[name] for name in TRANSLATED if name in targets]
    trained = targets["student"].manifest["values"]
    return {
        **_common(run, stages, seconds),
        "metric": run.task.metric,
        "split": "test" if "test" in means else "dev",
        "scores": student["scores"],
        "source_language": run.task.source_language,
        "task_languages": list(run.task.languages),
        "languages": _read(scored / "scores.json"),
        "means": means,
        "inference": {
            "mode": method.inference,
            "ensemble": method.ensemble,
            "share": method.share,
            "fallbacks": _read(scored / "fallbacks.json"),
        },
        "training": {name: trained[name] for name in ("texts", "languages")},
        "translator": _translator(run, translated) if translated else None,
        "translations": {
            table: counts for one in translated for table, counts in _read(one.path / "facts.json")["jobs"].items()
        },
        "student": {**student, "path": "student"},
        "teacher": None,
        "majority": {split: mean_of(list(values.values())) for split, values in majority.items()},
        "majority_of_languages": majority,
        "rows": {table: rows for facts in prepared for table, rows in facts["rows"].items()},
        "conditions": prepared[0]["conditions"],
        "seeds": {"run": run.seed},
    }


def build_reasoning(
    run: Run, targets: Mapping[str, Artifact], stages: Mapping[str, Artifact], seconds: float
) -> dict[str, Any]:
    """The result of a run of the family of Fine-tune-CoT.

    Besides what every result has: confidence intervals, chance, the constant answer that the student's score is no
    better than (or None), what curation kept, what requests cost, and the prompt as the student gets it.
    """
    facts = _read(targets["data"].path / "facts.json")
    scored = targets["student_scores"].path
    student = _generator(run, targets)
    split = "test"
    tested = [sample for sample in read_samples(scored / "samples.jsonl") if sample["split"] == split]
    curated = targets.get("curated")
    asked = _read(scored / "baselines.json")
    result = {
        **_common(run, stages, seconds),
        "metric": "accuracy",
        "split": split,
        "scores": student["scores"],
        "intervals": _read(scored / "intervals.json"),
        "constant": _constant(tested),
        "student": student,
        "teacher": _writer(run, targets) if "rationales" in targets else None,
        "majority": {**facts["majority"], **asked["majority"]},
        "majority_answer": facts["majority_answer"],
        "chance": {**facts["chance"], **asked["chance"]},
        "rows": {**facts["rows"], **asked["rows"]},
        "conditions": facts["conditions"],
        "curation": None if curated is None else _read(curated.path / "report.json"),
        "cost": _cost([targets[name] for name in ("rationales", "student", "answers") if name in targets]),
        "prompt": _prompt(targets["answers"].path / "answers.json"),
        "seeds": {"run": run.seed} | ({"rationales": run.rationales.seed} if "rationales" in targets else {}),
    }
    cleaned: dict[str, Any] = without_credentials(result)
    return cleaned


def without_credentials(value: Any) -> Any:
    """A copy of plain values in which no address has a user or a password: http://***@host/v1."""
    if isinstance(value, str):
        return re.sub(r"(?<=://)[^/\s]+@", "***@", value)
    if isinstance(value, Mapping):
        return {key: without_credentials(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_credentials(inner) for inner in value]
    return value


def _common(run: Run, stages: Mapping[str, Artifact], seconds: float) -> dict[str, Any]:
    """What every family tells: the run, its stages, and the code that made them."""
    return {
        "run": {
            "name": run.name,
            "family": run.method.family,
            "method": run.method.name,
            "task": run.task.name,
            "model": run.model.name,
            "seed": run.seed,
            "precision": run.precision,
            "select_on": run.select_on,
        },
        "sources": {
            label: artifact.manifest["values"][name]
            for name in ("source", "model", "student", "tokenizer", "writer", "translator")
            for label, artifact in stages.items()
            if artifact.manifest["values"].get(name)
        },
        "artifacts": {label: artifact.path.name for label, artifact in stages.items()},
        "warnings": [
            {"stage": label, "text": text}
            for label, artifact in stages.items()
            for text in [*artifact.manifest["warnings"], *artifact.facts.get("warnings", [])]
        ],
        "versions": provenance.versions(),
        "git": provenance.git(),
        "made_by": sorted({artifact.manifest["made"]["versions"]["kdlab"] for artifact in stages.values()}),
        "seconds": round(seconds, 3),
        "seconds_of_stages": {label: artifact.manifest["made"]["seconds"] for label, artifact in stages.items()},
    }


# distillation ------------------------------------------------------------------------------------------------------


def _side(run: Run, targets: Mapping[str, Artifact], side: str) -> dict[str, Any]:
    figures = _read(targets[f"{side}_figures"].path / "figures.json")
    selected = _read(targets[f"{side}_scores"].path / "scores.json")
    history = _read(targets[side].path / "history.json")
    head = _read(targets[side].path / "model" / "config.json").get("kdlab_head", "stock")
    return {
        "scores": _scores(selected, history, [run.task.metric, *run.task.metrics]),
        "selection": _selection(run, history),
        "head": head,
        **figures,
    }


# reasoning ---------------------------------------------------------------------------------------------------------


def _generator(run: Run, targets: Mapping[str, Artifact]) -> dict[str, Any]:
    """The student; one that was only prompted has parameters but no folder, one behind an endpoint neither."""
    folder = targets["student"].path if "student" in targets else None
    trained = folder is not None and (folder / "model").is_dir()
    history = _read(folder / "history.json") if folder is not None and trained else None
    figures = _read(targets["student_figures"].path / "figures.json") if "student_figures" in targets else {}
    answers = targets["answers"]
    untimed = dict.fromkeys(("tokens", "seconds", "tokens_per_second"))
    return {
        "parameters": None,
        **figures,
        "scores": _scores(_read(targets["student_scores"].path / "scores.json"), history, REASONING_METRICS),
        "selection": None if history is None else _selection(run, history),
        "bytes": figures.get("bytes") if trained else None,
        "answers": {**untimed, **answers.facts.get("answers", {})},
        "encoder_decoder": answers.manifest["values"]["style"]["model_type"] == "encoder_decoder",
        "path": "student" if trained else None,
    }


def _writer(run: Run, targets: Mapping[str, Artifact]) -> dict[str, Any]:
    """Who wrote the rationales, and how often its first one is right."""
    scores = _read(targets["teacher_scores"].path / "scores.json") if "teacher_scores" in targets else {}
    told = targets["rationales"].facts["teacher"]
    return {
        "name": told["model"] or run.rationales.name,
        "key": told["key"],
        "scores": _scores(scores, None, ["accuracy"]),
        "rationales": targets["rationales"].facts["rationales"],
    }


def _constant(tested: Sequence[Sample]) -> dict[str, Any] | None:
    """The one answer that the student gives to nearly all questions, or whose score it has; None: neither.

    answer; accuracy: of always giving it; share: of the predictions that are it. Several cells of the paper's tables
    are such scores: on Coin Flip 44.67 is always yes, 55.33 always no (results.ipynb cells 36-44).
    """
    golds = Counter(_plain(sample["answer"]) for sample in tested)
    predictions = Counter(_plain(sample["prediction"]) for sample in tested if sample["prediction"] is not None)
    right = sum(bool(sample["correct"]) for sample in tested)
    least = max(FREQUENT_ROWS, FREQUENT * len(tested))
    found = [answer for answer, times in predictions.most_common(1) if times >= NEARLY_ALL * len(tested)]
    found += [answer for answer, times in golds.most_common() if times == right >= least]
    if not found:
        return None
    answer = found[0]
    written = [sample[name] for name in ("prediction", "answer") for sample in tested]
    return {
        "answer": next(text for text in written if _plain(text) == answer),
        "accuracy": golds[answer] / len(tested),
        "share": predictions[answer] / len(tested),
    }


def _plain(answer: Any) -> str:
    return str(answer).strip().casefold()


def _cost(stages: Sequence[Artifact]) -> dict[str, Any] | None:
    """Sums over the stages that an endpoint was paid for, training included; one with an unknown part is not known.

    trained_tokens: over all epochs; only there if a student was trained at an endpoint.
    """
    told = [artifact.facts for artifact in stages if endpoint_of(artifact.manifest["values"])]
    if not told:
        return None
    sums: dict[str, Any] = {}
    for name in COSTS:
        parts = [facts[name] for facts in told if name in facts]
        if parts:
            sums[name] = None if None in parts else sum(parts)
    return sums


def endpoint_of(values: Mapping[str, Any]) -> str | None:
    """The endpoint that a stage with these values asks."""
    found = values.get("endpoint") or values.get("writer", {}).get("endpoint")
    return None if found is None else str(found)


def _prompt(answers: Path) -> dict[str, str | None] | None:
    """How the student is asked: one prompt, its completion, and the template, in which the question is left open."""
    records = [record for records in _read(answers)["data"].values() for record in records]
    if not records:
        return None
    first = records[0]
    prompt, question = first["prompt"], first["question"].strip()
    template = prompt.replace(question, "{question}") if question and prompt.count(question) == 1 else None
    return {"template": template, "prompt": prompt, "completion": first["completion"]}


# crosslingual ------------------------------------------------------------------------------------------------------


def _multilingual(run: Run, targets: Mapping[str, Artifact], means: Mapping[str, Any]) -> dict[str, Any]:
    """The student. Of its scores while it was trained only those are told for which it was asked as it is scored."""
    method, student = run.method, targets["student"]
    assert isinstance(method, Crosslingual)
    history, select = _read(student.path / "history.json"), student.manifest["values"]["select"]
    languages = run.task.languages if select is None else student.facts["selected_by"]
    view = ORIGINAL if select is None else select["view"]
    alike = view == method.inference and set(languages) == set(run.task.languages)
    selected = {split: modes[method.inference]["all"] for split, modes in means.items() if method.inference in modes}
    told = {} if select is None else {"languages": languages, "view": view}
    told |= {"note": CHOSEN_ON_TEST} if run.select_on == "test" else {}
    return {
        "scores": _scores(selected, history if alike else None, [run.task.metric, *run.task.metrics]),
        "selection": {**_selection(run, history), **told},
        "head": _read(student.path / "model" / "config.json").get("kdlab_head", "stock"),
        **_read(targets["student_figures"].path / "figures.json"),
    }


def _translator(run: Run, translated: Sequence[Artifact]) -> dict[str, Any]:
    """What identifies it, over all the pairs of languages that it has translated between."""
    found: dict[str, Any] = {"name": run.translator.name}
    for one in translated:
        for key, value in one.manifest["values"]["translator"].items():
            found[key] = {**found.get(key, {}), **value} if isinstance(value, Mapping) else value
    return found


def majority_of_languages(
    found: Sequence[Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, dict[str, float]]]:
    """split -> language -> metric, from the majority of each table."""
    sorted_out: dict[str, dict[str, dict[str, float]]] = {}
    for table, metrics in (item for majority in found for item in majority.items()):
        view = View.of(table)
        if view.form == ORIGINAL:
            sorted_out.setdefault(view.split, {})[view.language] = dict(metrics)
    return sorted_out


def mean_of(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of the metrics that all have."""
    return {
        name: statistics.fmean(one[name] for one in found) for name in found[0] if all(name in one for one in found)
    }


# all of them -------------------------------------------------------------------------------------------------------


def _selection(run: Run, history: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "on": run.select_on,
        "step": history["selected_step"],
        "last_step": history["last_step"],
        "score": history["best_score"],
    }


def _scores(
    selected: Mapping[str, Mapping[str, float]], history: Mapping[str, Any] | None, wanted: Sequence[str]
) -> dict[str, Any]:
    """The wanted metrics, of all that were scored."""
    evaluations = [] if history is None else history["evaluations"]
    scores: dict[str, Any] = {}
    for split, metrics in selected.items():
        scores[split] = {}
        for metric in dict.fromkeys(wanted):
            value = metrics[metric]
            curve = [one["scores"][split][metric] for one in evaluations if metric in one["scores"].get(split, {})]
            scores[split][metric] = {"selected": value} | ({"last": curve[-1], "best": max(curve)} if curve else {})
    return scores


FAMILIES = {"distillation": build_distillation, "reasoning": build_reasoning, "crosslingual": build_crosslingual}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
