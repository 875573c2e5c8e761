"""Recorded completions in reasoning-teacher's layout: which file, what is in it, and which of it a run takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdlab.errors import DataError
from kdlab.rationales.recorded import FIELDS, completion_file, origin, prediction_template, read, select


def record(sample: int, index: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "sample_index": sample,
        "completion_index": index,
        "question": f"How many are {sample} and 1?",
        "answer": str(sample + 1),
        "reasoning_prompt": f"Q: How many are {sample} and 1?\nA: Let's think step by step.",
        "reasoning_completion": f" It is {sample + 1} (thought {index}).",
        "reasoning_finish_reason": "stop",
        "prompt": "...",
        "completion": f" {sample + 1}.",
        "finish_reason": "stop",
    } | changes


def write(file: Path, *records: dict[str, Any], template: str = "zs_cot") -> Path:
    data: dict[str, list[dict[str, Any]]] = {}
    for one in records:
        data.setdefault(str(one["sample_index"]), []).append(one)
    metadata = {"base_model": "text-davinci-002", "prediction_template": template, "completion_key": "zs_cot"}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"metadata": metadata, "data": data}))
    return file


# which file


@pytest.fixture
def published(tmp_path: Path) -> Path:
    root = tmp_path / "saved" / "completion_data"
    for folder, tasks in (
        ("B_text-davinci-002__C_zs_cot", ("multiarith", "svamp")),
        ("B_text-davinci-002__C_zs_cot_t70_8aug", ("multiarith",)),
        ("B_davinci__C_zs_cot", ("multiarith",)),
    ):
        for task in tasks:
            write(root / folder / f"D_{task}.json", record(0))
    return tmp_path


def test_the_file_is_found_from_every_folder_above_it(published: Path) -> None:
    root = published / "saved" / "completion_data"
    file = root / "B_text-davinci-002__C_zs_cot" / "D_svamp.json"
    for path in (published, published / "saved", root, file.parent, file):
        assert completion_file(path, "text-davinci-002", "zs_cot", "svamp") == file
    diverse = completion_file(root, "text-davinci-002", "zs_cot_t70_8aug", "multiarith")
    assert diverse == root / "B_text-davinci-002__C_zs_cot_t70_8aug" / "D_multiarith.json"


def test_an_artifact_of_kdlab_is_a_folder_too(tmp_path: Path) -> None:
    file = write(tmp_path / "rationalise-1" / "completions.json", record(0))
    assert completion_file(file.parent, None, None, "multiarith") == file


def test_an_absent_file_is_answered_with_what_there_is(published: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        completion_file(published, "text-davinci-002", "zs_cot", "gsm8k")
    assert "B_text-davinci-002__C_zs_cot has no completions for 'gsm8k'. It has: multiarith, svamp." in str(
        caught.value
    )
    with pytest.raises(DataError) as caught:
        completion_file(published, "text-davinci-003", "zs_cot", "svamp")
    assert "There is no folder B_text-davinci-003__C_zs_cot. There are: B_davinci__C_zs_cot, " in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no recorded completions here"):
        completion_file(tmp_path / "empty", "m", "k", "t")
    with pytest.raises(DataError, match="no such file or folder"):
        completion_file(tmp_path / "absent", "m", "k", "t")


# what is in it


def test_records_are_read_whole_and_in_the_order_of_their_index(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", record(3, 1), record(3, 0), record(97467))
    found = read(file)
    assert list(found) == [3, 97467]
    assert found[3] == [record(3, 0), record(3, 1)]
    assert tuple(found[3][0]) == FIELDS
    assert prediction_template(file) == "zs_cot" and origin(file) == ("text-davinci-002", "zs_cot")


def test_what_older_files_lack_is_none_and_what_they_add_is_left_out(tmp_path: Path) -> None:
    short = record(0, log_correct=True)
    for name in ("finish_reason", "reasoning_finish_reason", "reasoning_prompt", "reasoning_completion", "prompt"):
        del short[name]
    (found,) = read(write(tmp_path / "a.json", short))[0]
    assert found == record(0) | dict.fromkeys(
        ("finish_reason", "reasoning_finish_reason", "reasoning_prompt", "reasoning_completion", "prompt")
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"completion": 7}, "completion of question 5, record 1 is 7, no text"),
        ({"question": None}, "question of question 5, record 1 is None, no text"),
        ({"finish_reason": 1}, "finish_reason of question 5, record 1 is 1, no text"),
        ({"completion_index": "1"}, "completion_index of question 5, record 1 is '1', no whole number"),
        ({"completion_index": True}, "completion_index of question 5, record 1 is True, no whole number"),
        ({"completion_index": -1}, "completion_index of question 5, record 1 is -1, no whole number"),
        ({"completion_index": 0}, "completion_index 0 of question 5 is there twice"),
    ],
)
def test_a_record_that_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = write(tmp_path / "a.json", record(4), record(5, 0), record(5, 1, **changes))
    with pytest.raises(DataError) as caught:
        read(file)
    assert said in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"metadata": {}, "data": {', "it is no JSON: Expecting property name"),
        (b"\xff\xfe", "byte 0 is no UTF-8"),
        (b"[]", 'it has no "metadata" and "data"'),
        (b'{"data": {}}', 'it has no "metadata" and "data"'),
        (b'{"metadata": {}, "data": []}', 'its "data" is no object of lists'),
        (b'{"metadata": {}, "data": {"x": []}}', "the key 'x' of its data is no sample_index"),
        (b'{"metadata": {}, "data": {"1": {}}}', "data of question 1 is no list"),
        (b'{"metadata": {}, "data": {"1": [3]}}', "question 1, record 0 is no object"),
    ],
)
def test_a_file_that_is_something_else_is_said_so(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.json")
    assert said in str(caught.value)


def test_a_record_under_another_question_is_an_error(tmp_path: Path) -> None:
    content = {"metadata": {}, "data": {"1": [record(2)]}}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="sample_index of question 1, record 0 is 2"):
        read(tmp_path / "a.json")


def test_a_template_that_is_unknown_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metadata\.prediction_template is 'mine', not one of zs, zs_cot"):
        prediction_template(write(tmp_path / "a.json", record(0), template="mine"))


# which of it is taken


def ask(*numbers: int, **changes: str) -> list[dict[str, Any]]:
    return [{"id": number, "question": record(number)["question"]} | changes for number in numbers]


def test_the_first_samples_of_each_question_are_taken(tmp_path: Path) -> None:
    records = read(write(tmp_path / "a.json", *(record(1, index) for index in range(4)), record(2), record(3)))
    taken = select(records, ask(3, 1, 9, 2), 2)
    assert [(row["sample_index"], row["completion_index"]) for row in taken.records] == [(3, 0), (1, 0), (1, 1), (2, 0)]
    assert taken.missing == [9] and taken.short == {3: 1, 2: 1}
    assert select(records, [], 2).records == []


def test_blanks_around_a_question_do_not_matter(tmp_path: Path) -> None:
    records = read(write(tmp_path / "a.json", record(1, question="How many are 1 and 1? ")))
    assert len(select(records, ask(1), 1).records) == 1


def test_completions_of_other_data_are_refused_with_both_texts(tmp_path: Path) -> None:
    records = read(write(tmp_path / "a.json", record(1)))
    with pytest.raises(DataError) as caught:
        select(records, ask(1, question="How many are 2 and 2?"), 1)
    assert "'How many are 1 and 1?'" in str(caught.value) and "'How many are 2 and 2?'" in str(caught.value)
    assert "sample_index 1, completion_index 0" in str(caught.value)


def test_no_question_with_a_record_is_an_error(tmp_path: Path) -> None:
    records = read(write(tmp_path / "a.json", record(1), record(7)))
    with pytest.raises(DataError, match="None of the 2 questions has a recorded completion") as caught:
        select(records, ask(2, 3), 1)
    assert "recorded are 2 others, sample_index 1 to 7" in str(caught.value)
