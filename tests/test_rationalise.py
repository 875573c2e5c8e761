"""Teachers of every kind write rationales: by rules, from records, from an endpoint, by a model of this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cot import Told, completion, completions, context, question, questions
from endpoint_server import Fault, Server, answer_to, serving, usage_of
from kdlab.config import Budget, Price
from kdlab.context import Requests
from kdlab.data.demo import coin_flip
from kdlab.errors import BudgetError, DataError, EndpointError
from kdlab.rationales.completion import endpoint_name
from kdlab.stages.completions import Row, read_records
from kdlab.stages.rationalise import rationalise
from lab import read

GENERATE = {"train": 6, "test": 2, "steps": 3, "objects": 3, "seed": 0}
FREE: dict[str, Any] = {"samples": 1, "temperature": 0.0, "seed": 0, "strip_fields": True, "splits": ["train"]}


def embedded(split: str) -> list[Row]:
    first = 0 if split == "train" else GENERATE["train"]
    return [{"id": first + n, **row} for n, row in enumerate(coin_flip.questions(split, GENERATE))]


@pytest.fixture(scope="module")
def coins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coins")
    return questions(folder, train=embedded("train"), test=embedded("test"))


def written(root: Path, asked: Path, writer: dict[str, Any], *, stage: str = "rationales", **changes: Any) -> Told:
    ctx = context(root, stage, **{name: changes.pop(name) for name in ("requests", "eval_batch") if name in changes})
    rationalise(ctx, questions=asked, writer=writer, task_key="coin_flip", **(FREE | changes))
    return ctx


def records(ctx: Told) -> dict[int, list[Row]]:
    return read_records(ctx.out / "completions.json")


# rules


def test_rules_write_in_the_official_layout(coins: Path, tmp_path: Path) -> None:
    ctx = written(tmp_path, coins, {"kind": "rules", "error_rate": 0.0}, samples=3, splits=["test", "train"])
    whole = read(ctx.out / "completions.json")
    assert whole["metadata"] == {
        "base_model": "rules",
        "dataset_key": "coin_flip",
        "completion_key": "zs_cot",
        "prediction_template": "zs_cot",
        **dict.fromkeys(("finetune_key", "train_key", "epoch")),
    }
    assert list(whole["data"]) == [str(number) for number in range(8)]
    found = records(ctx)
    assert all([one["completion_index"] for one in found[number]] == [0, 1, 2] for number in found)
    for row in [*embedded("train"), *embedded("test")]:
        for one in found[row["id"]]:
            assert (one["question"], one["answer"]) == (row["question"], row["answer"])
            assert one["completion"] == f" {row['answer']}."
    teacher = {"model": "rules", "key": "zs_cot", "template": "zs_cot"}
    assert ctx.facts == {"rows": {"test": 2, "train": 6}, "teacher": teacher, "rationales": 24}


def test_more_samples_and_questions_change_no_rationale(coins: Path, tmp_path: Path) -> None:
    writer = {"kind": "rules", "error_rate": 0.3}
    few = records(written(tmp_path, coins, writer))
    more = records(written(tmp_path, coins, writer, samples=2, splits=["test", "train"]))
    assert {number: more[number][:1] for number in few} == few
    assert records(written(tmp_path, coins, writer, seed=1)) != few


@pytest.mark.parametrize(("rate", "right"), [(0.0, 6), (1.0, 0)])
def test_the_error_rate(rate: float, right: int, coins: Path, tmp_path: Path) -> None:
    found = records(written(tmp_path, coins, {"kind": "rules", "error_rate": rate}))
    assert sum(one[0]["completion"].strip(" .") == one[0]["answer"] for one in found.values()) == right


def test_rules_are_for_embedded_tasks(tmp_path: Path) -> None:
    asked = questions(tmp_path / "questions", train=[question(0)])
    with pytest.raises(DataError, match="for the embedded tasks only"):
        written(tmp_path, asked, {"kind": "rules", "error_rate": 0.0})


def test_no_questions_no_rationales(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="The teacher wrote nothing"):
        written(tmp_path, questions(tmp_path / "questions", train=[]), {"kind": "rules", "error_rate": 0.0})


# records


def recorded(file: Path) -> dict[str, Any]:
    return {"kind": "recorded", "content": "0" * 64, "path": str(file)}


def test_what_kdlab_wrote_can_be_read_back(coins: Path, tmp_path: Path) -> None:
    first = written(tmp_path, coins, {"kind": "rules", "error_rate": 0.3}, samples=2)
    again = written(tmp_path, coins, recorded(first.out / "completions.json"), samples=2, stage="again")
    assert records(again) == records(first) and again.warned == []
    assert read(again.out / "completions.json")["metadata"] == read(first.out / "completions.json")["metadata"]


def test_one_rationale_of_each_question_is_not_diverse(coins: Path, tmp_path: Path) -> None:
    first = written(tmp_path, coins, {"kind": "rules", "error_rate": 0.0})
    with pytest.raises(DataError, match="8 rationales of each question are wanted, and no question has more than one"):
        written(tmp_path, coins, recorded(first.out / "completions.json"), samples=8, stage="again")


def test_what_was_not_recorded_is_said(tmp_path: Path) -> None:
    rows = [question(number) for number in range(4)]
    asked = questions(tmp_path / "questions", train=rows)
    kept = [completion(rows[0], " yes", 0), completion(rows[0], " no", 1), completion(rows[2], " yes")]
    folder = completions(tmp_path / "old", kept, template="fs_cot")
    ctx = written(tmp_path, asked, recorded(folder / "completions.json"), samples=2)
    assert {number: len(found) for number, found in records(ctx).items()} == {0: 2, 1: 0, 2: 1, 3: 0}
    assert ctx.warned == [
        "2 of 4 train questions have no recorded completion",
        "1 question has fewer than 2 recorded completions",
    ]
    teacher = {"model": "teacher", "key": "zs_cot", "template": "fs_cot"}
    assert ctx.facts == {"rows": {"train": 4}, "teacher": teacher, "rationales": 3}
    metadata = read(ctx.out / "completions.json")["metadata"]
    assert (metadata["base_model"], metadata["prediction_template"]) == ("teacher", "fs_cot")


def test_records_of_other_questions_are_refused(tmp_path: Path) -> None:
    asked = questions(tmp_path / "questions", train=[question(0)])
    other = {**question(0), "question": "Is it raining?"}
    folder = completions(tmp_path / "old", [completion(other, " yes")])
    with pytest.raises(DataError, match="answers another question"):
        written(tmp_path, asked, recorded(folder / "completions.json"))


def test_a_record_may_hold_half_of_a_surrogate_pair(tmp_path: Path) -> None:
    """JSON can say it, UTF-8 can't; published transcripts are what a tokenizer cut them to."""
    rows = [question(0)]
    folder = completions(tmp_path / "old", [completion(rows[0], " yes")])
    file = folder / "completions.json"
    file.write_text(file.read_text().replace("Thought 0", "Thought \\ud83d"))
    ctx = written(tmp_path, questions(tmp_path / "questions", train=rows), recorded(file))
    assert records(ctx)[0][0]["reasoning_completion"].startswith(" Thought ")


# an endpoint


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return questions(tmp_path / "questions", train=[question(n) for n in range(3)], test=[question(3)])


def endpoint(server: Server, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "openai",
        "prompt": "zs_cot",
        "max_tokens": 20,
        "stop": ["END"],
        "endpoint": endpoint_name(server.url),
        "model": "teacher",
        "api": "completions",
        **changes,
    }


def step_one(row: Row) -> str:
    return f"Q: {row['question']}\nA: Let's think step by step."


def step_two(row: Row) -> str:
    first = step_one(row)
    return f"{first}{answer_to(first).strip()}\nTherefore, the answer is"


def test_an_endpoint_is_asked_in_two_steps(server: Server, asked: Path, tmp_path: Path) -> None:
    ctx = written(tmp_path, asked, endpoint(server), splits=["test", "train"])
    rows = [question(number) for number in range(4)]
    assert server.delivered == dict.fromkeys([*map(step_one, rows), *map(step_two, rows)], 1)
    assert all(body["max_tokens"] == 20 and body["stop"] == ["END"] for body in server.bodies)
    (one,) = records(ctx)[2]
    first, second = step_one(rows[2]), step_two(rows[2])
    assert one == {
        "sample_index": 2,
        "completion_index": 0,
        "question": rows[2]["question"],
        "answer": "yes",
        "reasoning_prompt": first,
        "reasoning_completion": answer_to(first),
        "reasoning_finish_reason": "stop",
        "prompt": second,
        "completion": answer_to(second),
        "finish_reason": "stop",
    }
    tokens = [usage_of(text) for text in server.delivered.elements()]
    assert ctx.facts == {
        "rows": {"test": 1, "train": 3},
        "teacher": {"model": "teacher", "key": "zs_cot", "template": "zs_cot"},
        "rationales": 4,
        "requests": 8,
        "prompt_tokens": sum(prompt for prompt, _ in tokens),
        "completion_tokens": 80,
        "usd": None,
    }
    metadata = read(ctx.out / "completions.json")["metadata"]
    assert (metadata["base_model"], metadata["completion_key"]) == ("teacher", "zs_cot")


def test_each_sample_is_asked_for_itself(server: Server, asked: Path, tmp_path: Path) -> None:
    ctx = written(tmp_path, asked, endpoint(server), samples=3, temperature=0.7)
    assert set(server.delivered.values()) == {3} and len(server.delivered) == 6
    assert {body["temperature"] for body in server.bodies} == {0.7}
    assert all([one["completion_index"] for one in found] == [0, 1, 2] for found in records(ctx).values())
    assert read(ctx.out / "completions.json")["metadata"]["completion_key"] == "zs_cot_t70_3aug"


def test_the_second_step_follows_its_own_first(asked: Path, tmp_path: Path) -> None:
    """With samples that differ, each answer is asked behind the rationale of its own number."""

    class Counting(Server):
        def payload(self, prompt: str, *, chat: bool) -> dict[str, Any]:
            found = super().payload(prompt, chat=chat)
            with self.lock:
                self.said += 1
                found["choices"][0]["text"] = f" thought {self.said}."
            return found

    server = Counting()
    server.said = 0  # type: ignore[attr-defined]
    server.open()
    try:
        ctx = written(tmp_path, asked, endpoint(server), samples=2, temperature=0.7)
    finally:
        server.close()
    every = [one for found in records(ctx).values() for one in found]
    assert len({one["reasoning_completion"] for one in every}) == 6
    assert all(one["reasoning_completion"].strip() in one["prompt"] for one in every)


def test_few_shot_asks_once(asked: Path, tmp_path: Path) -> None:
    class Solving(Server):
        def payload(self, prompt: str, *, chat: bool) -> dict[str, Any]:
            found = super().payload(prompt, chat=chat)
            found["choices"][0]["text"] = " It is short. The answer is yes." if "question 1" in prompt else " Hm."
            return found

    server = Solving()
    server.open()
    try:
        writer = endpoint(server, prompt="fs_cot")
        ctx = written(tmp_path, asked, writer, exemplars={"key": "coin_flip"})
    finally:
        server.close()
    assert len(server.bodies) == 3 and ctx.facts["requests"] == 3
    prompt = records(ctx)[1][0]["prompt"]
    assert prompt.endswith("\nQ: Is question 1 easy?\nA:") and prompt.count("The answer is") == 6
    (one,), (other,) = records(ctx)[1], records(ctx)[0]
    assert one["reasoning_completion"] == " It is short. "
    assert one["completion"] == " It is short. The answer is yes."
    assert other["reasoning_completion"] == other["completion"] == " Hm."
    assert read(ctx.out / "completions.json")["metadata"]["prediction_template"] == "fs_cot"


def test_exemplars_of_a_file(server: Server, asked: Path, tmp_path: Path) -> None:
    file = tmp_path / "exemplars.json"
    file.write_text(
        json.dumps({"coin_flip": {"prompt": "Q: 1?\nA: One. The answer is 1.\nQ: 2?\nA: The answer is 2."}})
    )
    shots = {"key": "coin_flip", "content": "0" * 64, "path": str(file)}
    written(tmp_path, asked, endpoint(server, prompt="fs_cot"), exemplars=shots)
    start = "Q: 1?\nA: One. The answer is 1.\nQ: 2?\nA: The answer is 2.\nQ: "
    assert all(body["prompt"].startswith(start) for body in server.bodies)


def test_a_chat_model_gets_the_prompt_as_a_message(server: Server, asked: Path, tmp_path: Path) -> None:
    written(tmp_path, asked, endpoint(server, api="chat"))
    assert set(server.paths) == {"/v1/chat/completions"} and set(server.delivered) >= {step_one(question(0))}


def test_a_rationale_cut_at_max_tokens_is_marked(asked: Path, tmp_path: Path) -> None:
    with serving(finish="length") as server:
        ctx = written(tmp_path, asked, endpoint(server))
    assert {one[0]["reasoning_finish_reason"] for one in records(ctx).values()} == {"length"}


# what was paid for


def test_the_journal_answers_what_was_asked_before(server: Server, asked: Path, tmp_path: Path) -> None:
    first = written(tmp_path, asked, endpoint(server))
    before = len(server.bodies)
    price = Price(input=1.0, output=2.0)
    again = written(tmp_path, asked, endpoint(server), stage="again", requests=Requests(price=price))
    assert len(server.bodies) == before == 6
    assert (again.out / "completions.json").read_bytes() == (first.out / "completions.json").read_bytes()
    assert again.facts["usd"] == pytest.approx((again.facts["prompt_tokens"] + 2 * 60) / 1e6)
    assert {**again.facts, "usd": None} == first.facts
    more = written(tmp_path, asked, endpoint(server), stage="more", splits=["test", "train"])
    assert len(server.bodies) == before + 2 and more.facts["requests"] == 8


def test_what_an_endpoint_answered_before_it_failed_is_kept(asked: Path, tmp_path: Path) -> None:
    broken: list[str] = [step_two(question(1))]

    def faults(prompt: str, tried: int) -> Fault | None:
        return Fault("status", 400) if prompt in broken else None

    with serving(faults) as server:
        with pytest.raises(EndpointError, match="refuses the request"):
            written(tmp_path, asked, endpoint(server), requests=Requests(concurrency=1))
        assert sum(server.delivered.values()) == 4  # three first steps, one second
        assert not (tmp_path / "building" / "rationales" / "completions.json").exists()
        broken.clear()
        ctx = written(tmp_path, asked, endpoint(server))
        assert set(server.delivered.values()) == {1} and len(server.delivered) == 6
    assert ctx.facts["requests"] == 6


def test_a_budget_counts_both_steps(server: Server, asked: Path, tmp_path: Path) -> None:
    def limited(tokens: int) -> Callable[[], Told]:
        requests = Requests(budget=Budget(tokens=tokens), concurrency=1)
        return lambda: written(tmp_path, asked, endpoint(server), requests=requests)

    first_steps = sum(sum(usage_of(step_one(question(n)))) for n in range(3))
    with pytest.raises(BudgetError, match="3 requests of this step left to do") as caught:
        limited(first_steps + 60)()  # the first step fits; the next request could cost more than is left
    assert len(server.bodies) == 3 and f"{first_steps} tokens spent" in str(caught.value)
    with pytest.raises(BudgetError):
        limited(first_steps + 60)()
    assert len(server.bodies) == 3  # nothing is sent, nothing asked twice
    limited(10_000)()
    assert len(server.bodies) == 6 and set(server.delivered.values()) == {1}


def test_a_budget_that_is_used_up_by_the_second_step_stops_the_first(
    server: Server, asked: Path, tmp_path: Path
) -> None:
    """What a second step has cost counts before a new question is asked for its first."""
    written(tmp_path, asked, endpoint(server))
    spent = sum(sum(usage_of(text)) for text in server.delivered)
    before = len(server.bodies)
    with pytest.raises(BudgetError, match=f"{spent} tokens spent"):
        requests = Requests(budget=Budget(tokens=spent + 10))
        written(tmp_path, asked, endpoint(server), splits=["test", "train"], requests=requests)
    assert len(server.bodies) == before


def test_dollars_need_a_price(server: Server, asked: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="is set, but nothing is known"):
        written(tmp_path, asked, endpoint(server), requests=Requests(budget=Budget(usd=1.0)))
    assert server.bodies == []


# a model on this machine


@pytest.fixture(scope="module")
def small_teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A random decoder with a tokenizer of pieces, as `answer` would find it in a folder."""
    from kdlab.models.generator import load_generator
    from kdlab.stages.generation import save_generator
    from kdlab.stages.targets import pieces

    folder = tmp_path_factory.mktemp("teacher") / "small"
    tokenizer = pieces(["Q: Is question 1 easy?\nA: Let's think step by step."], 300)
    model = load_generator(
        {
            "init": "random",
            "config": {
                "model_type": "llama",
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "initializer_range": 0.3,
            },
        },
        attention="sdpa",
        seed=0,
        vocabulary=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    save_generator(model, tokenizer, folder)
    return {
        "kind": "local",
        "prompt": "zs_cot",
        "max_tokens": 6,
        "stop": ["END"],
        "content": "1" * 64,
        "path": str(folder),
    }


def test_a_model_of_this_machine_writes(small_teacher: dict[str, Any], asked: Path, tmp_path: Path) -> None:
    ctx = written(tmp_path, asked, small_teacher)
    found = records(ctx)
    for number, (one,) in found.items():
        assert one["reasoning_prompt"] == step_one(question(number))
        thought = one["reasoning_completion"]
        assert thought and one["prompt"] == f"{step_one(question(number))}{thought.strip()}\nTherefore, the answer is"
    assert ctx.facts["requests"] == 6 and ctx.facts["completion_tokens"] <= 36 and ctx.facts["usd"] is None
    assert read(ctx.out / "completions.json")["metadata"]["base_model"] == "small"
    (journal,) = (tmp_path / "journals").glob("*.jsonl")
    assert len(journal.read_text().splitlines()) == 6
    again = written(tmp_path, asked, small_teacher, stage="again")
    assert records(again) == found and len(journal.read_text().splitlines()) == 6


def test_how_many_are_written_at_once_changes_no_draw(
    small_teacher: dict[str, Any], asked: Path, tmp_path: Path
) -> None:
    drawn = {"samples": 2, "temperature": 1.0}
    one = records(written(tmp_path / "one", asked, small_teacher, **drawn, eval_batch=1))
    assert records(written(tmp_path / "all", asked, small_teacher, **drawn, eval_batch=64)) == one
    assert all(found[0]["reasoning_completion"] != found[1]["reasoning_completion"] for found in one.values())
    other = records(written(tmp_path / "one", asked, small_teacher, **drawn, seed=1))
    assert all(other[number][0]["reasoning_completion"] != one[number][0]["reasoning_completion"] for number in one)
