"""Layer distillation: fine-tune a teacher, distil its layers into a student, distil its logits.

One objective, many published methods: each preset in `conf/method/` is a point in the space of `config.LayerFit`,
`config.LogitFit` and `config.JointFit`, and opens with its own paper, what is identical, and its own departures.

Papers
    cr_ild   Ko, Park, Jeong, Hong, Ahn, Chang, Yun: "Revisiting Intermediate Layer Distillation for Compressing
             Language Models: An Overfitting Perspective", Findings of EACL 2023, arXiv 2302.01530. Official code:
             jongwooko/CR-ILD at f876f67. Also l_ild, u_ild, lti, joint, mixcons, pkd_official, cr_ild_official.
    kd       Hinton, Vinyals, Dean, 2015, arXiv 1503.02531.       ft        fine-tuning, no teacher.
    pkd      Sun et al., EMNLP 2019, arXiv 1908.09355.            tinybert  Jiao et al., EMNLP 2020, arXiv 1909.10351.
    minilm   Wang et al., NeurIPS 2020, arXiv 2002.10957.         minilm_v2 Wang et al., ACL 2021, arXiv 2012.15828.
    bert_emd Li et al., EMNLP 2020, arXiv 2010.06133.             mixkd     Liang et al., ICLR 2021, arXiv 2011.00593.

Identical to the official code of CR-ILD: the relation cross entropy and the hidden-state error, on inputs mixed after
the embedding block with the reversed batch and the union mask; the consistency terms and their ramp; [CLS] vectors,
transport and its weights; logit distillation at temperature 2 without hard labels; the stages, their learning rates,
batch sizes and epochs.

Departures of all presets from it (the presets on `base/official` take back those marked *)
    1. * Relations and states are averaged over valid rows, not over padded ones too (pad_rows).
    2. * `cr_ild` distils attention and hidden states, with consistency: the reading of the paper. The released script
       distils query, key and value relations, and its consistency terms contribute nothing (they stand inside the
       branches of attention and hidden states, training_functions.py:296-354).
    3. * The teacher term sees the keys of the union mask, like the encoder (theirs: line 308).
    4. * CoLA and SST-2 are cut at 64 tokens, as intended (run_finetune.py:224 misspells it); batches are padded to the
       longest row.
    5. * The checkpoint is selected on a held-out part of train, not on dev; evaluation once an epoch.
    6. * AdamW with bias correction and one clipping, not BertAdam with two.
    7. * An epoch's short last batch is used.
    8. * Stock classification heads; the official ones have a ReLU and no dropout before the classifier.
    9. * No linear map on student states of the teacher's width; the official one is always there.
   10. Batches hold rows of like length; the mixing partner is random among those of the batch.
   11. Each stage's loss is followed on a sample of train and dev (`curves`); the official layer stage is never
       evaluated, since that would leave dropout off (run_finetune.py:404). Here nothing of the training changes by it.

Run it: kdlab train method=cr_ild task=glue/rte
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from kdlab.config import Distillation, Encoder, Fit, Hardware, LayerFit, LayerObjective, LogitFit, Run, Task, together
from kdlab.errors import ConfigError, KdlabError
from kdlab.graph import Graph, Stage, Work
from kdlab.methods.data import Data, data_stages, in_source_language
from kdlab.models.architectures import (
    ARCHITECTURES,
    available,
    estimate_parameters,
    hidden_size,
    longest_input,
    num_heads,
    num_layers,
)
from kdlab.objectives.layer_map import layer_pairs
from kdlab.pins import Pinned, Pins

FIT_FIELDS = tuple(item.name for item in fields(Fit))


def plan(run: Run, pins: Pins) -> Graph:
    """teacher -> layers -> logits, as far as `method.stages` goes; then score and measure."""
    run = replace(run, task=in_source_language(run.task))
    method = run.method
    assert isinstance(method, Distillation)
    models = {side: pins.model(encoder) for side, encoder in _encoders(run).items()}
    problems = _problems(run, method, models)
    if problems:
        raise ConfigError(problems)
    build = _Builder(run, method, models, data_stages(run, pins, models, teacher_seed=method.teacher_seed))
    if "student" in method.stages:
        return build.graph(build.finetuned("student", build.data.student, seed=run.seed))

    teacher = build.finetuned("teacher", build.data.teacher, seed=method.teacher_seed)
    if method.stages == ["teacher"]:
        return build.graph(teacher)
    vet = build.vetted(teacher)
    if "joint" in method.stages:
        return build.graph(build.joint(teacher, vet), teacher)
    layers = build.layers(teacher, vet) if "layers" in method.stages else None
    last = build.logits(teacher, layers, vet) if "logits" in method.stages else layers
    assert last is not None
    return build.graph(last, teacher)


def _encoders(run: Run) -> dict[str, Encoder]:
    """The models that the run uses. A student cut from the teacher's base has the teacher's id."""
    method = run.method
    assert isinstance(method, Distillation)
    student = run.model.student
    if student.init == "cut":
        teacher = run.model.teacher
        config = {**teacher.config, **student.config}
        student = replace(student, id=teacher.id, revision=teacher.revision, config=config)
    if method.stages == ["student"] and student.init != "cut":
        return {"student": student}
    if method.stages == ["teacher"]:
        return {"teacher": run.model.teacher}
    return {"teacher": run.model.teacher, "student": student}


class _Builder:
    """Makes the stages of this family; each method returns one."""

    def __init__(self, run: Run, method: Distillation, models: Mapping[str, Pinned], data: Data) -> None:
        self.run, self.method, self.models, self.data = run, method, models, data
        self.common: dict[str, Any] = {
            "pad_to_max": run.task.pad_to_max,
            "precision": run.precision,
            "max_steps": run.debug.steps,
        }
        metric = None if run.select_on == "last" else run.task.metric
        self.selected: dict[str, Any] = {"metric": metric, "select_on": run.select_on}

    def model(self, side: str, argument: str) -> tuple[dict[str, Any], dict[str, str]]:
        """What a model is made of; and, if it is local, its place as that of a stage's argument."""
        encoder, pinned = getattr(self.run.model, side), self.models[side]
        values = {**pinned.values, "init": encoder.init, "config": dict(encoder.config), "head": encoder.head}
        if encoder.init == "cut":
            values["layers"] = _kept(encoder)
            values["config"] = {**self.run.model.teacher.config, **encoder.config}
            if self.run.model.teacher.init == "random":
                values["base_seed"] = self.method.teacher_seed
        return values, {} if pinned.place is None else {argument: pinned.place}

    def finetuned(self, side: str, data: Stage, *, seed: int) -> Stage:
        fit = self.method.teacher if side == "teacher" else self.method.student
        values, places = self.model(side, "model")
        return Stage(
            "kdlab.stages.finetune:finetune",
            side,
            version=2,  # its dropout draws from numpy
            values={"model": values, "fit": _fit(fit), "seed": seed, **self.selected, **self.common},
            inputs={"data": data},
            places=places,
            tried="kdlab.stages.encoder:try_weights" if side == "student" else None,
            parallel=True,
            work=self.work(side, fit),
        )

    def vetted(self, teacher: Stage) -> Stage:
        on_weak = self.method.weak_teacher if self.run.debug.name == "off" else "warn"
        return Stage(
            "kdlab.stages.evaluate:vet",
            "vet",
            values={"metric": self.run.task.metric, "on_weak": on_weak},
            inputs={"scores": self.scored("teacher", teacher), "data": self.data.student},
        )

    def layers(self, teacher: Stage, vet: Stage) -> Stage:
        fit = self.method.layers
        values, places = self.model("student", "student")
        guide: dict[str, Any] = {}
        inputs = {"data": self.data.student}
        after: tuple[Stage, ...] = (vet,)
        if fit.teacher == "pretrained":
            guide["base"], more = self.model("teacher", "base")
            guide["base_seed"] = self.method.teacher_seed
            places, after = {**places, **more}, ()
        else:
            inputs["teacher"] = teacher
        if self.data.supplement is not None:
            inputs["supplement"] = self.data.supplement
        return Stage(
            "kdlab.stages.distill:distill_layers",
            "layers",
            version=2,  # its dropout draws from numpy
            values={
                **guide,
                "student": values,
                "fit": {**_fit(fit), "eval_steps": 0, "patience": 0},
                "objective": stage_objective(fit),
                "seed": self.run.seed,
                **self.coupled(fit, _couples(fit, self.run.task)),
                **self.common,
            },
            inputs=inputs,
            places=places,
            tried="kdlab.stages.encoder:try_weights",
            after=after,
            parallel=True,
            work=self.work("student", fit, teacher=True, supplement=self.data.supplement is not None),
            notes=self.drawn(fit),
        )

    def logits(self, teacher: Stage, layers: Stage | None, vet: Stage) -> Stage:
        fit = self.method.logits
        values, places = self.model("student", "student")
        start = {"student": values} if layers is None else {}
        inputs = {"data": self.data.student} | ({} if layers is None else {"layers": layers})
        stored = fit.learns_clean and not self.run.debug.short  # for a few steps the teacher is asked
        asked = fit.learns_mixtures or not stored
        if asked:
            inputs["teacher"] = teacher
        if stored:
            inputs["teacher_logits"] = self.teacher_logits(teacher, vet)
        return Stage(
            "kdlab.stages.distill:distill_logits",
            "logits",
            version=2,  # its dropout draws from numpy
            values={
                **start,
                "fit": _fit(fit),
                "objective": stage_objective(fit),
                "seed": self.run.seed,
                **self.coupled(fit, fit.mixed.mixup > 0),
                **self.selected,
                **self.common,
            },
            inputs=inputs,
            places=places if layers is None else {},
            tried="kdlab.stages.encoder:try_weights",
            after=(vet,),
            parallel=True,
            work=self.work("student", fit, teacher=asked),
        )

    def teacher_logits(self, teacher: Stage, vet: Stage) -> Stage:
        return Stage(
            "kdlab.stages.teacher_logits:teacher_logits",
            "teacher_logits",
            values={"pad_to_max": self.run.task.pad_to_max, "precision": self.run.precision},
            inputs={"data": self.data.student, "teacher": teacher},
            after=(vet,),
            work=Work(examples=self.rows(self.run.task), parameters=self.parameters("teacher"), cost=1.0),
        )

    def joint(self, teacher: Stage, vet: Stage) -> Stage:
        fit = self.method.joint
        values, places = self.model("student", "student")
        return Stage(
            "kdlab.stages.distill:distill_joint",
            "joint",
            version=2,  # its dropout draws from numpy
            values={
                "student": values,
                "fit": _fit(fit),
                "objective": stage_objective(fit),
                "seed": self.run.seed,
                **self.coupled(fit, _couples(fit, self.run.task)),
                **self.selected,
                **self.common,
            },
            inputs={"data": self.data.student, "teacher": teacher},
            places=places,
            tried="kdlab.stages.encoder:try_weights",
            after=(vet,),
            parallel=True,
            work=self.work("student", fit, teacher=True),
            notes=self.drawn(fit),
        )

    def coupled(self, fit: Fit, couples: bool) -> dict[str, Any]:
        """The rows of a forward pass and the processes, where they decide which examples meet."""
        rows = {"forward_rows": self.forward_rows(fit), "processes": together(self.run.hardware)}
        return rows if couples else {"forward_rows": None, "processes": None}

    def drawn(self, fit: LayerObjective) -> tuple[str, ...]:
        """The layer map as `kdlab plan` shows it; nothing while the depths are unknown."""
        depths = [self.num_layers(side) for side in ("student", "teacher")]
        if depths[0] is None or depths[1] is None:
            return ()
        return tuple(draw(fit, depths[0], depths[1]))

    def num_layers(self, side: str) -> int | None:
        encoder: Encoder = getattr(self.run.model, side)
        if encoder.init == "cut":
            return len(_kept(encoder))
        config = self.models[side].config
        return None if config is None else num_layers(config)

    def scored(self, side: str, model: Stage) -> Stage:
        """Each on the held-out rows of its own data; dev and further sets are the same for both."""
        data = self.data.teacher if side == "teacher" else self.data.student
        sets = {} if self.data.sets is None else {"sets": self.data.sets}
        return Stage(
            "kdlab.stages.evaluate:evaluate",
            f"evaluate_{side}",
            values={"pad_to_max": self.run.task.pad_to_max},
            inputs={"model": model, "data": data, **sets},
        )

    def graph(self, student: Stage, teacher: Stage | None = None) -> Graph:
        """The targets: the student and what result.json tells of it and of its teacher."""
        targets = {
            "data": self.data.student,
            "student": student,
            "student_scores": self.scored("student", student),
            "student_figures": measured(self.run, "student", student, self.data.student),
        }
        if self.data.sets is not None:
            targets["sets"] = self.data.sets
        if teacher is not None:
            targets |= {
                "teacher": teacher,
                "teacher_scores": self.scored("teacher", teacher),
                "teacher_figures": measured(self.run, "teacher", teacher, self.data.student),
            }
        return Graph.of(targets)

    def forward_rows(self, fit: Fit) -> int:
        """Rows of one forward pass in one process: examples are mixed with each other within it."""
        share = -(-fit.batch_size // together(self.run.hardware))
        return min(share, self.run.hardware.micro_batch or share)

    def work(self, side: str, fit: Fit, *, teacher: bool = False, supplement: bool = False) -> Work:
        own, other = self.parameters(side), self.parameters("teacher") if teacher else 0
        cost = None if own is None or other is None else 3.0 + other / own
        task = self.run.supplement if supplement and self.run.supplement is not None else self.run.task
        return Work(
            examples=self.rows(task),
            epochs=fit.epochs,
            batch_size=fit.batch_size,
            drop_last=fit.drop_last,
            max_steps=self.run.debug.steps,
            parameters=own,
            cost=cost or 3.0,
            checkpoint=True,
        )

    def rows(self, task: Task) -> int | None:
        """That are trained on, as far as it is known before they are prepared."""
        limits = [limit for limit in (self.run.debug.rows, task.passages.limit) if limit is not None]
        rows = task.rows
        if rows is not None and task.kind != "text":
            rows = min(rows, task.few.examples or rows)
            if self.run.select_on == "heldout":
                rows = round(rows * (1 - task.heldout))
        return min([rows, *limits]) if rows is not None else None

    def parameters(self, side: str) -> int | None:
        config = self.models[side].config
        if config is None:
            return None
        encoder: Encoder = getattr(self.run.model, side)
        if encoder.init == "cut":
            config = {**config, "num_hidden_layers": len(_kept(encoder))}
        return estimate_parameters(config)


def draw(fit: LayerObjective, student_layers: int, teacher_layers: int) -> list[str]:
    """Which student layer learns from which teacher layer, a line each, the last layer first."""
    pairs = layer_pairs(fit.layer_map, student_layers, teacher_layers, pairs=fit.pairs)
    of_pairs = [name for name in fit.relations if name != "embedding"]
    lines = [f"layer map {fit.layer_map}: student <- teacher"]
    if fit.layer_map == "transport":
        lines.append(f"1..{student_layers} <- 1..{teacher_layers}, as the transport decides: {_listed(of_pairs)}")
    else:
        lines += [f"{ours:2} <- {theirs:2}  {_listed(of_pairs)}" for ours, theirs in reversed(pairs) if of_pairs]
    return lines + ([" 0 <-  0  embedding"] if "embedding" in fit.relations else [])


def _fit(fit: Fit) -> dict[str, Any]:
    return {name: getattr(fit, name) for name in FIT_FIELDS}


def stage_objective(fit: LayerObjective | LogitFit) -> dict[str, Any]:
    """What a stage learns, as plain values: without how it is trained, and with what is off at its default."""
    objective = {name: value for name, value in asdict(fit).items() if name not in FIT_FIELDS}
    if isinstance(fit, LogitFit):
        default = asdict(LogitFit())
        used = {"mixed": fit.mixed.mixup > 0, "alpha": fit.clean > 0}
    else:
        default = asdict(LayerFit())
        default["consistency"]["terms"] = []
        relations = set(fit.relations)
        states = relations & {"hidden", "embedding", "patient"}
        keyed = relations - states
        used = {
            "teacher": False,  # tells which inputs the stage has
            "consistency": bool(fit.mixup and fit.consistency.weight),
            "layer_map": relations != {"embedding"},
            "transport": fit.layer_map == "transport",
            "pairs": fit.layer_map == "pairs",
            "relation_divergence": bool(keyed),
            "hidden_divergence": bool(states),
            "relation_heads": bool(keyed - {"attention"}),
            "relation_mask": bool(keyed) and (fit.mixup > 0 or fit.relation_mask == "none"),
            "pad_rows": relations != {"patient"},
            "normalise": "patient" in relations,
        }
    return {**objective, **{name: default[name] for name, needed in used.items() if not needed}}


def _couples(fit: LayerObjective, task: Task) -> bool:
    """Whether the rows of a forward pass have a say in each other's loss: also by their padding, where it counts."""
    padded = fit.pad_rows == "include" and not task.pad_to_max
    return fit.mixup > 0 or fit.layer_map == "transport" or padded


def _kept(encoder: Encoder) -> list[int]:
    """The layers of the teacher's base that a cut student keeps."""
    return list(encoder.layers) if encoder.layers is not None else list(range(encoder.num_layers or 0))


def _problems(run: Run, method: Distillation, models: Mapping[str, Pinned]) -> list[str]:
    """What can be seen from the models' configurations, before any weights are touched."""
    problems = []
    configs = {side: pinned.config for side, pinned in models.items()}
    for side, config in configs.items():
        if config is None:
            continue
        problems += encoder_problems(run, side, config)
        if config.get("model_type") not in ARCHITECTURES:
            configs[side] = None
    student, teacher = configs.get("student"), configs.get("teacher")
    encoder = run.model.student
    if encoder.init == "cut" and teacher is not None:
        outside = [layer for layer in _kept(encoder) if not 0 <= layer < num_layers(teacher)]
        if outside:
            problems.append(
                f"model.student: the teacher has {num_layers(teacher)} layers (0 to {num_layers(teacher) - 1}), "
                f"so the student can't keep {_listed(outside)}: a student can't be deeper than its teacher"
            )
    if student is None or teacher is None or method.stages == ["student"]:
        return problems
    if encoder.init == "cut":
        student = {**student, "num_hidden_layers": len(_kept(encoder))}
    depths = num_layers(student), num_layers(teacher)
    if depths[0] > depths[1] and encoder.init != "cut":
        problems.append(f"model.student has {depths[0]} layers, its teacher {depths[1]}: a student can't be deeper")
    if run.model.tokenizer == "pretrained" and student.get("vocab_size") != teacher.get("vocab_size"):
        problems.append(
            f"model.student has a vocabulary of {student.get('vocab_size')}, its teacher one of "
            f"{teacher.get('vocab_size')}: both must read the same tokens"
        )
    for stage in ("layers", "joint"):
        if stage in method.stages:
            problems += _layer_problems(f"method.{stage}", getattr(method, stage), student, teacher)
    return problems


def encoder_problems(run: Run, side: str, config: dict[str, Any]) -> list[str]:
    """What is wrong with one encoder. side: "teacher" or "student"."""
    try:
        available(str(config.get("model_type") or ""))
    except KdlabError as error:
        return [f"model.{side}: {error.what}; {error.fix}"]
    problems = _head_problems(run, side, config) + _label_problems(run, side, config)
    longest = longest_input(config)
    if longest is not None and run.task.max_length > longest:
        problems.append(
            f"task.max_length={run.task.max_length}: model.{side} reads at most {longest} tokens; "
            f"give task.max_length={longest} or less"
        )
    if hidden_size(config) % num_heads(config):
        problems.append(
            f"model.{side}: a width of {hidden_size(config)} can't be split into {num_heads(config)} heads; change "
            f"model.{side}.config.num_attention_heads"
        )
    return problems


def _layer_problems(path: str, fit: LayerObjective, student: dict[str, Any], teacher: dict[str, Any]) -> list[str]:
    problems = []
    for side, config in (("teacher", teacher), ("student", student)):
        shown = available(str(config.get("model_type") or ""))
        missing = [name for name in fit.relations if name not in shown and name not in ("embedding", "patient")]
        if missing:
            problems.append(
                f"{path}.relations: {_listed(missing)} can't be had from {config.get('model_type')} "
                f"(model.{side}); it gives {_listed(sorted(shown))}"
            )
    heads = num_heads(student), num_heads(teacher)
    if "attention" in fit.relations and heads[0] != heads[1]:
        problems.append(
            f"{path}.relations: attention is compared head with head, but the student has {heads[0]} heads and its "
            f"teacher {heads[1]}; take query, key and value with {path}.relation_heads, or hidden"
        )
    per_head = [name for name in fit.relations if name in ("query", "key", "value")]
    if per_head and not fit.relation_heads and heads[0] != heads[1]:
        problems.append(
            f"{path}.relations: {_listed(per_head)} are compared head with head, but the student has {heads[0]} heads "
            f"and its teacher {heads[1]}; give {path}.relation_heads, a number that divides both widths"
        )
    if per_head and fit.relation_heads:
        for side, config in (("teacher", teacher), ("student", student)):
            width = hidden_size(config)
            if width % fit.relation_heads:
                problems.append(
                    f"{path}.relation_heads={fit.relation_heads}: does not divide {width}, the width of model.{side}"
                )
    if num_layers(student) <= num_layers(teacher):
        try:
            layer_pairs(fit.layer_map, num_layers(student), num_layers(teacher), pairs=fit.pairs)
        except ConfigError as error:
            problems += [f"{path}: {problem}" for problem in error.problems]
    return problems


def _head_problems(run: Run, side: str, config: dict[str, Any]) -> list[str]:
    encoder: Encoder = getattr(run.model, side)
    if encoder.head == "official" and str(config.get("model_type")) != "bert":
        return [
            f"model.{side}.head: 'official' is defined for bert only, this is {config.get('model_type')}; give stock"
        ]
    return []


def _label_problems(run: Run, side: str, config: dict[str, Any]) -> list[str]:
    """A model that was already fine-tuned must name the same classes in the same order."""
    names = config.get("id2label")
    if not isinstance(names, dict) or run.task.labels is None:
        return []
    if not any("SequenceClassification" in name for name in config.get("architectures") or []):
        return []
    own = [str(names[key]) for key in sorted(names, key=int)]
    if all(name.upper().startswith("LABEL_") for name in own) or own == run.task.labels:
        return []
    if len(own) == len(run.task.labels):
        return [
            f"model.{side} was fine-tuned for the labels {_listed(own)}, the task has {_listed(run.task.labels)}: "
            "give task.labels in the model's order, or a model without a classification head"
        ]
    return []


def _listed(values: list[Any]) -> str:
    return ", ".join(str(value) for value in values)


def measured(run: Run, side: str, model: Stage, data: Stage) -> Stage:
    """Size and speed of an encoder. side: "teacher" or "student"."""
    return Stage(
        "kdlab.stages.evaluate:measure",
        f"measure_{side}",
        values={"machine": machine(run.hardware)},
        inputs={"model": model, "data": data},
        of_machine=True,
    )


def machine(hardware: Hardware) -> dict[str, Any]:
    """What latency depends on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "device": hardware.device,
        "threads": hardware.threads,
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
