"""What a run of the family of Fine-tune-CoT must satisfy before any data, model or endpoint is touched.

Used by `kdlab.checks`, which says how problems are worded.
"""

from __future__ import annotations

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
    if stages not in PLANS:
        allowed = ", ".join(f"[{','.join(plan)}]" for plan in PLANS)
        yield f"method.stages=[{','.join(stages)}]: allowed: {allowed}"
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
    for name in run.fresh:
        if name not in labels(method):
            yield f"fresh=[{name}]: no such stage here; allowed: {', '.join(labels(method))}"
    yield from _model(run, method)
    own = run.task.source.demo is not None
    if template == "fs_cot" and method.prompt.exemplars is None and not own:
        yield f"method.prompt.exemplars=null: fs_cot needs a file of exemplars; kdlab has its own for {DEMO_ONLY} only"
    if "rationales" in stages:
        yield from _writer(run, method, run.rationales, own)


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
    if model.tokenizer == "pieces" and "student" not in method.stages:
        yield f"model.tokenizer=pieces: is learned with the student, which method={method.name} does not train"
    if "student" not in method.stages and student.init == "random":
        yield f"model.student.init=random: method={method.name} asks the student as it is, and it knows nothing"


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
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        yield f"{path}={value}: must start with http:// or https:// (for example http://127.0.0.1:8000/v1)"
    elif "@" in parts.netloc:
        yield f"{path}: holds a user or password; give the key in OPENAI_API_KEY, it is written nowhere"


def labels(method: Reasoning) -> list[str]:
    """Names of the stages that `fresh` may give."""
    found = ["questions"]
    if "rationales" in method.stages:
        found += ["rationales", "curate", "teacher_scores"]
    if "student" in method.stages:
        found += ["encode", "student"]
    return [*found, "answers", "student_scores", "measure_student"]


def no_effect(run: Run, method: Reasoning, path: str, given: Sequence[str]) -> str | None:
    """Why a key that the command line gives changes nothing in this run; None if it does."""
    parts = path.split(".")
    writer, stages = run.rationales, method.stages
    if parts[0] == "rationales" or path.startswith(("budget.", "method.curation.", "method.samples", "method.temper")):
        if "rationales" not in stages:
            return f"method={method.name} (it has no stage 'rationales')"
        if parts[0] == "budget" and writer.kind != "openai":
            return f"rationales={writer.name} (it costs nothing)"
        if parts[0] == "rationales" and len(parts) > 1 and writer.kind not in WRITERS.get(parts[1], (writer.kind,)):
            return f"rationales={writer.name} (it is for {', '.join(WRITERS[parts[1]])})"
        if path == "rationales.exemplars" and writer.prompt != "fs_cot":
            return f"rationales.prompt={writer.prompt}"
        if path == "method.temperature" and writer.kind not in ASKED:
            return f"rationales={writer.name} (nobody is asked)"
    if parts[:2] == ["method", "student"]:
        if "student" not in stages:
            return f"method={method.name} (it trains no student)"
        if run.model.kind == "endpoint" and parts[2] != "epochs":
            return "model.kind=endpoint (the endpoint trains as it likes)"
        if parts[2] == "lora" and len(parts) > 3 and parts[3] != "rank" and method.student.lora.rank == 0:
            return "method.student.lora.rank=0 (all weights are trained)"
        if parts[-1] == "patience" and run.select_on == "last":
            return "select_on=last (no score can stop a stage early)"
    if path == "method.answer.max_tokens_while_training" and run.select_on == "last":
        return "select_on=last (no answers are given while training)"
    if path == "method.prompt.natural_comma" and method.prompt.template != "ft_cot_natural":
        return f"method.prompt.template={method.prompt.template}"
    if path in ("method.prompt.exemplars", "method.prompt.too_long", "method.prompt.overlap") and method.prompt.template != "fs_cot":
        return f"method.prompt.template={method.prompt.template}"
    if path == "method.prompt.delimiters" and method.prompt.template not in ("ft_token", "ft_cot_token"):
        return f"method.prompt.template={method.prompt.template} (it has no delimiters)"
    if path == "seed" and "student" not in stages and run.task.few.examples is None:
        return f"method={method.name} (it trains no student)"
    if parts[:2] == ["model", "teacher"]:
        return f"method={method.name} (its teacher is chosen by rationales=)"
    if path in ("task.max_length", "task.pad_to_max", "task.metric", "task.metrics", "task.few.teacher", "curves"):
        return "a reasoning task"
    if path == "task.epochs.student" and "method.student.epochs" in given:
        return f"method.student.epochs={method.student.epochs}, which replaces it"
    if path.startswith("task.epochs.") and ("student" not in stages or parts[2] != "student"):
        return f"method={method.name} (it has no stage of that name to train)"
    if parts[:2] == ["task", "generate"] and run.task.source.demo is None:
        return f"task={run.task.name} (it is not embedded)"
    return None
