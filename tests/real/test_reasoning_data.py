"""The published splits and the paper's baselines, recomputed from the data of ../shared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from kdlab import compose as composition
from kdlab.context import Context
from kdlab.data import partition as parting
from kdlab.stages.completions import read_rows
from kdlab.stages.questions import prepare_questions

pytestmark = pytest.mark.real

CONF = Path(__file__).resolve().parents[2] / "conf"
SPLITS = (
    *("addsub__default", "aqua__default", "coin_flip__default", "commonsense_qa__default", "gsm8k__default"),
    *("multiarith__default", "multiarith__template", "single_eq__default", "strategy_qa__default"),
    "tracking_shuffled_objects__default",
)
FIELDS = ("splits", "text", "label", "answer", "choices", "options", "suffix", "after", "compare", "partition")
CHANCE = {  # papers.md 2.4, "Chance from train answer frequencies", in percent
    "coin_flip": 49.66,
    "commonsense_qa": 20.01,
    "multiarith": 2.64,
    "strategy_qa": 50.18,
    "tracking_shuffled_objects": 33.33,
}


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    composition.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def fields(key: str) -> dict[str, Any]:
    """What conf/task/reasoning/KEY.yaml says."""
    found = OmegaConf.to_container(compose(f"task/reasoning/{key}"))
    assert isinstance(found, dict)
    return {name: found["task"]["reasoning"][name] for name in FIELDS}


def prepared(shared: Path, key: str, out: Path, rule: str | None = None) -> dict[str, Any]:
    """Runs the stage on the folder; its facts."""
    task = fields(key)
    if rule is not None:
        task["partition"]["rule"] = rule
    ctx = Context(out=out, stage="questions")
    source = {"path": str(shared / "reasoning"), "key": key}
    limits = {"generate": None, "heldout": 0.0, "few": None, "dev_limit": None, "rows": None}
    prepare_questions(ctx, source=source, **task, **limits)
    return ctx.facts


def places(key: str, size: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(train, test) by the rule that the task's YAML names for a folder."""
    rule = fields(key)["partition"]
    assert rule["size"] == size
    if rule["rule"] != "first":
        return parting.random_split(size)
    train, test = parting.first_split(size, rule["train"])
    return (train if rule["limit"] is None else parting.draw(train, rule["limit"])), test


def test_every_published_split_is_checked(shared: Path) -> None:
    assert {file.stem for file in (shared / "reasoning" / "split").glob("*.json")} == set(SPLITS)


@pytest.mark.parametrize("name", SPLITS)
def test_published_splits(shared: Path, tmp_path: Path, name: str) -> None:
    key, _, rule = name.partition("__")
    published = json.loads((shared / "reasoning" / "split" / f"{name}.json").read_text())
    facts = prepared(shared, key, tmp_path, "template" if rule == "template" else None)
    for split, wanted in published.items():
        if key == "aqua" and split == "train":  # only its test questions are in the folder
            assert places(key, 97721)[0].tolist() == wanted
            assert facts["rows"]["train"] == 0
        else:
            assert [row["id"] for row in read_rows(tmp_path, split)] == wanted


def cases() -> list[str]:
    return ["single_eq", "addsub", "multiarith", "gsm8k", "aqua", "svamp", "tracking_shuffled_objects"]


@pytest.mark.parametrize("key", cases())
def test_official_splits_and_subsets(shared: Path, key: str) -> None:
    bundle = json.loads((shared / "parity" / "open" / "cot" / "splits.json").read_text())
    assert [case["id"] for case in bundle["cases"]] == cases()
    (case,) = (case for case in bundle["cases"] if case["id"] == key)
    expected = case["expected"]
    train, test = places(key, case["params"]["dataset_size"])
    for name, part in (("train", train.tolist()), ("test", test.tolist())):
        assert len(part) == expected[f"n_{name}"]
        assert (part[:8], part[-8:]) == (expected[f"{name}_first"], expected[f"{name}_last"])
        assert hashlib.sha256(json.dumps(part).encode()).hexdigest() == expected[f"{name}_sha256"]
    for drawn, wanted in expected["subsample_indices"].items():
        count, seed = drawn.split("/seed")
        assert parting.draw(train, int(count), seed=int(seed)).tolist() == wanted


@pytest.mark.parametrize("key", CHANCE)
def test_chance_is_that_of_the_paper(shared: Path, tmp_path: Path, key: str) -> None:
    facts = prepared(shared, key, tmp_path)
    assert 100 * facts["chance"]["test"]["accuracy"] == pytest.approx(CHANCE[key], abs=0.006)


def test_constant_answers_are_those_of_the_paper(shared: Path, tmp_path: Path) -> None:
    """papers.md 2.4: coin flip 44.67 always yes, strategy_qa 52.55 always no."""
    for key, answer, wanted in (("coin_flip", "yes", 44.67), ("strategy_qa", "no", 52.55)):
        (tmp_path / key).mkdir()
        facts = prepared(shared, key, tmp_path / key)
        assert facts["majority_answer"] == answer
        assert 100 * facts["majority"]["test"]["accuracy"] == pytest.approx(wanted, abs=0.006)


def test_questions_are_those_of_the_transcripts(shared: Path, tmp_path: Path) -> None:
    facts = prepared(shared, "tracking_shuffled_objects", tmp_path)
    folder = shared / "reasoning" / "completion_data" / "B_text-davinci-002__C_zs_cot"
    data = json.loads((folder / "D_tracking_shuffled_objects.json").read_text())["data"]
    rows = read_rows(tmp_path, "train") + read_rows(tmp_path, "test")
    asked = {int(index): records[0]["question"] for index, records in data.items()}
    assert len(rows) == 750 == sum(facts["rows"].values())
    assert all(row["question"] == asked[row["id"]] for row in rows if row["id"] in asked) and asked
