"""A student answers the test questions: what is written down, going on after a kill, and its size and speed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cot import Told, context, question, questions
from kdlab.artifacts import files_below
from kdlab.data.prompts import Style
from kdlab.models.generator import load_generator
from kdlab.models.writing import generate
from kdlab.stages import answer as stage
from kdlab.stages.answer import answer, measure_generator
from kdlab.stages.generation import save_generator
from kdlab.stages.targets import pieces
from lab import read

STYLE = asdict(Style(template="ft_cot_token"))
ANSWERING = {
    "max_tokens": 6,
    "max_prompt": 60,
    "too_long": "exemplars",
    "unmasked_left_pad": False,
    "overlap": "exclude",
}
COUNT = 11
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a student with random weights."""
    folder = tmp_path_factory.mktemp("student")
    tokenizer: PreTrainedTokenizerBase = pieces(["Is question 1 easy? ### It is. --> yes"], 300)
    model: PreTrainedModel = load_generator(
        {"init": "random", "config": CONFIG},
        attention="sdpa",
        seed=0,
        vocabulary=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    save_generator(model, tokenizer, folder / "model")
    return folder


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [question(100 + number, "no" if number % 2 else "yes") for number in range(COUNT)]
    return questions(tmp_path_factory.mktemp("questions"), train=[question(0)], test=rows)


def answered(root: Path, asked: Path, **changes: Any) -> Told:
    """With chunks of four questions."""
    ctx = context(root, "answers", eval_batch=changes.pop("eval_batch", 1))
    named: dict[str, Any] = {"task_key": "sums", "style": STYLE, "answering": ANSWERING}
    answer(ctx, questions=asked, **(named | changes))
    return ctx


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, asked: Path, student: Path) -> Told:
    return answered(tmp_path_factory.mktemp("whole"), asked, student=student)


def test_every_test_question_is_answered(whole: Told, student: Path) -> None:
    found = read(whole.out / "answers.json")
    assert found["metadata"] | {"dataset_key": "coin_flip"} == {
        "base_model": "student",
        "dataset_key": "coin_flip",
        "completion_key": "ft_cot_token",
        "prediction_template": "ft_cot_token",
        **dict.fromkeys(("finetune_key", "train_key", "epoch")),
    }
    assert list(found["data"]) == [str(100 + number) for number in range(COUNT)]
    model = load_generator({"path": str(student / "model")}, attention="sdpa", seed=0)
    tokenizer = stage.saved_generator(student / "model", attention="sdpa")[1]
    prompts = [f"Is question {100 + number} easy? ###" for number in range(COUNT)]
    alone = [generate(model, tokenizer, [text], max_tokens=6)[0] for text in prompts]
    for (record,), prompt, one in zip(found["data"].values(), prompts, alone, strict=True):
        assert (record["prompt"], record["completion"], record["finish_reason"]) == (
            prompt,
            one.text,
            one.finish_reason,
        )
        assert record["completion_index"] == 0 and "reasoning_prompt" not in record
    assert whole.facts["rows"] == {"test": COUNT}
    assert whole.facts["answers"]["tokens"] == sum(one.tokens for one in alone)
    assert set(whole.facts["answers"]) == {"tokens", "seconds", "tokens_per_second"}


def test_the_batch_changes_no_answer(whole: Told, asked: Path, student: Path, tmp_path: Path) -> None:
    other = answered(tmp_path, asked, student=student, eval_batch=64)
    assert (other.out / "answers.json").read_bytes() == (whole.out / "answers.json").read_bytes()


# prompting a model as it is


def test_two_steps_of_a_model_that_was_not_trained(asked: Path, student: Path, tmp_path: Path) -> None:
    spec = {"content": "0" * 64, "path": str(student / "model"), "init": "pretrained", "config": {}}
    ctx = answered(tmp_path, asked, model=spec, style=asdict(Style(template="zs_cot")))
    for (record,) in read(ctx.out / "answers.json")["data"].values():
        assert record["reasoning_prompt"].endswith("A: Let's think step by step.")
        thought = record["reasoning_completion"].strip()
        assert record["prompt"] == f"{record['reasoning_prompt']}{thought}\nTherefore, the answer is"
        assert record["reasoning_finish_reason"] in ("stop", "length")


def test_exemplars_stand_before_the_question(asked: Path, student: Path, tmp_path: Path) -> None:
    named = prompted(
        tmp_path, student, "Q: Is 1 odd?\nA: It is. The answer is yes.\nQ: Is 2?\nA: No. The answer is no."
    )
    for limit, shots in ((400, 2), (70, 1), (20, 0)):  # tokens; nearly one a character
        ctx = answered(tmp_path / str(limit), asked, answering={**ANSWERING, "max_prompt": limit}, **named)
        prompts = [record["prompt"] for (record,) in read(ctx.out / "answers.json")["data"].values()]
        assert [prompt.count("The answer is") for prompt in prompts] == [shots] * COUNT
        assert all(prompt.endswith(f"Q: Is question {100 + n} easy?\nA:") for n, prompt in enumerate(prompts))


def test_prompts_that_are_cut_are_told_once_also_after_a_kill(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions 1 and 5, in two chunks of four, are longer than all the others."""
    texts = ["Is it?", "Is it? " * 9] + ["Is it?"] * 3 + ["Is it? " * 9]
    asked = questions(
        tmp_path / "questions", test=[{"id": n, "question": t, "answer": "yes"} for n, t in enumerate(texts)]
    )
    with monkeypatch.context() as patch:
        killed_after(1, patch)
        with pytest.raises(Killed):
            answered(tmp_path, asked, student=student, answering={**ANSWERING, "max_prompt": 20})
    ctx = answered(tmp_path, asked, student=student, answering={**ANSWERING, "max_prompt": 20})
    assert ctx.warned == ["2 of 6 prompts have more than 20 tokens and are cut (method.prompt.max_prompt)"]
    records = [record for (record,) in read(ctx.out / "answers.json")["data"].values()]
    assert not any("cut" in record for record in records)
    tokenizer = stage.saved_generator(student / "model", attention="sdpa")[1]
    for record, text in zip(records, texts, strict=True):
        whole = f"{text.strip()} ###"
        assert whole.startswith(record["prompt"]) and record["question"] == text
        assert len(tokenizer(record["prompt"])["input_ids"]) == min(20, len(tokenizer(whole)["input_ids"]))


def prompted(folder: Path, student: Path, exemplars: str) -> dict[str, Any]:
    """How a model is asked as it is, with exemplars of a file."""
    (folder / "exemplars.json").write_text(json.dumps({"easy": {"prompt": exemplars}}))
    return {
        "model": {"content": "0" * 64, "path": str(student / "model")},
        "style": asdict(Style(template="fs_cot")),
        "exemplars": {"key": "easy", "content": "0" * 64, "path": str(folder / "exemplars.json")},
    }


def test_an_exemplar_is_not_asked(student: Path, tmp_path: Path) -> None:
    rows = [question(0), question(1), question(2)]
    named = prompted(tmp_path, student, f"Q: {rows[1]['question']}\nA: It is short. The answer is yes.")
    asked = questions(tmp_path / "questions", test=rows)
    ctx = answered(tmp_path / "one", asked, **named)
    assert list(read(ctx.out / "answers.json")["data"]) == ["0", "2"] and ctx.facts["rows"] == {"test": 2}
    assert ctx.warned == ["1 of 3 test questions are exemplars of the prompt: left out"]
    ctx = answered(tmp_path / "all", asked, answering={**ANSWERING, "overlap": "keep"}, **named)
    assert list(read(ctx.out / "answers.json")["data"]) == ["0", "1", "2"]


# after a kill


class Killed(BaseException):
    pass


def killed_after(chunks: int, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The next attempts end when so many chunks are written down. Returns the ids that are asked, by call."""
    calls: list[list[int]] = []
    real = stage.answer_questions

    def asking(model: Any, tokenizer: Any, rows: Any, *rest: Any, **named: Any) -> Any:
        calls.append([row["id"] for row in rows])
        if len(calls) > chunks:
            raise Killed
        return real(model, tokenizer, rows, *rest, **named)

    monkeypatch.setattr(stage, "answer_questions", asking)
    return calls


def killed_in_between(root: Path, asked: Path, student: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the answers that a stage keeps, of one that was killed after two batches."""
    with monkeypatch.context() as patch:
        killed_after(2, patch)
        with pytest.raises(Killed):
            answered(root, asked, student=student)
    return root / "building" / "answers" / "work" / "answers.jsonl"


@pytest.mark.parametrize("torn", [b"", b'{"sample_index": 108, "compl', b'{"sample_index": 108}'])
def test_a_killed_stage_goes_on(
    torn: bytes, whole: Told, asked: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = killed_in_between(tmp_path, asked, student, monkeypatch)
    assert len(kept.read_bytes().splitlines()) == 8
    with open(kept, "ab") as file:
        file.write(torn)  # what a kill leaves of a line
    calls = killed_after(9, monkeypatch)
    ctx = answered(tmp_path, asked, student=student)
    assert calls == [[108, 109, 110]]
    assert ctx.notes == ["continues after 8 of 11 answers"]
    assert (ctx.out / "answers.json").read_bytes() == (whole.out / "answers.json").read_bytes()
    assert [len(line) > 0 for line in kept.read_bytes().split(b"\n")] == [True] * 11 + [False]


def test_killed_before_its_end_nothing_is_asked_again(
    whole: Told, asked: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_records", lambda *_, **__: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            answered(tmp_path, asked, student=student)
    calls = killed_after(0, monkeypatch)
    ctx = answered(tmp_path, asked, student=student)
    assert calls == []
    assert (ctx.out / "answers.json").read_bytes() == (whole.out / "answers.json").read_bytes()


def test_answers_that_are_damaged_elsewhere_are_asked_again(
    whole: Told, asked: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = killed_in_between(tmp_path, asked, student, monkeypatch)
    lines = kept.read_bytes().splitlines(keepends=True)
    lines[5] = lines[5].replace(b"10", b"11", 1)
    kept.write_bytes(b"".join(lines))
    ctx = answered(tmp_path, asked, student=student)
    assert ctx.notes[0].startswith(f"damaged: {kept}, line 6: it is not as it was written")
    assert ctx.notes[1:] == ["continues after 5 of 11 answers"]
    assert (ctx.out / "answers.json").read_bytes() == (whole.out / "answers.json").read_bytes()


# figures


def test_the_figures_of_a_trained_student(student: Path, tmp_path: Path) -> None:
    ctx = context(tmp_path, "measure_student")
    measure_generator(ctx, student=student, machine={"cores": 1})
    figures = read(ctx.out / "figures.json")
    model = load_generator({"path": str(student / "model")}, attention="sdpa", seed=0)
    assert figures["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert figures["bytes"] == (student / "model" / "model.safetensors").stat().st_size
    assert 0 < figures["latency_ms"] < 1000 and figures["device"] == "cpu" and figures["machine"] == {"cores": 1}
    assert list(files_below(ctx.out)) == [ctx.out / "figures.json"]


def test_the_figures_of_one_that_is_prompted(student: Path, tmp_path: Path) -> None:
    ctx = context(tmp_path, "measure_student")
    measure_generator(ctx, model={"path": str(student / "model"), "content": "0" * 64}, machine={})
    figures = read(ctx.out / "figures.json")
    assert figures["parameters"] > 0 and figures["bytes"] is None
