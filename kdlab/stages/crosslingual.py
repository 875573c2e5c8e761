"""Train a multilingual student on texts and their translations, and ask it on both.

Tables are named as in `kdlab.data.languages`: train.en.original, train.en.es, test.es.en, test.es.back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdlab.artifacts import write_json
from kdlab.context import Context
from kdlab.data.batches import Batches, EncodedSplit
from kdlab.data.languages import BACK, ORIGINAL, View
from kdlab.data.metrics import score
from kdlab.data.pairs import LanguageBatches, PairRows
from kdlab.engine import device
from kdlab.engine.loop import Scores
from kdlab.models.projection import ProjectionHead
from kdlab.models.taps import Tapped
from kdlab.stages.encoder import TaskData, fit_model, follower, new_model, predict, saved_model
from kdlab.stages.pair_steps import PairStep

Array = np.ndarray[Any, Any]
# how a split is asked that chooses nothing
PLAIN: Mapping[str, Any] = {"view": ORIGINAL, "ensemble": "probabilities", "share": 0.5}


def finetune_pairs(
    context: Context,
    *,
    data: Path,
    sets: Path | None = None,
    model: Mapping[str, Any],
    fit: Mapping[str, Any],
    objective: Mapping[str, Any],
    texts: str,
    languages: Sequence[str],
    source_language: str,
    select: Mapping[str, Any] | None,
    select_on: str,
    metric: str,
    pad_to_max: bool,
    seed: int,
    precision: str,
    max_steps: int | None,
    forward_rows: int | None,
    processes: int | None,
) -> None:
    """Train on one batch of each of `languages` a step and leave the student, as `kdlab.stages.encoder.train` does.

    data: tokenised training and dev tables; sets: translated dev and test tables, where selection needs them.
    objective: the fields of `config.PairFit` that `config.Fit` has not. texts: "translated": pairs of a row of the
    source language and its translation; "original" and "back_translated": rows alone.
    select: None to keep the last checkpoint, else {"languages", "view", "ensemble", "share"}: the mean score over
    these languages, asked in this way, chooses it. select_on: the split; metric: of the task.
    processes: part of the identity only.
    """
    task = TaskData(data)
    kernel = device.attention_kernel(context.hardware)
    student = new_model(model, task, seed=seed, kernel=kernel)
    contrast = objective["contrast"]
    if contrast["weight"]:
        width = student.model.config.hidden_size
        student.contrast = ProjectionHead(width, contrast["size"], kind=contrast["head"], seed=seed)
    step = PairStep(objective, paired=texts == "translated")
    world = device.World.current()

    def batches(language: str, number: int) -> Batches:
        return task.batches(
            _rows(task, texts, language, source_language),
            batch_size=fit["batch_size"],
            seed=seed + number,  # so that languages of as many rows are not dealt alike
            shuffle=True,
            drop_last=fit["drop_last"],
            pad_to_max=pad_to_max,
            micro_batch=context.hardware.micro_batch if forward_rows is None else forward_rows,
            world=world,
        )

    steps = LanguageBatches({language: batches(language, number) for number, language in enumerate(languages)})
    size = context.hardware.eval_batch
    asked = Asked(student, [task, *([TaskData(sets)] if sets is not None else [])], source_language, size, pad_to_max)
    chosen = None if select is None else set(select["languages"])
    if chosen is not None:
        context.facts["selected_by"] = [language for language in asked.languages(select_on) if language in chosen]

    def evaluate() -> Scores:
        """Of each language, and their mean: over those that choose the checkpoint, else over all.

        The split that chooses is asked as `select` says, the others in their original texts.
        """
        scores: dict[str, dict[str, float]] = {}
        for split in ("heldout", "dev", "test") if select_on == "test" else ("heldout", "dev"):
            how = select if select is not None and split == select_on else PLAIN
            views = [ORIGINAL] if how["view"] == ORIGINAL else [ORIGINAL, "translated"]
            of_split = {}
            for language in asked.languages(split):
                answers = asked.ask(split, language, views).modes(ensemble=how["ensemble"], share=how["share"])
                of_split[language] = scores[f"{split}.{language}"] = answers.scores(how["view"], task.metrics)
            counted = [values for language, values in of_split.items() if chosen is None or language in chosen]
            if counted:
                scores[split] = {name: float(np.mean([values[name] for values in counted])) for name in task.metrics}
        return scores

    follow = None
    if context.curves:
        first = str(View("train", source_language if texts == "translated" else languages[0]))
        dev = {f"dev.{language}": (task, str(View("dev", language))) for language in asked.languages("dev")}
        follow = follower(
            student,
            step,
            {"train": (task, first), **dev},
            rows=context.curves,
            batch_size=size,
            pad_to_max=pad_to_max,
            scored=True,
        )
    fit_model(
        context,
        student,
        step,
        steps,
        tokenizer=task.tokenizer,
        fit_values=fit,
        seed=seed,
        precision=precision,
        max_steps=max_steps,
        select=None if select is None else (select_on, metric),
        evaluate=evaluate,
        follow=follow,
    )


def _rows(task: TaskData, texts: str, language: str, source_language: str) -> EncodedSplit | PairRows:
    if texts == "translated":
        source = task.split(str(View("train", source_language)))
        return PairRows(source, task.split(str(View("train", source_language, language))))
    back = texts == "back_translated" and language != source_language
    return task.split(str(View("train", language, BACK if back else ORIGINAL)))


@dataclass(frozen=True)
class Answers:
    """A table's rows, and what they were answered.

    found: scores of classes [N, C] by view, or by mode of inference. lacking: by view, how many rows had no such text
    and were answered from the original one.
    """

    rows: EncodedSplit
    found: Mapping[str, Array]
    lacking: Mapping[str, int]

    def modes(self, *, ensemble: str, share: float) -> Answers:
        return replace(self, found=modes(self.found, ensemble=ensemble, share=share))

    def scores(self, mode: str, metrics: Sequence[str]) -> dict[str, float]:
        answers = self.found[mode].argmax(-1)
        return {metric: score(metric, answers, self.rows.labels) for metric in metrics}


@dataclass(frozen=True)
class Asked:
    """A model that is asked the rows of several languages in several views.

    tasks: folders of tokenised tables, which are looked up in this order.
    """

    model: Tapped
    tasks: Sequence[TaskData]
    source_language: str
    batch_size: int
    pad_to_max: bool
    classes: Sequence[str] | None = None  # of the model in its own order, where the data's order is another

    def languages(self, split: str) -> list[str]:
        """Those that have labelled rows of a split, in alphabetical order."""
        return [language for language in self._languages(split) if self._labelled(split, language)]

    def unlabelled(self, split: str) -> list[str]:
        """Those whose rows of a split have no labels, or not all."""
        return [language for language in self._languages(split) if not self._labelled(split, language)]

    def ask(self, split: str, language: str, views: Sequence[str]) -> Answers:
        """Logits by view, at fp32 without dropout; a view that the whole split lacks is left out.

        The source language has one view, its text as it is, which stands for all.
        """
        rows, original = self._answered(View(split, language))
        found, lacking = {ORIGINAL: original}, {}
        place = {int(row): number for number, row in enumerate(rows.ids)}
        for name in views:
            if name == ORIGINAL:
                continue
            view = View(split, language, BACK if name == "back_translated" else self.source_language)
            if language == self.source_language:
                found[name] = original
            elif self._folder(view) is not None:
                known, logits = self._answered(view)
                found[name] = original.copy()
                found[name][[place[int(row)] for row in known.ids]] = logits
                lacking[name] = len(rows) - len(known)
        return Answers(rows, found, lacking)

    def _languages(self, split: str) -> list[str]:
        names = {path.stem for task in self.tasks for path in task.folder.glob(f"{split}.*.{ORIGINAL}.arrow")}
        return sorted(View.of(name).language for name in names)

    def _labelled(self, split: str, language: str) -> bool:
        task = self._folder(View(split, language))
        assert task is not None, (split, language)
        return task.split(str(View(split, language))).labelled

    def _folder(self, view: View) -> TaskData | None:
        """Where the table of a view is, if there is one."""
        return next((task for task in self.tasks if (task.folder / f"{view}.arrow").is_file()), None)

    def _answered(self, view: View) -> tuple[EncodedSplit, Array]:
        """The rows of a view, and their logits [N, C]."""
        task = self._folder(view)
        assert task is not None, view
        rows = task.split(str(view))
        how: dict[str, Any] = {"batch_size": self.batch_size, "pad_to_max": self.pad_to_max, "classes": self.classes}
        return rows, predict(self.model, task, rows, **how)


def modes(views: Mapping[str, Array], *, ensemble: str, share: float) -> dict[str, Array]:
    """The views [N, C] as they are, and `both`, where there are an original and a translated one.

    ensemble "probabilities": (1 - share) softmax(original) + share softmax(translated); "logits": their sum.
    Source: MUSC evaluation.ipynb cells 8 and 10; future/base.py:58-73.
    """
    found = dict(views)
    if ORIGINAL in views and "translated" in views:
        original, translated = views[ORIGINAL], views["translated"]
        if ensemble == "logits":
            found["both"] = original + translated
        else:
            found["both"] = (1 - share) * _softmax(original) + share * _softmax(translated)
    return found


def _softmax(logits: Array) -> Array:
    probabilities: Array = torch.softmax(torch.from_numpy(logits).double(), dim=-1).numpy()
    return probabilities


def evaluate_languages(
    context: Context,
    *,
    model: Path,
    data: Path,
    sets: Path | None = None,
    source_language: str,
    views: Sequence[str],
    ensemble: str,
    share: float,
    pad_to_max: bool,
    classes: Sequence[str] | None = None,
) -> None:
    """Reload the published student and score it on every labelled split, in every language and mode of inference.

    Each view of each row is read once. views: of "original", "translated" and "back_translated". A row without a
    translation is answered from its original text, and counted. A mode that a language lacks is left out of the split.
    classes: the student's in its own order, where the task has them in another.

    Leaves scores.json: split -> mode -> language -> metric; means.json: split -> mode -> "all" and "without_source" ->
    metric, unweighted; fallbacks.json: split -> language -> view -> rows; and predictions-{split}.{language}.jsonl.
    """
    place = device.pick_device(context.hardware)
    loaded = saved_model(model / "model", kernel=device.attention_kernel(context.hardware)).to(place)
    tasks = [TaskData(folder) for folder in (data, sets) if folder is not None]
    asked = Asked(loaded, tasks, source_language, context.hardware.eval_batch, pad_to_max, classes)
    names = tasks[0].labels
    assert names is not None
    scores: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    fallbacks: dict[str, dict[str, dict[str, int]]] = {}
    for split in ("heldout", "dev", "test"):
        languages = asked.languages(split)
        for language in asked.unlabelled(split):
            context.warn(f"the rows of {split}.{language} have no labels: they are not scored, and in no mean")
        of_split: dict[str, dict[str, dict[str, float]]] = {}
        for language in languages:
            answers = asked.ask(split, language, views if split != "heldout" else [ORIGINAL])
            both = answers.modes(ensemble=ensemble, share=share)
            for mode in both.found:
                of_split.setdefault(mode, {})[language] = both.scores(mode, tasks[0].metrics)
            _write_predictions(context.out / f"predictions-{split}.{language}.jsonl", answers, both, names)
            fallbacks.setdefault(split, {})[language] = dict(answers.lacking)
        for view in views:
            without = {language: lacking.get(view) for language, lacking in fallbacks.get(split, {}).items()}
            counts = ", ".join(f"{language} {count}" for language, count in without.items() if count)
            if counts:
                context.warn(f"rows of {split} without a {view} text, which their original text answers: {counts}")
        # the source language stands in every mode; one that another language lacks has no mean
        complete = {mode: found for mode, found in of_split.items() if len(found) == len(languages)}
        if complete:
            scores[split] = complete
    means = {
        split: {mode: _means(languages, source_language) for mode, languages in of_split.items()}
        for split, of_split in scores.items()
    }
    for name, content in (("scores", scores), ("means", means), ("fallbacks", fallbacks)):
        write_json(context.out / f"{name}.json", content)
    context.facts["means"] = means


def _write_predictions(path: Path, views: Answers, modes: Answers, names: Sequence[str]) -> None:
    answers = {mode: found.argmax(-1) for mode, found in modes.found.items()}
    with open(path, "w", encoding="utf-8") as file:
        for number, row in enumerate(views.rows.ids):
            line = {
                "id": int(row),
                "prediction": {mode: names[int(classes[number])] for mode, classes in answers.items()},
                "logits": {view: logits[number].tolist() for view, logits in views.found.items()},
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _means(languages: Mapping[str, Mapping[str, float]], source_language: str) -> dict[str, dict[str, float]]:
    """Unweighted means over languages, with and without the source language; an empty one is left out."""
    groups = {"all": list(languages), "without_source": [name for name in languages if name != source_language]}
    return {
        group: {
            metric: float(np.mean([languages[name][metric] for name in members])) for metric in languages[members[0]]
        }
        for group, members in groups.items()
        if members
    }
