"""The stages of a student that writes: targets as tokens, training on them, answers to questions."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

import toy
import writers
from kdlab import config
from kdlab.artifacts import write_json
from kdlab.data.batches import Batches
from kdlab.data.prompts import Style, prompt
from kdlab.data.sequences import open_sequences
from kdlab.engine import loop
from kdlab.engine.loop import Batch, Loss, Progress, fit
from kdlab.engine.metrics_log import MetricsLog
from kdlab.errors import DataError, ModelError
from kdlab.models.generator import Student, adapt
from kdlab.models.writing import generate
from kdlab.stages import generation
from kdlab.stages.completions import write_rows
from kdlab.stages.generation import (
    CompletionStep,
    answer_questions,
    finetune_generator,
    named_generator,
    save_generator,
    saved_generator,
)
from kdlab.stages.targets import encode_targets, pieces, writing_tokenizer

ROWS = [
    {"id": 7, "question": "w0 w1", "rationale": "w5 w6", "answer": "w9"},
    {"id": 9, "question": "w2 w3 w4", "rationale": "w7", "answer": "w8"},
]
DECODER = {"template": "ft_cot_token", "model_type": "decoder"}
SEQ2SEQ = {"template": "ft_cot_token", "model_type": "encoder_decoder"}
ANSWERS = {"template": "ft_token", "model_type": "decoder"}
ANSWERING = {
    "max_tokens": 8,
    "max_prompt": 32,
    "too_long": "exemplars",
    "unmasked_left_pad": False,
    "parser": "official",
}


def folder_of(place: Path, tokenizer: Any) -> dict[str, Any]:
    tokenizer.save_pretrained(place)
    return {"path": str(place)}


def rows_in(place: Path, rows: list[dict[str, Any]], name: str = "train") -> Path:
    place.mkdir(exist_ok=True)
    write_rows(place, name, rows)
    return place


def encoded(place: Path, **changes: Any) -> tuple[list[list[int]], list[list[int]], dict[str, Any]]:
    """Prompts and targets that the stage writes, and its facts."""
    context = toy.context(place / "out", warn=changes.pop("warn", lambda _: None))
    values = {"style": DECODER, "max_prompt": 32, "max_target": 32, **changes}
    encode_targets(context, data=rows_in(place / "rows", values.pop("rows", ROWS)), **values)
    table = pa.ipc.open_file(str(context.out / "train.arrow")).read_all()
    assert json.loads((context.out / "facts.json").read_text()) == context.facts
    return table["prompt_ids"].to_pylist(), table["target_ids"].to_pylist(), context.facts


def test_prompts_and_targets_of_a_decoder(tmp_path: Path) -> None:
    """A word that the tokenizer lacks, "###" and "-->", is token 0 here."""
    prompts, targets, facts = encoded(tmp_path, tokenizer=folder_of(tmp_path / "words", writers.words(bos=True)))
    assert prompts == [[2, 3, 4, 0], [2, 5, 6, 7, 0]]
    assert targets == [[8, 9, 0, 12, 1], [10, 0, 11, 1]]
    assert facts == {
        "rows": {"train": 2},
        "tokens": {"prompt": 9, "target": 9, "all": 18},
        "longest": {"prompt": 5, "target": 5, "all": 9},
        "cut": {"prompt": 0, "target": 0},
        "vocabulary": writers.WORDS,
        "max_prompt": 32,
        "max_target": 32,
        "padded": {"whole_split": 18, "buckets": 18},
    }


def test_prompts_and_targets_of_an_encoder_decoder(tmp_path: Path) -> None:
    tokenizer = folder_of(tmp_path / "words", writers.words(eos=True))
    prompts, targets, facts = encoded(tmp_path, tokenizer=tokenizer, style=SEQ2SEQ)
    assert prompts == [[3, 4, 1], [5, 6, 7, 1]]
    assert targets == [[8, 9, 0, 12, 1], [10, 0, 11, 1]]
    assert facts["padded"] == {"whole_split": 18, "buckets": 18}


def test_what_is_too_long_is_cut_and_told(tmp_path: Path) -> None:
    told: list[str] = []
    tokenizer = folder_of(tmp_path / "words", writers.words())
    prompts, targets, facts = encoded(tmp_path, tokenizer=tokenizer, max_prompt=3, max_target=4, warn=told.append)
    assert prompts == [[3, 4, 0], [5, 6, 7]] and targets == [[8, 9, 0, 12], [10, 0, 11, 1]]
    assert facts["cut"] == {"prompt": 1, "target": 1}
    assert told == [
        "1 of 2 prompts have more than 3 tokens and are cut",
        "1 of 2 targets have more than 4 tokens and are cut",
    ]


def test_a_tokenizer_without_padding_pads_with_end_of_text(tmp_path: Path) -> None:
    tokenizer = folder_of(tmp_path / "gpt2", writers.words(pad=False))
    encoded(tmp_path, tokenizer=tokenizer)
    saved = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert saved.pad_token_id == saved.eos_token_id == writers.EOS
    assert writing_tokenizer(tokenizer).pad_token_id == writers.EOS


def test_what_can_not_be_encoded(tmp_path: Path) -> None:
    tokenizer = folder_of(tmp_path / "words", writers.words())
    with pytest.raises(DataError, match="Question 7 has no rationale"):
        encoded(tmp_path, tokenizer=tokenizer, rows=[{"id": 7, "question": "w0", "answer": "w1"}])
    prompts, targets, _ = encoded(
        tmp_path, tokenizer=tokenizer, rows=[{"id": 7, "question": "w0", "answer": "w1"}], style=ANSWERS
    )
    assert (prompts, targets) == ([[3, 0]], [[4, 1]])
    with pytest.raises(DataError, match="There is nothing to train on"):
        encoded(tmp_path, tokenizer=tokenizer, rows=[])
    endless = writers.words()
    endless.eos_token = None
    with pytest.raises(ModelError, match="no end-of-text token"):
        encoded(tmp_path, tokenizer=folder_of(tmp_path / "endless", endless))
    with pytest.raises(ModelError, match="A vocabulary of 200 can't hold the 256 bytes"):
        encoded(tmp_path, tokenizer={"kind": "pieces", "vocabulary": 200})


def test_pieces_learn_words_and_keep_digits_apart(tmp_path: Path) -> None:
    texts = ["I have 12 apples and 345 pears. --> 99", "Tom has 2024 apples ###"] * 9
    one, two = pieces(texts, 300), pieces(texts, 300)
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()
    assert one.tokenize("has 2024 apples") == ["ha", "s", "Ġ", "2", "0", "2", "4", "Ġapples"]
    assert 258 < len(one) <= 300 and len(pieces(texts, 258)) == 258
    for text in ("Zoë has 12 日本 apples!\n\n --> 7", "  two  blanks ."):
        assert one.decode(one(text)["input_ids"]) == text
    assert (one.pad_token_id, one.eos_token_id) == (0, 1) and one("12")["input_ids"][-1] != 1
    _, _, facts = encoded(tmp_path, tokenizer={"kind": "pieces", "vocabulary": 270})
    assert facts["vocabulary"] <= 270
    again = tmp_path / "again"
    again.mkdir()
    encoded(again, tokenizer=None, reader=tmp_path / "out")
    ids = [AutoTokenizer.from_pretrained(place / "out" / "tokenizer")("w0 w7 --> 12") for place in (tmp_path, again)]
    assert ids[0]["input_ids"] == ids[1]["input_ids"]


# Training through the loop


class Recorder(torch.optim.SGD):
    """Keeps the gradients of every step and changes no weight."""

    made: list[Recorder]

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr)
        self.gradients: list[list[Tensor]] = []
        Recorder.made.append(self)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.gradients.append([p.grad.clone() for p in self.param_groups[0]["params"] if p.grad is not None])


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text", "t5"])
def test_micro_batches_equal_one_batch(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """11 rows of unequal lengths as batches of 8 and 3, whole and in parts of 3; the first is what the model's own mean
    over the batch's target tokens gives."""
    calm = {"initializer_factor": 1.0} if name == "t5" else {}
    Recorder.made = []
    monkeypatch.setattr(loop, "build_optimizer", lambda model, **named: Recorder(model.parameters(), named["lr"]))
    data = writers.sequences(11, encoder_decoder=name == "t5")
    logged = []
    for micro in (0, 3):
        batches = Batches(data, batch_size=8, seed=0, shuffle=True, pad_token_id=writers.PAD, micro_batch=micro)
        context = toy.context(tmp_path / str(micro))
        plan = toy.plan(epochs=1, clip=0.0, expected=("completion",))
        fit(Student(writers.writer(name, **calm)), CompletionStep(), batches, plan, context)
        logged.append(MetricsLog.read(context.out / "metrics.jsonl"))
    whole, parts = Recorder.made
    for ours, theirs in zip(whole.gradients, parts.gradients, strict=True):
        assert max(float(gradient.abs().max()) for gradient in ours) > 1e-2
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)
    for one, other in zip(*logged, strict=True):
        assert one.pop("stage") == other.pop("stage")
        assert one == pytest.approx(other, rel=1e-5)
    assert sorted(point["examples"] for point in logged[0]) == [3, 8]
    assert sum(point["tokens"] for point in logged[0]) == data.lengths.sum()

    model = writers.writer(name, **calm)
    ((batch,), *_) = Batches(data, batch_size=8, seed=0, shuffle=True, pad_token_id=writers.PAD).epoch(0)
    loss = model(**{key: value for key, value in batch.items() if key not in ("index", "real")}).loss
    loss.backward()
    assert logged[0][0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    for found, weight in zip(whole.gradients[0], model.parameters(), strict=True):
        torch.testing.assert_close(found, weight.grad, rtol=1e-4, atol=2e-5)


class Killed(Exception):
    pass


@pytest.mark.parametrize(("name", "lora"), [("gpt2", None), ("t5", None), ("llama", 2)])
def test_a_broken_off_run_goes_on_bit_for_bit(name: str, lora: int | None, tmp_path: Path) -> None:
    """With dropout; killed in step 5 of 8, after a checkpoint of each step; a score that is best at step 4."""
    dropout = {"gpt2": {"resid_pdrop": 0.2, "embd_pdrop": 0.1}, "t5": {"dropout_rate": 0.2}, "llama": {}}[name]

    def run(out: Path, kill: int | None = None) -> dict[str, Tensor]:
        torch.seed()
        model = writers.writer(name, **dropout)
        if lora is not None:
            adapt(model, {"rank": lora, "alpha": 4.0, "dropout": 0.2, "targets": []}, seed=3)
        student, plain = Student(model), CompletionStep()
        data = writers.sequences(14, encoder_decoder=name == "t5")

        def step(model: nn.Module, batch: Batch, progress: Progress) -> Loss:
            if progress.step == kill:
                raise Killed
            loss = plain(model, batch, progress)
            return replace(loss, total=loss.total * (1 + random.random()))

        batches = Batches(data, batch_size=4, seed=0, shuffle=True, pad_token_id=writers.PAD, micro_batch=2)
        plan = toy.plan(epochs=2, lr=0.01, eval_steps=2, select=("heldout", "accuracy"), expected=("completion",))
        scores = iter(
            [0.1, 0.5, 0.2, 0.3] if kill is not None or not (out / "work" / "killed").exists() else [0.2, 0.3]
        )

        def evaluate() -> dict[str, dict[str, float]]:
            return {"heldout": {"accuracy": next(scores)}}

        history = fit(student, step, batches, plan, toy.context(out, seconds=0.0), evaluate=evaluate)
        assert (history.selected_step, history.last_step) == (4, 8)
        return toy.copied(student.state_dict())

    unbroken = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "broken", kill=5)
    (tmp_path / "broken" / "work" / "killed").touch()
    assert toy.same(run(tmp_path / "broken"), unbroken)
    start = Student(writers.writer(name)).state_dict()
    assert not toy.same(unbroken, start)
    logs = [(tmp_path / place / "metrics.jsonl").read_bytes() for place in ("whole", "broken")]
    assert logs[0] == logs[1]


# The stage

COUNT = 12
FORM = {"kind": "text", "choices": None, "compare": "string"}


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Questions of one letter, whose answer is that letter twice: `rows` and their `encoded` tokens."""
    rows = [{"id": n, "question": letter, "answer": letter * 2} for n, letter in enumerate("abcdefghijkl"[:COUNT])]
    for name in ("train", "heldout", "test"):
        rows_in(tmp_path / "rows", rows, name)
    write_json(tmp_path / "rows" / "facts.json", {"answer": FORM})
    context = toy.context(tmp_path / "encoded")
    encode_targets(
        context,
        data=tmp_path / "rows",
        tokenizer={"kind": "pieces", "vocabulary": 280},
        style=ANSWERS,
        max_prompt=32,
        max_target=32,
    )
    return tmp_path


def trained(task: Path, out: str, **changes: Any) -> dict[str, Any]:
    """Run the stage; what it left."""
    context = toy.context(task / out, warn=changes.pop("warn", lambda _: None))
    model = {name: value for name, value in writers.CONFIGS["llama"].items() if name != "initializer_range"}
    schedule = config.Fit(epochs=30, lr=0.01, batch_size=4, warmup=0.0, schedule="constant", eval_steps=30)
    values: dict[str, Any] = {
        "data": task / "encoded",
        "model": {"init": "random", "config": model},
        "fit": {item.name: getattr(schedule, item.name) for item in fields(schedule)},
        "lora": None,
        "style": ANSWERS,
        "answering": ANSWERING,
        "select_on": "last",
        "seed": 1,
        "precision": "fp32",
        "max_steps": None,
    }
    finetune_generator(context, **{**values, **changes})
    history = json.loads((context.out / "history.json").read_text())
    return {"folder": context.out / "model", "history": history, "facts": context.facts}


def test_a_student_learns_its_task(task: Path) -> None:
    """It selects by its own answers, and its folder loads and answers with plain transformers."""
    found = trained(task, "student", questions=task / "rows", select_on="heldout")
    scores = [point["scores"]["heldout"]["accuracy"] for point in found["history"]["evaluations"]]
    assert len(scores) == 3 and max(scores) == 1.0 == found["history"]["best_score"]
    assert found["history"]["evaluations"][0]["scores"]["heldout"].keys() >= {"contains_answer", "complete"}
    plain = AutoModelForCausalLM.from_pretrained(found["folder"])
    tokenizer = AutoTokenizer.from_pretrained(found["folder"])
    ids = tokenizer("c ###", return_tensors="pt")
    written = plain.generate(**ids, max_new_tokens=8)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(written, skip_special_tokens=True) == " cc"
    assert "lm_head.weight" in dict(plain.named_parameters())

    model, again = saved_generator(found["folder"], attention="eager")
    rows = [{"question": letter} for letter in "lab"]
    answers = answer_questions(model, again, rows, Style(**ANSWERS), max_tokens=8, max_prompt=32, batch_size=2)
    assert [one.completion.text for one in answers] == [" ll", " aa", " bb"]
    assert {one.completion.finish_reason for one in answers} == {"stop"} and answers[0].prompt == "l ###"
    assert answers[0].completion.tokens == len(again.tokenize(" ll")) + 1 and answers[0].reasoning is None


def test_cut_questions_of_the_selection_are_told_once(task: Path) -> None:
    told: list[str] = []
    found = trained(
        task,
        "student",
        questions=task / "rows",
        select_on="heldout",
        max_steps=4,
        fit={**asdict(config.Fit(epochs=2, lr=0.01, batch_size=4)), "eval_steps": 2},
        answering={**ANSWERING, "max_prompt": 1},
        warn=told.append,
    )
    assert len(found["history"]["evaluations"]) > 1
    assert told == [f"{COUNT} of {COUNT} prompts have more than 1 tokens and are cut (method.prompt.max_prompt)"]


def test_adapters_learn_too_and_are_merged(task: Path) -> None:
    base = trained(task, "base", max_steps=20)
    start = {"path": str(base["folder"]), "init": "pretrained"}
    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": []}
    found = trained(task, "adapted", model=start, lora=lora, max_steps=40)
    assert found["facts"]["trained_parameters"] < found["facts"]["parameters"] / 2
    losses = [MetricsLog.read(task / place / "metrics.jsonl")[-1]["loss"] for place in ("base", "adapted")]
    assert losses[1] < losses[0] - 0.1
    model, _ = saved_generator(found["folder"], attention="eager")
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    before, _ = saved_generator(base["folder"], attention="eager")
    assert torch.equal(model.get_input_embeddings().weight, before.get_input_embeddings().weight)
    data = open_sequences(task / "encoded", encoder_decoder=False)
    batch = data.collate(np.arange(4), pad_token_id=0, width=int(data.lengths[:4].max()))
    with torch.no_grad():
        own = [
            float(model(**{name: value for name, value in batch.items() if name != "index"}).loss)
            for model in (before, model)
        ]
    assert own[1] < own[0] - 0.1


def test_the_last_epoch_needs_no_questions(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "generate", None)
    found = trained(task, "student", max_steps=4, answering=None)
    assert found["history"]["evaluations"] == [] and found["history"]["selected_step"] == 4
    assert found["facts"]["trained_tokens"] > 0 and found["facts"]["parameters"] == found["facts"]["trained_parameters"]


def test_a_stage_that_can_not_run(task: Path) -> None:
    with pytest.raises(DataError, match="no heldout questions to select"):
        (task / "rows" / "heldout.jsonl").unlink()
        trained(task, "one", questions=task / "rows", select_on="heldout")
    small = {"init": "random", "config": {**writers.CONFIGS["llama"], "max_position_embeddings": 4}}
    with pytest.raises(ModelError, match="a row has 5 tokens, and the model has 4 positions"):
        trained(task, "two", model=small)
    with pytest.raises(ModelError, match="an encoder-decoder, and the rows were made for the style decoder"):
        trained(task, "three", model={"init": "random", "config": writers.CONFIGS["t5"]})
    writers.writer("llama").save_pretrained(task / "narrow")
    with pytest.raises(ModelError, match="and the model knows 60 tokens"):
        trained(task, "four", model={"path": str(task / "narrow")})


def test_an_encoder_decoder_is_trained_too(task: Path) -> None:
    style = {**ANSWERS, "model_type": "encoder_decoder"}
    context = toy.context(task / "again")
    encode_targets(
        context, data=task / "rows", tokenizer=None, reader=task / "encoded", style=style, max_prompt=9, max_target=9
    )
    model = {**writers.CONFIGS["t5"], "initializer_factor": 1.0}
    found = trained(
        task,
        "student",
        data=task / "again",
        style=style,
        questions=task / "rows",
        select_on="test",
        model={"init": "random", "config": model},
    )
    assert found["history"]["best_score"] > 0.5
    assert AutoModelForSeq2SeqLM.from_pretrained(found["folder"]).config.decoder_start_token_id == 0


# Answering


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Any]:
    folder = tmp_path_factory.mktemp("gpt2")
    save_generator(writers.writer("llama", vocab_size=300, max_position_embeddings=512), pieces(["a b c"], 300), folder)
    return named_generator({"path": str(folder)}, attention="eager")


def ask(gpt2: tuple[PreTrainedModel, Any], style: Style, questions: list[str], **changes: Any) -> list[Any]:
    values = {"max_tokens": 5, "max_prompt": 200, "batch_size": 2, **changes}
    return answer_questions(*gpt2, [{"question": one} for one in questions], style, **values)


def test_zero_shot_cot_asks_twice(gpt2: tuple[PreTrainedModel, Any]) -> None:
    style, questions = Style(template="zs_cot"), ["How many?", "Who is it?", "Why?"]
    seen: list[tuple[int, int]] = []
    found = ask(gpt2, style, questions, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(2, 6), (3, 6), (5, 6), (6, 6)]
    for one, question in zip(found, questions, strict=True):
        assert one.reasoning_prompt == prompt(question, style, step=1)
        assert one.reasoning is not None
        assert one.prompt == prompt(question, style, step=2, rationale=one.reasoning.text)
        assert [one.reasoning, one.completion] == [
            generate(*gpt2, [text], max_tokens=5)[0] for text in (one.reasoning_prompt, one.prompt)
        ]


def test_few_shot_prompts_drop_exemplars_that_do_not_fit(gpt2: tuple[PreTrainedModel, Any]) -> None:
    style = Style(template="fs_cot")
    exemplars = [f"Q: {letter * 20}\nA: The answer is {letter}." for letter in "xyz"]
    whole = prompt("Who?", style, exemplars=exemplars)
    length = len(gpt2[1](whole)["input_ids"])
    (found,) = ask(gpt2, style, ["Who?"], exemplars=exemplars, max_prompt=length)
    assert found.prompt == whole
    (found,) = ask(gpt2, style, ["Who?"], exemplars=exemplars, max_prompt=length - 1)
    assert found.prompt == prompt("Who?", style, exemplars=exemplars[1:])
    (found,) = ask(gpt2, style, ["Who?"], exemplars=exemplars, max_prompt=length - 1, too_long="right")
    assert found.prompt == whole[:-1] and found.cut
    (found,) = ask(gpt2, style, ["Who?"], exemplars=exemplars, max_prompt=length, too_long="right")
    assert found.prompt == whole and not found.cut


def test_a_few_shot_question_is_never_cut(gpt2: tuple[PreTrainedModel, Any]) -> None:
    style, question = Style(template="fs_cot"), "Who is it? " * 4 + "Who?"
    (found,) = ask(gpt2, style, [question], exemplars=["Q: x\nA: The answer is x."], max_prompt=12)
    assert found.prompt == f"Q: {question}\nA:" and not found.cut
    assert found.completion == generate(*gpt2, [gpt2[1](found.prompt)["input_ids"]], max_tokens=5)[0]


def test_prompts_that_are_too_long_are_cut_as_in_training(gpt2: tuple[PreTrainedModel, Any]) -> None:
    style = Style(template="ft_token")
    found, short = ask(gpt2, style, ["123456789", ""], max_prompt=4)
    assert (found.prompt, found.cut, short.prompt, short.cut) == ("1234", True, " ###", False)
    assert found.completion == generate(*gpt2, [gpt2[1]("1234")["input_ids"]], max_tokens=5)[0]
    (stopped,) = ask(gpt2, Style(template="ft_token", stop=found.completion.text[1]), ["123456789"], max_prompt=4)
    assert stopped.completion.text == found.completion.text[:1].replace(found.completion.text[1], "")
    assert stopped.completion.finish_reason == "stop"


def test_the_second_step_holds_what_the_first_one_asked(gpt2: tuple[PreTrainedModel, Any]) -> None:
    style = Style(template="zs_cot")
    (found,) = ask(gpt2, style, ["123456789"], max_prompt=8)
    first = gpt2[1].decode(gpt2[1](prompt("123456789", style, step=1))["input_ids"][:8])
    assert found.reasoning_prompt == first and found.cut
    assert found.reasoning == generate(*gpt2, [gpt2[1](first)["input_ids"]], max_tokens=5)[0]
    assert found.prompt == prompt("", style, step=2, reasoning_prompt=first, rationale=found.reasoning.text)
    assert found.completion == generate(*gpt2, [gpt2[1](found.prompt)["input_ids"]], max_tokens=5)[0]


def test_a_cut_prompt_of_an_encoder_decoder_is_shown_without_its_end_of_text() -> None:
    model, tokenizer = writers.writer("t5"), writers.words(eos=True)
    style = Style(template="ft_token", model_type="encoder_decoder")
    rows = [{"question": "w0 w1 w2 w3"}, {"question": "w4 w5"}]
    found = answer_questions(model, tokenizer, rows, style, max_tokens=3, max_prompt=3, batch_size=2)
    assert [(one.prompt, one.cut) for one in found] == [("w0 w1", True), ("w4 w5", False)]
