"""scripts/wandb_workspace.py: the dashboard as code, of keys that runs really log; nothing is sent anywhere."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import wandb_file
from kdlab.config import Tracking
from kdlab.report.sync import sync
from kdlab.runs import Record
from lab import TINY, Lab
from lab import script as program

OFFLINE = Tracking(name="wandb", mode="offline")
RUNS = {  # of each family, commands whose runs log what its dashboard shows
    "distillation": [f"{TINY} method=cr_ild", f"{TINY} method=ft"],
    "reasoning": ["experiment=demo/cot task=demo/coin_flip debug=fast tracking=none"],
    "crosslingual": ["experiment=demo/musc method=musc debug=fast tracking=none"],
}
TASKS = {"distillation": ("accuracy", []), "reasoning": ("accuracy", []), "crosslingual": ("macro_f1", ["en", "es"])}
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("wandb_workspaces") is None,
    reason="wandb-workspaces is not installed: pip install 'kdlab[dashboards]'",
)


@pytest.fixture(scope="module", name="script")
def workspace() -> ModuleType:
    return program("wandb_workspace")


@pytest.fixture(autouse=True)
def nobodys_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def runs_of(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    known: dict[str, list[Path]] = {}

    def runs(family: str) -> list[Path]:
        if family not in known:
            outputs = tmp_path_factory.mktemp(family)
            for words in RUNS[family]:
                done = lab.run(words, outputs=outputs)
                assert done.code == 0, done.err
            known[family] = sorted((outputs / "runs").iterdir())
        return known[family]

    return runs


def sent(folders: list[Path]) -> tuple[set[str], set[str], dict[str, Any]]:
    """Keys of points and of the summary, and a configuration, as wandb wrote them."""
    assert all(run.problem is None for run in sync(folders, settings=OFFLINE))
    files = [wandb_file.read_folder(folder)[0] for folder in folders]
    points = {key for file in files for point in file.points for key in point}
    return points, {key for file in files for key in file.summary}, files[0].config


def used(shown: list[Any]) -> tuple[set[str], set[str]]:
    """Keys of points and of the summary that some panel has."""
    panels = [panel for section in shown for panel in section.panels]
    lines = {key for panel in panels if panel.kind == "line" for key in panel.keys}
    return lines, {key for panel in panels if panel.kind != "line" for key in panel.keys}


@pytest.mark.parametrize("family", RUNS)
def test_every_key_of_a_panel_is_logged_by_runs_of_the_family(
    script: ModuleType, runs_of: Callable[[str], list[Path]], family: str
) -> None:
    points, summary, config = sent(runs_of(family))
    metric, languages = TASKS[family]
    usual = script.usual_keys(family, metric, languages)
    found = script.keys_of([Record.open(folder) for folder in runs_of(family)])
    assert usual.points <= points and usual.summary <= summary
    assert found.points == {key for key in points if not key.startswith("_")}
    assert found.summary <= summary
    for keys in (usual, found):
        shown = script.sections(family, keys)
        lines, others = used(shown)
        assert lines <= points and others <= summary and "global_step" in points
        assert "score" in others
    for key in (script.METHOD, script.TASK, script.MODEL):
        first, _, rest = key.partition(".")
        assert isinstance(config[first][rest], str)
    assert isinstance(config[script.SEED], int)
    names = [column.partition(":")[2] for column in script.columns(usual, family) if column.startswith("summary:")]
    assert set(names) <= summary


def test_what_each_family_is_shown_by(script: ModuleType) -> None:
    def shown(family: str) -> dict[str, list[str]]:
        keys = script.usual_keys(family, "accuracy", ["en", "sw"])
        return {section.name: [panel.title for panel in section.panels] for section in script.sections(family, keys)}

    layers = shown("distillation")
    assert list(layers) == [
        *("Scores", "Score against cost"),
        *(f"Learning curves: {stage}" for stage in ("teacher", "student", "layers", "logits")),
        "Runs",
    ]
    assert "Loss term: consistency_hidden (weighted)" in layers["Learning curves: layers"]
    assert {"Score against latency, ms", "Score against parameters"} <= set(layers["Score against cost"])
    assert "contains_answer on test" in shown("reasoning")["Scores"]
    languages = shown("crosslingual")["Languages"]
    assert "accuracy on test by language, asked: both" in languages
    assert "accuracy on dev.sw while training" in languages


def test_only_metrics_that_the_tasks_ask_for_have_panels(script: ModuleType) -> None:
    points = frozenset({"student/eval/dev/accuracy", "student/eval/dev/mcc", "student/eval/dev.es/mcc"})
    summary = frozenset(
        {"score", "scores/test/mcc/selected", "scores/test/both/es/mcc", "scores/test/both/es/accuracy"}
    )
    lines, others = used(script.sections("crosslingual", script.Keys(points, summary)))
    assert lines == {"student/eval/dev/mcc", "student/eval/dev.es/mcc"}
    assert others == summary - {"scores/test/both/es/accuracy"}


@needs_library
@pytest.mark.parametrize("family", RUNS)
def test_the_workspace_has_these_panels_filters_and_columns(
    script: ModuleType, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--family", family, "--sweep", "crild", "--tag", "glue/rte", "--tag", "mcc"]
    given: Any = None

    def keep(name: str, wanted: Any, shown: Any, keys: Any) -> Any:
        nonlocal given
        given = build(name, wanted, shown, keys)
        return given

    build, script.workspace = script.workspace, keep
    try:
        assert script.main(words) == 0
    finally:
        script.workspace = build
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert "no wandb API key" in said.err
    spec = given._spec["spec"]["section"]
    sections = spec["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == [section["name"] for section in told["sections"]]
    for section, plain in zip(sections, told["sections"], strict=True):
        for panel, expected in zip(section["panels"], plain["panels"], strict=True):
            config = panel["config"]
            if expected["kind"] in ("bars", "line"):
                assert config["metrics"] == expected["keys"]
                assert config.get("groupArea") == ("stddev" if expected["by"] else None)
            if expected["kind"] == "scatter":
                assert [config["xAxis"], config["yAxis"]] == [f"summary:{key}" for key in expected["keys"]]
    (runs,) = spec["runSets"]
    filters = [(one["key"]["name"], one["op"], one["value"]) for one in runs["filters"]["filters"]]
    assert filters == [("group", "=", "crild"), ("tags", "IN", ["glue/rte", "mcc"])]
    assert [one["name"] for one in runs["grouping"]] == ["task.value.name", "model.value.name", "method.value.name"]
    assert runs["runFeed"]["columnOrder"] == told["columns"]
    assert "config:method.value.name" in told["columns"]


@needs_library
def test_a_report_of_the_runs_of_a_sweep(
    script: ModuleType, runs_of: Callable[[str], list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(runs_of("distillation")[0].parent)
    assert script.main(["--runs", folder, "--report", "--dry-run", "--entity", "me", "--name", "mine"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["name"], told["entity"]) == ("report", "mine", "me")
    assert "Learning curves: layers" in [section["name"] for section in told["sections"]]


@needs_library
def test_a_key_is_needed_to_send_and_a_server_out_of_reach_is_told(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr(script, "key_configured", lambda: True)
    monkeypatch.setattr(script, "workspace", lambda *rest: Unreachable(secret))
    monkeypatch.setenv("WANDB_API_KEY", secret)
    assert script.main(["--family", "reasoning", "--entity", "me"]) == 2
    said = capsys.readouterr()
    assert "could not be created" in said.err and "--entity" in said.err and secret not in said.err


class Unreachable:
    def __init__(self, secret: str) -> None:
        self.secret = secret

    def save(self) -> None:
        raise ConnectionError(f"no route, key {self.secret}")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "--family: choose one of"),
        (["--runs", "nothing"], "no such folder"),
        (["--runs", "."], "no run here"),
    ],
)
def test_what_is_wrong_is_said(
    script: ModuleType, words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(words) == 2
    assert part in capsys.readouterr().err


def test_without_the_library_it_says_what_to_install(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert script.main(["--family", "reasoning", "--dry-run"]) == 2
    assert "pip install 'kdlab[dashboards]'" in capsys.readouterr().err
