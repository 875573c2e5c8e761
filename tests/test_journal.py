"""The journal of answers: nothing that was written is lost or asked again, whatever happened to the file's end."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdlab import config
from kdlab.errors import StoreError
from kdlab.integrity import sealed
from kdlab.rationales.completion import Completion, Done, Progress, Report, Request
from kdlab.rationales.journal import Journal, Journaled, journal_path, key_of
from kdlab.rationales.local import LocalCompleter
from kdlab.rationales.prices import Ledger

REQUEST: dict[str, Any] = {
    "endpoint": "https://api.openai.com/v1",
    "model": "gpt-4o-mini",
    "api": "chat",
    "prompt": "Q: 1 + 1?\nA:",
    "sample": 0,
    "max_tokens": 128,
    "temperature": 0.7,
    "stop": ["END"],
}
ANSWER = Completion(" It is 2 – surely.\n", "stop", 9, 7, "gpt-4o-mini-2024-07-18")


def fill(path: Path, count: int) -> list[str]:
    keys = []
    with Journal(path) as journal:
        for number in range(count):
            content = REQUEST | {"sample": number}
            keys.append(key_of(**content))
            journal.add(keys[-1], content, Completion(f"answer {number}", "stop", 1, 2))
    return keys


# keys


def test_every_part_of_a_request_is_in_its_key() -> None:
    changes = {
        "endpoint": "https://eu.api.openai.com/v1",
        "model": "gpt-4o",
        "api": "completions",
        "prompt": "Q: 1 + 1?\nA: ",
        "sample": 1,
        "max_tokens": 129,
        "temperature": 0.71,
        "stop": [],
    }
    assert changes.keys() == REQUEST.keys()
    keys = {key_of(**REQUEST)} | {key_of(**(REQUEST | {name: value})) for name, value in changes.items()}
    assert len(keys) == 9 and all(re.fullmatch(r"[0-9a-f]{64}", key) for key in keys)


def test_the_same_request_written_differently_has_the_same_key() -> None:
    same = REQUEST | {"endpoint": "https://api.openai.com/v1/", "temperature": 0, "stop": ("END",)}
    assert key_of(**same) == key_of(**(REQUEST | {"temperature": 0.0}))


def test_a_key_never_changes() -> None:
    """Journals outlive versions: another way to make keys would pay for everything again."""
    assert key_of(**REQUEST) == "4b1a7133331bf27431bdec6d72cd6ca874c6a0c9fce00c4b7251acb4e4ba49cf"


def test_one_file_for_each_endpoint_and_model(tmp_path: Path) -> None:
    pairs = [("https://a/v1", "m"), ("https://b/v1", "m"), ("https://a/v1", "org/m"), ("https://a/v1", "org-m")]
    files = [journal_path(tmp_path, *pair) for pair in pairs]
    assert len(set(files)) == 4
    assert all(re.fullmatch(r"(m|org-m)-[0-9a-f]{8}\.jsonl", file.name) for file in files)
    assert journal_path(tmp_path, "https://a/v1/", "m") == files[0]


# what is written


def test_an_answer_comes_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    key = key_of(**REQUEST)
    with Journal(path) as journal:
        assert journal.get(key) is None and key not in journal
        journal.add(key, REQUEST, ANSWER)
        assert journal.get(key) == ANSWER
    with Journal(path) as journal:
        assert journal.get(key) == ANSWER and len(journal) == 1
    (line,) = path.read_text().splitlines()
    entry = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", entry.pop("time"))
    assert len(entry.pop("sha256")) == 64
    assert entry == {
        "key": key,
        "request": REQUEST,
        "completion": {"text": ANSWER.text, "finish_reason": "stop", "model": "gpt-4o-mini-2024-07-18"},
        "usage": {"prompt_tokens": 9, "completion_tokens": 7},
    }


def test_an_answer_is_on_the_disk_when_add_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    whole = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_size), whole(file))[1])
    with Journal(tmp_path / "journal.jsonl") as journal:
        for number in range(3):
            journal.add(f"{number:064}", REQUEST, ANSWER)
            assert synced[-1] == (tmp_path / "journal.jsonl").stat().st_size
    assert len(synced) == 4  # the folder, once, for the new file's name


def test_the_first_answer_stays(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.add("a" * 64, REQUEST, ANSWER)
        journal.add("a" * 64, REQUEST, Completion("other", "stop"))
        assert journal.get("a" * 64) == ANSWER
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 1


# what can happen to the file


def test_a_line_torn_at_any_byte_costs_that_answer_only(tmp_path: Path) -> None:
    keys = fill(tmp_path / "whole.jsonl", 3)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1  # where the third line begins
    path = tmp_path / "journal.jsonl"
    for cut in range(last, len(whole) - 1, 7):
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            assert [key in journal for key in keys] == [True, True, False], cut
            journal.add(keys[2], REQUEST, ANSWER)
        with Journal(path) as journal:
            assert [journal.get(key) is not None for key in keys] == [True, True, True], cut
        assert len(path.read_bytes().splitlines()) == 3


def test_a_last_line_that_lost_only_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    keys = fill(path, 2)
    path.write_bytes(path.read_bytes()[:-1])
    with Journal(path) as journal:
        assert all(key in journal for key in keys)
        journal.add("a" * 64, REQUEST, ANSWER)
    with Journal(path) as journal:
        assert [journal.get(key) is not None for key in (*keys, "a" * 64)] == [True, True, True]


def test_zeros_left_by_a_lost_power_supply_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    keys = fill(path, 2)
    path.write_bytes(path.read_bytes() + b"\0" * 500)
    with Journal(path) as journal:
        assert len(journal) == 2 and all(key in journal for key in keys)
    assert b"\0" not in path.read_bytes()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (b'{"key": "00', "this line is no JSON"),
        (b"[]", "no key, completion.text or completion.finish_reason"),
        (b'{"key": "a", "completion": {"text": "x"}}', "no key, completion.text or completion.finish_reason"),
        (b'{"key": "a", "completion": {"text": 3, "finish_reason": "stop"}}', "not all text"),
        (
            b'{"key": "a", "completion": {"text": "x", "finish_reason": "stop"}, "usage": {"prompt_tokens": "many"}}',
            "counts 'many' tokens",
        ),
    ],
)
def test_a_damaged_line_is_named_and_not_dropped(tmp_path: Path, damage: bytes, said: str) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path, 3)
    lines = path.read_bytes().splitlines()
    lines[1] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught, Journal(path):
        pass
    assert said in str(caught.value) and f"{path}, line 2" in str(caught.value)
    assert path.read_bytes() == before
    with pytest.raises(StoreError), Journal(path):  # and it isn't locked for ever
        pass


def test_keys_of_a_later_version_are_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    (key,) = fill(path, 1)
    entry = json.loads(path.read_text())
    entry["note"], entry["usage"]["cached_tokens"], entry["completion"]["logprobs"] = "new", 3, [0.1]
    del entry["sha256"]
    path.write_text(sealed(entry) + "\n")
    with Journal(path) as journal:
        assert journal.get(key) == Completion("answer 0", "stop", 1, 2)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    keys = fill(path, 2)
    before = path.read_bytes()
    whole, room = os.pwrite, 40

    def full(file: int, content: bytes, place: int) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = whole(file, content[:room], place)
        room -= count
        return count

    with Journal(path) as journal:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(StoreError, match="can't be written: No space left on device") as caught:
            journal.add("a" * 64, REQUEST, ANSWER)
        assert str(path) in str(caught.value) and path.read_bytes() == before
        assert "a" * 64 not in journal
        monkeypatch.undo()
        journal.add("a" * 64, REQUEST, ANSWER)
        assert journal.get("a" * 64) == ANSWER and all(key in journal for key in keys)


def test_a_folder_that_can_not_be_made_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be opened"), Journal(tmp_path / "file" / "journal.jsonl"):
        pass


def test_the_second_writer_waits_and_sees_what_the_first_wrote(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    waits, found = threading.Event(), []

    def second() -> None:
        with Journal(path, waiting=waits.set) as journal:
            found.append(journal.get("a" * 64))

    with Journal(path) as first:
        other = threading.Thread(target=second)
        other.start()
        assert waits.wait(5)
        first.add("a" * 64, REQUEST, ANSWER)
        assert found == []
    other.join(5)
    assert found == [ANSWER]


# a completer behind the journal


class Echo:
    """Answers with the prompt in capitals; fails at the prompt "bad"."""

    def __init__(self) -> None:
        self.ledger = Ledger(config.Budget(), None)
        self.asked: list[Request] = []

    def content(self, request: Request) -> dict[str, Any]:
        return REQUEST | {"prompt": request.prompt, "sample": request.sample}

    def complete(self, requests: Sequence[Request], done: Done, progress: Report | None = None) -> None:
        for index, request in enumerate(requests):
            if request.prompt == "bad":
                raise StoreError("bad")
            self.asked.append(request)
            completion = Completion(request.prompt.upper(), "stop", 1, 2)
            self.ledger.spend(key_of(**self.content(request)), request, completion)
            done(index, completion)


def ask(path: Path, requests: Sequence[Request]) -> tuple[list[Request], dict[int, str], list[Progress]]:
    echo, answers, reports = Echo(), {}, []
    with Journal(path) as journal:
        Journaled(echo, journal).complete(requests, lambda i, c: answers.__setitem__(i, c.text), reports.append)
    return echo.asked, answers, reports


def test_only_what_is_new_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = [Request("a"), Request("b")]
    asked, answers, reports = ask(path, first)
    assert asked == first and answers == {0: "A", 1: "B"}
    assert [(report.done, report.total, report.tokens) for report in reports] == [(0, 2, 0), (1, 2, 3), (2, 2, 6)]
    asked, answers, reports = ask(path, first)
    assert asked == [] and answers == {0: "A", 1: "B"}
    assert [(report.done, report.total, report.tokens) for report in reports] == [(2, 2, 6)]
    more = [Request("c"), Request("b", 1), *first]  # another question, and a second sample
    asked, answers, _ = ask(path, more)
    assert asked == more[:2] and answers == {0: "C", 1: "B", 2: "A", 3: "B"}


def test_equal_requests_are_asked_once(tmp_path: Path) -> None:
    asked, answers, reports = ask(tmp_path / "journal.jsonl", [Request("a"), Request("a"), Request("a", 1)])
    assert asked == [Request("a"), Request("a", 1)] and answers == {0: "A", 1: "A", 2: "A"}
    assert reports[-1].done == 3 and reports[-1].tokens == 6


def test_what_arrived_before_an_error_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with pytest.raises(StoreError, match="bad"):
        ask(path, [Request("a"), Request("bad"), Request("b")])
    asked, _, _ = ask(path, [Request("a"), Request("b")])
    assert asked == [Request("b")]


def test_known_answers_count_as_spent_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    ask(path, [Request("a"), Request("b")])
    echo = Echo()
    with Journal(path) as journal:
        journaled = Journaled(echo, journal)
        assert [c and c.text for c in journaled.known([Request("a"), Request("x")])] == ["A", None]
        assert echo.ledger.tokens == 3
        journaled.complete([Request("a"), Request("b"), Request("c")], lambda i, c: None)
        assert echo.ledger.tokens == 9 and echo.asked == [Request("c")]


# a local model


@dataclass
class Generated:
    text: str
    tokens: int
    finish_reason: str


class Model:
    """Writes numbers, two texts at a time: drawn from each prompt's seed at a temperature, else made of the prompt."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.written: list[str] = []  # prompts, the longest first

    def __call__(self, prompts: list[str], **settings: Any) -> Iterator[dict[int, Generated]]:
        self.calls.append({"prompts": prompts, **settings})
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        for start in range(0, len(order), 2):
            yield {number: self.write(prompts[number], settings, number) for number in order[start : start + 2]}

    def write(self, prompt: str, settings: dict[str, Any], number: int) -> Generated:
        self.written.append(prompt)
        greedy = settings["temperature"] == 0
        text = str(len(prompt)) if greedy else str(random.Random(settings["seed"][number]).random())
        return Generated(text, 5, "length")


def local(writer: Model, **changes: Any) -> LocalCompleter:
    named: dict[str, Any] = {"model": "org/m@c0ffee", "max_tokens": 9, "temperature": 0.7, "stop": ["END"]}
    return LocalCompleter(writer, **(named | {"batch_size": 2} | changes))


def texts(completer: LocalCompleter | Journaled, requests: Sequence[Request]) -> list[str]:
    answers: dict[int, Completion] = {}
    completer.complete(requests, answers.__setitem__)
    assert answers.keys() == set(range(len(requests)))
    return [answers[index].text for index in range(len(requests))]


def test_a_local_model_is_given_all_at_once_and_answers_as_texts_come() -> None:
    model, reports = Model(), []
    lengths = [3, 9, 1, 7, 5]
    completer = local(model, temperature=0.0)
    answers: dict[int, Completion] = {}
    completer.complete([Request("x" * length) for length in lengths], answers.__setitem__, reports.append)
    assert list(answers) == [1, 3, 4, 0, 2]
    assert answers[1] == Completion("9", "length", None, 5, "org/m@c0ffee")
    assert [answers[index].text for index in range(5)] == ["3", "9", "1", "7", "5"]
    assert [(report.done, report.total, report.usd) for report in reports] == [(2, 5, None), (4, 5, None), (5, 5, None)]
    (call,) = model.calls
    assert len(call.pop("seed")) == 5
    assert call == {
        "prompts": ["x" * length for length in lengths],
        "max_tokens": 9,
        "temperature": 0.0,
        "stop": ["END"],
        "batch_size": 2,
    }
    completer.complete([], answers.__setitem__)
    assert len(model.calls) == 1


def test_samples_differ_and_the_same_requests_are_answered_alike() -> None:
    requests = [Request("why", sample) for sample in range(7)]
    drawn = texts(local(Model()), requests)
    assert len(set(drawn)) == 7
    assert texts(local(Model()), requests) == drawn
    assert texts(local(Model(), batch_size=3), requests) == drawn, "whatever shares a batch"
    assert not set(texts(local(Model(), model="org/m@other"), requests)) & set(drawn)


def test_a_local_model_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    class Dies(Model):
        def write(self, *given: Any) -> Generated:
            if len(self.written) == 4:
                raise MemoryError
            return super().write(*given)

    requests = [Request("x" * length) for length in range(1, 8)]
    with Journal(tmp_path / "journal.jsonl") as journal, pytest.raises(MemoryError):
        texts(Journaled(local(Dies()), journal), requests)
    model = Model()
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert len(journal) == 4
        texts(Journaled(local(model), journal), requests)
    assert [len(prompt) for prompt in model.written] == [3, 2, 1]
