"""The overfitting study of a real student: a regression task, half a MiniLM, a few steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from local_hub import HubRun

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

KDLAB = (sys.executable, "-m", "kdlab")
PAIRS = [[1, 2], [2, 4], [3, 6]]


@pytest.fixture(scope="module")
def studied(hub_run: HubRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """(result.json, analysis.json, the folder of the analysis) of a run of cr_ild on STS-B."""
    folder = tmp_path_factory.mktemp("stsb")
    words = ("method=cr_ild", "task=glue/stsb", "model=minilm_6_to_3", "debug=fast", "tracking=none")
    trained = hub_run(*KDLAB, "train", *words, cwd=folder)
    assert trained.returncode == 0, trained.stderr
    (run,) = (folder / "outputs" / "runs").iterdir()
    done = hub_run(*KDLAB, "analyze", run, "--rows", "64", "--points", "3", "--draws", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    return (
        json.loads((run / "result.json").read_text()),
        json.loads((run / "analysis" / "analysis.json").read_text()),
        run,
    )


def test_what_is_found_is_of_the_student_as_it_is(studied: Any) -> None:
    result, analysis, _ = studied
    (run,) = analysis["runs"]
    selected = result["scores"]["dev"]["pearson_spearman"]["selected"]
    assert run["noise"]["rows"] == run["noise"]["of"] == 64
    assert run["noise"]["score"][0]["mean"] == selected == run["selected"]
    assert run["surface"]["loss"][1][1] == run["surface"]["center"] > 0  # squared error
    assert np.ptp(run["surface"]["loss"]) > 0.01
    assert [curve["stage"] for curve in run["gap"]] == ["teacher", "layers", "logits"]


def test_layers_of_a_student_cut_from_its_teacher(studied: Any) -> None:
    _, analysis, _ = studied
    distance = analysis["runs"][0]["distance"]
    assert distance["pairs"] == PAIRS and distance["mapped"] == [[3, 6]] and not distance["projected"]
    for splits in distance["students"].values():
        for one in splits.values():
            table = np.array(one["similarity"])
            assert table.shape == (4, 7) and table[0, 0] > 0.99  # the embeddings are the teacher's, hardly trained
            assert table.min() >= 0 and table.max() <= 1
            assert all(value > 0 for name in ("attention", "hidden") for value in one[name])
            np.testing.assert_allclose(one["cka"], [1 - table[i, j] for i, j in PAIRS])


def test_plots_are_there(studied: Any) -> None:
    _, analysis, run = studied
    assert len(analysis["plots"]) == 10
    assert all((run / "analysis" / name).stat().st_size > 5000 for name in analysis["plots"])
