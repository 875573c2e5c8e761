"""GLUE as the local Hub serves it, read the way a run reads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.real
PROJECT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, sys
from pathlib import Path
from kdlab.context import Context
from kdlab.errors import KdlabError
from kdlab.stages.prepare import prepare, prepare_sets

given = json.loads(sys.argv[1])
for name, settings in given.items():
    ctx = Context(out=Path(name), stage="data")
    ctx.out.mkdir()
    try:
        if "evaluations" in settings:
            prepare_sets(ctx, **{**settings, "data": Path(settings["data"])})
        else:
            prepare(ctx, **settings)
    except KdlabError as error:
        ctx.facts["error"] = f"{type(error).__name__}: {error}"
    print("FACTS", json.dumps({"name": name, **ctx.facts}))
"""


def settings(name: str, **changes: Any) -> dict[str, Any]:
    task = yaml.safe_load((PROJECT / "conf" / "task" / "glue" / f"{name}.yaml").read_text(encoding="utf-8"))
    values: dict[str, Any] = {
        "source": task["source"],
        "splits": {"train": "train", "dev": "validation"} | task.get("splits", {}),
        "text": task["text"],
        "label": "label",
        "labels": task.get("labels"),
        "kind": task["kind"],
        "heldout": 0.1,
        "few": None,
        "imbalance": None,
        "noise": None,
        "dev_limit": None,
        "rows": None,
        "seed": 42,
    }
    return values | changes


def sets(data: str, values: dict[str, Any], evaluations: dict[str, Any], test: str | None = None) -> dict[str, Any]:
    """The further sets of a task prepared under the name `data`."""
    kept = {name: values[name] for name in ("source", "text", "label", "kind", "rows")}
    return kept | {"data": data, "splits": {"test": test}, "evaluations": evaluations}


@pytest.fixture(scope="module")
def facts(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `prepare` finds in each task, in one process with a fresh HF_HOME."""
    base = tmp_path_factory.mktemp("glue")
    root, work = base / "root", base / "work"
    root.mkdir()
    work.mkdir()
    (root / "datasets").symlink_to(shared / "hub" / "datasets")
    given = {name: settings(name) for name in ("rte", "cola", "stsb", "qnli", "wnli", "mnli", "qqp")}
    rte = given["rte"]
    given["rte_test"] = sets(
        "rte", rte, {"again": {"split": "validation"}, "train_again": {"split": "train", "config": "rte"}}, "test"
    )
    given["rte_again"] = rte
    given["mnli_cut"] = settings("mnli", splits={"train": "train", "dev": None})
    held = {"held": {"split": "heldout_from_train"}, "ax": {"split": "test", "config": "ax"}}
    given["mnli_sets"] = sets("mnli_cut", given["mnli_cut"], {"held": held["held"]})
    given["mnli_no_ax"] = sets("mnli_cut", given["mnli_cut"], held)
    given["swapped"] = rte | {"labels": ["not_entailment", "entailment"]}
    given["unknown"] = rte | {"labels": ["yes", "no"]}
    given["column"] = rte | {"text": ["sentence1", "sentence"]}
    given["no_config"] = rte | {"source": {"hub": "nyu-mll/glue"}}
    given["revision"] = rte | {"source": rte["source"] | {"revision": "nope"}}
    given["absent"] = rte | {"source": {"hub": "nyu-mll/glu", "config": "rte"}}
    mirror = [sys.executable, str(shared / "hub" / "hub_mirror.py"), "exec", "--root", str(root)]
    command = [
        *mirror,
        "--hf-home",
        str(base / "home"),
        "--",
        sys.executable,
        "-c",
        SCRIPT,
        json.dumps(given),
    ]
    environment = {"PYTHONPATH": str(PROJECT), "PATH": str(Path(sys.executable).parent)}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("FACTS ") for line in done.stdout.splitlines() if line.startswith("FACTS ")]
    found = {entry.pop("name"): entry for entry in map(json.loads, lines)}
    found["rte"]["same"] = all(
        file.read_bytes() == (work / "rte_again" / file.name).read_bytes() for file in (work / "rte").iterdir()
    )
    return found


@pytest.mark.parametrize(
    ("name", "train", "dev", "labels", "accuracy"),
    [
        ("rte", 2490, 277, ["entailment", "not_entailment"], 0.527),
        ("cola", 8551, 1043, ["unacceptable", "acceptable"], 0.691),
        ("qnli", 8999, 5463, ["entailment", "not_entailment"], 0.495),
        ("wnli", 635, 71, ["not_entailment", "entailment"], 0.563),
        ("stsb", 5749, 1500, None, None),
    ],
)
def test_rows_labels_and_majority(
    facts: dict[str, dict[str, Any]],
    name: str,
    train: int,
    dev: int,
    labels: list[str] | None,
    accuracy: float | None,
) -> None:
    found = facts[name]
    assert found["rows"] == {"train": train - round(train * 0.1), "heldout": round(train * 0.1), "dev": dev}
    assert found["labels"] == labels
    assert set(found["unlabelled"].values()) == {0} and set(found["empty_texts"].values()) == {0}
    if accuracy is None:
        assert found["majority"]["dev"] == {"pearson_spearman": 0.0, "pearson": 0.0, "spearman": 0.0}
    else:
        assert found["majority"]["dev"]["accuracy"] == pytest.approx(accuracy, abs=6e-4)
        assert found["majority"]["dev"]["mcc"] == 0.0


def test_same_bytes_twice(facts: dict[str, dict[str, Any]]) -> None:
    assert facts["rte"]["same"] is True


def test_hidden_test_labels(facts: dict[str, dict[str, Any]]) -> None:
    found = facts["rte_test"]
    assert found["rows"]["test"] == found["unlabelled"]["test"] == 3000
    assert found["labels"] == ["entailment", "not_entailment"] and set(found["majority"]) == {"again", "train_again"}
    assert found["majority"]["again"] == facts["rte"]["majority"]["dev"]
    assert found["shared_with_train"]["train_again"] == 2490 and found["shared_with_train"]["test"] < 30


def test_further_sets_of_the_hub(facts: dict[str, dict[str, Any]]) -> None:
    assert facts["mnli_sets"]["rows"] == {"held": 1000} and facts["mnli_sets"]["unlabelled"] == {"held": 0}
    assert facts["mnli_sets"]["shared_with_train"]["held"] < 10


def test_labels_go_by_name_not_by_number(facts: dict[str, dict[str, Any]]) -> None:
    """The majority class of RTE's train is entailment, whose id is now 1: so f1 is not 0 any more."""
    plain, swapped = facts["rte"]["majority"]["dev"], facts["swapped"]["majority"]["dev"]
    assert plain["accuracy"] == swapped["accuracy"] and plain["f1"] == 0.0 and swapped["f1"] > 0.6


def test_dev_cut_from_train(facts: dict[str, dict[str, Any]]) -> None:
    assert facts["mnli_cut"]["rows"] == {"train": 7289, "heldout": 810, "dev": 900}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "mnli",
            ["DataError", "no split 'validation_matched'", "'train', 'heldout_from_train'", "task.splits"],
        ),
        ("mnli_no_ax", ["DataError", "no configuration 'ax'", "'cola', 'mnli'"]),
        ("qqp", ["DataError", "no configuration 'qqp'", "'cola', 'mnli', 'qnli', 'rte', 'stsb', 'wnli'"]),
        ("unknown", ["DataError", "'yes', 'no'", "'entailment', 'not_entailment'", "task.labels"]),
        ("column", ["DataError", "no column 'sentence'", "Did you mean 'sentence"]),
        ("no_config", ["DataError", "several configurations", "'rte'", "task.source.config"]),
        ("revision", ["HubError", "nope", "nyu-mll/glue"]),
        ("absent", ["HubError", "no such data set nyu-mll/glu"]),
    ],
)
def test_clear_messages(facts: dict[str, dict[str, Any]], name: str, parts: list[str]) -> None:
    message = facts[name]["error"]
    assert all(part in message for part in parts), message
    assert len(message.splitlines()) <= 3, message
