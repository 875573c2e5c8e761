"""`kdlab predict`: a finished student on rows of one's own, from the command line."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cot import WORDS
from kdlab import compose, prediction
from kdlab.config import Run
from kdlab.data.demo import nli, sentiment_xx
from kdlab.data.rows import Row
from kdlab.errors import DataError
from kdlab.runs import Record
from lab import TINY, Done, Lab, once, read
from test_crosslingual_runs import WORDS as LANGUAGES

pytestmark = pytest.mark.xdist_group("evaluate")

Runs = Callable[[str], tuple[Path, Done]]
ROWS = [{"id": f"r{number}", **row} for number, row in enumerate(nli.rows("test")[:7])]


@pytest.fixture(scope="module")
def runs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    numbers = tmp_path_factory.mktemp("numbers") / "train.jsonl"
    rows = [{"text": row["premise"], "score": len(row["premise"]) / 10} for row in nli.rows("train")[:60]]
    numbers.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    kind = "task.splits.test=null task.kind=regression task.labels=null task.metric=pearson task.text=[text] "
    kind += "task.label=score"
    known = {
        "kd": f"method=kd {TINY}",
        "numbers": f"method=ft {TINY} task.source.path={numbers} {kind}",
        "musc": f"method=musc {LANGUAGES}",
        "cot": f"method=ft_cot {WORDS} method.student.epochs=2 method.answer.max_tokens=20",
    }
    return once(lab, known.__getitem__, tmp_path_factory)


def write(file: Path, rows: Sequence[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def answered(lab: Lab, folder: Path, words: str) -> list[dict[str, Any]]:
    done = lab.command(f"predict {folder} {words}")
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def refused(lab: Lab, folder: Path, words: str) -> str:
    done = lab.command(f"predict {folder} {words}")
    assert done.code == 2 and done.out == "" and "Traceback" not in done.err, (done.out, done.err)
    return done.err


def typed(record: Record) -> Run:
    return compose.further(record.config, [], open_to=(), check=lambda run, paths: ())


def own(lab: Lab, folder: Path, name: str) -> list[dict[str, Any]]:
    """The run's own predictions."""
    place = lab.store / read(folder / "result.json")["artifacts"]["evaluate_student"]
    return [json.loads(line) for line in (place / f"predictions-{name}.jsonl").read_text().splitlines()]


def test_the_runs_own_rows_get_the_runs_own_logits(lab: Lab, runs: Runs, tmp_path: Path) -> None:
    folder, _ = runs("kd")
    record = Record.open(folder)
    run = typed(record)
    student = prediction.Classifier(folder / "student", run, hardware=run.hardware, batch=8)
    known, rows = own(lab, folder, "dev"), nli.rows("validation")
    logits = student.logits([(rows[one["id"]]["premise"], rows[one["id"]]["hypothesis"]) for one in known])
    assert len(known) == 64
    assert np.allclose(logits, [one["logits"] for one in known], atol=1e-5)
    file = write(tmp_path / "dev.jsonl", [rows[one["id"]] for one in known])
    told = answered(lab, folder, f"--input {file} --batch 5")
    assert [one["prediction"] for one in told] == [one["prediction"] for one in known]


def test_order_ids_lines_and_probabilities(lab: Lab, runs: Runs, tmp_path: Path) -> None:
    folder, _ = runs("kd")
    file = write(tmp_path / "rows.jsonl", [ROWS[0], "", *ROWS[1:]])
    told = answered(lab, folder, f"--input {file} --probabilities --batch 2")
    assert [one["id"] for one in told] == [f"r{number}" for number in range(7)]
    assert [one["line"] for one in told] == [1, 3, 4, 5, 6, 7, 8]
    for one in told:
        shares = one["probabilities"]
        assert list(shares) == ["entailment", "neutral", "contradiction"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert one["prediction"] == max(shares, key=lambda name: shares[name])


def test_all_formats_say_the_same(lab: Lab, runs: Runs, tmp_path: Path) -> None:
    folder, _ = runs("kd")
    rows = [{**row, "premise": row["premise"] + ' "x", y'} for row in ROWS]
    table = [[row["id"], row["premise"], row["hypothesis"]] for row in rows]
    write(tmp_path / "rows.jsonl", rows)
    quoted = [[field.replace('"', '""') for field in fields] for fields in table]
    write(tmp_path / "rows.csv", ["id,premise,hypothesis", *(",".join(f'"{one}"' for one in row) for row in quoted)])
    write(tmp_path / "rows.tsv", ["id\tp\th", *("\t".join(row) for row in table)])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = {}
    for name, words in {"jsonl": "", "csv": "", "tsv": "--columns text_a=p,hypothesis=h", "parquet": ""}.items():
        told = answered(lab, folder, f"--input {tmp_path / f'rows.{name}'} --probabilities {words}")
        found[name] = [{key: value for key, value in one.items() if key != "line"} for one in told]
    assert len(found["jsonl"]) == 7
    assert found["jsonl"] == found["csv"] == found["tsv"] == found["parquet"]


BAD = [
    ROWS[0],
    {"premise": "a", "hypothesis": None},
    "no json",
    "[1]",
    {"premise": "a"},
    {"premise": "a", "hypothesis": {"x": 1}},
    '{"premise": "\\ud800", "hypothesis": "b"}',
    {**ROWS[1], "premise": 3.0},
]


def test_bad_rows_stop_all_before_anything_is_written(lab: Lab, runs: Runs, tmp_path: Path) -> None:
    folder, _ = runs("kd")
    file, out = write(tmp_path / "bad.jsonl", BAD), tmp_path / "out.jsonl"
    out.write_text("kept\n", encoding="utf-8")
    said = refused(lab, folder, f"--input {file} --output {out}")
    assert "6 of 8 rows can't be answered" in said and "line 2 the field 'hypothesis' is null" in said
    assert "line 3 is no JSON" in said and "line 4 is no JSON object" in said and "line 7" in said
    assert "line 5 has no field 'hypothesis', but premise" in said and "--skip-bad" in said
    assert out.read_text(encoding="utf-8") == "kept\n"
    done = lab.command(f"predict {folder} --input {file} --output {out} --skip-bad")
    assert done.code == 0 and "skipped 6" in done.err and done.out == ""
    told = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [one["line"] for one in told] == [1, 8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "out.jsonl"]


def test_what_is_wrong_with_a_whole_file(lab: Lab, runs: Runs, tmp_path: Path) -> None:
    folder, _ = runs("kd")
    other = write(tmp_path / "other.jsonl", [{"s1": "a", "s2": "b"}])
    said = refused(lab, folder, f"--input {other}")
    assert "The columns premise, hypothesis are wanted, and the input has: s1, s2" in said
    assert "--columns text_a=COLUMN,text_b=COLUMN" in said
    assert "are wanted" in refused(lab, folder, f"--input {other} --skip-bad")
    table = write(tmp_path / "other.csv", ["premise,x", "a,b"])
    assert "the input has: premise, x" in refused(lab, folder, f"--input {table}")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("premise,hypothesis\nn\xe9,b\n".encode("latin-1"))
    assert "0xe9 is no UTF-8" in refused(lab, folder, f"--input {latin}")
    quotes = write(tmp_path / "quotes.csv", ["premise,hypothesis", '"a"x,b'])
    assert "quotes of a field are wrong" in refused(lab, folder, f"--input {quotes}")
    short = write(tmp_path / "short.csv", ["premise,hypothesis", "a,b", "a", "a,b,c"])
    said = refused(lab, folder, f"--input {short}")
    assert "2 of 3 rows" in said and "line 3 has 1 fields, and the header 2" in said
    for content, name in (("", "empty.jsonl"), ("premise,hypothesis\n", "head.csv")):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert "no row to answer" in refused(lab, folder, f"--input {tmp_path / name}")
    (tmp_path / "rows.xls").write_text("x", encoding="utf-8")
    assert "--format" in refused(lab, folder, f"--input {tmp_path / 'rows.xls'}")
    (tmp_path / "no.parquet").write_text("x", encoding="utf-8")
    assert "no readable Parquet" in refused(lab, folder, f"--input {tmp_path / 'no.parquet'}")
    assert "does not exist" in refused(lab, folder, f"--input {tmp_path / 'none.jsonl'}")
    assert "is a folder" in refused(lab, folder, f"--input {tmp_path}")


def test_words_that_a_run_has_no_use_for(lab: Lab, runs: Runs, tmp_path: Path) -> None:
    folder, _ = runs("kd")
    file = write(tmp_path / "rows.jsonl", ROWS)
    assert "names: premise, hypothesis, text_a, text_b" in refused(lab, folder, f"--input {file} --columns text=x")
    assert "is in one language" in refused(lab, folder, f"--input {file} --language es")
    assert "gives numbers" in refused(lab, runs("numbers")[0], f"--input {file} --probabilities")
    assert "writes its answers" in refused(lab, runs("cot")[0], f"--input {file} --probabilities")
    assert "no such folder" in refused(lab, folder, f"--input {file} --output {tmp_path / 'no' / 'out.jsonl'}")
    assert "it is a folder" in refused(lab, folder, f"--input {file} --output {tmp_path}")
    assert "would replace the input" in refused(lab, folder, f"--input {file} --output {file}")
    assert "no run.json" in refused(lab, tmp_path, f"--input {file}")
    gone = tmp_path / "gone"
    shutil.copytree(folder, gone, ignore=shutil.ignore_patterns("student"))
    assert "no student that can be loaded" in refused(lab, gone, f"--input {file}")


def test_standard_input_streams(lab: Lab, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = runs("kd")

    def give(*rows: Any) -> None:
        text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-8"))))

    give(*ROWS)
    assert [one["id"] for one in answered(lab, folder, "--input -")] == [row["id"] for row in ROWS]
    give("premise\thypothesis", "a\tb", 'a "q\tb')
    assert [one["line"] for one in answered(lab, folder, "--input - --format tsv")] == [2, 3]
    monkeypatch.setattr(prediction, "CHUNK_BATCHES", 1)
    give(*ROWS[:4], "no json", ROWS[4])
    done = lab.command(f"predict {folder} --input - --batch 2")
    assert done.code == 2 and "line 5 is no JSON" in done.err
    assert [json.loads(line)["line"] for line in done.out.splitlines()] == [1, 2, 3, 4][: len(done.out.splitlines())]
    give("no json")
    assert refused(lab, folder, "--input -")


def test_an_error_on_the_way_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    class Failing:
        chunk = 2

        def answer(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
            if rows[0].line > 2:
                raise DataError("broken")
            return [{"prediction": "x"} for _ in rows]

    file = write(tmp_path / "in.jsonl", [{"t": "a"}] * 5)
    how: dict[str, Any] = {"translations": 0, "skip_bad": False, "load": Failing}
    with pytest.raises(DataError, match="broken"):
        prediction.predict(file, "jsonl", ["t"], out=tmp_path / "out.jsonl", **how)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_chunks_need_not_fit_in_memory(tmp_path: Path) -> None:
    """Rows are read as they are answered, and no more than a chunk of them."""
    seen: list[int] = []

    class Counting:
        chunk = 3

        def answer(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
            seen.append(len(rows))
            return [{"prediction": row.texts[0]} for row in rows]

    file = write(tmp_path / "in.csv", ["t", *(f"text {number}" for number in range(8))])
    how: dict[str, Any] = {"translations": 0, "skip_bad": False, "load": Counting}
    done = prediction.predict(file, "csv", ["t"], out=tmp_path / "out.jsonl", **how)
    assert seen == [3, 3, 2] and done.answered == 8 and done.skipped.count == 0
    told = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["prediction"] for one in told] == [f"text {number}" for number in range(8)]


def test_numbers(lab: Lab, runs: Runs, tmp_path: Path) -> None:
    folder, _ = runs("numbers")
    known = own(lab, folder, "dev")
    rows = nli.rows("train")[:60]
    file = write(tmp_path / "rows.jsonl", [{"text": rows[one["id"]]["premise"]} for one in known])
    told = answered(lab, folder, f"--input {file}")
    assert [one["prediction"] for one in told] == pytest.approx([one["prediction"] for one in known], abs=1e-5)
    assert set(told[0]) == {"line", "prediction"}


def test_languages_with_and_without_translations(lab: Lab, runs: Runs, tmp_path: Path) -> None:
    """With its translation a row is answered in the run's own mode, as the run answered its test."""
    folder, _ = runs("musc")
    known, rows = own(lab, folder, "test.es"), sentiment_xx.rows("test", "es")
    result = read(folder / "result.json")
    place = lab.store / result["artifacts"]["translate_sets"] / "test.es.en.arrow"
    with pa.memory_map(str(place)) as source:
        table = pa.ipc.open_file(source).read_all()
    english = dict(zip(table["id"].to_pylist(), table["text_a"].to_pylist(), strict=True))
    texts = [{"id": one["id"], "text": rows[one["id"]]["text"], "en": english.get(one["id"])} for one in known]
    file = write(tmp_path / "es.jsonl", texts)
    plain = answered(lab, folder, f"--input {file}")
    assert [one["prediction"] for one in plain] == [one["prediction"]["original"] for one in known]
    words = f"--input {file} --columns translation=en"
    told = answered(lab, folder, f"{words} --language es --probabilities")
    assert [one["prediction"] for one in told] == [one["prediction"]["both"] for one in known]
    assert {one["language"] for one in told} == {"es"}
    original, translated = (
        np.exp(known[0]["logits"][view]) / np.exp(known[0]["logits"][view]).sum() for view in ("original", "translated")
    )
    assert list(told[0]["probabilities"].values()) == pytest.approx(list((original + translated) / 2), abs=1e-5)
    source = answered(lab, folder, f"{words} --language en")
    assert [one["prediction"] for one in source] == [one["prediction"] for one in plain]
    texts[0]["en"] = ""
    write(file, texts)
    done = lab.command(f"predict {folder} {words} --language xx")
    lacking = 1 + sum(one["en"] is None for one in texts)
    assert f"{lacking} of them without a translation" in done.err and "rows in xx are answered all the same" in done.err
    assert json.loads(done.out.splitlines()[0])["prediction"] == known[0]["prediction"]["original"]


def test_questions_are_answered_with_a_rationale(lab: Lab, runs: Runs, tmp_path: Path) -> None:
    folder, _ = runs("cot")
    result = read(folder / "result.json")
    samples = lab.store / result["artifacts"]["student_scores"] / "samples.jsonl"
    known = [one for one in map(json.loads, samples.read_text().splitlines()) if one["split"] == "test"]
    file = write(tmp_path / "q.jsonl", [{"id": one["id"], "question": one["question"]} for one in known])
    told = answered(lab, folder, f"--input {file} --batch 3")
    assert [(one["id"], one["prediction"], one["text"]) for one in told] == [
        (one["id"], one["prediction"], one["text"].strip()) for one in known
    ]
    for one in told:
        assert one["rationale"] == one["text"].partition("-->")[0].strip()
