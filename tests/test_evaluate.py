"""`kdlab evaluate`: finished runs on other rows and other tasks, and GLUE's files, from the command line."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cot import WORDS
from kdlab.data.demo import nli
from kdlab.data.glue import HIDDEN_SETS, HiddenSet
from kdlab.errors import DataError, StoreError
from kdlab.report import leaderboard
from kdlab.rundir import used_artifacts
from lab import TINY, Done, Lab, once, read
from test_crosslingual_runs import WORDS as LANGUAGES

pytestmark = pytest.mark.xdist_group("evaluate")

WNLI = next(one for one in HIDDEN_SETS if one.file == "WNLI.tsv")
STSB = next(one for one in HIDDEN_SETS if one.file == "STS-B.tsv")
Runs = Callable[[str], tuple[Path, Done]]


def write_csv(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WNLI and STS-B as local folders, with as many test rows as GLUE has."""
    root = tmp_path_factory.mktemp("glue")
    for split, source, count in (("train", "train", 60), ("validation", "validation", 30), ("test", "test", 146)):
        rows = [
            {"sentence1": row["premise"], "sentence2": row["hypothesis"], **row} for row in nli.rows(source)[:count]
        ]
        hidden = split == "test"
        two = [{**row, "label": -1 if hidden else int(row["label"] == "entailment")} for row in rows]
        numbers = [{**row, "label": -1 if hidden else len(row["premise"]) % 6} for row in rows]
        write_csv(root / "wnli" / f"{split}.csv", two)
        write_csv(root / "stsb" / f"{split}.csv", numbers)
    return root


@pytest.fixture(scope="module")
def runs(lab: Lab, glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    local = "model=tiny method=ft task.max_length=32 debug=fast tracking=none hardware.threads=1"
    known = {
        "kd": f"method=kd {TINY}",
        "wnli": f"task=glue/wnli task.source.path={glue / 'wnli'} {local}",
        "stsb": f"task=glue/stsb task.source.path={glue / 'stsb'} {local}",
        "musc": f"method=musc {LANGUAGES}",
        "cot": f"method=ft_cot {WORDS} method.student.epochs=2 method.answer.max_tokens=20",
    }
    return once(lab, known.__getitem__, tmp_path_factory)


def evaluated(lab: Lab, folder: Path, words: str = "") -> tuple[dict[str, Any], Done, Path]:
    """evaluation.json, what the command printed, and the evaluation's folder."""
    before = set((folder / "evaluations").glob("*"))
    done = lab.command(f"evaluate {folder} {words}")
    assert done.code == 0, done.err
    made = set((folder / "evaluations").glob("*")) - before
    place = made.pop() if made else Path(done.out.rpartition("evaluation: ")[2].split("\n")[0]).parent
    return read(place / "evaluation.json"), done, place


def refused(lab: Lab, folder: Path, words: str) -> str:
    before = sorted((folder / "evaluations").glob("*"))
    done = lab.command(f"evaluate {folder} {words}")
    assert done.code == 2 and "Traceback" not in done.err, done.err
    assert sorted((folder / "evaluations").glob("*")) == before
    return done.err


def predictions(lab: Lab, told: dict[str, Any], name: str, label: str = "evaluate") -> dict[int, dict[str, Any]]:
    file = lab.store / told["artifacts"][label] / f"predictions-{name}.jsonl"
    return {row["id"]: row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}


# the run's own task


def test_the_runs_own_rows_get_the_runs_own_scores(lab: Lab, runs: Runs) -> None:
    """debug.rows=64 draws the rows that the debugging run was scored on; without it all are asked."""
    folder, _ = runs("kd")
    result = read(folder / "result.json")
    told, _, _ = evaluated(lab, folder, "debug.rows=64")
    for name in ("dev", "test"):
        assert told["scores"][name]["accuracy"] == result["scores"][name]["accuracy"]["selected"]
        assert told["rows"][name] == 64 and told["majority"][name] == result["majority"][name]
    whole, _, _ = evaluated(lab, folder)
    assert whole["rows"] == {"dev": 1000, "test": 1000} and whole["seconds"] > 0
    assert whole["source"] == {"demo": "nli", "config": None}
    ours, own = predictions(lab, whole, "dev"), predictions(lab, result, "dev", "evaluate_student")
    assert len(own) == 64
    for number, row in own.items():
        assert ours[number]["prediction"] == row["prediction"]
        assert ours[number]["logits"] == pytest.approx(row["logits"], abs=1e-5)


def test_a_second_call_is_a_hit_and_nothing_of_the_run_is_touched(lab: Lab, runs: Runs) -> None:
    folder, _ = runs("kd")
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.glob("*.json*")}
    _, _, first = evaluated(lab, folder, "--split test")
    told, again, second = evaluated(lab, folder, "--split test")
    assert first == second and told["ran"] == [] and "run" not in {line[:3] for line in again.out.splitlines()}
    assert again.stages("hit") == ["prepare", "prepare_sets", "tokenise_sets", "evaluate"]
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in before} == before
    assert set(told["scores"]) == {"test"}


def test_the_teacher_can_be_asked(lab: Lab, runs: Runs) -> None:
    folder, _ = runs("kd")
    result = read(folder / "result.json")
    told, done, _ = evaluated(lab, folder, "--side teacher --split dev debug.rows=64")
    assert told["scores"]["dev"]["accuracy"] == result["teacher"]["scores"]["dev"]["accuracy"]["selected"]
    assert told["side"] == "teacher" and "teacher" in done.out
    assert "no teacher that can be asked" in refused(lab, runs("wnli")[0], "--side teacher")


def test_a_split_of_the_source_by_its_own_name(lab: Lab, runs: Runs) -> None:
    folder, _ = runs("kd")
    told, _, _ = evaluated(lab, folder, "--split dev,validation,train debug.rows=100")
    assert told["scores"]["dev"] == told["scores"]["validation"]
    assert told["sets"] == ["dev", "validation", "train_rows"]
    assert "has no split 'tset'" in refused(lab, folder, "--split tset")


def test_prune_keeps_what_was_evaluated(lab: Lab, runs: Runs) -> None:
    folder, _ = runs("kd")
    told, _, _ = evaluated(lab, folder, "--split test")
    assert set(told["artifacts"].values()) <= used_artifacts(folder.parents[1])


# other tasks


def test_classes_in_another_order_are_put_in_order(lab: Lab, runs: Runs) -> None:
    folder, _ = runs("kd")
    plain, _, _ = evaluated(lab, folder, "--split dev debug.rows=200")
    told, done, _ = evaluated(lab, folder, "--split dev debug.rows=200 task.labels=[neutral,contradiction,entailment]")
    assert told["scores"] == plain["scores"] and told["classes"]["reordered"] and not plain["classes"]["reordered"]
    assert "in another order: neutral" in " ".join(done.out.split())
    ours, own = predictions(lab, told, "dev"), predictions(lab, plain, "dev")
    assert [row["prediction"] for row in ours.values()] == [row["prediction"] for row in own.values()]
    first = next(iter(own))
    entailment, neutral, contradiction = own[first]["logits"]
    assert ours[first]["logits"] == [neutral, contradiction, entailment]


def test_numbers_are_classes_in_the_order_of_their_own_task(lab: Lab, runs: Runs, tmp_path: Path) -> None:
    """A file that writes classes as ids of its own order; the model's order must not be taken for it."""
    folder, _ = runs("kd")
    order = ["contradiction", "neutral", "entailment"]
    rows = [{**row, "label": order.index(row["label"])} for row in nli.rows("validation")[:200]]
    write_csv(tmp_path / "train.csv", rows[:150])
    write_csv(tmp_path / "validation.csv", rows[150:])
    words = f"task.source.path={tmp_path} task.labels=[{','.join(order)}] --split dev"
    told, _, _ = evaluated(lab, folder, words)
    plain, _, _ = evaluated(lab, folder, "--split dev")
    ours = predictions(lab, plain, "dev")
    right = sum(ours[number]["prediction"] == nli.rows("validation")[number]["label"] for number in range(150, 200))
    assert told["scores"]["dev"]["accuracy"] == right / 50


def test_tasks_that_the_student_can_not_answer(lab: Lab, runs: Runs, glue: Path) -> None:
    folder, _ = runs("kd")
    two = refused(lab, folder, f"task=glue/wnli task.source.path={glue / 'wnli'}")
    assert "the model knows 3: entailment, neutral, contradiction; glue/wnli has 2: not_entailment, entailment" in two
    numbers = refused(lab, folder, f"task=glue/stsb task.source.path={glue / 'stsb'}")
    assert "gives one of the classes 3: entailment, neutral, contradiction" in numbers
    assert "gives a number" in refused(lab, runs("stsb")[0], "task=demo/nli")
    assert "is a reasoning task, and the model is an encoder" in refused(lab, folder, "task=demo/arithmetic")
    assert "the model writes its answers" in refused(lab, runs("cot")[0], "task=demo/nli")
    assert "reads at most 64 tokens" in refused(lab, folder, "task.max_length=300")


def test_classes_that_only_the_data_tells(lab: Lab, runs: Runs, glue: Path) -> None:
    """Without task.labels the classes are known when the data was read; two of three must not pass for three."""
    folder, _ = runs("kd")
    words = f"task.source.path={glue / 'wnli'} task.labels=null task.text=[sentence1,sentence2] --split dev"
    assert "has 2: 0, 1" in refused(lab, folder, words)


def test_words_are_checked_as_for_train(lab: Lab, runs: Runs) -> None:
    folder, _ = runs("kd")
    assert "did you mean demo/nli?" in refused(lab, folder, "task=demo/nly")
    said = refused(lab, folder, "task.metrc=f1 methud=3 seed=3 task.few.examples=3 method.logits.lr=1 task=a,b x=[")
    assert "7 problems" in said
    assert "did you mean task.metric?" in said and "did you mean method?" in said and "one value only" in said
    assert "seed=3: the run is finished" in said and "method.logits.lr=1: the run is finished" in said
    assert "task.few.examples has no effect" in said and "x=[: the value can't be read" in said
    assert "no run is given" in refused(lab, folder.parent / "task=x", "").replace("\n", " ")


def test_what_is_gone_is_asked_for(lab: Lab, runs: Runs, tmp_path: Path) -> None:
    folder, _ = runs("kd")
    said = refused(lab, folder, f"--store {tmp_path}")
    assert "is no longer there: distill_logits-" in said and "kdlab train method=kd" in said and "--store" in said
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(folder / "run.json", unfinished)
    assert "has not finished" in refused(lab, unfinished, "")
    assert "is the folder of a run" in refused(lab, folder, f"--out {folder}")
    assert "is a file" in refused(lab, folder, f"--out {folder / 'run.json'}")
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed, ignore=shutil.ignore_patterns("evaluations"))
    told = read(changed / "run.json")
    told["config"]["task"]["lables"] = []
    (changed / "run.json").write_text(json.dumps(told), encoding="utf-8")
    assert "can't be read" in refused(lab, changed, "")


def test_one_run_that_can_not_be_asked_stops_no_other(lab: Lab, runs: Runs, tmp_path: Path) -> None:
    folder, _ = runs("kd")
    for name in ("half", "whole"):
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("evaluations"))
    (tmp_path / "half" / "graph.json").write_text("[{", encoding="utf-8")
    done = lab.command(f"evaluate {tmp_path} --split dev debug.rows=64")
    assert done.code == 2 and f"failed: {tmp_path / 'half'}: the file can't be read" in done.out
    assert "graph.json" in done.out and list((tmp_path / "whole").glob("evaluations/demo_nli-dev-*/evaluation.json"))


# several languages


def test_languages_in_the_runs_modes_where_translations_are_there(lab: Lab, runs: Runs) -> None:
    folder, _ = runs("musc")
    result = read(folder / "result.json")
    told, done, _ = evaluated(lab, folder)
    for split in ("dev", "test"):
        assert told["languages"][split] == result["languages"][split]
        assert told["means"][split] == result["means"][split]
        assert told["majority_of_languages"][split] == result["majority_of_languages"][split]
    assert told["scores"]["test"]["macro_f1"] == result["scores"]["test"]["macro_f1"]["selected"]
    assert "translate_sets" in done.stages("hit") and told["inference"]["mode"] == "both"


def test_languages_without_translations_are_asked_in_their_own_texts(lab: Lab, runs: Runs) -> None:
    folder, _ = runs("musc")
    told, done, _ = evaluated(lab, folder, "task=demo/sentiment_xx task.languages=[en,de] debug.rows=30 --split test")
    assert set(told["languages"]["test"]) == {"original"} and told["inference"]["mode"] == "original"
    assert set(told["languages"]["test"]["original"]) == {"en", "de"}
    assert "asked in the original texts only" in done.out and told["translator"] is None
    more, _, _ = evaluated(
        lab, folder, "task=demo/sentiment_xx task.languages=[en,de] translator=rules debug.rows=30 --split test"
    )
    assert set(more["languages"]["test"]) == {"original", "translated", "both"} and more["translator"] == "rules"
    assert more["languages"]["test"]["original"] == told["languages"]["test"]["original"]


def test_languages_with_classes_in_another_order(lab: Lab, runs: Runs) -> None:
    folder, _ = runs("musc")
    plain, _, _ = evaluated(lab, folder, "debug.rows=24 --split dev method.views=[original] method.inference=original")
    words = "debug.rows=24 --split dev method.views=[original] task.labels=[positive,negative,neutral]"
    told, _, _ = evaluated(lab, folder, words)
    assert told["classes"]["reordered"]
    for language, scores in plain["languages"]["dev"]["original"].items():
        assert told["languages"]["dev"]["original"][language] == pytest.approx(scores)
    assert "there is: dev, test" in refused(lab, folder, "--split heldout")


# reasoning


def test_questions_of_the_runs_own_and_of_another_task(lab: Lab, runs: Runs) -> None:
    folder, _ = runs("cot")
    result = read(folder / "result.json")
    told, _, _ = evaluated(lab, folder)
    assert told["scores"]["test"]["accuracy"] == result["scores"]["test"]["accuracy"]["selected"]
    assert told["intervals"] == result["intervals"]
    told, done, _ = evaluated(lab, folder, "task=demo/last_letter task.generate.test=4 task.generate.train=4")
    assert told["rows"]["test"] == 4 and told["task"] == "demo/last_letter"
    style = read(lab.store / told["artifacts"]["answers"] / "manifest.json")["values"]["style"]
    assert style["template"] == "ft_cot_token" and done.stages("run") == ["questions", "answers", "student_scores"]


# the leaderboard


def test_files_of_the_leaderboard(lab: Lab, runs: Runs, tmp_path: Path) -> None:
    folder, _ = runs("wnli")
    told, done, place = evaluated(lab, folder, "--split test")
    lines = (place / "WNLI.tsv").read_text(encoding="utf-8").split("\n")
    assert lines[0] == "index\tprediction" and lines[-1] == "" and len(lines) == 148
    said = predictions(lab, told, "test")
    known = {"not_entailment": "0", "entailment": "1"}
    assert lines[1:-1] == [f"{number}\t{known[said[number]['prediction']]}" for number in range(146)]
    assert told["scores"] == {} and told["unlabelled"] == {"test": 146} and "no labels: predicted only" in done.out

    board = tmp_path / "board"
    packed = lab.command(f"evaluate {folder} {runs('stsb')[0]} --leaderboard {board}")
    assert packed.code == 0, packed.err
    assert "STS-B.tsv: these are not the rows of GLUE's test set: 146 rows, and it has 1379" in packed.out
    assert "1 of 11 files" in packed.out and "missing: CoLA.tsv, SST-2.tsv" in packed.out
    with zipfile.ZipFile(board / "submission.zip") as archive:
        assert archive.namelist() == ["WNLI.tsv"]
        assert archive.read("WNLI.tsv") == (place / "WNLI.tsv").read_bytes()
    bytes_before = (board / "submission.zip").read_bytes()
    assert lab.command(f"evaluate {folder} --leaderboard {board}").code == 0
    assert (board / "submission.zip").read_bytes() == bytes_before

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    twice = lab.command(f"evaluate {folder} {copy} --leaderboard {board}")
    assert twice.code == 2 and "gives WNLI.tsv, as" in twice.err
    other = lab.command(f"evaluate {runs('kd')[0]} --leaderboard {board}")
    assert other.code == 2 and "is none of GLUE's" in other.err
    part, _, place = evaluated(lab, folder, "--split test debug.rows=20")
    assert part["rows"]["test"] == 20 and not list(place.glob("*.tsv"))


def _left(file: Path, said: Sequence[Any]) -> Path:
    rows = [{"id": number, "prediction": one, "logits": []} for number, one in enumerate(said)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def test_numbers_of_the_leaderboard_lie_between_0_and_5(tmp_path: Path) -> None:
    said = [-0.3, 5.7, 2.5, *([1.0] * (STSB.rows - 3))]
    file = leaderboard.write_file(STSB, _left(tmp_path / "p.jsonl", said), tmp_path)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[:4] == ["index\tprediction", "0\t0.000000", "1\t5.000000", "2\t2.500000"]
    assert len(lines) == 1380


@pytest.mark.parametrize("one", HIDDEN_SETS, ids=lambda one: one.file)
def test_every_file_has_the_words_that_glue_takes(one: HiddenSet, tmp_path: Path) -> None:
    digits = ("CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "QQP.tsv", "WNLI.tsv")
    words = {name: {"0", "1"} for name in digits}
    words |= {name: {"entailment", "not_entailment"} for name in ("QNLI.tsv", "RTE.tsv")}
    words |= {name: {"entailment", "neutral", "contradiction"} for name in ("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv")}
    assert set(one.answers.values() if one.answers else ()) == words.get(one.file, set())
    short = HiddenSet(**{**vars(one), "rows": 2})
    with pytest.raises(DataError, match="not the rows"):
        leaderboard.write_file(short, _left(tmp_path / "p.jsonl", [next(iter(one.answers or {1.0: 1}))]), tmp_path)
    if one.answers:
        with pytest.raises(DataError, match="no class 'maybe'"):
            leaderboard.write_file(short, _left(tmp_path / "p.jsonl", ["maybe", "maybe"]), tmp_path)
    assert not list(tmp_path.glob("*.tsv"))


def test_files_that_the_leaderboard_would_refuse_stay_out(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no file for the leaderboard"):
        leaderboard.pack(tmp_path)
    leaderboard.write_file(WNLI, _left(tmp_path / "p.jsonl", ["entailment"] * 146), tmp_path)
    (tmp_path / "RTE.tsv").write_text("index\tprediction\n0\tentailment\n", encoding="utf-8")
    (tmp_path / "QQP.tsv").write_text("0\t1\n", encoding="utf-8")
    packed = leaderboard.pack(tmp_path)
    assert packed.there == ["WNLI.tsv"] and len(packed.missing) == 10
    assert packed.unfit == [
        "QQP.tsv: its first line is not index<TAB>prediction",
        "RTE.tsv: it has 1 rows, the test set 3000",
    ]
