"""Train a multilingual student on texts and their translations, and ask it on both.

Tables are named as in `kdlab.data.languages`: train.en.original, train.en.es, test.es.en, test.es.back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    kernel = device.attention_kernel(device.pick_device(context.hardware), train=True)
    student = new_model(model, task, seed=seed, kernel=kernel)
    contrast = objective["contrast"]
    if contrast["weight"]:
        width = student.model.config.hidden_size
        head = ProjectionHead(width, contrast["size"], kind=contrast["head"], seed=seed)
        student = Tapped(student.model, head=model["head"], contrast=head)
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
    how: Mapping[str, Any] = {"view": ORIGINAL, "ensemble": "probabilities", "share": 0.5} if select is None else select
    chosen = None if select is None else set(select["languages"])

    def evaluate() -> Scores:
        """Of each language, and their mean: over those that choose the checkpoint, else over all."""
        scores: dict[str, dict[str, float]] = {}
        for split in ("heldout", "dev", "test") if select_on == "test" else ("heldout", "dev"):
            of_split = {}
            for language in asked.languages(split):
                view = str(how["view"]) if split != "heldout" else ORIGINAL
                modes = asked.modes(split, language, views=_needed(view), how=how)
                of_split[language] = {name: asked.score(split, language, name, modes[view]) for name in task.metrics}
            for language, values in of_split.items():
                scores[f"{split}.{language}"] = values
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


def _needed(view: str) -> list[str]:
    return [ORIGINAL] if view == ORIGINAL else [ORIGINAL, "translated"]


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

    def table(self, view: View) -> tuple[TaskData, EncodedSplit] | None:
        """The table of a view, if there is one."""
        for task in self.tasks:
            if (task.folder / f"{view}.arrow").is_file():
                return task, task.split(str(view))
        return None

    def languages(self, split: str) -> list[str]:
        """Those that have labelled rows of a split, in alphabetical order."""
        names = {path.stem for task in self.tasks for path in task.folder.glob(f"{split}.*.{ORIGINAL}.arrow")}
        found = sorted(View.of(name).language for name in names)
        return [language for language in found if self.original(split, language).labelled]

    def original(self, split: str, language: str) -> EncodedSplit:
        found = self.table(View(split, language))
        assert found is not None, (split, language)
        return found[1]

    def logits(self, view: View) -> tuple[Array, Array] | None:
        """(logits [N, C], ids [N]) of the rows that the view has, at fp32 without dropout."""
        found = self.table(view)
        if found is None:
            return None
        task, split = found
        logits = predict(self.model, task, split, batch_size=self.batch_size, pad_to_max=self.pad_to_max)
        return logits, split.ids

    def views(self, split: str, language: str, views: Sequence[str]) -> tuple[dict[str, Array], dict[str, int]]:
        """(logits [N, C] of each view, rows that a view lacks and the original text answered).

        The source language has one view: its text as it is.
        """
        own = self.logits(View(split, language))
        assert own is not None, (split, language)
        logits, ids = {ORIGINAL: own[0]}, own[1]
        lacking: dict[str, int] = {}
        for name in views:
            if name == ORIGINAL:
                continue
            logits[name] = own[0]
            if language == self.source_language:
                continue
            found = self.logits(View(split, language, BACK if name == "back_translated" else self.source_language))
            if found is None:
                del logits[name]
                continue
            place = {int(row): number for number, row in enumerate(ids)}
            logits[name] = own[0].copy()
            logits[name][[place[int(row)] for row in found[1]]] = found[0]
            lacking[name] = len(ids) - len(found[1])
        return logits, lacking

    def modes(self, split: str, language: str, *, views: Sequence[str], how: Mapping[str, Any]) -> dict[str, Array]:
        """Scores of classes [N, C] by mode of inference: each view by itself, and `both`."""
        return modes(self.views(split, language, views)[0], ensemble=how["ensemble"], share=how["share"])

    def score(self, split: str, language: str, metric: str, found: Array) -> float:
        return score(metric, found.argmax(-1), self.original(split, language).labels)


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
) -> None:
    """Reload the published student and score it on every labelled split, in every language and mode of inference.

    Each view of each row is read once. views: of "original", "translated" and "back_translated". A row without a
    translation is answered from its original text, and counted.

    Leaves scores.json: split -> mode -> language -> metric; means.json: split -> mode -> "all" and "without_source" ->
    metric, unweighted; fallbacks.json: split -> language -> view -> rows; and predictions-{split}.{language}.jsonl.
    """
    place = device.pick_device(context.hardware)
    loaded = saved_model(model / "model", kernel=device.attention_kernel(place, train=False)).to(place)
    tasks = [TaskData(folder) for folder in (data, sets) if folder is not None]
    asked = Asked(loaded, tasks, source_language, context.hardware.eval_batch, pad_to_max)
    names = tasks[0].labels
    assert names is not None
    scores: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    fallbacks: dict[str, dict[str, dict[str, int]]] = {}
    for split in ("heldout", "dev", "test"):
        for language in asked.languages(split):
            logits, lacking = asked.views(split, language, views if split != "heldout" else [ORIGINAL])
            fallbacks.setdefault(split, {})[language] = lacking
            found = modes(logits, ensemble=ensemble, share=share)
            for mode, values in found.items():
                measured = {metric: asked.score(split, language, metric, values) for metric in tasks[0].metrics}
                scores.setdefault(split, {}).setdefault(mode, {})[language] = measured
            answers = {mode: values.argmax(-1) for mode, values in found.items()}
            rows = asked.original(split, language)
            with open(context.out / f"predictions-{split}.{language}.jsonl", "w", encoding="utf-8") as file:
                for number, row in enumerate(rows.ids):
                    line = {
                        "id": int(row),
                        "prediction": {mode: names[int(classes[number])] for mode, classes in answers.items()},
                        "logits": {view: values[number].tolist() for view, values in logits.items()},
                    }
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    means = {
        split: {mode: _means(languages, source_language) for mode, languages in of_split.items()}
        for split, of_split in scores.items()
    }
    for name, content in (("scores", scores), ("means", means), ("fallbacks", fallbacks)):
        write_json(context.out / f"{name}.json", content)
    for split, of_languages in fallbacks.items():
        for language, lacking in of_languages.items():
            for view, rows_without in lacking.items():
                if rows_without:
                    context.warn(
                        f"{rows_without} of {len(asked.original(split, language))} rows of {split}.{language} have no "
                        f"{view} text: their original text answers"
                    )
    context.facts["means"] = means


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
