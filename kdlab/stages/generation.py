"""Train a student that writes, and let one answer questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from kdlab.artifacts import write_json
from kdlab.context import Context
from kdlab.data.answers import Form, judge, summary
from kdlab.data.batches import Batches
from kdlab.data.prompts import Style, fit_exemplars, prompt
from kdlab.data.sequences import Sequences, open_sequences
from kdlab.engine import device
from kdlab.engine.loop import Batch, Loss, Plan, Progress, Scores
from kdlab.engine.loop import fit as train
from kdlab.errors import DataError, ModelError
from kdlab.models.architectures import longest_input
from kdlab.models.generator import Student, adapt, load_generator, prompt_ids
from kdlab.models.writing import Generated, generate
from kdlab.objectives.completion import token_loss
from kdlab.stages.completions import Row, read_form, read_rows
from kdlab.stages.targets import writing_tokenizer

METRIC = "accuracy"  # chooses a checkpoint
# Attention kernel of models that write. Measured with gemma-3-270m of a small vocabulary on one core in fp32: batches
# of 8 are written 1.3 times as quickly as by eager, batches of 32 twice as quickly; training takes as long with either.
KERNEL = "sdpa"

logging.disable_progress_bar()  # type: ignore[no-untyped-call]


class CompletionStep:
    """Cross entropy of the target's tokens, averaged over those of the whole batch."""

    def __call__(self, model: nn.Module, batch: Batch, progress: Progress) -> Loss:
        return Loss.of({"completion": (1.0, token_loss(*model(batch)))})


def finetune_generator(
    context: Context,
    *,
    data: Path,
    model: Mapping[str, Any],
    fit: Mapping[str, Any],
    lora: Mapping[str, Any] | None,
    style: Mapping[str, Any],
    answering: Mapping[str, Any] | None,
    select_on: str,
    seed: int,
    precision: str,
    max_steps: int | None,
    questions: Path | None = None,
) -> None:
    """Leave `model/`, a plain Hugging Face folder with its tokenizer, `history.json` and `metrics.jsonl`.

    data: what `encode_targets` wrote. lora: the fields of `config.Lora`, or None; the adapters are merged when done.
    select_on: "heldout" or "test": the epoch that answers those questions best is kept; "last": nothing is answered.
    questions, answering: only for the former; answering: max_tokens, max_prompt, too_long, unmasked_left_pad,
    parser. style: the fields of `data.prompts.Style`.
    """
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer", local_files_only=True)
    place = device.pick_device(context.hardware)
    if precision == "bf16" and place.type == "cpu" and device.native_bf16() is False:
        context.note("this processor does not compute in bf16 and is very slow at it: precision=fp32 is quicker here")
    shape = Style(**style)
    rows = open_sequences(data, encoder_decoder=shape.model_type == "encoder_decoder")
    generator = load_generator(
        model,
        attention=KERNEL,
        seed=seed,
        vocabulary=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    _check(generator, rows, shape, where=str(model.get("path") or model.get("id") or "model.student"))
    merge = None if lora is None else adapt(generator, lora, seed=seed)
    student = Student(generator)
    context.facts["parameters"] = sum(weight.numel() for weight in generator.parameters())
    context.facts["trained_parameters"] = sum(
        weight.numel() for weight in generator.parameters() if weight.requires_grad
    )

    evaluate, select = None, None
    if select_on != "last":
        assert questions is not None and answering is not None, "asked to select by answers"
        select = (select_on, METRIC)
        evaluate = evaluator(
            generator,
            tokenizer,
            _selected(questions, select_on),
            shape,
            split=select_on,
            form=read_form(questions),
            answering=answering,
            batch_size=context.hardware.eval_batch,
            warn=context.warn,
        )
    values, world = dict(fit), device.World.current()
    batches = Batches(
        rows,
        batch_size=values.pop("batch_size"),
        seed=seed,
        shuffle=True,
        drop_last=values.pop("drop_last"),
        pad_token_id=tokenizer.pad_token_id,
        rank=world.rank,
        world=world.size,
        micro_batch=context.hardware.micro_batch,
    )
    plan = Plan(
        **values,
        seed=seed,
        precision=precision,
        max_steps=max_steps,
        select=select,
        expected=("completion",),
        attention=KERNEL,
    )
    history = train(student, CompletionStep(), batches, plan, context, evaluate=evaluate)
    if world.first:
        save_generator(generator if merge is None else merge(), tokenizer, context.out / "model")
        write_json(context.out / "history.json", asdict(history))


def _selected(questions: Path, split: str) -> list[Row]:
    rows = read_rows(questions, split)
    if not rows:
        raise DataError(
            f"There are no {split} questions to select a checkpoint by.",
            where=str(questions),
            fix="Give task.heldout more than 0, or select_on=last.",
        )
    return rows


def _check(model: PreTrainedModel, rows: Sequences, style: Style, *, where: str) -> None:
    if model.config.is_encoder_decoder != rows.encoder_decoder:
        kind = "an encoder-decoder" if model.config.is_encoder_decoder else "a decoder"
        raise ModelError(f"the model is {kind}, and the rows were made for the style {style.model_type}", where=where)
    words = model.config.get_text_config().vocab_size
    if rows.highest_token >= words:
        raise ModelError(
            f"the texts hold token {rows.highest_token}, and the model knows {words} tokens",
            where=where,
            fix="check that tokenizer.json belongs to these weights",
        )
    reach = longest_input(model.config.to_dict())
    parts = [rows.prompts.lengths, rows.targets.lengths] if rows.encoder_decoder else [rows.lengths]
    longest = max(int(lengths.max()) for lengths in parts)
    if reach is not None and longest > reach:
        raise ModelError(
            f"a row has {longest} tokens, and the model has {reach} positions",
            where=where,
            fix="lower method.prompt.max_prompt or method.student.max_target",
        )


def save_generator(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write a folder that plain transformers can load: safetensors, config.json, tokenizer."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def saved_generator(folder: Path, *, attention: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What `save_generator` wrote."""
    return load_generator({"path": str(folder)}, attention=attention, seed=0), writing_tokenizer({"path": str(folder)})


def named_generator(
    spec: Mapping[str, Any], *, attention: str, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer as they are, for prompting; spec: as `load_generator` takes it."""
    tokenizer = writing_tokenizer(spec)
    model = load_generator(spec, attention=attention, seed=seed)
    return model, tokenizer


def try_weights(*, model: Mapping[str, Any], **_: Any) -> None:
    """Load what a stage is going to start from, and let go of it. Raises what `load_generator` raises."""
    if model.get("init") == "pretrained":
        load_generator(model, attention=KERNEL, seed=0)


# Answering


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A question's prompt and what came of it; zs_cot: also those of its first step.

    Prompts are as the model read them. cut: the prompt, of zs_cot that of its first step, has lost its end.
    """

    prompt: str
    completion: Generated
    cut: bool
    reasoning_prompt: str | None = None
    reasoning: Generated | None = None


def cut_warning(cut: int, count: int, max_prompt: int) -> str:
    return f"{cut} of {count} prompts have more than {max_prompt} tokens and are cut (method.prompt.max_prompt)"


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    style: Style,
    *,
    max_tokens: int,
    max_prompt: int,
    too_long: str = "exemplars",
    exemplars: Sequence[str] = (),
    batch_size: int,
    unmasked_left_pad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Answered]:
    """What the model answers to each row's "question", greedily, in the order of the rows.

    max_tokens: of a completion, in each of the two steps of zs_cot. max_prompt: tokens; a longer prompt of fs_cot loses
    exemplars (too_long "exemplars") and nothing of its question, all others their end, as in training; the second step
    of zs_cot, which holds what the first one asked, is not cut.
    progress: called with (prompts done, all prompts); zs_cot has two of each question.
    """
    seq2seq = bool(model.config.is_encoder_decoder)
    steps = 2 if style.template == "zs_cot" else 1

    def ids(texts: Sequence[str], limit: int | None) -> list[list[int]]:
        return prompt_ids(tokenizer, texts, encoder_decoder=seq2seq, limit=limit)

    def write(asked: list[list[int]], *, step: int) -> list[Generated]:
        before = (step - 1) * len(rows)
        return generate(
            model,
            tokenizer,
            asked,
            max_tokens=max_tokens,
            stop=[] if style.stop is None else [style.stop],
            batch_size=batch_size,
            unmasked_left_pad=unmasked_left_pad,
            progress=None if progress is None else lambda done, _: progress(before + done, steps * len(rows)),
        )

    if style.template == "fs_cot":
        prompts = [
            fit_exemplars(
                exemplars,
                row["question"],
                style,
                length=lambda text: len(ids([text], None)[0]),
                limit=max_prompt,
                how=too_long,
            )
            for row in rows
        ]
        asked = ids(prompts, None)
        cut = [
            too_long == "right" and text != prompt(row["question"], style, exemplars=exemplars)
            for text, row in zip(prompts, rows, strict=True)
        ]
    else:
        prompts = [prompt(row["question"], style, step=1 if steps == 2 else None) for row in rows]
        asked = wholes = ids(prompts, None)
        if any(len(whole) > max_prompt for whole in wholes):
            asked = ids(prompts, max_prompt)
        cut = [kept != whole for kept, whole in zip(asked, wholes, strict=True)]
        prompts = [
            str(tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            if shorter
            else text
            for text, kept, shorter in zip(prompts, asked, cut, strict=True)
        ]
    found = write(asked, step=1)
    if steps == 1:
        return [
            Answered(prompt=text, completion=made, cut=shorter)
            for text, made, shorter in zip(prompts, found, cut, strict=True)
        ]
    second = [
        prompt(row["question"], style, step=2, reasoning_prompt=text, rationale=made.text)
        for row, text, made in zip(rows, prompts, found, strict=True)
    ]
    return [
        Answered(prompt=text, completion=made, cut=shorter, reasoning_prompt=first, reasoning=reasoning)
        for text, made, shorter, first, reasoning in zip(
            second, write(ids(second, None), step=2), cut, prompts, found, strict=True
        )
    ]


def evaluator(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    style: Style,
    *,
    split: str,
    form: Form,
    answering: Mapping[str, Any],
    batch_size: int,
    warn: Callable[[str], None],
) -> Callable[[], Scores]:
    """A function that lets the model as it is now answer `rows`, and scores that; `warn` hears once of cut prompts."""
    told = False

    def evaluate() -> Scores:
        nonlocal told
        answers = answer_questions(
            model,
            tokenizer,
            rows,
            style,
            max_tokens=answering["max_tokens"],
            max_prompt=answering["max_prompt"],
            too_long=answering["too_long"],
            batch_size=batch_size,
            unmasked_left_pad=answering["unmasked_left_pad"],
        )
        cut = sum(answer.cut for answer in answers)
        if cut and not told:
            told = True
            warn(cut_warning(cut, len(rows), answering["max_prompt"]))
        judgements = [
            judge(
                answer.completion.text,
                row["answer"],
                template=style.template,
                form=form,
                parser=answering["parser"],
                finish_reason=answer.completion.finish_reason,
                natural_comma=style.natural_comma,
            )
            for answer, row in zip(answers, rows, strict=True)
        ]
        return {split: summary(judgements)}

    return evaluate
