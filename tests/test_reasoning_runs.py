"""Whole runs of Fine-tune-CoT from the command line: every preset on 24 questions and with a very small student."""

from __future__ import annotations

import json
import math
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from cot import DATA, WORDS
from endpoint_server import Server
from kdlab.stages import answer as answer_stage
from kdlab.stages.completions import Row, read_rows
from lab import Done, Lab, once, points, read, run_folder

MOVING = ("console.log", "status.json")  # files of a run that a second look changes
EPOCHS = 8  # of three steps
FIT = f"method.student.epochs={EPOCHS} method.student.lr=1e-2 method.answer.max_tokens=60"
TRAINED = {
    "ft_answer": f"method=ft_answer {WORDS} {FIT}",
    "ft_cot": f"method=ft_cot {WORDS} {FIT} rationales.error_rate=0.2",
    "ft_cot_diverse": f"method=ft_cot_diverse {WORDS} {FIT} method.samples=3 method.curation.per_question=2",
    "natural_lora": f"method=ft_cot {WORDS} {FIT} method.prompt.template=ft_cot_natural method.student.lora.rank=2",
}
PROMPTED = {
    "zs": "method=zs method.answer.max_tokens=8",
    "zs_cot": "method=zs_cot method.answer.max_tokens=8",
    "fs_cot": "method=fs_cot method.answer.max_tokens=8 method.prompt.max_prompt=400",
}
PRESETS = [*TRAINED, *PROMPTED]
TOP = {
    *("run", "metric", "split", "scores", "intervals", "constant", "student", "teacher", "majority", "majority_answer"),
    *(
        "chance",
        "rows",
        "conditions",
        "curation",
        "cost",
        "prompt",
        "seeds",
        "artifacts",
        "warnings",
        "versions",
        "git",
    ),
    *("made_by", "seconds", "seconds_of_stages", "sources", "files"),
}
Runs = Callable[[str], tuple[Path, Done]]


@pytest.fixture(scope="session")
def words(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The command of a preset; students that are only prompted are the one that ft_cot has trained."""

    def line(name: str) -> str:
        if name in TRAINED:
            return TRAINED[name]
        (folder,) = (
            lab.root.glob("student-*") if list(lab.root.glob("student-*")) else [_trained(lab, tmp_path_factory)]
        )
        return f"{PROMPTED[name]} {DATA} model=gpt2 model.student.id={folder}"

    return line


def _trained(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the student's folder that no later run writes to."""
    outputs = tmp_path_factory.mktemp("prompted")
    assert lab.run(TRAINED["ft_cot"], outputs=outputs).code == 0
    return (run_folder(outputs) / "student").rename(lab.root / "student-copy")


@pytest.fixture(scope="session")
def runs(lab: Lab, words: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Each preset, run once: its folder and what the command printed."""
    return once(lab, words, tmp_path_factory)


def artifact(lab: Lab, folder: Path, label: str) -> Path:
    return lab.store / read(folder / "result.json")["artifacts"][label]


def answers(lab: Lab, folder: Path) -> list[Row]:
    return [one for (one,) in read(artifact(lab, folder, "answers") / "answers.json")["data"].values()]


# every preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_runs_and_tells_all_about_it(name: str, runs: Runs, lab: Lab) -> None:
    folder, done = runs(name)
    trained, taught = name in TRAINED, name not in ("ft_answer", *PROMPTED)
    result = read(folder / "result.json")
    assert set(result) == TOP
    assert result["run"]["family"] == "reasoning" and result["run"]["task"] == "demo/coin_flip"
    assert set(done.stages("hit")) | set(done.stages("run")) == set(result["artifacts"])
    assert result["rows"]["test"] == 8 and result["chance"]["test"]["accuracy"] == pytest.approx(0.5)
    rows = read_rows(artifact(lab, folder, "student_scores"), "samples")
    tested = [row for row in rows if row["split"] == "test"]
    assert len(tested) == 8
    columns = {"accuracy": "correct", **{one: one for one in ("contains_answer", "correct_format", "complete")}}
    told = {metric: sum(row[column] for row in tested) / 8 for metric, column in columns.items()}
    assert {metric: value["selected"] for metric, value in result["scores"]["test"].items()} == told
    low, high = result["intervals"]["test"]["accuracy"]
    assert 0 <= low <= told["accuracy"] <= high <= 1
    assert (result["student"]["path"] == "student") is trained and (folder / "student").is_dir() is trained
    assert result["student"]["parameters"] > 0 and (result["student"]["bytes"] is None) is not trained
    assert (result["teacher"] is None) is not taught and (result["curation"] is None) is not taught
    assert result["cost"] is None
    assert result["prompt"]["prompt"] == answers(lab, folder)[0]["prompt"]
    files = {"run.json", "graph.json", "status.json", "metrics.jsonl", "console.log", "result.json"}
    assert {file.name for file in folder.iterdir()} == files | ({"student"} if trained else set())
    assert "student" in done.out and "x 100" in done.out


@pytest.mark.parametrize("name", TRAINED)
def test_what_was_trained_on_is_logged(name: str, runs: Runs, lab: Lab) -> None:
    folder, _ = runs(name)
    facts = read(artifact(lab, folder, "encode") / "facts.json")
    rows = facts["rows"]["train"]
    found = [point for point in points(folder) if "loss" in point]
    steps = math.ceil(rows / 8) * EPOCHS
    assert [point["step"] for point in found] == list(range(1, steps + 1))
    assert {point["stage"] for point in found} == {"student"} and {point["steps"] for point in found} == {steps}
    assert all(0 < point["loss"] == pytest.approx(point["weighted/completion"]) for point in found)
    assert sum(point["tokens"] for point in found) == facts["tokens"]["all"] * EPOCHS
    if name != "natural_lora":
        assert found[-1]["loss"] < found[0]["loss"] / 2  # it learns how answers look
    curation = read(folder / "result.json")["curation"]
    assert rows == (24 if curation is None else curation["kept"])


@pytest.mark.parametrize("name", PRESETS)
def test_given_again_everything_is_a_hit(name: str, runs: Runs, words: Callable[[str], str], lab: Lab) -> None:
    folder, _ = runs(name)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name not in MOVING}
    started = time.process_time()
    done = lab.run(words(name), outputs=folder.parent.parent)
    assert time.process_time() - started < 3
    assert done.code == 0 and done.stages("run") == []
    assert set(done.stages("hit")) == set(read(folder / "result.json")["artifacts"])
    after = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name not in MOVING}
    assert after == before


@pytest.mark.parametrize("name", TRAINED)
def test_plain_transformers_writes_the_same(name: str, runs: Runs, lab: Lab) -> None:
    folder, _ = runs(name)
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    model = AutoModelForCausalLM.from_pretrained(folder / "student").eval()
    found = answers(lab, folder)
    if name != "natural_lora":  # which has little to learn with
        assert any(record["finish_reason"] == "stop" for record in found)
    for record in found:
        ids = tokenizer(record["prompt"], return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            written = model.generate(**ids, max_new_tokens=60, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(written, skip_special_tokens=True) == record["completion"]
    assert (folder / "student" / "README.md").read_text(encoding="utf-8").startswith("---")
    own = artifact(lab, folder, "student") / "model" / "model.safetensors"
    assert (folder / "student" / "model.safetensors").read_bytes() == own.read_bytes()


def test_an_encoder_decoder_writes_the_same(runs: Runs, lab: Lab, tmp_path: Path) -> None:
    """New weights for the config of a folder, with the tokenizer that is there."""
    given, _ = runs("ft_cot")
    seq2seq = tmp_path / "t5"
    seq2seq.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (seq2seq / name).write_bytes((given / "student" / name).read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(seq2seq)
    config = {
        **{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
        **{"d_model": 32, "num_layers": 1, "num_heads": 2, "d_kv": 16, "d_ff": 64, "vocab_size": len(tokenizer)},
        **{"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": tokenizer.eos_token_id},
    }
    (seq2seq / "config.json").write_text(json.dumps(config))
    model = f"model=t5_small model.student.id={seq2seq} model.student.init=random"
    done = lab.run(f"method=ft_cot {DATA} {FIT} method.answer.max_tokens=12 {model}", outputs=tmp_path)
    assert done.code == 0, done.err
    folder = run_folder(tmp_path)
    result = read(folder / "result.json")
    assert result["student"]["encoder_decoder"] is True
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder / "student").eval()
    for record in answers(lab, folder):
        assert record["prompt"] == record["question"]
        ids = tokenizer(record["prompt"], return_tensors="pt", return_token_type_ids=False)["input_ids"]
        with torch.no_grad():
            written = plain.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0]
        assert tokenizer.decode(written, skip_special_tokens=True) == record["completion"]


def test_the_store_is_sound_after_it(runs: Runs, lab: Lab) -> None:
    for name in PRESETS:
        runs(name)
    done = lab.command(f"store verify --store {lab.store}")
    assert done.code == 0 and "0 damaged files" in done.out


# the teacher


def test_only_right_rationales_are_learned(runs: Runs, lab: Lab) -> None:
    folder, done = runs("ft_cot")
    result = read(folder / "result.json")
    data = read(artifact(lab, folder, "rationales") / "completions.json")["data"]
    train = {row["id"]: row for row in read_rows(artifact(lab, folder, "questions"), "train")}
    right = [n for n, row in train.items() if data[str(n)][0]["completion"].strip(" .") == row["answer"]]
    assert 0 < len(right) < 24
    kept = read_rows(artifact(lab, folder, "curate"), "train")
    assert [row["id"] for row in kept] == right
    wrong = 24 - len(right)
    assert result["curation"]["kept"] == len(right) and result["curation"]["dropped"] == {"wrong": wrong}
    told = " ".join(done.out.split())
    assert f"rationales: {len(right)} of 24 kept, for {len(right)} of 24 questions; dropped: {wrong} wrong" in told
    assert result["teacher"]["scores"]["train"]["accuracy"]["selected"] == pytest.approx(len(right) / 24)
    assert result["teacher"]["rationales"] == 32 and set(result["teacher"]["scores"]) == {"train", "test"}


def test_several_rationales_of_a_question(runs: Runs, lab: Lab) -> None:
    folder, _ = runs("ft_cot_diverse")
    kept = read_rows(artifact(lab, folder, "curate"), "train")
    by_question: dict[int, list[str]] = {}
    for row in kept:
        by_question.setdefault(row["id"], []).append(row["rationale"])
    assert max(map(len, by_question.values())) == 2
    assert all(len(set(texts)) == len(texts) for texts in by_question.values())
    assert read(folder / "result.json")["curation"]["rationales"] == 72


def test_completions_of_a_run_are_recorded_for_another(runs: Runs, lab: Lab, tmp_path: Path) -> None:
    """The same rationales give the same student, to the bit, whoever brings them."""
    folder, _ = runs("ft_cot")
    line = TRAINED["ft_cot"].replace(" rationales.error_rate=0.2", "")
    source = artifact(lab, folder, "rationales")
    done = lab.run(f"{line} rationales=recorded rationales.path={source}", outputs=tmp_path)
    assert done.code == 0, done.err
    assert "questions" in done.stages("hit") and "student" in done.stages("run")
    again = run_folder(tmp_path)
    weights = "student/model.safetensors"
    assert (again / weights).read_bytes() == (folder / weights).read_bytes()
    assert read(again / "result.json")["scores"] == read(folder / "result.json")["scores"]


# seeds and selection


def test_another_seed_trains_another_student_of_the_same_rationales(runs: Runs, lab: Lab, tmp_path: Path) -> None:
    folder, _ = runs("ft_cot")
    done = lab.run(f"{TRAINED['ft_cot']} seed=7", outputs=tmp_path)
    assert done.code == 0
    assert done.stages("hit") == ["questions", "rationales", "curate", "teacher_scores", "encode"]
    weights = "student/model.safetensors"
    assert (run_folder(tmp_path) / weights).read_bytes() != (folder / weights).read_bytes()


@pytest.mark.parametrize("select_on", ["heldout", "test"])
def test_the_checkpoint_may_be_chosen_by_answers(select_on: str, lab: Lab, tmp_path: Path) -> None:
    line = f"method=ft_answer {WORDS} method.student.epochs=3 method.answer.max_tokens=8 method.student.lr=1e-2"
    done = lab.run(f"{line} select_on={select_on} method.answer.max_tokens_while_training=4", outputs=tmp_path)
    assert done.code == 0, done.err
    folder = run_folder(tmp_path)
    result = read(folder / "result.json")
    chosen = result["student"]["selection"]
    assert chosen["on"] == select_on and chosen["last_step"] == 3 * (3 if select_on == "test" else math.ceil(22 / 8))
    curve = [p for p in points(folder) if f"eval/{select_on}/accuracy" in p]
    assert len(curve) == 3 and max(p[f"eval/{select_on}/accuracy"] for p in curve) == chosen["score"]
    assert result["rows"]["train"] == (24 if select_on == "test" else 22)
    if select_on == "test":
        assert result["scores"]["test"]["accuracy"]["best"] == chosen["score"]
    assert ("heldout" in result["rows"]) == (select_on == "heldout")


def test_a_sweep_shares_what_its_jobs_have_in_common(runs: Runs, lab: Lab, tmp_path: Path) -> None:
    runs("ft_cot"), runs("ft_answer")
    line = f"-m method=ft_answer,ft_cot {WORDS} {FIT} rationales.error_rate=0.2"
    done = lab.run(line, outputs=tmp_path)
    assert done.code == 0 and done.stages("run") == [] and "2 of 2 jobs finished" in done.out, done.err
    (sweep,) = (tmp_path / "sweeps").iterdir()
    assert all((folder / "result.json").exists() for folder in sweep.glob("*/"))


# looking at it


def test_samples_are_shown(runs: Runs, lab: Lab) -> None:
    folder, _ = runs("ft_cot")
    rows = read_rows(artifact(lab, folder, "student_scores"), "samples")
    assert len(rows) == 32 and all(len(row["teacher"]) == 1 for row in rows)
    done = lab.command(f"samples {folder}")
    assert done.code == 0 and "10 of 32 questions shown" in done.out
    first = rows[0]
    assert f"test {first['id']}" in done.out and first["teacher"][0]["rationale"].split()[0] in done.out
    told = lab.command(f"samples {folder} --json")
    assert [json.loads(line) for line in told.out.splitlines()] == rows
    wrong = lab.command(f"samples {folder} --split train --only teacher_wrong --json")
    found = [json.loads(line) for line in wrong.out.splitlines()]
    assert len(found) == read(folder / "result.json")["curation"]["dropped"]["wrong"]
    assert all(row["teacher"][0]["why"] == "wrong" and row["text"] is None for row in found)


def test_samples_of_one_that_is_prompted(runs: Runs, lab: Lab) -> None:
    folder, _ = runs("zs_cot")
    told = [json.loads(line) for line in lab.command(f"samples {folder} --json").out.splitlines()]
    records = {record["sample_index"]: record for record in answers(lab, folder)}
    assert len(told) == 8 and all(row["teacher"] == [] for row in told)
    for row in told:
        record = records[row["id"]]
        assert row["text"] == f"{record['reasoning_completion']} [...] {record['completion']}"


# interruptions

KILLER = """
import os, signal, sys
from kdlab import cli
from kdlab.engine import loop
save = loop.checkpoint.save
def watched(work, step, **named):
    save(work, step, **named)
    if step == 5 and "finetune_generator" in str(work):
        os.kill(os.getpid(), signal.SIGKILL)
loop.checkpoint.save = watched
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A second store, so that every stage is made again."""
    return Lab(tmp_path_factory.mktemp("other"))


@pytest.mark.slow  # its command, given twice: test_kill
def test_killed_in_its_training_and_its_answers_it_ends_with_the_same_bits(
    runs: Runs, lab: Lab, other: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = runs("ft_cot")
    line = f"{TRAINED['ft_cot']} hardware.checkpoint_seconds=0 hardware.eval_batch=1"
    command = ["train", *shlex.split(line), f"store={other.store}", f"outputs={tmp_path}"]
    killed = subprocess.run([sys.executable, "-c", KILLER, *command], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((other.store / "building").glob("finetune_generator-*/work/checkpoint-5"))

    real, calls = answer_stage.answer_questions, list[int]()

    def interrupted(model: Any, tokenizer: Any, rows: Any, *rest: Any, **named: Any) -> Any:
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, tokenizer, rows, *rest, **named)

    monkeypatch.setattr(answer_stage, "answer_questions", interrupted)
    done = other.run(line, outputs=tmp_path)
    assert done.code == 130 and "continues at step 5 of" in done.out
    done = other.run(line, outputs=tmp_path)
    assert done.code == 0 and "continues after 4 of 8 answers" in done.out, done.err
    assert calls == [4, 4, 4]

    folder = run_folder(tmp_path)
    names = read(whole / "result.json")["artifacts"]
    assert read(folder / "result.json")["artifacts"] == names
    for label, files in {
        "rationales": ["completions.json"],
        "curate": ["train.jsonl", "report.json"],
        "encode": ["train.arrow", "tokenizer/tokenizer.json"],
        "student": ["model/model.safetensors", "history.json", "metrics.jsonl"],
        "answers": ["answers.json"],
        "student_scores": ["scores.json", "intervals.json", "samples.jsonl"],
    }.items():
        for name in files:
            ours, theirs = other.store / names[label] / name, lab.store / names[label] / name
            assert ours.read_bytes() == theirs.read_bytes(), f"{label}: {name}"
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


# endpoints


class Oracle(Server):
    """Knows the answer; counts what it is asked."""

    def payload(self, prompt: str, *, chat: bool) -> dict[str, Any]:
        found = super().payload(prompt, chat=chat)
        asked = prompt.rpartition("Q: ")[2]
        flips = asked.count(" flips ")
        answer = "no" if flips % 2 else "yes"
        second = "Therefore, the answer is" in prompt
        found["choices"][0]["text"] = f" {answer}." if second else f" There are {flips} flips. So: {answer}."
        return found


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    server = Oracle()
    server.open()
    yield server
    server.close()


def test_a_teacher_behind_an_endpoint(oracle: Oracle, lab: Lab, tmp_path: Path) -> None:
    price = "rationales.price.input=1 rationales.price.output=2"
    line = (
        f"method=ft_cot {WORDS} {FIT} method.student.epochs=1 rationales=openai rationales.model=oracle {price} "
        f"rationales.questions=[train,test] rationales.base_url={oracle.url} method.answer.max_tokens=8"
    )
    poor = lab.run(f"{line} budget.usd=0.0001", outputs=tmp_path)
    assert poor.code == 2 and "budget.usd=0.0001" in poor.err and oracle.bodies == []
    done = lab.run(f"{line} budget.usd=1", outputs=tmp_path)
    assert done.code == 0, done.err
    assert len(oracle.bodies) == 2 * 32 and set(oracle.delivered.values()) == {1}
    result = read(run_folder(tmp_path) / "result.json")
    assert result["curation"]["kept"] == 24
    assert result["teacher"]["scores"]["test"]["accuracy"]["selected"] == 1
    cost = result["cost"]
    assert cost["requests"] == 64 and cost["completion_tokens"] == 640
    assert cost["usd"] == pytest.approx((cost["prompt_tokens"] + 2 * 640) / 1e6)
    again = lab.run(f"{line} rationales.concurrency=1 fresh=[rationales]", outputs=tmp_path)
    assert again.code == 0 and "rationales" in again.stages("run") and len(oracle.bodies) == 64
    assert read(run_folder(tmp_path) / "result.json")["scores"] == result["scores"]


def test_a_student_behind_an_endpoint(oracle: Oracle, lab: Lab, tmp_path: Path) -> None:
    remote = f"model=openai_babbage model.student.id=oracle model.base_url={oracle.url}"
    done = lab.run(
        f"method=zs_cot {DATA} {remote} model.price.input=1 model.price.output=2 budget.usd=1", outputs=tmp_path
    )
    assert done.code == 0, done.err
    assert len(oracle.bodies) == 16
    result = read(run_folder(tmp_path) / "result.json")
    assert result["scores"]["test"]["accuracy"]["selected"] == 1
    assert result["student"]["parameters"] is None and result["student"]["path"] is None
    assert result["cost"]["requests"] == 16 and result["cost"]["usd"] > 0
