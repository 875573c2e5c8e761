"""MUSC: translations in training and in inference, for one student of several languages.

    prepare -> [translate_train -> [back_train]] -> tokenise -> student -> evaluate_student, measure_student
            -> prepare_sets -> [translate_sets -> [back_sets]] -> tokenise_sets ------^

One objective, many published methods: each preset in `conf/method/` is a point in the space of `config.Crosslingual`.

Paper
    Oh, Ko, Yun: "Synergy with Translation Artifacts for Training and Inference in Multilingual Tasks", EMNLP 2022,
    arXiv 2210.09588. Official code: jongwooko/MUSC at 115cee3. Also: SupCon, Khosla et al., NeurIPS 2020, arXiv
    2004.11362; mix-up, Zhang et al., ICLR 2018, arXiv 1710.09412.

Objective, of a batch of pairs (s, t) of one language with labels y; r reverses the batch; w_s, w_t ~ U(0, 1), one each
a batch; s_m and t_m are s and t mixed with their reversed batch behind the embedding block, and
CE*(x_m) = w_x CE(x_m, y) + (1 - w_x) CE(x_m, y_r):
      (1 - lambda) { alpha [CE(s, y) + beta1 CE*(s_m)] + (1 - alpha) [CE(t, y) + beta2 CE*(t_m)] }
    + lambda { SC([z_s, z_t], y) + beta1 [w_s SC([z_sm, z_t], y) + (1 - w_s) SC([z_sm, z_t r], y_r)]
               + beta2 [w_t SC([z_s, z_tm], y) + (1 - w_t) SC([z_s r, z_tm], y_r)] }
alpha = student.alpha, beta1 and beta2 = student.mixed_source and mixed_target, lambda = student.contrast.weight.
`kdlab.stages.pair_steps` has it, and that of texts without a translation beside them.

Identical to the official code: all terms and their weights at the defaults (alpha 0.5, beta 1, lambda 0.1, SupCon at
temperature 0.3 with its loss scaled by it, and 1e-4 added to the number of positives); mixing the whole embedding
output, the union mask; the projection of the last layer's [CLS] before the pooler; one optimiser step a step, the mean
over languages, whose divisor stays when a language runs out of batches; Adam at a constant rate, batches of 32 pairs.

Departures of all presets from it, with the switch that takes it back where there is one
    1. The checkpoint is chosen on the mean dev score over languages, of the original texts, once an epoch; the official
       code takes the mean test score (baseline_trainer.py:290-297). select_on=test does so, and is labelled.
    2. `both` is the mean of probabilities, as in the notebook that evaluates the paper; the trainer's own evaluator
       sums logits (future/base.py:58-73). method.ensemble=logits
    3. The original view is the text in its own language in XNLI too; with five-column test files the official loader
       reads its English translation there during training (NLI/xnli.py:136-150). method.select.view=translated
    4. All views of a step are one forward pass, the same numbers as one pass each; a view without weight is not run.
    5. The mixing ratios are drawn from the run's seed; the official ones come from an unseeded numpy.
    6. With mix-up and SupCon together, alpha, beta1 and beta2 count, the latter two for contrast as well; the official
       code has 0.5, 1 and 1 there. At the defaults both are the same.
    7. Batches hold rows of like length and are padded to their longest (task.pad_to_max=true pads to max_length).
    8. All methods have the same learning rate and are evaluated as often; the official scripts differ between the
       baseline and MUSC (PAWS-X 1e-5 and 3e-5; XNLI evaluated every 300 and 3000 steps). musc_official has MUSC's.
    9. Pre-trained weights without a pooler get a new one.
   10. XNLI and PAWS-X are translated by M2M-100 too; the official code reads XTREME's files (translator=recorded).
   11. MARC's second text, title and product category, is not there in the copy on the Hub (see its task file).
One more switch, off by default: method.student.normalise_terms scales the weights of labels to the sum 1 - lambda and
those of contrast to lambda; the official sums are 2 (1 - lambda) and 3 lambda.

Run it: kdlab train method=musc task=multilingual/tweet_sentiment
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdlab.config import (
    Contrast,
    Crosslingual,
    PairFit,
    Run,
    asked_languages,
    read_languages,
    together,
    trained_languages,
)
from kdlab.data.languages import BACK, View
from kdlab.errors import ConfigError
from kdlab.graph import Graph, Stage, Work
from kdlab.methods.data import conditions, drawn, language_sources, reader
from kdlab.methods.distillation import FIT_FIELDS, encoder_problems, measured
from kdlab.models.architectures import estimate_parameters
from kdlab.pins import Pins
from kdlab.translators import apertium, hf, rules

PASS = 3.0  # forward passes' worth of a training step's arithmetic


def plan(run: Run, pins: Pins) -> Graph:
    """The stages above, as far as the method's texts and views need them."""
    method = run.method
    assert isinstance(method, Crosslingual)
    build = Builder(run, method, pins)
    config = build.model.config
    problems = [] if config is None else encoder_problems(run, "student", config)
    if problems:
        raise ConfigError(problems)
    return build.graph()


class Builder:
    """Makes the stages of this family; each method returns one."""

    def __init__(self, run: Run, method: Crosslingual, pins: Pins) -> None:
        self.run, self.method, self.pins, self.task = run, method, pins, run.task
        self.source_language = run.task.source_language
        self.model = pins.model(run.model.student)
        self.reader = reader(run, {"student": self.model})
        self.trained = trained_languages(run.task, method)
        self.own = read_languages(run.task, method)
        self.source, self.place = language_sources(run, pins)

    def graph(self) -> Graph:
        prepared = self.prepared()
        translated, back = self.texts_of_training(prepared)
        sets = self.sets(prepared) if self.task.splits.test else None
        views, views_back = self.views_of_sets(prepared, sets)
        more = {"translated": translated} if back is None else {"back": back}
        inputs = {name: stage for name, stage in more.items() if stage is not None}
        data = self.reader.tokenised(prepared, "tokenise", self.task.max_length, more=inputs)
        asked = [stage for stage in (sets, views, views_back) if stage is not None]
        tokenised = None
        if asked:
            names = ("data", "translated", "back")[: len(asked)]
            first, *rest = asked
            further = dict(zip(names[1:], rest, strict=True))
            tokenised = self.reader.tokenised(first, "tokenise_sets", self.task.max_length, words_of=data, more=further)
        # all that is translated is there before anything is trained: a translator that lacks too much is told early
        student = self.student(
            data, tokenised, after=tuple(stage for stage in (views, views_back) if stage is not None)
        )
        targets = {
            "data": data,
            "student": student,
            "student_scores": self.scored(student, data, tokenised),
            "student_figures": measured(self.run, "student", student, data),
        }
        optional = {
            "sets": tokenised,
            "translated_train": translated,
            "back_train": back,
            "translated_sets": views,
            "back_sets": views_back,
        }
        return Graph.of(targets | {name: stage for name, stage in optional.items() if stage is not None})

    # data ------------------------------------------------------------------------------------------------------

    def languages(self, *splits: str) -> dict[str, dict[str, Any]]:
        return {
            language: {**entry, "splits": {name: entry["splits"][name] for name in splits}}
            for language, entry in self.source["languages"].items()
        }

    def prepared(self) -> Stage:
        run, task = self.run, self.task
        few_seed = run.seed if task.few.seed is None else task.few.seed
        return Stage(
            "kdlab.stages.languages:prepare_languages",
            "prepare",
            values={
                "source": self.source["source"],
                "languages": self.languages("train", "dev"),
                "trained": self.own,
                "text": task.text,
                "label": task.label,
                "labels": task.labels,
                "label_names": task.label_names,
                "kind": task.kind,
                **drawn(run, task, few_seed=few_seed),
            },
            places={} if self.place is None else {"source": self.place},
            notes=(f"languages: {', '.join(task.languages)}; labels from {self.source_language}", *conditions(task)),
        )

    def sets(self, prepared: Stage) -> Stage:
        task = self.task
        return Stage(
            "kdlab.stages.languages:prepare_language_sets",
            "prepare_sets",
            values={
                "source": self.source["source"],
                "languages": self.languages("test"),
                "text": task.text,
                "label": task.label,
                "label_names": task.label_names,
                "kind": task.kind,
                "test_limit": task.test_limit,
                "rows": self.run.debug.rows,
            },
            inputs={"data": prepared},
            places={} if self.place is None else {"source": self.place},
        )

    # translations ----------------------------------------------------------------------------------------------

    def texts_of_training(self, prepared: Stage) -> tuple[Stage | None, Stage | None]:
        """(source language to the others; or others to the source language and back)."""
        source = self.source_language
        if self.method.texts == "original":
            return None, None
        if self.method.texts == "translated":
            jobs = [_job("train", source, None, language, source, language) for language in self.trained]
            return self.translated("translate_train", jobs, {"data": prepared}), None
        foreign = [language for language in self.trained if language != source]
        jobs = [_job("train", language, None, source, language, source) for language in foreign]
        there = self.translated("translate_train", jobs, {"data": prepared})
        jobs = [_job("train", language, source, BACK, source, language) for language in foreign]
        return there, self.translated("back_train", jobs, {"data": there})

    def views_of_sets(self, prepared: Stage, sets: Stage | None) -> tuple[Stage | None, Stage | None]:
        """Dev and test in the source language; and back."""
        source, asked = self.source_language, asked_languages(self.run, self.method)
        pairs = [(split, language) for split, languages in asked.items() for language in languages]
        if not pairs:
            return None, None
        inputs = {"data": prepared} if sets is None else {"data": prepared, "sets": sets}
        jobs = [_job(split, language, None, source, language, source) for split, language in pairs]
        there = self.translated("translate_sets", jobs, inputs)
        if "back_translated" not in self.method.views:
            return there, None
        jobs = [_job(split, language, source, BACK, source, language) for split, language in pairs]
        return there, self.translated("back_sets", jobs, {"data": there})

    def translated(self, label: str, jobs: list[dict[str, str]], inputs: Mapping[str, Stage]) -> Stage:
        pairs = sorted({(job["source"], job["target"]) for job in jobs})
        values, place = self.translator(pairs)
        return Stage(
            "kdlab.stages.translate:translate",
            label,
            values={"translator": values, "jobs": jobs},
            inputs=inputs,
            places={} if place is None else {"translator": place},
            notes=(f"{self.run.translator.name}: " + ", ".join(f"{one} to {other}" for one, other in pairs),),
        )

    def translator(self, pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, Any], str | None]:
        """What identifies the translations between these languages; and where the translator lies, if it is local."""
        own = self.run.translator
        values: dict[str, Any] = {"kind": own.kind, "unit": own.unit}
        if own.kind == "rules":
            for pair in pairs:
                rules.translate([], *pair)  # refuses languages that it does not know
            return values | {"identity": rules.identity()}, None
        if own.kind == "recorded":
            assert own.path is not None
            folder, pattern = _rooted(own.path)
            values |= {"pattern": pattern, "codes": own.codes}
            if pattern is None:
                pinned = self.pins.local(folder, where="translator.path")
                return values | pinned.values, pinned.place
            called = {pair: tuple(own.codes.get(language, language) for language in pair) for pair in pairs}
            files = {
                "-".join(pair): pattern.replace("{source}", source).replace("{target}", target)
                for pair, (source, target) in called.items()
            }
            return values | {"files": self.pinned_below(folder, files, "translator.path")}, folder
        if own.kind == "apertium":
            routes = {pair: apertium.route(*pair, own.pivots, own.codes) for pair in pairs}
            known = {"-".join(pair): apertium.identity(route) for pair, route in routes.items()}
            return values | {"routes": known}, None
        assert own.model is not None
        values |= {"codes": own.codes, "pivots": own.pivots, "beams": own.beams, "max_tokens": own.max_tokens}
        values |= {"precision": own.precision, "batch_size": own.batch_size}
        if _is_local(own.model):
            folder, pattern = _rooted(own.model)
            if pattern is None:
                pinned = self.pins.local(folder, where="translator.model")
                return values | pinned.values | {"pattern": None}, pinned.place
            below = hf.model_names(pattern, pairs, codes=own.codes, pivots=own.pivots)
            pinned_models = self.pinned_below(folder, {name: name for name in below}, "translator.model")
            return values | {"pattern": pattern, "models": pinned_models}, folder
        names = hf.model_names(own.model, pairs, codes=own.codes, pivots=own.pivots)
        models = {name: self.pins.named(name, own.revision).values for name in names}
        return values | {"model": own.model, "models": models}, None

    def pinned_below(self, folder: str, names: Mapping[str, str], where: str) -> dict[str, dict[str, Any]]:
        """The content of each file or folder below `folder`, by the keys of `names`; no other file there counts."""
        return {key: self.pins.local(str(Path(folder) / name), where=where).values for key, name in names.items()}

    # the student -----------------------------------------------------------------------------------------------

    def student(self, data: Stage, sets: Stage | None, *, after: tuple[Stage, ...]) -> Stage:
        run, method, fit = self.run, self.method, self.method.student
        values: dict[str, Any] = {
            **self.model.values,
            "init": run.model.student.init,
            "config": dict(run.model.student.config),
            "head": run.model.student.head,
        }
        select = self.selection()
        needs_sets = run.select_on == "test" or (select is not None and select["view"] != "original")
        coupled = fit.mixup > 0 or fit.contrast.weight > 0
        share = -(-fit.batch_size // together(run.hardware))
        return Stage(
            "kdlab.stages.crosslingual:finetune_pairs",
            "student",
            version=2,  # its dropout draws from numpy
            values={
                "model": values,
                "fit": {name: getattr(fit, name) for name in FIT_FIELDS},
                "objective": objective(fit, paired=method.texts == "translated"),
                "texts": method.texts,
                "languages": self.trained,
                "source_language": self.source_language,
                "select": select,
                "select_on": run.select_on,
                "metric": self.task.metric,
                "pad_to_max": self.task.pad_to_max,
                "seed": run.seed,
                "precision": run.precision,
                "max_steps": run.debug.steps,
                "forward_rows": min(share, run.hardware.micro_batch or share) if coupled else None,
                "processes": together(run.hardware) if coupled else None,
            },
            inputs={"data": data, **({"sets": sets} if needs_sets and sets is not None else {})},
            places={} if self.model.place is None else {"model": self.model.place},
            tried="kdlab.stages.encoder:try_weights",
            after=after,
            parallel=True,
            work=self.work(),
            notes=self.notes(),
        )

    def selection(self) -> dict[str, Any] | None:
        run, method = self.run, self.method
        if run.select_on == "last":
            return None
        view = method.select.view if run.select_on != "heldout" else "original"
        return {
            "languages": self.task.languages if method.select.languages == "all" else [self.source_language],
            "view": view,
            **self.together(view == "both"),
        }

    def together(self, used: bool) -> dict[str, Any]:
        """How the answers to both views are put together; where they are not, at its default."""
        method, default = self.method, Crosslingual(name="")
        return {
            "ensemble": method.ensemble if used else default.ensemble,
            "share": method.share if used and method.ensemble == "probabilities" else default.share,
        }

    def notes(self) -> tuple[str, ...]:
        method, fit = self.method, self.method.student
        views = "pairs of text and translation" if method.texts == "translated" else f"{method.texts} texts"
        parts = [f"{views} in {', '.join(self.trained)}"]
        parts += [f"mix-up Beta({fit.mixup:g}, {fit.mixup:g})"] if fit.mixup else []
        parts += [f"SupCon {fit.contrast.weight:g}"] if fit.contrast.weight else []
        return ("; ".join(parts), *self.selection_note())

    def selection_note(self) -> tuple[str, ...]:
        """Which scores choose the checkpoint; held-out and cut dev rows are there for the languages that are read."""
        run, select = self.run, self.selection()
        if select is None:
            return ()
        cut = run.select_on == "heldout" or (run.select_on == "dev" and self.task.splits.dev is None)
        there = [language for language in select["languages"] if not cut or language in self.own]
        view = "" if select["view"] == "original" else f", asked in {select['view']}"
        return (f"checkpoint by the mean {run.select_on} score of {', '.join(there)}{view}",)

    def work(self) -> Work:
        run, fit = self.run, self.method.student
        rows = self.task.rows
        if rows is not None:
            rows = min(rows, self.task.few.examples or rows)
            if run.select_on == "heldout":
                rows = round(rows * (1 - self.task.heldout))
            rows = min(rows, run.debug.rows or rows)
        views = (2 if self.method.texts == "translated" else 1) * (2 if fit.mixup else 1)
        config = self.model.config
        return Work(
            examples=rows,
            epochs=fit.epochs,
            batch_size=fit.batch_size,
            drop_last=fit.drop_last,
            max_steps=run.debug.steps,
            parameters=None if config is None else estimate_parameters(config),
            cost=PASS * views * len(self.trained),
            checkpoint=True,
        )

    def scored(self, student: Stage, data: Stage, sets: Stage | None) -> Stage:
        views = self.method.views
        return Stage(
            "kdlab.stages.crosslingual:evaluate_languages",
            "evaluate_student",
            values={
                "source_language": self.source_language,
                "views": sorted(views),
                **self.together({"original", "translated"} <= set(views)),
                "pad_to_max": self.task.pad_to_max,
            },
            inputs={"model": student, "data": data, **({} if sets is None else {"sets": sets})},
        )


def _job(split: str, language: str, read: str | None, write: str, source: str, target: str) -> dict[str, str]:
    """read: the form of the table that is translated; None: as the rows are."""
    table = View(split, language) if read is None else View(split, language, read)
    return {"read": str(table), "write": str(View(split, language, write)), "source": source, "target": target}


def _is_local(model: str) -> bool:
    """Whether a translator's model is a folder here: it is written as a path, or one is above {source} and {target}."""
    place = Path(model).expanduser()
    above = [part for part in place.parts if "{" not in part]
    return place.is_absolute() or model.startswith(".") or (bool(above) and Path(*above).is_dir())


def _rooted(path: str) -> tuple[str, str | None]:
    """(the absolute folder above the first {source} or {target}, the rest); a path without them as it is, and None."""
    parts = Path(path).expanduser().parts
    first = next((number for number, part in enumerate(parts) if "{" in part), None)
    if first is None:
        return path, None
    return str(Path(*parts[:first]).absolute()), str(Path(*parts[first:]))


def objective(fit: PairFit, *, paired: bool) -> dict[str, Any]:
    """What the student learns, as plain values: without how it is trained, and with what is off at its default."""
    values = {name: value for name, value in asdict(fit).items() if name not in FIT_FIELDS}
    default = {name: value for name, value in asdict(PairFit()).items() if name not in FIT_FIELDS}
    used = {
        "alpha": paired,
        "mixed_source": fit.mixup > 0 and paired,
        "mixed_target": fit.mixup > 0 and paired,
        "normalise_terms": fit.mixup > 0,
    }
    values |= {name: default[name] for name, needed in used.items() if not needed}
    if not fit.contrast.weight:
        values["contrast"] = asdict(Contrast())
    return values
