"""Two processes on one machine (gloo, CPU) train as one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import two_processes
from kdlab.artifacts import Store
from kdlab.engine import loop
from kdlab.engine.metrics_log import MetricsLog
from test_pair_steps import contrasted, cross, cut

HERE = Path(__file__).parent


def launch(*command: str, folder: Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run `python COMMAND` in `folder`, in so many processes at once."""
    words = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        words += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    done = subprocess.run(
        [*words, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


pytestmark = pytest.mark.xdist_group("two processes")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    launch(str(HERE / "two_processes.py"), str(folder), folder=folder)
    return folder


def same_training(
    name: str, two: Path, one: Path, start: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], history: Any
) -> None:
    """Whether both processes of `two` came to the weights, the history and the log of the one in `one`."""
    assert max(float((weights[key] - start[key]).abs().max()) for key in weights) > 0.01
    for rank in (0, 1):
        found = load_file(two / f"{name}-{rank}.safetensors")
        for key, wanted in weights.items():
            torch.testing.assert_close(found[key], wanted, rtol=1e-5, atol=1e-6)
    assert json.loads((two / f"{name}-0.json").read_text()) == history
    pairs = zip(MetricsLog.read(two / name / "metrics.jsonl"), MetricsLog.read(one / "metrics.jsonl"), strict=True)
    for found_point, point in pairs:
        assert found_point.pop("stage") == point.pop("stage")
        assert found_point == pytest.approx(point, rel=1e-4)


@pytest.mark.parametrize("case", two_processes.CASES)
def test_uncoupled_training_is_that_of_one_process(
    case: str, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "build_optimizer", loop.build_optimizer)  # `uncoupled` sets its own
    start = two_processes.toy.encoder(layers=1, seed=2).state_dict()
    same_training(case, two, tmp_path, start, *two_processes.uncoupled(case, tmp_path))


def test_contrast_is_that_of_one_process(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process's rows are candidates of the other's: uneven ones, and none of a phantom."""
    monkeypatch.setattr(loop, "build_optimizer", loop.build_optimizer)
    start = two_processes.pair_student().state_dict()
    same_training("contrast", two, tmp_path, start, *two_processes.contrasted(tmp_path))


def test_contrast_of_mixed_rows_reaches_both_processes(two: Path) -> None:
    """Rows are mixed within their process, then all of both are compared: written out for rows 0, 2, 4 and 1, 3."""
    w, v, alpha, lam = 0.37, 0.81, 0.3, 0.4
    model = two_processes.pair_student()
    parts = [two_processes.Pairs(rank, 2).batch([0, 1, 2, 3, 4]) for rank in (0, 1)]
    halves = [
        [cut(part, rows) for rows in (slice(0, n), slice(n, None))] for part, n in zip(parts, (3, 2), strict=True)
    ]
    ran = [(model(s), model(t), model(s, lam=w), model(t, lam=v)) for s, t in halves]
    s, t, s_mix, t_mix = (torch.cat([views[k].logits for views in ran]) for k in range(4))
    z_s, z_t, z_sm, z_tm = (torch.cat([views[k].projected for views in ran]) for k in range(4))
    y, order = torch.cat([part["labels"] for part in parts]), [2, 1, 0, 4, 3]
    label = alpha * (cross(s, y) + w * cross(s_mix, y) + (1 - w) * cross(s_mix, y[order]))
    label = label + (1 - alpha) * (cross(t, y) + v * cross(t_mix, y) + (1 - v) * cross(t_mix, y[order]))
    contrast = contrasted([z_s, z_t], y)
    contrast = contrast + w * contrasted([z_sm, z_t], y) + (1 - w) * contrasted([z_sm, z_t[order]], y[order])
    contrast = contrast + v * contrasted([z_s, z_tm], y) + (1 - v) * contrasted([z_s[order], z_tm], y[order])
    torch.autograd.backward((1 - lam) * label + lam * contrast)
    for rank in (0, 1):
        found = load_file(two / f"mixed-gradients-{rank}.safetensors")
        assert found.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
        for name, p in model.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["student", "ema"])
def test_a_broken_off_job_continues_bit_for_bit(target: str, two: Path) -> None:
    """Mixed inputs, dropout, consistency; the clean view runs without gradient between forward and backward."""
    whole = [load_file(two / f"{target}-whole-{rank}.safetensors") for rank in (0, 1)]
    history = json.loads((two / f"{target}-whole-0.json").read_text())
    assert (history["selected_step"], history["last_step"]) == (6, 9)
    assert two_processes.toy.same(*whole)
    for kill in (4, 7):
        for rank in (0, 1):
            again = load_file(two / f"{target}-killed-{kill}-{rank}.safetensors")
            assert two_processes.toy.same(again, whole[0])
        assert json.loads((two / f"{target}-killed-{kill}-0.json").read_text()) == history
        logs = [(two / f"{target}-{name}" / "metrics.jsonl").read_bytes() for name in ("whole", f"killed-{kill}")]
        assert logs[0] == logs[1] != b""


def student(folder: Path) -> dict[str, torch.Tensor]:
    (found,) = folder.glob("outputs/runs/*/student/model.safetensors")
    return load_file(found)


def scores(folder: Path) -> dict[str, Any]:
    (found,) = folder.glob("outputs/runs/*/result.json")
    return dict(json.loads(found.read_text())["scores"])


@pytest.mark.slow  # in part: below
def test_the_whole_command_in_two_processes(tmp_path: Path) -> None:
    done = launch("-m", "kdlab", "train", "method=cr_ild", *two_processes.RUN, folder=tmp_path)
    store = Store(tmp_path / "outputs" / "artifacts")
    assert store.verify() == [] and store.unfinished() == []
    assert len(list((tmp_path / "outputs" / "runs").iterdir())) == 1
    assert 0.0 <= scores(tmp_path)["dev"]["accuracy"]["selected"] <= 1.0
    assert all(tensor.isfinite().all() for tensor in student(tmp_path).values())
    lines = (done.stdout + done.stderr).splitlines()
    for stage in ("prepare", "teacher", "layers", "logits", "evaluate_student"):
        assert sum(line.startswith(f"done  {stage}:") for line in lines) == 1
    noise = ("Warning", "Traceback", "error:", "[W", "[rank")
    assert not [line for line in lines if any(word in line for word in noise)]


def test_fine_tuning_in_two_processes_gives_the_student_of_one(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    two_processes.fine_tune(tmp_path)
    found = student(two / "ft")
    for name, wanted in student(tmp_path).items():
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=1e-5)
    assert scores(two / "ft") == scores(tmp_path)
