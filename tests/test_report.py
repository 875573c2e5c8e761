"""Model card and tables."""

from __future__ import annotations

import copy
import io
from dataclasses import asdict
from typing import Any

import pytest
import yaml
from rich.console import Console
from rich.table import Table

from kdlab import config
from kdlab.report.card import differences, model_card
from kdlab.report.summary import comparison_table, count, score_table, summary_table


def scores(selected: float, last: float, best: float) -> dict[str, Any]:
    return {
        "dev": {"accuracy": {"selected": selected, "last": last, "best": best}},
        "mismatched": {"accuracy": {"selected": selected - 0.01, "last": last, "best": best}},
    }


RESULT: dict[str, Any] = {
    "run": {
        "name": "cr_ild-mnli-42",
        "method": "cr_ild",
        "task": "glue/mnli",
        "model": "bert_base_to_6",
        "seed": 42,
        "precision": "fp32",
        "select_on": "heldout",
    },
    "metric": "accuracy",
    "scores": scores(0.6317, 0.6245, 0.6426),
    "teacher": {
        "scores": scores(0.7041, 0.7005, 0.7112),
        "parameters": 109_483_778,
        "bytes": 437_952_000,
        "latency_ms": 41.27,
        "flops_per_example": 22_345_678_901,
    },
    "student": {
        "scores": scores(0.6317, 0.6245, 0.6426),
        "parameters": 66_956_546,
        "bytes": 267_830_000,
        "latency_ms": 20.9,
        "flops_per_example": 11_200_000_000,
        "path": "student",
    },
    "majority": {"dev": {"accuracy": 0.527}},
    "artifacts": {},
    "versions": {},
    "git": {},
    "seconds": 321.0,
}


def resolved(**student: Any) -> dict[str, Any]:
    run = config.Run(
        method=config.Distillation(
            name="cr_ild",
            layers=config.LayerFit(mixup=1.0, epochs=20, consistency=config.Consistency(weight=0.1)),
            student=config.Fit(lr=0.5),
        ),
        model=config.Model(
            name="bert_base_to_6",
            teacher=config.Encoder(id="google-bert/bert-base-uncased", revision="86b5e09"),
            student=config.Encoder(**{"init": "cut", "num_layers": 6, **student}),
        ),
        task=config.Task(
            name="glue/mnli",
            source=config.Source(hub="nyu-mll/glue", config="mnli", revision="bcdcba7"),
            text=["premise", "hypothesis"],
            labels=["entailment", "neutral", "contradiction"],
            splits=config.Splits(dev="validation_matched"),
            evaluations={"mismatched": config.Evaluation(split="validation_mismatched")},
        ),
        hardware=config.Hardware(name="cpu", threads=1),
        tracking=config.Tracking(name="wandb", mode="offline"),
        precision="bf16",
    )
    return asdict(run)


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    matter: dict[str, Any] = yaml.safe_load(head)
    return matter


def printed(table: Table) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=False).print(table)
    return out.getvalue().splitlines()


def test_the_front_matter_is_what_the_hub_reads() -> None:
    matter = front_matter(model_card(RESULT, resolved()))
    assert matter["language"] == "en"
    assert matter["base_model"] == "google-bert/bert-base-uncased"
    assert matter["datasets"] == ["nyu-mll/glue"]
    assert matter["metrics"] == ["accuracy"]
    assert matter["library_name"] == "transformers"
    assert matter["pipeline_tag"] == "text-classification"
    assert "license" not in matter
    dev, mismatched = matter["model-index"][0]["results"]
    assert dev["dataset"] == {
        "name": "glue/mnli, dev",
        "type": "nyu-mll/glue",
        "config": "mnli",
        "split": "validation_matched",
        "revision": "bcdcba7",
    }
    assert mismatched["dataset"]["split"] == "validation_mismatched"
    assert dev["metrics"] == [{"type": "accuracy", "name": "accuracy", "value": 0.6317}]


def test_the_front_matter_is_valid_for_the_hub_client() -> None:
    cards = pytest.importorskip("huggingface_hub").ModelCard
    data = cards(model_card(RESULT, resolved())).data
    assert data.eval_results[0].metric_value == 0.6317
    assert data.model_name == "cr_ild-mnli-42"


def test_the_card_has_the_numbers_and_the_citations() -> None:
    card = model_card(RESULT, resolved())
    assert "| dev | accuracy | 52.7 | 70.4 | 63.2 | 62.5 | 64.3 |" in card
    assert "| mismatched | accuracy | - | 69.4 | 62.2 | 62.5 | 64.3 |" in card
    assert "| student | 67.0 M | 267.8 | 20.9 | 11.2 G |" in card
    assert "optimistic" in card
    assert "2302.01530" in card
    assert "1503.02531" in card
    assert "AutoModelForSequenceClassification.from_pretrained(folder)" in card
    assert "Warning" not in card


def test_the_card_tells_settings_that_differ_and_only_those_that_count() -> None:
    card = model_card(RESULT, resolved())
    told = {line.split("`")[1]: line.split("`")[3] for line in card.splitlines() if line.startswith("| `")}
    assert told == {
        "method.layers.epochs": "20",
        "method.layers.mixup": "1.0",
        "method.layers.consistency.weight": "0.1",
        "model.student.init": "cut",
        "model.student.num_layers": "6",
        "precision": "bf16",
    }


def test_differences_follow_nested_dataclasses() -> None:
    found = differences(resolved())
    assert found["method.student.lr"] == 0.5
    assert found["hardware.threads"] == 1
    assert "method.teacher.lr" not in found
    assert "seed" not in found


def test_an_official_head_is_warned_of() -> None:
    card = model_card(RESULT, resolved(head="official"))
    assert "**Warning:**" in card
    assert "gives\nother scores" in card


def test_what_is_not_known_is_left_out() -> None:
    run = resolved(init="random")
    run["method"]["stages"] = ["student"]
    run["task"]["source"] = asdict(config.Source(path="/home/me/rows.csv"))
    run["model"]["teacher"]["id"] = "/home/me/model"
    result = {**copy.deepcopy(RESULT), "teacher": None}
    card = model_card(result, run)
    matter = front_matter(card)
    assert not {"language", "base_model", "datasets", "license"} & set(matter)
    assert "/home/me" not in card
    assert "bibtex" not in card
    assert "| teacher | 109" not in card


def test_the_summary_fits_80_columns() -> None:
    lines = printed(summary_table(RESULT))
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    for figure in (
        "109.5 M",
        "438.0",
        "41.3",
        "22.3 G",
        "70.4",
        "67.0 M",
        "20.9",
        "63.2",
        "62.5",
        "64.3",
        "52.7",
    ):
        assert figure in text
    assert "optimistic" in text
    assert "…" not in text


def test_the_summary_of_a_run_without_teacher_or_costs() -> None:
    result = copy.deepcopy(RESULT)
    result["teacher"] = None
    result["student"] |= {"latency_ms": None, "flops_per_example": None}
    result["majority"] = {}
    text = "\n".join(printed(summary_table(result)))
    assert "teacher" not in text
    assert "majority" not in text
    assert "63.2" in text


def test_every_score_is_in_the_score_table() -> None:
    lines = printed(score_table(RESULT))
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if "mismatched" in line)
    assert row.split() == ["mismatched", "accuracy", "-", "69.4", "62.2", "62.5", "64.3"]


def with_run(method: str, seed: int, selected: float, **changes: Any) -> dict[str, Any]:
    result = copy.deepcopy(RESULT)
    result["run"] |= {"method": method, "seed": seed, "name": f"{method}-{seed}", **changes}
    result["student"]["scores"]["dev"]["accuracy"]["selected"] = selected
    return result


def test_seeds_of_a_method_make_one_row() -> None:
    results = [with_run("kd", 1, 0.60), with_run("kd", 2, 0.62), with_run("cr_ild", 1, 0.64)]
    results.insert(0, {**with_run("ft", 1, 0.5), "teacher": None})
    rows = [line.split() for line in printed(comparison_table(results))]
    labelled = {row[0]: row for row in rows if row}
    assert labelled["teacher"] == ["teacher", "109.5", "M", "41.3", "70.4", "±", "0.0", "2"]
    assert labelled["ft"] == ["ft", "67.0", "M", "20.9", "50.0", "1"]
    assert labelled["kd"] == ["kd", "67.0", "M", "20.9", "61.0", "±", "1.4", "2"]
    assert labelled["cr_ild"][4:] == ["64.0", "1"]


def test_runs_that_differ_in_more_than_the_seed_stay_apart() -> None:
    results = [with_run("kd", 1, 0.60, name="lr=1e-5"), with_run("kd", 1, 0.62, name="lr=3e-5")]
    lines = printed(comparison_table(results))
    assert any("lr=1e-5" in line and "60.0" in line for line in lines)
    assert any("lr=3e-5" in line and "62.0" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_several_tasks_are_named() -> None:
    results = [with_run("kd", 1, 0.6), with_run("kd", 1, 0.7, task="glue/rte")]
    lines = printed(comparison_table(results))
    assert max(map(len, lines)) <= 80
    assert any("glue/rte" in line for line in lines)


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0, "0"), (999, "999"), (1_500, "1.5 k"), (2.5e12, "2.5 T")])
def test_counts(value: float | None, text: str) -> None:
    assert count(value) == text
