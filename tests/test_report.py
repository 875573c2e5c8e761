"""Model card and tables."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from rich.table import Table

from kdlab import config
from kdlab.artifacts import Artifact
from kdlab.report.card import differences, model_card
from kdlab.report.result import build, without_credentials
from kdlab.report.summary import count, score_table, summary_table


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


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0, "0"), (999, "999"), (1_500, "1.5 k"), (2.5e12, "2.5 T")])
def test_counts(value: float | None, text: str) -> None:
    assert count(value) == text


# reasoning: result.json


def reasoning(**changes: Any) -> config.Run:
    method = config.Reasoning(name="ft_cot")
    model = config.Model(name="gpt2", kind="decoder", student=config.Encoder(id="openai-community/gpt2"))
    task = config.Task(
        name="reasoning/coin_flip",
        kind="reasoning",
        source=config.Source(hub="someone/coins", revision="abc123"),
        text=["question"],
        label="answer",
        answer="yes_no",
        partition=config.Partition(rule="random"),
    )
    run = config.Run(
        method=method,
        model=model,
        task=task,
        rationales=config.Rationales(name="openai", kind="openai", model="text-davinci-002"),
        hardware=config.Hardware(name="cpu"),
        tracking=config.Tracking(name="none", mode="none"),
        name="first",
        select_on="last",
    )
    for path, value in changes.items():
        *parts, last = path.split("__")
        node: Any = run
        for part in parts:
            node = getattr(node, part)
        setattr(node, last, value)
    return run


class Store:
    """Artifacts of a reasoning run with 20 test questions: 8 yes, 12 no."""

    def __init__(self, root: Path, predictions: str) -> None:
        """predictions: a letter for each question, y, n or - (no answer)."""
        self.root = root
        self.targets: dict[str, Artifact] = {}
        rows = [self.row(number, letter) for number, letter in enumerate(predictions)]
        accuracy = sum(row["correct"] for row in rows) / len(rows)
        scores = {"accuracy": accuracy, "contains_answer": 0.9, "correct_format": 1.0, "complete": 0.95}
        facts = {
            "rows": {"train": 100, "test": 20},
            "majority": {"test": {"accuracy": 0.6}},
            "majority_answer": "no",
            "chance": {"train": {"accuracy": 0.5}, "test": {"accuracy": 0.49}},
            "conditions": ["few: 100 questions (seed 0)"],
        }
        record = {"question": "Is it heads? ", "prompt": "Is it heads? ###", "completion": " It is. --> yes"}
        self.add("data", {"facts.json": facts}, values={"source": {"hub": "someone/coins"}})
        self.add(
            "rationales",
            {},
            values={"writer": {"kind": "openai", "endpoint": "https://me:secret@host.org/v1"}},
            facts={
                "rationales": 110,
                "teacher": {"model": "text-davinci-002", "key": "zs_cot", "template": "zs_cot"},
                "requests": 220,
                "prompt_tokens": 9000,
                "completion_tokens": 5000,
                "usd": 0.28,
            },
        )
        report = {
            "asked": 100,
            "rationales": 110,
            "kept": 70,
            "questions": 65,
            "dropped": {"wrong": 38, "duplicate": 2},
        }
        self.add("curated", {"report.json": report})
        self.add("teacher_scores", {"scores.json": {"train": {"accuracy": 0.8}, "test": {"accuracy": 0.75}}})
        self.add("student", {"history.json": self.history(), "model/config.json": {}})
        style = {"template": "ft_cot_token", "model_type": "decoder"}
        self.add(
            "answers",
            {"answers.json": {"data": {"0": [record]}}},
            values={"style": style},
            facts={"answers": {"tokens": 3000, "seconds": 10.0, "tokens_per_second": 300.0}},
            warnings=["https://me:secret@host.org/v1 was slow"],
        )
        self.add(
            "student_scores",
            {
                "scores.json": {"test": scores},
                "intervals.json": {"test": {"accuracy": [0.35, 0.8]}},
                "baselines.json": {
                    "majority": {"test": {"accuracy": 0.6}},
                    "chance": {"test": {"accuracy": 0.49}},
                    "rows": {"test": 20},
                },
            },
        )
        lines = "".join(json.dumps(row) + "\n" for row in [*rows, self.row(99, "-", split="train")])
        (self.root / "student_scores" / "samples.jsonl").write_text(lines, encoding="utf-8")
        figures = {"parameters": 124_000_000, "bytes": 498_000_000, "latency_ms": 21.5, "threads": 1}
        self.add("student_figures", {"figures.json": figures})

    @staticmethod
    def row(number: int, letter: str, split: str = "test") -> dict[str, Any]:
        gold = "Yes" if number < 8 else "No"
        prediction = {"y": "yes", "n": "no", "-": None}[letter]
        correct = prediction == gold.lower()
        return {"id": number, "split": split, "answer": gold, "prediction": prediction, "correct": correct}

    @staticmethod
    def history(split: str | None = None) -> dict[str, Any]:
        curve = [{"step": step, "scores": {split: {"accuracy": score}}} for step, score in ((5, 0.7), (10, 0.6))]
        best = 0.7 if split else None
        return {"evaluations": curve if split else [], "selected_step": 10, "last_step": 10, "best_score": best}

    def add(
        self,
        name: str,
        files: dict[str, Any],
        *,
        values: dict[str, Any] | None = None,
        facts: dict[str, Any] | None = None,
        warnings: list[str] | None = None,
    ) -> None:
        for file, content in files.items():
            path = self.root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content), encoding="utf-8")
        made = {"versions": {"kdlab": "0.1+abc"}, "seconds": 2.0}
        manifest = {"values": values or {}, "facts": facts or {}, "warnings": warnings or [], "made": made}
        self.targets[name] = Artifact(self.root / name, manifest)

    def result(self, run: config.Run, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
        targets = {name: artifact for name, artifact in self.targets.items() if name not in without}
        found = build(run, targets, targets, 12.3456)
        json.dumps(found, allow_nan=False)
        return found


VARIED = "yyyyynnn" + "nnnnnyyyyyy-"  # 10 right
PROMPTED = ("rationales", "curated", "teacher_scores", "student")  # what a run of zs lacks


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, VARIED)


def test_a_reasoning_result_has_all_numbers(store: Store) -> None:
    found = store.result(reasoning())
    assert (found["run"]["family"], found["metric"], found["split"]) == ("reasoning", "accuracy", "test")
    assert found["scores"] == found["student"]["scores"]
    assert found["scores"]["test"] == {
        "accuracy": {"selected": 0.5},
        "contains_answer": {"selected": 0.9},
        "correct_format": {"selected": 1.0},
        "complete": {"selected": 0.95},
    }
    assert found["intervals"] == {"test": {"accuracy": [0.35, 0.8]}}
    assert found["chance"]["test"] == {"accuracy": 0.49} and found["majority"]["test"] == {"accuracy": 0.6}
    assert found["teacher"] == {
        "name": "text-davinci-002",
        "key": "zs_cot",
        "scores": {"train": {"accuracy": {"selected": 0.8}}, "test": {"accuracy": {"selected": 0.75}}},
        "rationales": 110,
    }
    assert found["cost"] == {"requests": 220, "prompt_tokens": 9000, "completion_tokens": 5000, "usd": 0.28}
    assert found["curation"]["kept"] == 70 and found["constant"] is None
    assert found["student"]["answers"] == {"tokens": 3000, "seconds": 10.0, "tokens_per_second": 300.0}
    assert (found["student"]["parameters"], found["student"]["bytes"]) == (124_000_000, 498_000_000)
    assert found["student"]["selection"] == {"on": "last", "step": 10, "last_step": 10, "score": None}
    assert found["prompt"] == {
        "template": "{question} ###",
        "prompt": "Is it heads? ###",
        "completion": " It is. --> yes",
    }
    assert found["seeds"] == {"run": 42, "rationales": 0} and found["seconds"] == 12.346
    assert "secret" not in json.dumps(found)
    assert found["sources"]["rationales"]["endpoint"] == "https://***@host.org/v1"


def test_evaluations_on_the_test_set_give_last_and_best(store: Store) -> None:
    store.add("student", {"history.json": store.history("test")})
    found = store.result(reasoning(select_on="test"))
    assert found["scores"]["test"]["accuracy"] == {"selected": 0.5, "last": 0.6, "best": 0.7}
    assert found["scores"]["test"]["complete"] == {"selected": 0.95}
    store.add("student", {"history.json": store.history("heldout")})
    assert store.result(reasoning(select_on="heldout"))["scores"]["test"]["accuracy"] == {"selected": 0.5}


def test_a_prompt_baseline_has_no_student_of_its_own(store: Store) -> None:
    found = store.result(reasoning(method__name="zs", method__stages=["answer"]), without=PROMPTED)
    student = found["student"]
    assert (student["parameters"], student["bytes"], student["path"]) == (124_000_000, None, None)
    assert student["selection"] is None and student["scores"]["test"]["accuracy"] == {"selected": 0.5}
    assert (found["teacher"], found["curation"], found["cost"]) == (None, None, None)


def test_a_student_behind_an_endpoint(store: Store) -> None:
    (store.root / "student" / "model" / "config.json").unlink()
    (store.root / "student" / "model").rmdir()
    (store.root / "student" / "history.json").unlink()
    at_endpoint(store, answers_usd=None)
    found = store.result(reasoning(), without=("student_figures", "teacher_scores"))
    assert found["student"]["parameters"] is None and found["student"]["path"] is None
    assert found["student"]["answers"]["tokens_per_second"] is None
    assert found["teacher"]["scores"] == {}
    asked = {"requests": 240, "prompt_tokens": 9001, "completion_tokens": 5002, "trained_tokens": 4000}
    assert found["cost"] == {**asked, "usd": None}
    at_endpoint(store, answers_usd=0.02)
    found = store.result(reasoning(), without=("student_figures", "teacher_scores"))
    assert found["cost"] == {**asked, "usd": pytest.approx(0.28 + 0.1 + 0.02)}
    store.targets["rationales"].manifest["values"]["writer"] = {"kind": "local", "id": "gpt2"}  # asked, but not paid
    found = store.result(reasoning(), without=("student_figures", "teacher_scores"))
    assert found["cost"]["requests"] == 20 and found["cost"]["usd"] == pytest.approx(0.12)


def at_endpoint(store: Store, *, answers_usd: float | None) -> None:
    """The student was trained at an endpoint, and asked there."""
    values = {"endpoint": "https://host.org/v1"}
    store.targets["student"].manifest.update(values=values, facts={"trained_tokens": 4000, "usd": 0.1})
    answers = store.targets["answers"].manifest
    answers["values"] |= values
    answers["facts"] = {"requests": 20, "prompt_tokens": 1, "completion_tokens": 2, "usd": answers_usd}


def test_training_on_this_machine_costs_nothing(store: Store) -> None:
    store.targets["student"].manifest["facts"] = {"trained_tokens": 4000}
    cost = store.result(reasoning())["cost"]
    assert cost == {"requests": 220, "prompt_tokens": 9000, "completion_tokens": 5000, "usd": 0.28}


@pytest.mark.parametrize(
    ("predictions", "constant"),
    [
        ("n" * 20, {"answer": "no", "accuracy": 0.6, "share": 1.0}),
        ("y" * 18 + "n" * 2, {"answer": "yes", "accuracy": 0.4, "share": 0.9}),  # 10 right, and yet a constant
        ("y" * 17 + "-" * 3, None),
        ("nnnnyyyy" + "nnnnnnnnyyyy", {"answer": "no", "accuracy": 0.6, "share": 0.6}),  # 12 right, as always no
        ("ynnnnnnn" + "nnnnnnnyyyyy", None),  # 8 right, as always yes; too few to tell
    ],
)
def test_scores_of_constant_answers_are_found(tmp_path: Path, predictions: str, constant: Any) -> None:
    assert Store(tmp_path, predictions).result(reasoning())["constant"] == constant


def test_the_template_is_only_told_where_it_is_sure(store: Store) -> None:
    record = {"question": "4?", "prompt": "Q: 4?\nA: 4\nQ: 4?\nA:", "completion": "4"}
    store.add(
        "answers", {"answers.json": {"data": {"0": [record]}}}, values=store.targets["answers"].manifest["values"]
    )
    assert store.result(reasoning())["prompt"]["template"] is None


def test_addresses_lose_their_passwords() -> None:
    value = {"a": ["http://u:p@h:1/v1?x=a@b", 3, None], "b": "mail a@b.c, ftp://q@h"}
    assert without_credentials(value) == {"a": ["http://***@h:1/v1?x=a@b", 3, None], "b": "mail a@b.c, ftp://***@h"}


# reasoning: tables


def test_the_summary_of_a_reasoning_run(store: Store) -> None:
    lines = printed(summary_table(store.result(reasoning())))
    rows = {line.split()[0]: line.split() for line in lines if line.split()}
    assert max(map(len, lines)) <= 80
    assert lines[0].strip() == "first: accuracy on test, x 100"
    assert rows["teacher"] == ["teacher", "-", "-", "-", "-", "75.0", "-"]
    assert rows["student"] == ["student", "124.0", "M", "498.0", "21.5", "300", "50.0", "35.0-80.0"]
    assert rows["chance"] == ["chance", "49.0"] and rows["majority"] == ["majority", "60.0"]
    text = " ".join(" ".join(lines).split())
    assert "70 of 110 kept, for 65 of 100 questions; dropped: 38 wrong, 2 duplicate" in text
    assert "requests: 220, 9.0 k + 5.0 k tokens, $0.2800" in text
    assert "latency" not in text and "optimistic" not in text and "constant" not in text


def test_a_table_that_is_full_is_not_cut(tmp_path: Path) -> None:
    store = Store(tmp_path, "n" * 20)
    store.add("student", {"history.json": store.history("test")})
    lines = printed(summary_table(store.result(reasoning(select_on="test"))))
    row = next(line.split() for line in lines if "student" in line)
    assert row == ["student", "124.0", "M", "498.0", "21.5", "300", "60.0", "35.0-80.0", "60.0", "70.0"]
    assert any("(optimistic)" in line for line in lines) and max(map(len, lines)) <= 80


def test_the_scores_of_a_reasoning_run(store: Store) -> None:
    store.add("student", {"history.json": store.history("test")})
    lines = printed(score_table(store.result(reasoning(select_on="test"))))
    rows = [line.split() for line in lines]
    assert max(map(len, lines)) <= 80
    assert ["test", "accuracy", "49.0", "60.0", "75.0", "50.0", "35.0-80.0", "60.0", "70.0"] in rows
    assert ["test", "contains", "-", "-", "-", "90.0", "-", "-", "-"] in rows
    assert ["train", "accuracy", "50.0", "-", "80.0", "-", "-", "-", "-"] in rows
    assert {"format", "complete"} <= {row[1] for row in rows if len(row) > 1}


@pytest.mark.parametrize("table", [summary_table, score_table])
def test_selection_on_the_test_set_and_constant_answers_are_labelled(table: Any, tmp_path: Path) -> None:
    result = Store(tmp_path, "n" * 20).result(reasoning(select_on="test"))
    text = " ".join(" ".join(printed(table(result))).split())
    assert "selected on the test set, as the paper did: optimistic" in text
    assert "100 % of the answers are 'no', and always giving it scores 60.0" in text


def test_a_prompt_baseline_selects_nothing_on_the_test_set(store: Store) -> None:
    result = store.result(reasoning(select_on="test", method__stages=["answer"]), without=PROMPTED)
    assert "optimistic" not in " ".join(printed(summary_table(result)))


def test_names_with_brackets_stay_in_the_tables(store: Store) -> None:
    result = store.result(reasoning(name="[bold]x[/]"))
    assert "[bold]x[/]: accuracy" in printed(summary_table(result))[0]


# reasoning: the model card


def reasoning_card(store: Store, **changes: Any) -> str:
    run = reasoning(**changes)
    return model_card(store.result(run), asdict(run))


def test_the_front_matter_of_a_student_that_writes(store: Store) -> None:
    matter = front_matter(reasoning_card(store))
    assert matter["pipeline_tag"] == "text-generation"
    assert matter["base_model"] == "openai-community/gpt2" and matter["datasets"] == ["someone/coins"]
    assert matter["tags"] == ["kdlab", "knowledge-distillation", "chain-of-thought"]
    assert matter["metrics"] == ["accuracy"]
    (entry,) = matter["model-index"][0]["results"]
    assert entry["task"]["type"] == "text-generation"
    assert entry["metrics"] == [{"type": "accuracy", "name": "accuracy", "value": 0.5}]
    assert "split" not in entry["dataset"]  # drawn from all rows, it is none of the source's own


def test_an_encoder_decoder_is_loaded_as_one(store: Store) -> None:
    store.targets["answers"].manifest["values"]["style"]["model_type"] = "encoder_decoder"
    card = reasoning_card(store)
    assert front_matter(card)["pipeline_tag"] == "text2text-generation"
    assert "AutoModelForSeq2SeqLM" in card and "padding_side" not in card and "decode(output, skip" in card


def test_the_card_tells_how_the_student_came_about(store: Store) -> None:
    card = reasoning_card(store, method__samples=8, method__temperature=0.7, rationales__base_url="https://h.org/v1")
    for text in (
        "Written by `text-davinci-002` through an OpenAI-compatible endpoint at `h.org`, with zero-shot-CoT prompts; "
        "8 of each question, at temperature 0.7.",
        "Kept were those with a right final answer; no copy of another one of the question: 70 of 110, for 65 of 100 "
        "training questions.\nDropped: 38 wrong, 2 duplicate.",
        "| test | accuracy | 49.0 | 60.0 | 75.0 | 50.0 | 35.0-80.0 |",
        "| test | contains | - | - | - | 90.0 | - |",
        "|  | parameters | size MB | ms per token | tokens per s |\n|---|---:|---:|---:|---:|\n"
        "| student | 124.0 M | 498.0 | 21.5 | 300 |\n\n",
        'AutoTokenizer.from_pretrained(folder, padding_side="left")',
        'template = "{question} ###"',
        "max_new_tokens=1024",
        "```text\nIs it heads? ###\n```",
        "The answer is what follows the first `-->`",
        "2. The student is fine-tuned on the kept rationales, each with the gold answer behind it.",
        "2212.10071",
        "2205.11916",
    ):
        assert text in card
    assert "2201.11903" not in card and "Warning" not in card and "| `rationales.base_url`" not in card


@pytest.mark.parametrize(
    ("changes", "cited"),
    [
        ({"rationales__prompt": "fs_cot"}, "2201.11903"),
        ({"rationales__kind": "recorded", "rationales__key": "zs_cot_t70_8aug"}, "2205.11916"),
        ({"rationales__kind": "rules", "rationales__model": None}, None),
    ],
)
def test_papers_are_cited_by_what_was_done(store: Store, changes: dict[str, Any], cited: str | None) -> None:
    card = reasoning_card(store, **changes)
    found = [number for number in ("2205.11916", "2201.11903") if number in card]
    assert "2212.10071" in card and found == ([cited] if cited else [])


def test_a_student_of_answers_has_no_teacher_in_its_card(store: Store) -> None:
    run = reasoning(method__stages=["student", "answer"], method__prompt=config.Prompt(template="ft_token"))
    result = store.result(run, without=("rationales", "curated", "teacher_scores"))
    card = model_card(result, asdict(run))
    assert "## Rationales" not in card and "davinci" not in card and "rationales." not in card
    assert "The student is fine-tuned on the answers." in card and "chain-of-thought" not in card
    assert "The whole completion is the answer." in card


def test_the_card_labels_selection_on_the_test_set(store: Store) -> None:
    card = reasoning_card(store, select_on="test")
    assert "Checkpoints are chosen on the test set, as the paper did: its scores are optimistic." in card
    assert "**Note:** selected on the test set, as the paper did: optimistic." in card


def test_nothing_private_is_in_the_card(store: Store) -> None:
    private = {
        "rationales__base_url": "https://me:secret@h.org/v1?key=hidden",
        "task__source": config.Source(path="/home/me/coins.jsonl"),
        "method__prompt": config.Prompt(exemplars="/home/me/exemplars.json"),
        "rationales__exemplars": "/home/me/shots.json",
        "rationales__path": "/home/me/completions",
        "model__student": config.Encoder(id="/home/me/gpt2"),
    }
    card = reasoning_card(store, **private)
    assert not [word for word in ("secret", "hidden", "/home/me", "Is it heads") if word in card]
    local = reasoning_card(store, rationales__kind="local", rationales__model="/home/me/teacher")
    assert "/home/me" not in local and "Written by a local model" in local


def test_texts_can_not_break_out_of_their_block(store: Store) -> None:
    record = {"question": "x", "prompt": "x ###\n```\n# loud\n````\x1b[31m", "completion": " y"}
    values = store.targets["answers"].manifest["values"]
    store.add("answers", {"answers.json": {"data": {"0": [record]}}}, values=values)
    card = reasoning_card(store)
    assert "`````text\nx ###\n```\n# loud\n````\\x1b[31m\n`````" in card and "\x1b" not in card


def test_unmasked_padding_is_warned_of(store: Store) -> None:
    assert "**Warning:** for the scores" in reasoning_card(
        store, method__answer=config.Answering(unmasked_left_pad=True)
    )
