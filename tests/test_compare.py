"""`kdlab compare`: groups, tests, the papers' numbers, warnings, and every form of the tables, on synthetic runs."""

from __future__ import annotations

import csv
import io
import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from kdlab.data import metrics
from kdlab.errors import ConfigError
from kdlab.report import tables
from kdlab.report.compare import Comparison, Settings, by_id, compare, default_folder
from kdlab.runs import collect
from lab import Lab
from synthetic import Outputs, stage, write

ROOT = Path(__file__).parent.parent


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    return Outputs(tmp_path / "outputs")


def compared(outputs: Outputs, *paths: str, **settings: Any) -> Comparison:
    given = [outputs.root / path for path in paths] or [outputs.root]
    records, left_out = collect(given)
    return compare(records, settings=Settings(**settings), left_out=left_out, given=given)


def group(comparison: Comparison, label: str, task: str | None = None) -> dict[str, Any]:
    (found,) = [one for one in comparison["groups"] if one["label"] == label and task in (None, one["task"])]
    return dict(found)


def warnings(comparison: Comparison, word: str) -> list[str]:
    return [line for line in comparison["warnings"] if word in line]


def printed(comparison: Comparison, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    for part in tables.shown(comparison):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# groups


def test_runs_that_differ_in_their_seed_are_one_group(outputs: Outputs) -> None:
    for seed, score in ((2, 0.6), (1, 0.5), (3, 0.7)):
        outputs.run(f"runs/kd-{seed}", score, seed=seed)
    found = compared(outputs)
    kd = group(found, "kd")
    assert (kd["seeds"], kd["scores"]) == ([1, 2, 3], [0.5, 0.6, 0.7])
    assert (kd["mean"], kd["sd"]) == pytest.approx((0.6, 0.1))
    # 4.3027 * 0.1 / sqrt(3)
    assert kd["interval"] == pytest.approx([0.6 - 0.24841, 0.6 + 0.24841], abs=1e-4)
    assert kd["interval_of"] == "t over 3 seeds"
    assert kd["floor"] == {"majority": 0.5, "chance": None} and kd["teacher"] == 0.9
    assert [run["name"] for run in found["runs"] if run["id"] in kd["runs"]] == ["kd-1", "kd-2", "kd-3"]


def test_what_else_differs_is_named_by_the_shortest_that_tells_groups_apart(outputs: Outputs) -> None:
    for mixup, lr in ((0.0, 1.0), (0.5, 2.0), (1.0, 2.0)):
        outputs.run(f"runs/a-{mixup}", 0.5, fit={"mixup": mixup, "lr": lr}, config={"precision": f"p{mixup}"})
    outputs.run("runs/kd-rte2", 0.5, task="glue/mrpc", fit={"mixup": 7})
    found = compared(outputs)
    assert [one["label"] for one in found["groups"]] == [
        *("kd, logits.mixup=0.0", "kd, logits.mixup=0.5", "kd, logits.mixup=1.0", "kd")
    ]
    assert found["groups"][1]["setting"] == {"method.logits.mixup": 0.5, "method.logits.lr": 2.0, "precision": "p0.5"}


def test_what_can_change_no_number_does_not_split_a_group(outputs: Outputs) -> None:
    for seed in (1, 2):
        other = {
            "curves": seed,
            "hardware": {"threads": seed},
            "budget": {"usd": seed},
            "expected": {"note": str(seed)},
        }
        outputs.run(f"runs/{seed}", 0.5, seed=seed, config=other)
    assert len(compared(outputs)["groups"]) == 1


def test_a_run_in_two_folders_counts_once(outputs: Outputs) -> None:
    outputs.run("runs/a", 0.5, identity="same")
    outputs.run("sweeps/s/b", 0.5, identity="same")
    outputs.run("sweeps/s/c", 0.9, identity="other")
    found = compared(outputs)
    assert group(found, "kd")["scores"] == [0.5]
    told = {line.partition(": ")[0].rpartition("/")[2]: line for line in found["left_out"]}
    assert "the same run as" in told["b"] and "by other code" in told["c"]


def test_of_two_folders_the_finished_one_counts(outputs: Outputs) -> None:
    outputs.run("runs/a", None, failure="no space", identity="same")
    outputs.run("runs/b", 0.5, identity="same")
    found = compared(outputs)
    assert [run["name"] for run in found["runs"]] == ["b"]


def test_runs_are_told_with_their_state(outputs: Outputs) -> None:
    outputs.run("sweeps/s/a", 0.5, method="a")
    outputs.run("sweeps/s/b", None, method="b", failure="the loss is not finite\n  where: stage logits")
    outputs.run("sweeps/s/c", None, method="c")
    jobs = [{"name": name, "overrides": ["method=d"], "method": name, "task": "glue/rte"} for name in "abcd"]
    write(outputs.root / "sweeps" / "s" / "sweep.json", {"format": 1, "name": "s", "jobs": jobs})
    for path in ("", "sweeps", "sweeps/s"):
        runs = compared(outputs, path)["runs"]
        assert [(run["id"], run["state"]) for run in runs] == [
            *(("r0", "finished"), ("r1", "failed"), ("r2", "unfinished"), ("r3", "not started"))
        ]
    assert runs[3]["folder"] == str(Path(runs[0]["folder"]).parent / "d")
    assert runs[0]["group"] == "g0" and runs[0]["sweep"] == "s" and runs[1]["error"].startswith("the loss is not")
    assert (runs[3]["command"], runs[3]["score"]) == ("kdlab train method=d", None)
    # of one job the others are nobody's business
    assert [run["state"] for run in compared(outputs, "sweeps/s/a")["runs"]] == ["finished"]
    text = printed(compared(outputs, "sweeps/s"))
    assert "failed: b: the loss is not finite" in text and "not started: 1 of 4 runs: d" in text


@pytest.mark.parametrize("content", ["", "{", '{"jobs": 3}', '{"jobs": [3, {"name": 4}, {"name": "x"}]}', "[]"])
def test_a_sweep_json_that_is_being_written_stops_nothing(outputs: Outputs, content: str) -> None:
    outputs.run("sweeps/s/a", 0.5)
    (outputs.root / "sweeps" / "s" / "sweep.json").write_text(content)
    assert compared(outputs)["groups"]


def test_nothing_has_finished(outputs: Outputs) -> None:
    outputs.run("runs/a", None)
    found = compared(outputs)
    assert found["groups"] == [] and found["title"] == "no finished run"
    assert "unfinished: 1 of 1 runs: a" in printed(found)
    for form in tables.FORMATS.values():
        assert form(found)


def test_half_written_files_are_left_out(outputs: Outputs) -> None:
    outputs.run("runs/a", 0.5)
    (outputs.run("runs/b", 0.5, seed=2) / "result.json").write_text('{"run": ')
    write(outputs.run("runs/c", 0.5, seed=3) / "result.json", {"metric": "accuracy"})
    write(outputs.run("runs/d", 0.5, seed=4) / "run.json", {"config": {"method": {}}, "overrides": [], "run_id": ""})
    (outputs.run("runs/e", 0.5, seed=5) / "graph.json").write_text('[{"label"')
    outputs.run("runs/f", float("nan"), seed=6)
    outputs.run("runs/g", 0.5, seed=7, result={"scores": []})
    found = compared(outputs)
    assert group(found, "kd")["seeds"] == [1]
    told = dict(line.rpartition("/")[2].split(": ", 1) for line in found["left_out"])
    assert set(told) == set("bcdefg") and told["f"] == "not a number: accuracy on dev"
    assert "NaN" not in tables.as_json(found)


def test_figures_are_means_over_seeds_and_training_is_all_that_the_student_needs(outputs: Outputs) -> None:
    outputs.run("runs/a", 0.5, seed=1, result={"student": {"latency_ms": 1.0}})
    outputs.run("runs/b", 0.5, seed=2, result={"student": {"latency_ms": 4.0}})
    figures = group(compared(outputs), "kd")["figures"]
    assert figures == {
        **{"parameters": 100, "bytes": 400, "latency_ms": 2.5, "flops_per_example": 50, "tokens_per_second": None},
        "train_seconds": 120,  # teacher and logits; no tokens, no evaluation
    }


def test_training_on_stored_logits_takes_the_time_to_store_them(outputs: Outputs) -> None:
    folder = outputs.run("runs/a", 0.5, result={"seconds_of_stages": {"teacher_logits": 5.0}})
    stages = json.loads((folder / "graph.json").read_text())
    stages.append({**stages[0], "label": "teacher_logits", "artifact": "t", "inputs": {"teacher": "finetune-1"}})
    student = next(entry for entry in stages if entry["label"] == "logits")
    student["inputs"] = {"teacher_logits": "t"}
    (folder / "graph.json").write_text(json.dumps(stages))
    assert group(compared(outputs), "kd")["figures"]["train_seconds"] == 125


def test_pooled_groups(outputs: Outputs) -> None:
    for place, (method, lr) in enumerate([("kd", 1.0), ("kd", 2.0), ("ft", 1.0)]):
        for seed in (1, 2):
            outputs.run(f"runs/{place}-{seed}", 0.5 + place / 10 + seed / 100, method=method, seed=seed, fit={"lr": lr})
    found = compared(outputs, by=("method",))
    kd = group(found, "kd")
    assert kd["seeds"] == [1, 1, 2, 2] and kd["mean"] == pytest.approx(0.565)
    # over seeds: (0.56 - 0.71) and (0.57 - 0.72)
    assert kd["delta"]["difference"] == pytest.approx(-0.15) and kd["delta"]["seeds"] == [1, 2]
    assert warnings(found, "pools runs that differ in method.logits.lr")
    by_lr = compared(outputs, by=("method.logits.lr",))
    assert [one["label"] for one in by_lr["groups"]] == ["logits.lr=1.0", "logits.lr=2.0"]
    with pytest.raises(ConfigError, match=r"--by methd: no run has it; did you mean method\?"):
        compared(outputs, by=("methd",))


# scores


def test_another_metric_and_another_set(outputs: Outputs) -> None:
    more = {"scores": {"dev": {"mcc": {"selected": 0.1}}, "test": {"accuracy": {"selected": 0.4}}}}
    outputs.run("runs/a", 0.5, result=more)
    outputs.run("runs/b", 0.5, method="ft")
    assert group(compared(outputs, metric="mcc"), "kd")["scores"] == [0.1]
    found = compared(outputs, split="test")
    assert group(found, "kd")["scores"] == [0.4]
    assert found["left_out"] == [f"{outputs.root}/runs/b: it has no accuracy on test"]
    with pytest.raises(
        ConfigError, match="--metric f1: none of these runs has it; there is accuracy on dev, mcc on dev"
    ):
        compared(outputs, metric="f1")


def answers(gold: np.ndarray[Any, Any], wrong: int) -> list[int]:
    """The first so many of two classes are wrong."""
    return [int(1 - one) if row < wrong else int(one) for row, one in enumerate(gold)]


def test_predictions_give_intervals_and_tests_over_examples(outputs: Outputs) -> None:
    gold = np.tile([0, 1], 100)
    data = outputs.rows("rte", gold.tolist(), ["no", "yes"])
    for method, wrongs in (("ft", (80, 84, 82)), ("kd", (20, 22, 26))):
        for seed, wrong in enumerate(wrongs):
            said = [["no", "yes"][one] for one in answers(gold, wrong)]
            name = outputs.predictions(f"{method}-{seed}", said)
            outputs.run(f"runs/{method}-{seed}", 1 - wrong / 200, method=method, seed=seed, data=data, predictions=name)
    found = compared(outputs)
    kd = group(found, "kd")
    assert found["baseline"] == "ft" and not found["warnings"]
    assert kd["interval_of"] == "bootstrap over 200 examples and 3 seeds"
    # 0.887 of 200: a standard error of 0.0224; seeds agree in all but a few rows
    assert kd["interval"] == pytest.approx([0.843, 0.929], abs=0.02)
    delta = kd["delta"]
    assert delta["difference"] == pytest.approx(0.2967, abs=1e-4) and delta["to"] == group(found, "ft")["id"]
    # differences 0.30, 0.31, 0.28: mean 0.29667, deviation 0.015275, t = 33.64 with 2 degrees of freedom
    assert delta["p_seeds"] == pytest.approx(1 - 33.639 / (33.639**2 + 2) ** 0.5, rel=1e-2)
    assert delta["p_examples"] == pytest.approx(1 / 1001)
    assert delta["p_corrected"] == pytest.approx(max(delta["p_seeds"], 1 / 1001))
    assert delta["test"] == "paired t over 3 seeds and paired bootstrap over 200 examples, the larger p"
    assert (delta["verdict"], delta["more_seeds"]) == ("better", None)
    assert delta["interval"][0] > 0.2 and delta["interval"][1] < 0.4
    assert group(found, "ft")["delta"] is None
    again = compared(outputs)
    assert {**again, "made": ""} == {**found, "made": ""}
    other = group(compared(outputs, seed=1), "kd")["interval"]
    assert other != kd["interval"] and other == pytest.approx(kd["interval"], abs=0.01)


@pytest.mark.parametrize("metric", ["f1", "macro_f1", "mcc", "pearson_spearman"])
def test_other_metrics_are_computed_on_resampled_rows(outputs: Outputs, metric: str) -> None:
    """The class order is the task's: f1 is of the second class, which is the first in the alphabet."""
    draw = np.random.default_rng(0)
    numbers = metric == "pearson_spearman"
    gold = draw.normal(size=300) if numbers else draw.integers(0, 2, 300)
    labels = None if numbers else ["zero", "one"]
    data = outputs.rows("x", gold.tolist(), labels)
    said = gold + draw.normal(size=300) if numbers else np.where(draw.random(300) < 0.8, gold, 1)
    told = said.tolist() if labels is None else [labels[one] for one in said]
    score = metrics.score(metric, said, gold)
    name = outputs.predictions("x", told)
    outputs.run("runs/a", score, metric=metric, data=data, predictions=name)
    found = compared(outputs)
    kd = group(found, "kd")
    assert kd["interval_of"] == "bootstrap over 300 examples, of this seed"
    low, high = kd["interval"]
    assert low < score < high and 0.03 < high - low < 0.25
    assert not warnings(found, "bootstrap")


def test_rows_in_another_order_are_the_same_rows(outputs: Outputs) -> None:
    gold = [0, 1] * 20
    data = outputs.rows("x", gold, ["a", "b"])
    said = ["ab"[one] for one in answers(np.array(gold), 5)]
    outputs.run("runs/a", 35 / 40, data=data, predictions=outputs.predictions("a", said))
    backwards = outputs.predictions("b", said[::-1], ids=range(39, -1, -1))
    outputs.run("runs/b", 35 / 40, method="ft", data=data, predictions=backwards)
    assert group(compared(outputs), "kd")["delta"]["p_examples"] == 1.0


def test_students_of_other_rows_are_not_paired_by_rows(outputs: Outputs) -> None:
    for method, number in (("ft", 40), ("kd", 60)):
        gold = [0, 1] * (number // 2)
        data = outputs.rows(method, gold, ["a", "b"])
        name = outputs.predictions(method, ["ab"[one] for one in answers(np.array(gold), 10)])
        score, rows = 1 - 10 / number, {"rows": {"dev": number}}
        outputs.run(f"runs/{method}", score, method=method, data=data, predictions=name, result=rows)
    found = compared(outputs)
    delta = group(found, "kd")["delta"]
    assert delta["p_examples"] is None and delta["verdict"] == "not testable" and delta["test"] == ""
    assert warnings(found, "rows of dev 40 (ft), 60 (kd)")


def test_predictions_that_do_not_give_the_score_are_not_used(outputs: Outputs) -> None:
    data = outputs.rows("x", [0, 1], ["a", "b"])
    outputs.run("runs/a", 0.9, data=data, predictions=outputs.predictions("a", ["a", "a"]))
    found = compared(outputs)
    assert group(found, "kd")["interval"] is None
    assert warnings(found, "no bootstrap over examples for a: the predictions in the store don't give the scores")


def test_predictions_that_can_not_be_read_stop_nothing(outputs: Outputs) -> None:
    data = outputs.rows("x", [0, 1], ["a", "b"])
    outputs.run("runs/a", 0.5, data=data, predictions=outputs.predictions("a", ["a", "c"]))
    half = outputs.predictions("b", ["a", "a"])
    (outputs.store / half / "predictions-dev.jsonl").write_text('{"id": 0, "pred')
    outputs.run("runs/b", 0.5, seed=2, data=data, predictions=half)
    found = compared(outputs)
    assert warnings(found, "for a: the predictions are not those of its rows")
    assert warnings(found, "for b: the predictions are not in the store, or can't be read")


def test_no_store_no_bootstrap(outputs: Outputs) -> None:
    outputs.run("runs/a", 0.9)
    assert warnings(compared(outputs), "no bootstrap over examples for a: the predictions are not in the store")


def test_where_none_is_right_the_interval_is_wilsons(outputs: Outputs) -> None:
    data = outputs.rows("x", [0] * 20, ["a", "b"])
    outputs.run("runs/a", 0.0, data=data, predictions=outputs.predictions("a", ["b"] * 20))
    found = group(compared(outputs), "kd")
    # z^2 / (n + z^2) with z = 1.96
    assert found["interval"] == pytest.approx([0, 3.8415 / 23.8415], abs=1e-4)
    assert found["interval_of"] == "Wilson over 20 examples"


def test_several_languages(outputs: Outputs) -> None:
    """The score is the mean over languages in the run's own mode; rows of other languages are other rows."""
    gold = {"en": [0, 1] * 20, "es": [1, 0] * 15}
    folder = outputs.store / "tokenise-l"
    said = outputs.store / "evaluate-l"
    for path in (folder, said):
        path.mkdir(parents=True)
    write(folder / "facts.json", {"labels": ["a", "b"]})
    for language, right in gold.items():
        table = pa.table({"id": list(range(len(right))), "label": right})
        path = folder / f"test.{language}.original.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        lines = [
            {"id": row, "prediction": {"original": "a", "both": "ab"[one if row >= 8 else 1 - one]}}
            for row, one in enumerate(right)
        ]
        (said / f"predictions-test.{language}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    means = {"original": {"all": {"accuracy": 0.5}}, "both": {"all": {"accuracy": (32 / 40 + 22 / 30) / 2}}}
    result = {
        "split": "test",
        "scores": {"test": {"accuracy": {"selected": means["both"]["all"]["accuracy"]}}},
        "inference": {"mode": "both"},
        "languages": {"test": {"both": {"en": {"accuracy": 0.8}, "es": {"accuracy": 22 / 30}}}},
        "means": {"test": means},
    }
    outputs.run("runs/a", 0.1, result=result, data="tokenise-l", predictions="evaluate-l")
    found = group(compared(outputs), "kd")
    assert found["mean"] == pytest.approx(0.76667, abs=1e-5)
    assert found["interval_of"] == "bootstrap over 70 examples in 2 languages, of this seed"
    assert found["languages"] == {"both": {"en": 0.8, "es": pytest.approx(22 / 30)}}
    assert found["means"]["original"] == {"all": 0.5}


def test_students_that_write(outputs: Outputs) -> None:
    folder = outputs.store / "score_answers-1"
    folder.mkdir(parents=True)
    keys = ("question", "text", "contains_answer", "correct_format", "complete")
    samples = [
        {"id": row, "split": "test", "answer": "1", "prediction": "1", "correct": row % 4 > 0, "teacher": []}
        | dict.fromkeys(keys, "x")
        for row in range(40)
    ]
    (folder / "samples.jsonl").write_text("".join(f"{json.dumps(sample)}\n" for sample in samples))
    result = {
        "split": "test",
        "scores": {"test": {"accuracy": {"selected": 0.75}}},
        "artifacts": {"student_scores": "score_answers-1"},
        "chance": {"test": {"accuracy": 0.2}},
        "constant": {"answer": "1", "accuracy": 0.5, "share": 1.0},
    }
    run = outputs.run("runs/a", 0.5, config={"method": {"family": "reasoning"}}, result=result)
    told = json.loads((run / "result.json").read_text())
    told["artifacts"] = {"student_scores": "score_answers-1"}
    write(run / "result.json", told)
    write(run / "graph.json", [stage("student_scores", "score_answers-1", {})])
    found = compared(outputs)
    kd = group(found, "kd")
    assert kd["interval_of"] == "bootstrap over 40 examples, of this seed"
    assert kd["interval"] == pytest.approx([0.6, 0.875], abs=0.05)
    assert kd["marks"] == ["="] and kd["floor"]["chance"] == 0.2
    assert warnings(found, "like the score of a constant answer: kd")


# tests


def three_methods(outputs: Outputs, methods: str = "a,b,ft") -> None:
    for place, method in enumerate(methods.split(",")):
        for seed in (1, 2, 3):
            outputs.run(
                f"runs/{method}-{seed}",
                0.5 + place / 20 + [0, 0.01, 0.03][(seed + place) % 3],
                method=method,
                seed=seed,
            )


def test_pairs_are_corrected_for_all_of_them(outputs: Outputs) -> None:
    three_methods(outputs)
    found = compared(outputs)
    labels = {one["id"]: one["label"] for one in found["groups"]}
    pairs = {(labels[pair["a"]], labels[pair["b"]]): pair for pair in found["pairs"]}
    assert list(pairs) == [("a", "b"), ("a", "ft"), ("b", "ft")]
    # b - ft: seed 1 0.53 - 0.55... : each pair is shifted by 0.05 and by the rotation of 0, 0.01, 0.03
    raw = {key: pair["p_seeds"] for key, pair in pairs.items()}
    ranked = sorted(raw, key=lambda key: raw[key])
    corrected = {key: pairs[key]["p_corrected"] for key in ranked}
    expected, least = {}, 0.0
    for number, key in enumerate(ranked):
        least = max(least, min(1.0, raw[key] * (3 - number)))
        expected[key] = least
    assert corrected == pytest.approx(expected)
    assert group(found, "a")["delta"]["p_corrected"] == pairs["a", "ft"]["p_corrected"]
    assert pairs["a", "b"]["verdict"] == "not separated" and pairs["a", "b"]["more_seeds"] > 0
    only = compared(outputs, baseline="b")
    assert [(labels[one["a"]], labels[one["b"]]) for one in only["pairs"]] == [("a", "b"), ("ft", "b")]
    assert group(only, "a")["delta"]["p_corrected"] <= pairs["a", "b"]["p_corrected"]
    none = compared(outputs, baseline="none")
    assert none["baseline"] is None and len(none["pairs"]) == 3 and not any(one["delta"] for one in none["groups"])
    plain = compared(outputs, correction="none")
    assert all(pair["p_corrected"] == pair["p_seeds"] for pair in plain["pairs"])


def test_a_baseline_that_is_not_there(outputs: Outputs) -> None:
    three_methods(outputs, "cr_ild,pkd")
    with pytest.raises(ConfigError, match=r"--baseline cr_ilt: no group is called that; did you mean cr_ild\?"):
        compared(outputs, baseline="cr_ilt")
    found = compared(outputs)
    assert found["baseline"] is None and len(found["pairs"]) == 1


def test_of_many_groups_only_those_with_a_baseline_are_tested(outputs: Outputs) -> None:
    for number in range(12):
        outputs.run(f"runs/{number}", 0.5, method=f"m{number}")
    assert compared(outputs)["pairs"] == []
    assert len(compared(outputs, baseline="m3")["pairs"]) == 11


def test_only_common_seeds_are_paired(outputs: Outputs) -> None:
    for method, scores in (("ft", {1: 0.5, 2: 0.5, 4: 0.9}), ("kd", {1: 0.6, 2: 0.7, 3: 0.1})):
        for seed, score in scores.items():
            outputs.run(f"runs/{method}-{seed}", score, method=method, seed=seed)
    found = compared(outputs)
    delta = group(found, "kd")["delta"]
    assert delta["seeds"] == [1, 2] and delta["difference"] == pytest.approx(0.15)
    # differences 0.1 and 0.2: t = 3 with 1 degree of freedom, p = 1 - 2 / pi * atan(3)
    assert delta["p_seeds"] == pytest.approx(1 - 2 / np.pi * np.arctan(3))
    assert warnings(found, "groups have different seeds") == [
        "glue/rte: groups have different seeds, pairs are tested on the common ones: 1, 2, 4 (ft); 1, 2, 3 (kd)"
    ]


def test_without_a_common_seed_the_seeds_are_tested_apart(outputs: Outputs) -> None:
    """All examples say that kd is better, but its seeds and those of ft lie among each other."""
    data = outputs.rows("rte", [1] * 100, ["no", "yes"])
    for method, rights in (("ft", {1: 50, 2: 80}), ("kd", {3: 60, 4: 84})):
        for seed, right in rights.items():
            said = outputs.predictions(f"{method}{seed}", ["yes"] * right + ["no"] * (100 - right))
            outputs.run(f"runs/{method}-{seed}", right / 100, method=method, seed=seed, data=data, predictions=said)
    delta = group(compared(outputs), "kd")["delta"]
    assert delta["seeds"] == [] and delta["difference"] == pytest.approx(0.07) and delta["interval"] is None
    # variances 0.045 and 0.0288, so the standard error is sqrt(0.0369) and t = 0.3644 with 1.91 degrees of freedom
    assert delta["p_seeds"] == pytest.approx(0.752, abs=0.002) and delta["p_examples"] < 0.05
    assert delta["verdict"] == "not separated"
    assert delta["test"] == "Welch's t over 2 and 2 seeds and paired bootstrap over 100 examples, the larger p"


def test_models_and_tasks_are_tested_apart(outputs: Outputs) -> None:
    for task in ("glue/rte", "glue/cola"):
        for model in ("small", "base"):
            for method in ("ft", "kd"):
                outputs.run(f"runs/{method}-{model}-{task[5:]}", 0.5, method=method, model=model, task=task)
    found = compared(outputs)
    of = {one["id"]: (one["task"], one["model"]) for one in found["groups"]}
    assert len(found["pairs"]) == 4 and all(of[pair["a"]] == of[pair["b"]] for pair in found["pairs"])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"alpha": 0.0}, "--alpha 0: give a number between 0 and 1"),
        ({"resamples": 3}, "--resamples 3: give 100 to 100000"),
        ({"seed": -1}, "--seed -1: give 0 or more"),
        ({"alpha": float("nan")}, "--alpha nan"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Settings(**settings).check()


# the papers' numbers

EXPECTED = {
    "source": "Ko et al. 2023, notebook",
    "protocol": "mean of 3 seeds, best on dev",
    "axes": ["method", "task"],
    "scores": {"kd": {"glue/rte": 56.08, "glue/cola": None}, "pkd": {"glue/rte": 61.85, "glue/cola": 9.75}},
}


def test_the_papers_numbers_stand_beside_ours(outputs: Outputs) -> None:
    told = {"expected": EXPECTED}
    for seed, score in ((1, 0.5), (2, 0.6)):
        outputs.run(f"runs/kd-{seed}", score, seed=seed, config=told)
        outputs.run(f"runs/cola-{seed}", score, seed=seed, task="glue/cola", config=told)
    outputs.run("runs/other", 0.9, seed=3)  # the same setting, but of no such experiment
    outputs.run("runs/pkd", None, method="pkd", config=told)
    found = compared(outputs)
    cells = {(cell["axes"]["method"], cell["axes"]["task"]): cell for cell in found["expected"]}
    own = cells["kd", "glue/rte"]
    assert own["paper"] == pytest.approx(0.5608) and own["ours"] == pytest.approx(0.55) and own["seeds"] == 2
    assert own["group"] == group(found, "kd", "glue/rte")["id"]
    assert own["own_protocol"] == "model=bert; select_on=heldout; precision=fp32; seeds 1, 2"
    assert {key: cell["state"] for key, cell in cells.items()} == {
        ("kd", "glue/rte"): "run",
        ("kd", "glue/cola"): "not found",
        ("pkd", "glue/rte"): "not run",
        ("pkd", "glue/cola"): "not run",
    }
    text = printed(found)
    assert "Ko et al. 2023, notebook; mean of 3 seeds, best on dev" in " ".join(text.split())
    rows = [line.split() for line in text[text.index("papers' numbers") :].splitlines()]
    assert ["kd", "glue/rte", "56.1", "55.0", "±", "7.1", "-1.1", "2"] in rows
    assert ["kd", "glue/cola", "not", "found", "55.0", "±", "7.1", "-", "2"] in rows
    assert ["pkd", "glue/cola", "9.8", "not", "run", "-"] in rows


def test_the_papers_numbers_are_of_the_tasks_own_metric(outputs: Outputs) -> None:
    more = {"scores": {"dev": {"mcc": {"selected": 0.1}}}}
    outputs.run("runs/kd", 0.5, config={"expected": EXPECTED}, result=more)
    assert compared(outputs, metric="mcc")["expected"][0]["ours"] == 0.5


# warnings


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"config": {"select_on": "dev"}}, "checkpoints are chosen differently: select_on heldout (ft), dev (kd)"),
        ({"fit": {"epochs": 9}}, "stages are trained differently: epochs 4 (ft), 9 (kd)"),
        ({"config": {"precision": "bf16"}}, "training differs: precision fp32 (ft), bf16 (kd)"),
        ({"config": {"debug": {"rows": 64}}}, "debug.rows None (ft), 64 (kd)"),
        ({"config": {"task": {"max_length": 64}}}, "the data differ: task.max_length 128 (ft), 64 (kd)"),
        ({"config": {"task": {"few": {"examples": 9}}}}, "task.few.examples null (ft), 9 (kd)"),
        ({"result": {"sources": {"prepare": {"revision": "def"}}}}, "prepare.revision abc (ft), def (kd)"),
        ({"result": {"rows": {"train": 9}}}, "rows of train 1000 (ft), 9 (kd)"),
        ({"result": {"versions": {"torch": "3.0"}}}, "made by different code: torch 2.13 (ft), 3.0 (kd)"),
        ({"result": {"made_by": ["0.2.0"]}}, "kdlab 0.1.0 (ft), 0.2.0 (kd)"),
        ({"result": {"student": {"threads": 4}}}, "latency was measured on different machines: threads 1 (ft), 4 (kd)"),
        (
            {"result": {"artifacts": {"teacher": "finetune-2"}}},
            "different teachers: teacher finetune-1 (ft), finetune-2",
        ),
        ({"config": {"select_on": "test"}, "result": {"run": {"select_on": "test"}}}, "the paper did: optimistic: kd"),
    ],
)
def test_protocols_that_differ_are_told_with_the_groups(outputs: Outputs, change: dict[str, Any], wanted: str) -> None:
    outputs.run("runs/ft", 0.5, method="ft")
    outputs.run("runs/kd", 0.5, **change)
    found = compared(outputs)
    assert warnings(found, wanted), found["warnings"]


def test_what_is_alike_is_not_warned_of(outputs: Outputs) -> None:
    three_methods(outputs)
    assert [line for line in compared(outputs)["warnings"] if "bootstrap" not in line] == []


def test_few_seeds(outputs: Outputs) -> None:
    outputs.run("runs/ft", 0.5, method="ft")
    assert warnings(compared(outputs), "fewer than 3 seeds: ft")


def test_tasks_that_are_scored_in_two_ways(outputs: Outputs) -> None:
    outputs.run("runs/a", 0.5)
    outputs.run("runs/b", 0.5, method="ft", metric="mcc")
    assert warnings(compared(outputs), "compared by different scores: accuracy on dev, mcc on dev")


# print


def test_the_table_fits_a_terminal_and_says_what_its_numbers_are(outputs: Outputs) -> None:
    three_methods(outputs, "cr_ild,pkd,ft")
    text = printed(compared(outputs))
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert ["majority", "50.0"] in rows and ["teacher", "90.0"] in rows
    own = next(row for row in rows if row[:1] == ["cr_ild"])
    assert own[1:5] == ["51.3", "±", "1.5", "47.5-55.1"] and own[5] == "-10.0"
    flat = " ".join(text.split())
    assert "corrected (holm)" in flat and "with a chance of 80 %" in flat
    assert text.count("corrected (holm)") == 1


def test_methods_beside_tasks(outputs: Outputs) -> None:
    for task in ("glue/rte", "glue/cola"):
        for method in ("ft", "kd"):
            done = (task, method) != ("glue/cola", "kd")
            outputs.run(f"runs/{method}{task[5:]}", 0.5 if done else None, method=method, task=task)
    first = tables.sheets(compared(outputs))[0]
    assert first.columns == {
        "": ["majority", "teacher", "ft", "kd"],
        "cola\naccuracy": ["50.0", "90.0", "50.0", "not run"],
        "rte\naccuracy": ["50.0", "90.0", "50.0", "50.0"],
    }


def test_at_the_end_of_a_sweep_stands_what_fits_a_screen(outputs: Outputs) -> None:
    three_methods(outputs)
    console = Console(file=io.StringIO(), width=80)
    for part in tables.brief(compared(outputs)):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "size and speed" in text and "warning" not in text
    outputs.run("runs/cola", 0.5, method="ft", task="glue/cola")
    assert len(tables.brief(compared(outputs))) == 1  # methods beside tasks


def test_only_what_a_test_separates_is_the_best(outputs: Outputs) -> None:
    for method, base in (("ft", 0.5), ("kd", 0.6), ("pkd", 0.61)):
        for seed in range(6):
            outputs.run(
                f"runs/{method}-{seed}",
                base + seed % 3 / 100 + (seed == 4 and method == "kd") / 20,
                seed=seed,
                method=method,
            )
    found = compared(outputs)
    assert "**" not in "".join(line for line in tables.as_markdown(found).splitlines() if line.startswith("|"))
    two = {**found, "groups": [one for one in found["groups"] if one["label"] != "pkd"]}
    assert "| kd | **61.8 ± 2.2** |" in tables.as_markdown(two)
    assert "kd & \\textbf{61.8 $\\pm$ 2.2} &" in tables.as_latex(two)


NASTY = 'a_b & 50% of #1, $x^2$ ~ {y} \\ | *z* [link](u) <b> `c`, "q"'


def test_every_form_keeps_odd_names_as_text(outputs: Outputs) -> None:
    outputs.run("runs/a", 0.5, method=NASTY)
    outputs.run("runs/b", 0.5, method="ft")
    found = compared(outputs)
    (row, _) = csv.DictReader(io.StringIO(tables.as_csv(found)))
    assert row["label"] == row["method"] == NASTY and float(row["mean"]) == 0.5 and row["sd"] == ""
    assert json.loads(tables.as_json(found))["groups"][0]["label"] == NASTY
    tex = tables.as_latex(found)
    assert (
        r"a\_b \& 50\% of \#1, \$x\textasciicircum{}2\$ \textasciitilde{} \{y\} \textbackslash{} \textbar{} *z* "
        r"[link](u) $<$b$>$ `c`, " + '"q" &'
    ) in tex
    line = next(line for line in tables.as_markdown(found).splitlines() if line.startswith("| a"))
    assert r"a\_b & 50% of \#1, \$x^2\$ \~ {y} \\ \| \*z\* \[link\](u) \<b\> \`c\`" in line
    assert line.replace(r"\|", "").count("|") == 5
    assert "*z* [link](u)" in " ".join(printed(found, 300).split())


def test_latex_puts_signs_into_math(outputs: Outputs) -> None:
    assert tables.latex_text("-1.2") == "$-$1.2" and tables.latex_text("5.0 ± 0.1") == r"5.0 $\pm$ 0.1"
    assert tables.latex_text("a-b") == "a-b" and tables.latex_text("- ft") == "- ft"


def test_csv_is_one_row_a_group_with_plain_numbers(outputs: Outputs) -> None:
    three_methods(outputs)
    found = compared(outputs)
    rows = list(csv.DictReader(io.StringIO(tables.as_csv(found))))
    assert [row["label"] for row in rows] == ["a", "b", "ft"]
    assert rows[0]["seeds"] == "1 2 3" and float(rows[0]["mean"]) == found["groups"][0]["mean"]
    assert rows[0]["delta_to"] == "ft" and float(rows[0]["p_corrected"]) == found["groups"][0]["delta"]["p_corrected"]
    assert rows[2]["delta_to"] == ""


# the verb


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 finished runs with predictions: 8 methods, 5 tasks of every kind of metric, 5 seeds."""
    outputs = Outputs(tmp_path_factory.mktemp("many") / "outputs")
    draw = np.random.default_rng(0)
    kinds = {"rte": ("accuracy", 277, 2), "cola": ("mcc", 1043, 2), "mrpc": ("f1", 408, 2)}
    kinds |= {"topics": ("macro_f1", 600, 5), "stsb": ("pearson_spearman", 1500, 0)}
    for task, (metric, number, classes) in kinds.items():
        labels = [f"c{one}" for one in range(classes)] if classes else None
        gold: Any = draw.integers(0, classes, number) if classes else draw.normal(size=number)
        data = outputs.rows(task, gold.tolist(), labels)
        for method in range(8):
            for seed in range(5):
                guess = draw.integers(0, classes, number) if classes else gold + draw.normal(size=number) * 2
                said = np.where(draw.random(number) < 0.5 + 0.04 * method, gold, guess)
                told = said.tolist() if labels is None else [labels[one] for one in said]
                name = f"m{method}-{task}-{seed}"
                outputs.run(
                    f"sweeps/many/{name}",
                    metrics.score(metric, said, gold),
                    method=f"m{method}",
                    task=f"glue/{task}",
                    seed=seed,
                    metric=metric,
                    data=data,
                    predictions=outputs.predictions(name, told),
                )
    return outputs.root


def test_200_runs_are_compared_in_5_seconds(many: Path) -> None:
    """Of a processor: tests share theirs. With the start of Python, all tests and files, the page among them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "kdlab", "compare", "outputs/sweeps/many"],
        check=True,
        cwd=many.parent,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 5
    found = json.loads((many / "compare" / "many" / "compare.json").read_text())
    assert len(found["groups"]) == 40 and len(found["pairs"]) == 5 * 28
    assert all(one["interval_of"].startswith("bootstrap over") for one in found["groups"])
    assert {file.name for file in (many / "compare" / "many").iterdir()} == {
        *("compare.json", "table.csv", "table.tex", "table.md", "index.html")
    }


def test_nothing_heavy_is_loaded(many: Path) -> None:
    code = (
        "import sys; from kdlab.cli import main; assert main(sys.argv[1:]) == 0;"
        "print(*[name for name in ('torch', 'transformers', 'datasets', 'sklearn', 'wandb') if name in sys.modules],"
        " file=sys.stderr)"
    )
    words = ["compare", str(many / "sweeps" / "many"), "--format", "csv"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == ""


def command(lab: Lab, words: str) -> Any:
    return lab.command(f"compare {words}")


def test_the_table_and_where_the_files_are(lab: Lab, outputs: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    three_methods(outputs)
    monkeypatch.chdir(outputs.root.parent)
    done = command(lab, "outputs")
    assert done.code == 0 and done.err == ""
    assert "page: outputs/compare/outputs/index.html" in done.out
    assert "tables: outputs/compare/outputs (compare.json, table.csv, table.tex, table.md)" in done.out
    page = (outputs.root / "compare" / "outputs" / "index.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    # a second call, from a pattern, into a folder of its own
    done = command(lab, "'outputs/runs/a-*' --out mine --html far/away.html")
    assert done.code == 0 and Path("mine/table.md").is_file() and Path("far/away.html").is_file()
    assert not list(Path().rglob("*.tmp"))


def test_a_format_is_all_that_is_printed(
    lab: Lab, outputs: Outputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_methods(outputs)
    outputs.run("runs/c", None, method="c", failure="out of memory")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for form in ("json", "csv", "latex", "markdown"):
        done = command(lab, f"outputs --format {form}")
        assert done.code == 0
        records, left_out = collect(["outputs"])
        wanted = tables.FORMATS[form](compare(records, left_out=left_out, given=["outputs"]))
        assert [line for line in done.out.splitlines() if "made" not in line and "kdlab" not in line] == [
            line for line in wanted.splitlines() if "made" not in line and "kdlab" not in line
        ]
        assert "failed: c: out of memory" in done.err
    assert "files" not in command(lab, "outputs --format table").out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("nowhere", "there is no such folder"),
        ("'nowhere/*'", "there is no such folder"),
        (".", "no run here"),
        ("outputs --baseline ff", "no group is called that; there is a, b, ft"),
        ("outputs --metric mmc", "--metric mmc: none of these runs has it"),
        ("outputs --alpha 2", "--alpha 2: give a number between 0 and 1"),
        ("outputs --resamples 1", "--resamples 1: give 100"),
        ("outputs --out outputs/runs/a-1/run.json", "a file is in the way"),
    ],
)
def test_what_is_wrong_is_told(
    lab: Lab, outputs: Outputs, words: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_methods(outputs)
    empty = outputs.root.parent / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty if words == "." else outputs.root.parent)
    done = command(lab, words)
    assert done.code == 2 and told in done.err and "Traceback" not in done.err


def test_wrong_words_are_refused(lab: Lab) -> None:
    for words in ("", "outputs --correction maybe", "outputs --format xml", "outputs --seed one"):
        with pytest.raises(SystemExit) as stopped:
            command(lab, words)
        assert stopped.value.code == 2


def test_the_default_folder(outputs: Outputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = outputs.run("sweeps/s/a", 0.5)
    records, _ = collect([run])
    assert default_folder([run.parent], records) == outputs.root / "compare" / "s"
    monkeypatch.chdir(tmp_path)
    assert default_folder(["outputs/sweeps/s"], records) == Path("outputs/compare/s")
    several: list[list[str | Path]] = [["outputs/sweeps/*"], ["outputs/sweeps/s", run]]
    one, two = (default_folder(paths, records) for paths in several)
    assert one == two and one.name.startswith("1-runs-") and one.parent == Path("outputs/compare")


def test_records_by_the_ids_of_the_comparison(outputs: Outputs) -> None:
    three_methods(outputs)
    records, _ = collect([outputs.root])
    found = compare(records)
    assert {name: record.name for name, record in by_id(found, records).items()} == {
        run["id"]: run["name"] for run in found["runs"]
    }


def test_the_command_of_a_job_can_be_typed(outputs: Outputs) -> None:
    outputs.run("sweeps/s/a", 0.5)
    jobs = [{"name": "b", "overrides": ["name=it's", "x=[1, 2]"]}]
    write(outputs.root / "sweeps" / "s" / "sweep.json", {"jobs": jobs})
    assert shlex.split(compared(outputs)["runs"][1]["command"]) == ["kdlab", "train", "name=it's", "x=[1, 2]"]
