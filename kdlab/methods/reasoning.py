"""Fine-tune-CoT: a large teacher writes rationales, those with the right answer fine-tune a small student.

    questions -> rationales -> curate -> encode -> student -> answers -> student_scores
                     \\----------------------------------------> teacher_scores

Prompt baselines stop short of it: questions -> answers -> student_scores; `ft_answer` has no teacher.

Paper
    Ho, Schmid, Yun: "Large Language Models Are Reasoning Teachers", ACL 2023, arXiv 2212.10071. Official code:
    itsnamgyu/reasoning-teacher at a2ca4d2. Also: zero-shot-CoT, Kojima et al. 2022, arXiv 2205.11916 (zs_cot);
    few-shot-CoT, Wei et al. 2022, arXiv 2201.11903 (fs_cot).

Identical to the official code: templates and delimiters, the cleansing of answers, the comparison with the gold answer,
the filter by the right final answer, the gold answer as the end of the target; the splits and k-shot subsets; AdamW at
a constant rate of 3e-4, batches of 8, 20 epochs; the loss over the completion's tokens only; greedy answers.

Departures of all presets from it, each with the switch that takes it back
    1. The last epoch is scored; the official tables of open models take the best of 20 epochs on the test set
       (results.ipynb cells 25-26). select_on=test does so, and is labelled; select_on=heldout keeps a tenth of train.
    2. Padding is masked and not counted in positions when a decoder answers (src/custom/model.py calls generate without
       a mask, which matters where pad = eos, as in GPT-2). method.answer.unmasked_left_pad=true
    3. ft_cot_natural looks for the words that it trains (evaluator.py:15 has a comma that format.py:74 has not).
       method.prompt.natural_comma=true
    4. A few-shot prompt that is too long loses exemplars, never its question (data_module.py:108-121 cuts its end).
       method.prompt.too_long=right
    5. Test questions that are exemplars are left out, as in the paper's rows of OpenAI models (not of open ones).
       method.prompt.overlap=keep
    6. Weight decay spares biases and normalisation weights (torch's default decays all, by the same 0.01).
    7. Batches hold rows of like length and are padded to their longest (data_module.py:12 pads the whole split to its
       longest).
    8. Teacher and student are scored on the same test questions; the paper's teacher row averages over all.
    9. zs_cot is there for students, and for encoder-decoders too; the official code leaves it out.

Run it: kdlab train method=ft_cot task=reasoning/multiarith task.source.path=FOLDER rationales=recorded \\
                    rationales.path=FOLDER
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from kdlab.config import Price, Reasoning, Run, Task
from kdlab.data.archive import dataset_file
from kdlab.data.prompts import EMBEDDED
from kdlab.errors import ConfigError
from kdlab.graph import Graph, Stage, Work
from kdlab.methods.distillation import FIT_FIELDS, machine
from kdlab.models.architectures import estimate_parameters, generator_problem, is_encoder_decoder
from kdlab.pins import Pinned, Pins
from kdlab.rationales.completion import Section, endpoint_name, resolve_api
from kdlab.rationales.prices import price
from kdlab.rationales.recorded import completion_file

END = "END"  # what ends a completion of an OpenAI student (papers.md 2.2)


def plan(run: Run, pins: Pins) -> Graph:
    """The stages that `method.stages` names, and the scores of the student and of its teacher."""
    method = run.method
    assert isinstance(method, Reasoning)
    build = Builder(run, method, pins)
    problems = build.problems()
    if problems:
        raise ConfigError(problems)
    return build.graph()


def task_key(task: Task) -> str:
    """The task's name in the reasoning-teacher layout, and among exemplars."""
    return task.source.key or task.source.demo or task.name.rpartition("/")[2]


def letters(task: Task) -> str | None:
    """Of the options of a question; an embedded task has as many as objects."""
    if task.answer == "choice" and task.choices is None and task.source.demo is not None:
        return ascii_uppercase[: task.generate.objects]
    return task.choices


class Builder:
    """Makes the stages of this family; each method returns one."""

    def __init__(self, run: Run, method: Reasoning, pins: Pins) -> None:
        self.run, self.method, self.pins = run, method, pins
        self.remote = run.model.kind == "endpoint"
        self.model = Pinned({}) if self.remote else pins.model(run.model.student)
        seq2seq = self.model.config is not None and is_encoder_decoder(self.model.config)
        prompt = method.prompt
        self.style: dict[str, Any] = {
            "template": prompt.template,
            "model_type": "encoder_decoder" if seq2seq else "decoder",
            "delimiters": "release" if seq2seq else prompt.delimiters,  # an encoder-decoder has none
            "strip_fields": prompt.strip_fields,
            "natural_comma": prompt.natural_comma,
            "stop": END if self.remote and "student" in method.stages else None,
        }

    def problems(self) -> list[str]:
        config, student = self.model.config, self.run.model.student
        found = self.unpriced()
        if config is None or self.remote:
            return found
        unable = generator_problem(config)
        if unable:
            found.append(f"model.student: {unable}")
        elif student.init == "random" and student.id is None and self.run.model.tokenizer == "pretrained":
            found.append("model.tokenizer=pretrained: a student without an id has none; take model.tokenizer=pieces")
        return found

    def unpriced(self) -> list[str]:
        """Prices that a stage would miss: half of one is given, or dollars are limited and none is known."""
        run, writer, model = self.run, self.run.rationales, self.run.model
        trained = self.remote and "student" in self.method.stages
        asked: list[tuple[Section, str, str | None, Price]] = []
        if "rationales" in self.method.stages and writer.kind == "openai":
            asked.append(("rationales", str(writer.model), writer.base_url, writer.price))
        if self.remote:
            name = f"ft:{model.student.id}" if trained else str(model.student.id)
            asked.append(("model", name, model.base_url, model.price))
        found, missing = [], []
        for section, name, base_url, own in asked:
            try:
                if price(name, base_url=base_url, override=own, section=section) is None:
                    missing.append((f"answers of {name} cost", f"{section}.price.input and {section}.price.output"))
            except ConfigError as error:
                found += error.problems
        if trained and model.price.training is None:
            missing.append((f"training {model.student.id} costs", "model.price.training"))
        if run.budget.usd is not None:
            found += [
                f"budget.usd={run.budget.usd:g}: nothing is known of what {what}; set {keys} (US dollars per million "
                "tokens), or limit budget.tokens instead"
                for what, keys in missing
            ]
        return found

    def graph(self) -> Graph:
        stages = self.method.stages
        questions = self.questions()
        targets = {"data": questions}
        rationales = curated = student = None
        if "rationales" in stages:
            rationales = self.rationales(questions)
            curated = self.curated(rationales, questions)
            targets |= {"rationales": rationales, "curated": curated}
            targets["teacher_scores"] = self.scored("teacher", rationales, questions, curated=curated)
        if "student" in stages:
            data = questions if curated is None else curated
            student = self.tuned_remotely(data) if self.remote else self.tuned(self.encoded(data), questions)
            targets["student"] = student
        answers = self.answers(questions, student)
        targets["answers"] = answers
        targets["student_scores"] = self.scored("student", answers, questions, rationales=rationales, curated=curated)
        if not self.remote:
            targets["student_figures"] = self.measured(student)
        return Graph.of(targets)

    # data ------------------------------------------------------------------------------------------------------

    def questions(self) -> Stage:
        run, task = self.run, self.run.task
        values, place = self.source()
        few = task.few
        few_seed = run.seed if few.seed is None else few.seed
        return Stage(
            "kdlab.stages.questions:prepare_questions",
            "questions",
            values={
                "source": values,
                "splits": {"train": task.splits.train, "test": task.splits.test},
                "text": task.text,
                "label": task.label,
                "answer": task.answer,
                "choices": letters(task),
                "options": task.options,
                "suffix": task.suffix,
                "after": task.after,
                "compare": task.compare,
                "partition": asdict(task.partition),
                "generate": asdict(task.generate) if task.source.demo else None,
                "heldout": task.heldout if run.select_on == "heldout" and "student" in self.method.stages else 0.0,
                "few": None if few.examples is None else {"examples": few.examples, "seed": few_seed},
                "dev_limit": task.dev_limit,
                "rows": run.debug.rows,
            },
            places={} if place is None else {"source": place},
            notes=self.conditions(),
        )

    def source(self) -> tuple[dict[str, Any], str | None]:
        """What names the data, and where it lies if it is local. Of a reasoning-teacher folder, the task's file."""
        source = self.run.task.source
        if source.path is not None and source.key is not None:
            file = dataset_file(Path(source.path).expanduser(), source.key)
            pinned = self.pins.local(str(file), where="task.source.path")
            return {**pinned.values, "key": source.key}, pinned.place
        pinned = self.pins.source(source)
        return {**pinned.values, "config": source.config}, pinned.place

    def train_rows(self) -> int | None:
        """How many training questions there are at most, as far as it is known before they are prepared."""
        task = self.run.task
        rows = task.generate.train if task.source.demo is not None else task.rows
        limits = (task.partition.limit, task.few.examples, self.run.debug.rows)
        return None if rows is None else min([rows, *(limit for limit in limits if limit is not None)])

    def conditions(self) -> tuple[str, ...]:
        few = self.run.task.few
        if few.examples is None:
            return ()
        seed = self.run.seed if few.seed is None else few.seed
        return (f"few: {few.examples} questions (seed {seed}), drawn before the teacher is asked",)

    # the teacher -----------------------------------------------------------------------------------------------

    def rationales(self, questions: Stage) -> Stage:
        run, method, writer = self.run, self.method, self.run.rationales
        values: dict[str, Any] = {"kind": writer.kind}
        places: dict[str, str] = {}
        asked = writer.kind in ("openai", "local")
        if writer.kind == "rules":
            values["error_rate"] = writer.error_rate
        elif writer.kind == "recorded":
            assert writer.path is not None
            file = completion_file(
                Path(writer.path).expanduser(), model=writer.model, key=writer.key, task_key=task_key(run.task)
            )
            pinned = self.pins.local(str(file), where="rationales.path")
            values |= pinned.values
            if pinned.place is not None:
                places["writer"] = pinned.place
        else:
            values |= {"prompt": writer.prompt, "max_tokens": writer.max_tokens, "stop": list(writer.stop)}
            if writer.kind == "openai":
                api = resolve_api(writer.api, str(writer.model), writer.base_url)
                values |= {"endpoint": endpoint_name(writer.base_url), "model": writer.model, "api": api}
            else:
                pinned = self.pins.named(str(writer.model), writer.revision)
                values |= pinned.values
                if pinned.place is not None:
                    places["writer"] = pinned.place
        more, at = self.exemplars(writer.exemplars, "rationales") if asked and writer.prompt == "fs_cot" else ({}, {})
        return Stage(
            "kdlab.stages.rationalise:rationalise",
            "rationales",
            values={
                "writer": values,
                "task_key": task_key(run.task),
                "samples": method.samples,
                "temperature": method.temperature if asked else 0.0,
                "splits": sorted(writer.questions),
                "seed": writer.seed if writer.kind == "rules" or (writer.kind == "local" and method.temperature) else 0,
                "strip_fields": method.prompt.strip_fields if asked else True,
                **more,
            },
            inputs={"questions": questions},
            places={**places, **at},
            work=Work(examples=self.asked_rows()),
            notes=self.writer_notes(places),
        )

    def asked_rows(self) -> int | None:
        """How many questions the teacher is asked, as far as it is known before they are prepared."""
        task, rows = self.run.task, self.train_rows()
        if rows is None or "test" not in self.run.rationales.questions:
            return rows
        if task.source.demo is None:
            return None
        return rows + min(task.generate.test, self.run.debug.rows or task.generate.test)

    def writer_notes(self, places: Mapping[str, str]) -> tuple[str, ...]:
        method, writer = self.method, self.run.rationales
        named = "" if writer.kind == "rules" else f" {writer.model}"
        if writer.kind == "recorded":  # the file says who wrote it, and not the preset
            file = Path(places["writer"])
            named = f" {file.parent.name}/{file.name}"
        lines = [f"teacher: {writer.kind}{named}"]
        lines[0] += f", {method.samples} rationale{'s' if method.samples > 1 else ''} a question"
        if writer.kind in ("openai", "local"):
            lines[0] += f", temperature {method.temperature:g}, {writer.prompt}"
        return tuple(lines)

    def exemplars(self, file: str | None, section: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The few-shot exemplars as a value of a stage, and their place; kdlab's own for an embedded task.

        section: of the configuration, which names the file.
        """
        key = task_key(self.run.task)
        if file is None:
            own = self.pins.local(str(EMBEDDED), where=f"{section}.exemplars")
            return {"exemplars": {**own.values, "key": key}}, {}
        pinned = self.pins.local(file, where=f"{section}.exemplars")
        assert pinned.place is not None
        return {"exemplars": {**pinned.values, "key": key}}, {"exemplars": pinned.place}

    def curated(self, rationales: Stage, questions: Stage) -> Stage:
        return Stage(
            "kdlab.stages.curate:curate",
            "curate",
            values={"curation": asdict(self.method.curation)},
            inputs={"rationales": rationales, "questions": questions},
        )

    # the student -----------------------------------------------------------------------------------------------

    def encoded(self, data: Stage) -> Stage:
        tokenizer, places = self.tokenizer()
        return Stage(
            "kdlab.stages.targets:encode_targets",
            "encode",
            values={
                "tokenizer": tokenizer,
                "style": self.style,
                "max_prompt": self.method.prompt.max_prompt,
                "max_target": self.method.student.max_target,
            },
            inputs={"data": data},
            places=places,
        )

    def tokenizer(self) -> tuple[dict[str, Any], dict[str, str]]:
        if self.run.model.tokenizer == "pieces":
            return {"kind": "pieces", "vocabulary": self.run.model.vocabulary}, {}
        return self.model.values, {} if self.model.place is None else {"tokenizer": self.model.place}

    def spec(self) -> tuple[dict[str, Any], dict[str, str]]:
        student = self.run.model.student
        values = {**self.model.values, "init": student.init, "config": dict(student.config)}
        return values, {} if self.model.place is None else {"model": self.model.place}

    def tuned(self, encoded: Stage, questions: Stage) -> Stage:
        run, fit = self.run, self.method.student
        values, places = self.spec()
        selects = run.select_on != "last"
        lora = asdict(fit.lora) if fit.lora.rank else None
        return Stage(
            "kdlab.stages.generation:finetune_generator",
            "student",
            version=2,  # its dropout draws from numpy
            values={
                "model": values,
                "fit": {name: getattr(fit, name) for name in FIT_FIELDS},
                "lora": lora,
                "style": self.style,
                "answering": self.answering(training=True) if selects else None,
                "select_on": run.select_on,
                "seed": run.seed,
                "precision": run.precision,
                "max_steps": self.max_steps(),
            },
            inputs={"data": encoded} | ({"questions": questions} if selects else {}),
            places=places,
            tried="kdlab.stages.generation:try_weights",
            parallel=True,
            work=self.work(),
        )

    def max_steps(self) -> int | None:
        limits = [limit for limit in (self.run.debug.steps, self.method.student.max_steps) if limit is not None]
        return min(limits, default=None)

    def work(self) -> Work:
        run, method, fit = self.run, self.method, self.method.student
        rows = self.train_rows()
        if rows is not None and "rationales" in method.stages:
            rows *= min(method.samples, method.curation.per_question or method.samples)
        config = self.model.config
        return Work(
            examples=rows,
            epochs=fit.epochs,
            batch_size=fit.batch_size,
            drop_last=fit.drop_last,
            max_steps=self.max_steps(),
            parameters=None if config is None else estimate_parameters({"vocab_size": run.model.vocabulary, **config}),
            cost=2.0 if fit.lora.rank else 3.0,
            checkpoint=True,
        )

    def answering(self, *, training: bool = False) -> dict[str, Any]:
        answer, prompt = self.method.answer, self.method.prompt
        most = answer.max_tokens_while_training if training else None
        values = {
            "max_tokens": most or answer.max_tokens,
            "max_prompt": prompt.max_prompt,
            "too_long": prompt.too_long,
            "unmasked_left_pad": answer.unmasked_left_pad and self.style["model_type"] == "decoder",
        }
        return {**values, "parser": answer.parser} if training else {**values, "overlap": prompt.overlap}

    def tuned_remotely(self, data: Stage) -> Stage:
        model = self.run.model
        return Stage(
            "kdlab.stages.endpoint:finetune_endpoint",
            "student",
            values={
                "endpoint": endpoint_name(model.base_url),
                "model": model.student.id,
                "api": resolve_api(model.api, str(model.student.id), model.base_url),
                "style": self.style,
                "epochs": model.epochs,
            },
            inputs={"data": data},
        )

    def answers(self, questions: Stage, student: Stage | None) -> Stage:
        run, method = self.run, self.method
        shots = method.prompt.template == "fs_cot"
        more, places = self.exemplars(method.prompt.exemplars, "method.prompt") if shots else ({}, {})
        inputs = {"questions": questions} | ({} if student is None else {"student": student})
        values = {"task_key": task_key(run.task), "style": self.style, "answering": self.answering(), **more}
        if self.remote:
            model = run.model
            api = resolve_api(model.api, str(model.student.id), model.base_url)
            values |= {"endpoint": endpoint_name(model.base_url), "api": api}
            values["model"] = model.student.id if student is None else None
            function = "kdlab.stages.endpoint:answer_endpoint"
            return Stage(function, "answers", values=values, inputs=inputs, places=places)
        if student is None:
            values["model"], at = self.spec()
            places = {**places, **at}
        return Stage("kdlab.stages.answer:answer", "answers", values=values, inputs=inputs, places=places)

    # scores ----------------------------------------------------------------------------------------------------

    def scored(
        self,
        side: str,
        completions: Stage,
        questions: Stage,
        *,
        rationales: Stage | None = None,
        curated: Stage | None = None,
    ) -> Stage:
        """The student on the test questions; the teacher on those that it was asked, its first rationale of each."""
        own = side == "student"
        more = {"rationales": rationales, "curated": curated}
        return Stage(
            "kdlab.stages.score:score_answers",
            f"{side}_scores",
            values={
                "style": self.style if own else None,
                "parser": self.method.answer.parser if own else self.method.curation.parser,
                "splits": ["test"] if own else sorted(self.run.rationales.questions),
                "teacher_parser": self.method.curation.parser if own and rationales is not None else None,
            },
            inputs={
                "completions": completions,
                "questions": questions,
                **{name: stage for name, stage in more.items() if stage is not None},
            },
        )

    def measured(self, student: Stage | None) -> Stage:
        values: dict[str, Any] = {"machine": machine(self.run.hardware)}
        places: dict[str, str] = {}
        if student is None:
            values["model"], places = self.spec()
        return Stage(
            "kdlab.stages.answer:measure_generator",
            "measure_student",
            values=values,
            inputs={} if student is None else {"student": student},
            places=places,
            of_machine=True,
        )
