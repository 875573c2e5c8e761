"""Single questions of a reasoning run: found, chosen, shown, and tracked."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kdlab.errors import ConfigError, DataError, StoreError
from kdlab.report import samples

RATIONALE = {"completion_index": 0, "rationale": "3 + 4 = 7", "completion": " 7.", "prediction": "7", "correct": True}


def teacher(index: int = 0, **changes: Any) -> dict[str, Any]:
    return {**RATIONALE, "why": None, "completion_index": index, **changes}


def sample(number: int, **changes: Any) -> dict[str, Any]:
    """A test question that the student got right."""
    return {
        "id": number,
        "split": "test",
        "question": f"question {number}",
        "answer": "7",
        "text": " three and four --> 7",
        "prediction": "7",
        "correct": True,
        "contains_answer": True,
        "correct_format": True,
        "complete": True,
        "teacher": [teacher()],
        **changes,
    }


WRONG: dict[str, Any] = {"prediction": "8", "correct": False, "contains_answer": False}
UNASKED = dict.fromkeys(["text", "prediction", "correct", "contains_answer", "correct_format", "complete"])
FAILED = teacher(prediction="6", correct=False, why="wrong")

SAMPLES = [
    sample(0),
    sample(1, **WRONG, teacher=[FAILED, teacher(1)]),
    sample(2, **{**WRONG, "contains_answer": True}),
    sample(3, **{**WRONG, "prediction": None}, correct_format=False, complete=False, teacher=[FAILED]),
    sample(4, correct_format=False, teacher=[]),
    sample(5, **UNASKED, split="train"),
    sample(6, **UNASKED, split="train", teacher=[FAILED, teacher(1, prediction=None, correct=False, why="unparsed")]),
]
KINDS = {
    "right": [0, 4],
    "wrong": [1, 2, 3],
    "no_answer": [3],
    "bad_format": [3, 4],
    "incomplete": [3],
    "contains": [2],
    "teacher_wrong": [3, 6],
}


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run, and its store beside it."""
    folder, artifact = tmp_path / "runs" / "first", tmp_path / "artifacts" / "score_answers-0123"
    config = {"method": {"family": "reasoning"}, "store": str(tmp_path / "artifacts")}
    write(folder / "run.json", {"config": config, "overrides": ["method=ft_cot", "name=first run"]})
    write(folder / "result.json", {"artifacts": {"student_scores": artifact.name}})
    write(artifact / "manifest.json", {"format": 1, "files": {}, "made": {}})
    rows = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in SAMPLES)
    (artifact / "samples.jsonl").write_text(rows, encoding="utf-8")
    return folder


def numbers(found: list[dict[str, Any]]) -> list[int]:
    return [one["id"] for one in found]


def printed(chosen: list[dict[str, Any]], *, width: int = 80, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system="standard" if terminal else None)
    samples.show(console, chosen, SAMPLES)
    return out.getvalue()


# finding them


def test_samples_are_read_from_the_store_of_the_run(run: Path, tmp_path: Path) -> None:
    assert samples.load(run) == SAMPLES
    shutil.move(tmp_path / "artifacts", tmp_path / "moved")
    assert samples.load(run, tmp_path / "moved") == SAMPLES


def test_a_line_separator_in_a_text_does_not_end_the_row(tmp_path: Path) -> None:
    row = {"text": "one\u2028two\x85three"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert samples.read_samples(tmp_path / "samples.jsonl") == [row]


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"not the folder of a run[^$]*outputs/runs/NAME"):
        samples.load(tmp_path)


def test_a_run_that_writes_nothing(run: Path) -> None:
    write(run / "run.json", {"config": {"method": {"family": "distillation"}, "store": "s"}, "overrides": []})
    with pytest.raises(StoreError, match=r"no samples to look at: its method is of the family distillation"):
        samples.load(run)


def test_a_run_that_has_not_finished(run: Path) -> None:
    (run / "result.json").unlink()
    with pytest.raises(StoreError, match="has not finished"):
        samples.load(run)


@pytest.mark.parametrize("content", ["{", "[]", '{"config": {}}', '{"config": {"method": {"family": "reasoning"}}}'])
def test_a_damaged_run(run: Path, content: str) -> None:
    (run / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(StoreError, match=r"run\.json"):
        samples.load(run)


def test_pruned_samples_say_how_to_make_them_again(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "artifacts" / "score_answers-0123")
    with pytest.raises(StoreError) as caught:
        samples.load(run)
    assert "no longer in the store: score_answers-0123" in str(caught.value)
    assert "kdlab train method=ft_cot 'name=first run'" in str(caught.value)


def test_samples_that_can_not_be_read(run: Path, tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "score_answers-0123" / "samples.jsonl").write_text('{"id": 1}\n{"id"', encoding="utf-8")
    with pytest.raises(StoreError, match="can't be read"):
        samples.load(run)


# choosing among them


@pytest.mark.parametrize("only", KINDS)
def test_kinds(only: str) -> None:
    assert numbers(samples.select(SAMPLES, only=only)) == KINDS[only]


def test_every_kind_is_tested() -> None:
    assert set(KINDS) == set(samples.KINDS)


def test_splits_and_limits() -> None:
    assert numbers(samples.select(SAMPLES)) == list(range(7))
    assert numbers(samples.select(SAMPLES, split="train")) == [5, 6]
    assert numbers(samples.select(SAMPLES, only="teacher_wrong", split="test")) == [3]
    assert numbers(samples.select(SAMPLES, only="wrong", limit=2)) == [1, 2]


def test_a_seed_draws_an_order() -> None:
    orders = [numbers(samples.select(SAMPLES, seed=seed)) for seed in (0, 0, 1, 2)]
    assert orders[0] == orders[1] and len({tuple(order) for order in orders}) > 1
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert numbers(samples.select(SAMPLES, seed=0, limit=3)) == orders[0][:3]


def test_unknown_words_are_all_told() -> None:
    with pytest.raises(ConfigError) as caught:
        samples.select(SAMPLES, only="false", split="dev", limit=0)
    assert len(caught.value.problems) == 3
    assert "teacher_wrong" in caught.value.problems[0]


def test_none_of_that_kind_says_what_there_is() -> None:
    with pytest.raises(DataError) as caught:
        samples.select(SAMPLES[:2], only="incomplete")
    assert "--only incomplete" in str(caught.value) and "test: 2 all, 1 right, 1 wrong" in str(caught.value)
    with pytest.raises(DataError, match="students answer test questions only"):
        samples.select(SAMPLES, only="wrong", split="train")


def test_counts() -> None:
    assert samples.counts(SAMPLES, "train") == {"all": 2, "teacher_wrong": 1}
    every = samples.counts(SAMPLES)
    assert every.pop("all") == 7
    assert every == {name: len(found) for name, found in KINDS.items()}


# showing them


def test_a_sample_is_shown_whole() -> None:
    lines = [" ".join(line.split()) for line in printed([SAMPLES[1]]).splitlines()]
    assert lines[0].startswith("test 1: wrong -----")
    assert lines[1:9] == [
        "question question 1",
        "gold 7",
        "teacher 1 3 + 4 = 7 [...] 7.",
        "-> answer 6: wrong; dropped: wrong",
        "teacher 2 3 + 4 = 7 [...] 7.",
        "-> answer 7: right",
        "student three and four --> 7",
        "-> answer 8: wrong",
    ]
    assert lines[9].startswith("1 of 7 questions shown")


def test_the_counts_end_the_list() -> None:
    lines = printed(SAMPLES).splitlines()
    end = {line.split()[-1]: line.split() for line in lines[-8:]}
    assert lines[-8].split() == ["questions", "5", "2"]
    assert end["wrong"] == ["wrong", "3", "wrong"]
    assert end["teacher_wrong"] == ["teacher", "never", "right", "1", "1", "teacher_wrong"]


def test_a_training_question_has_only_its_teacher() -> None:
    text = printed([SAMPLES[6]])
    assert "student" not in text and "teacher 2" in text and "no answer: wrong; dropped: unparsed" in text


def test_markup_and_control_characters_stay_text() -> None:
    nasty = "[bold]x[/bold] [/] :smile: \x1b[31mred\x1b]0;title\x07 \r\x9b2J \u202ebackwards \ud800 \\[a]"
    row = sample(9, question=nasty, text=nasty, prediction=nasty, answer=nasty, teacher=[teacher(rationale=nasty)])
    for terminal in (False, True):
        text = printed([row], width=200, terminal=terminal)
        assert "[bold]x[/bold] [/] :smile: \\x1b[31mred\\x1b]0;title\\x07 \\r\\x9b2J" in text
        assert "\\u202ebackwards \\ud800 \\[a]" in text
        assert not any(
            control in text for control in ("\x1b[31mred", "\x1b]0", "\x07", "\x9b", "\r", "\u202e", "\ud800")
        )
        text.encode("utf-8")
    assert samples.visible("tab\tand\nline") == "tab\tand\nline"


def test_it_fits_the_terminal() -> None:
    long = sample(1, question="word " * 100, text="x" * 300)
    text = printed([long])
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("x") >= 300


def test_json_lines_are_ascii_and_whole() -> None:
    text = samples.json_lines([sample(1, text="\x1b[31m é\u2028")])
    assert text.isascii() and "\x1b" not in text and text.count("\n") == 1
    assert json.loads(text)["text"] == "\x1b[31m é\u2028"


# Weights & Biases


def test_the_tracked_table_has_errors_first() -> None:
    name, columns, rows = samples.tables(SAMPLES)
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    assert name == "samples"
    assert [one["id"] for one in found] == [3, 1, 2, 0, 4, 6, 5]
    assert found[1] == {
        "split": "test",
        "id": 1,
        "question": "question 1",
        "gold": "7",
        "rationale": "3 + 4 = 7",
        "teacher_prediction": "6",
        "teacher_right": False,
        "rationales": 2,
        "dropped": "wrong",
        "text": " three and four --> 7",
        "prediction": "8",
        "right": False,
        "contains_answer": False,
        "correct_format": True,
        "complete": True,
    }
    assert found[4]["rationale"] is None and found[4]["rationales"] == 0


def test_the_tracked_table_is_cut() -> None:
    many = [sample(number) for number in range(300)] + [sample(300, **WRONG)]
    _, columns, rows = samples.tables(many)
    assert len(rows) == 200 and rows[0][columns.index("id")] == 300
