"""What a run of the family of Fine-tune-CoT must satisfy before any data, model or endpoint is touched.

Used by `kdlab.checks`, which says how problems are worded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from kdlab.config import Rationales, Reasoning, Run, Task

PLANS = (("answer",), ("student", "answer"), ("rationales", "student", "answer"))
PROMPTED = ("zs", "zs_cot", "fs_cot")  # templates of students that are not trained
WITH_RATIONALE = ("ft_cot_token", "ft_cot_natural")
ASKED = ("openai", "local")  # writers that are given prompts
DEMO_ONLY = "the embedded tasks (demo/coin_flip, demo/last_letter, demo/shuffled_objects, demo/arithmetic)"

# keys of `rationales` and the kinds that use them
WRITERS = {
    "model": ("openai", "local", "recorded"),
    "revision": ("local",),
    "path": ("recorded",),
    "key": ("recorded",),
    "base_url": ("openai",),
    "api": ("openai",),
    "prompt": ASKED,
    "exemplars": ASKED,
    "max_tokens": ASKED,
    "stop": ASKED,
    "error_rate": ("rules",),
    "seed": ("rules", "local"),
    "concurrency": ("openai",),
    "timeout": ("openai",),
    "attempts": ("openai",),
    "price": ("openai",),
}


def check_task(task: Task) -> Iterator[str]:
    """Of a task of kind reasoning."""
    own = task.source.demo is not None
    if task.answer == "choice" and task.choices is None and task.options is None and not own:
        yield "task.answer=choice: give task.choices (the letters, ABCDE) or task.options (the column with the options)"
    if task.choices is not None and not re.fullmatch(r"[A-Z]{2,26}", task.choices):
        yield f"task.choices={task.choices}: two or more capital letters, written ABCDE"
    if task.choices is not None and task.answer != "choice":
        yield f"task.choices={task.choices}: is for task.answer=choice"
    elif task.source.demo == "shuffled_objects" and len(task.choices or "") not in (0, task.generate.objects):
        yield (
            f"task.choices={task.choices}: task.generate.objects={task.generate.objects} needs as many letters; "
            "task.choices=null takes them from there"
        )
    part = task.partition
    if part.rule == "first" and part.train is None:
        yield "task.partition.rule=first: give task.partition.train, the number of training questions"
    if part.rule != "first" and part.train is not None:
        yield f"task.partition.train={part.train}: is for task.partition.rule=first"
    if task.noise.rate > 0:
        yield "task.noise.rate: label noise is for classification; a teacher's errors are rationales.error_rate"
    if task.imbalance.ratio != 1 or task.few.balanced:
        yield "task.imbalance and task.few.balanced: a reasoning task has no classes to balance"
    if task.source.key is not None and task.source.path is None and task.source.hub is None and not task.source.demo:
        yield (
            f"task.source.path=null: task={task.name} comes from the authors' archive (itsnamgyu/reasoning-teacher); "
            "give task.source.path=FOLDER, the folder that holds dataset/"
        )


def check_method(run: Run, method: Reasoning) -> Iterator[str]:
    stages = tuple(method.stages)
    template = method.prompt.template
    known = {*PROMPTED, "ft_token", *WITH_RATIONALE}
    if stages not in PLANS and set(stages) <= set(PLANS[-1]):
        allowed = ", ".join(f"[{','.join(plan)}]" for plan in PLANS)
        yield f"method.stages=[{','.join(stages)}]: allowed: {allowed}"
    elif stages not in PLANS or template not in known:
        pass  # said by the check of words
    elif (stages == ("answer",)) != (template in PROMPTED):
        wanted = ", ".join(PROMPTED) if stages == ("answer",) else "ft_token, ft_cot_token, ft_cot_natural"
        yield f"method.prompt.template={template}: method.stages=[{','.join(stages)}] takes one of {wanted}"
    elif "student" in stages and ("rationales" in stages) != (template in WITH_RATIONALE):
        needs = "needs rationales: add the stage" if template in WITH_RATIONALE else "has no rationales: take out"
        yield f"method.prompt.template={template}: {needs} 'rationales' in method.stages"
    if run.task.kind != "reasoning":
        yield (
            f"task={run.task.name}: method={method.name} needs a reasoning task (kind: reasoning), "
            f"this is a {run.task.kind} task"
        )
    if run.select_on == "dev":
        yield "select_on=dev: a reasoning task has no dev; take last, heldout, or test (as the paper does, optimistic)"
    if run.supplement is not None:
        yield f"task@supplement={run.supplement.name}: is for layer distillation, method={method.name} has no layers"
    own_labels = labels(run, method)
    for name in run.fresh:
        if name not in own_labels:
            yield f"fresh=[{name}]: no such stage here; allowed: {', '.join(own_labels)}"
    yield from _model(run, method)
    own = run.task.source.demo is not None
    if template == "fs_cot" and method.prompt.exemplars is None and not own:
        yield f"method.prompt.exemplars=null: fs_cot needs a file of exemplars; kdlab has its own for {DEMO_ONLY} only"
    if "rationales" in stages:
        yield from _writer(run, method, run.rationales, own)
    asked = [run.model.base_url] if run.model.kind == "endpoint" else []
    if "rationales" in stages and run.rationales.kind == "openai":
        asked.append(run.rationales.base_url)
    if None in asked:
        yield from _url("OPENAI_BASE_URL", os.environ.get("OPENAI_BASE_URL") or None)


def _model(run: Run, method: Reasoning) -> Iterator[str]:
    model, student = run.model, run.model.student
    if model.kind == "encoder":
        yield (
            f"model={model.name}: is an encoder; method={method.name} needs a model that generates: "
            "model.kind=decoder (encoder-decoders too), or endpoint"
        )
        return
    if model.kind == "endpoint":
        if not student.id:
            yield "model.student.id=null: give the endpoint's name of the model"
        if run.select_on != "last":
            yield f"select_on={run.select_on}: an endpoint's student has one checkpoint; take select_on=last"
        if method.student.lora.rank:
            yield "method.student.lora.rank: an endpoint trains as it likes; set it to 0"
        yield from _url("model.base_url", model.base_url)
        return
    if student.init == "cut":
        yield "model.student.init=cut: is for encoders; allowed here: pretrained, random"
    if student.init == "pretrained" and not student.id:
        yield "model.student.id=null: a pre-trained model needs its name on the Hub or a folder"
    if student.init == "random" and not student.id and not student.config:
        yield "model.student.init=random: give model.student.config (all of config.json), or model.student.id"
    if student.head != "stock":
        yield f"model.student.head={student.head}: is for encoders"
    if model.tokenizer == "words":
        yield "model.tokenizer=words: can't write a word that it has not seen; take pieces, or pretrained"
    if model.tokenizer == "pieces" and student.init == "pretrained":
        yield "model.tokenizer=pieces: model.student.init=pretrained knows only its own tokenizer; take pretrained"
    if method.stages == ["answer"] and student.init == "random":
        yield (
            f"model={model.name}: method={method.name} asks the student as it is, and this one has random weights; "
            "take one that was trained: model=gpt2, or model.student.id=FOLDER model.student.init=pretrained "
            "model.tokenizer=pretrained"
        )


def _writer(run: Run, method: Reasoning, writer: Rationales, own: bool) -> Iterator[str]:
    if writer.kind == "rules" and not own:
        yield (
            f"rationales=rules: writes for {DEMO_ONLY}, not for task={run.task.name}; "
            "take rationales=recorded rationales.path=FOLDER, openai or local"
        )
    if writer.kind == "recorded" and not writer.path:
        yield "rationales.path=null: give the folder of the recorded completions, or one file"
    if writer.kind in ASKED:
        if not writer.model:
            yield f"rationales.model=null: rationales={writer.name} needs the name of a model"
        if method.samples > 1 and method.temperature == 0:
            yield (
                f"method.samples={method.samples}: at method.temperature=0 all of them are the same text; "
                "set method.temperature=0.7"
            )
        if writer.prompt == "fs_cot" and writer.exemplars is None and not own:
            yield f"rationales.exemplars=null: fs_cot needs a file of exemplars; kdlab has its own for {DEMO_ONLY} only"
    if "train" not in writer.questions:
        yield f"rationales.questions=[{','.join(writer.questions)}]: train is needed: the student learns from it"
    yield from _url("rationales.base_url", writer.base_url)
    if method.curation.max_words is not None and method.curation.max_words < method.curation.min_words:
        yield f"method.curation.max_words={method.curation.max_words}: is less than min_words"


def _url(path: str, value: str | None) -> Iterator[str]:
    if value is None:
        return
    try:
        parts = urlsplit(value)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        whole = False
    if "@" in value or "?" in value:
        yield f"{path}: holds a user, a password or a query; give the key in OPENAI_API_KEY, it is written nowhere"
    elif not whole:
        yield f"{path}={value}: must start with http:// or https:// (for example http://127.0.0.1:8000/v1)"


def labels(run: Run, method: Reasoning) -> list[str]:
    """Names of the stages that `fresh` may give."""
    remote = run.model.kind == "endpoint"
    found = ["questions"]
    if "rationales" in method.stages:
        found += ["rationales", "curate", "teacher_scores"]
    if "student" in method.stages:
        found += ["student"] if remote else ["encode", "student"]
    return [*found, "answers", "student_scores", *([] if remote else ["measure_student"])]


def no_effect(run: Run, method: Reasoning, path: str, given: Sequence[str]) -> str | None:
    """Why a key that the command line gives changes nothing in this run; None if it does."""
    section, _, key = path.partition(".")
    if not key and section not in ("seed", "precision", "select_on", "curves"):
        return None
    if section in ("rationales", "budget"):
        return _no_effect_of_writer(run, method, path)
    if section == "method":
        return _no_effect_of_method(run, method, path)
    if section == "model":
        return _no_effect_of_model(run, method, path)
    if section == "task":
        return _no_effect_of_task(run, method, path, given)
    trains = "student" in method.stages
    if path in ("seed", "precision", "select_on", "debug.steps") and (not trains or run.model.kind == "endpoint"):
        few = run.task.few
        if path == "seed" and few.examples is not None and few.seed is None:
            return None
        if not trains:
            return f"method={method.name} (it trains no student)"
        return None if path == "select_on" else _ENDPOINT
    return "a reasoning task" if path == "curves" else None


_ENDPOINT = "model.kind=endpoint (the endpoint trains as it likes)"


def _no_effect_of_writer(run: Run, method: Reasoning, path: str) -> str | None:
    key, writer = path.split(".")[1], run.rationales
    if run.model.kind == "endpoint" and (path.startswith("budget.") or key in ("concurrency", "timeout", "attempts")):
        return None  # they hold for the student's requests, too
    if "rationales" not in method.stages:
        return f"method={method.name} (it has no stage 'rationales')"
    if path.startswith("budget."):
        return None if writer.kind == "openai" else f"rationales={writer.name} (it costs nothing)"
    if writer.kind not in WRITERS.get(key, (writer.kind,)):
        return f"rationales={writer.name} (it is for {', '.join(WRITERS[key])})"
    if key == "exemplars" and writer.prompt != "fs_cot":
        return f"rationales.prompt={writer.prompt}"
    if key == "seed" and writer.kind == "local" and method.temperature == 0:
        return "method.temperature=0 (nothing is drawn)"
    return None


def _no_effect_of_method(run: Run, method: Reasoning, path: str) -> str | None:
    _, section, *rest = path.split(".")
    key, template, stages = path.rpartition(".")[2], method.prompt.template, method.stages
    if section in ("curation", "samples", "temperature") and "rationales" not in stages:
        return f"method={method.name} (it has no stage 'rationales')"
    if section == "temperature" and run.rationales.kind not in ASKED:
        return f"rationales={run.rationales.name} (nobody is asked)"
    if section == "student":
        if "student" not in stages:
            return f"method={method.name} (it trains no student)"
        if run.model.kind == "endpoint":
            return _ENDPOINT if key != "epochs" else f"{_ENDPOINT}; model.epochs is what it is asked for"
        if rest[:1] == ["lora"] and key != "rank" and len(rest) > 1 and method.student.lora.rank == 0:
            return "method.student.lora.rank=0 (all weights are trained)"
        if key == "patience" and run.select_on == "last":
            return "select_on=last (no score can stop a stage early)"
        if key == "eval_steps" and run.select_on == "last":
            return "select_on=last (no answers are given while training)"
    if section == "answer":
        if key == "max_tokens_while_training" and (run.select_on == "last" or "student" not in stages):
            return "select_on=last (no answers are given while training)"
        if key == "unmasked_left_pad" and run.model.kind == "endpoint":
            return "model.kind=endpoint (a prompt of one request has no padding)"
    if section == "prompt":
        if key == "natural_comma" and template != "ft_cot_natural":
            return f"method.prompt.template={template}"
        if key in ("exemplars", "too_long", "overlap") and template != "fs_cot":
            return f"method.prompt.template={template}"
        if key == "delimiters" and template not in ("ft_token", "ft_cot_token"):
            return f"method.prompt.template={template} (it has no delimiters)"
    return None


def _no_effect_of_model(run: Run, method: Reasoning, path: str) -> str | None:
    model, key = run.model, path.split(".")[1]
    if key == "teacher":
        return f"method={method.name} (its teacher is chosen by rationales=)"
    if key in ("base_url", "api", "epochs", "price") and model.kind != "endpoint":
        return f"model={model.name} (it is for model.kind=endpoint)"
    if key == "epochs" and "student" not in method.stages:
        return f"method={method.name} (it trains no student)"
    if key == "vocabulary" and (model.tokenizer != "pieces" or model.kind == "endpoint"):
        return f"model={model.name} (it is for model.tokenizer=pieces)"
    if model.kind == "endpoint" and (key == "tokenizer" or (key == "student" and path != "model.student.id")):
        return "model.kind=endpoint (the endpoint has its own)"
    return None


def _no_effect_of_task(run: Run, method: Reasoning, path: str, given: Sequence[str]) -> str | None:
    task, key = run.task, path.split(".")[1]
    if key in ("max_length", "pad_to_max", "metric", "metrics", "labels", "evaluations") or path == "task.splits.dev":
        return "a reasoning task"
    if path == "task.few.teacher":
        return "a reasoning task"
    if path == "task.epochs.student":
        if "method.student.epochs" in given:
            return f"method.student.epochs={method.student.epochs}, which replaces it"
        if run.model.kind == "endpoint" and "student" in method.stages:
            return f"{_ENDPOINT}; model.epochs is what it is asked for"
    if key == "epochs" and ("student" not in method.stages or path != "task.epochs.student"):
        return f"method={method.name} (it has no stage of that name to train)"
    if key == "generate" and task.source.demo is None:
        return f"task={task.name} (it is not embedded)"
    if path == "task.generate.objects" and task.source.demo != "shuffled_objects":
        return f"task={task.name} (it has no objects)"
    archive = task.source.path is not None and task.source.key is not None
    if archive and key in ("text", "label", "options", "suffix", "after", "splits"):
        return f"task.source.key={task.source.key} (a folder of reasoning-teacher has them as they are)"
    return None
