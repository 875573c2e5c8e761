"""`kdlab fetch` and runs against a Hub that fails, then without any network: real data, model and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

KDLAB = (sys.executable, "-m", "kdlab")
RUN = ["method=kd", "task=glue/rte", "model=minilm_6_to_3", "debug=fast", "tracking=none", "hardware.threads=1"]
WEIGHTS, TRAIN = "model.safetensors", "rte/train-00000-of-00001.parquet"


@dataclass(frozen=True)
class Done:
    """What a command left, and the requests that it made."""

    code: int
    out: str
    err: str
    log: list[dict[str, Any]]

    def bodies(self, name: str) -> int:
        """How often the whole of a file was sent."""
        whole = [one for one in self.log if one["method"] == "GET" and one["path"].endswith(name)]
        return sum(one.get("status") == 200 and not one.keys() & {"fault", "delay"} for one in whole)


class Faulty(Protocol):
    def __call__(self, *words: str, faults: Sequence[str] = (), **env: str) -> Done: ...


@pytest.fixture
def faulty(shared: Path, hub_root: Path, tmp_path: Path) -> Faulty:
    """Runs `kdlab` with a Hub that spoils what `faults` say; calls share one cache and one folder."""

    def run(*words: str, faults: Sequence[str] = (), **env: str) -> Done:
        log = tmp_path / "log.json"
        log.unlink(missing_ok=True)
        flags = [word for fault in faults for word in (("--delay" if "=delay" in fault else "--fault"), fault)]
        flags = [flag.replace("=delay:", "=") for flag in flags]
        command = [sys.executable, shared / "hub" / "hub_mirror.py", "exec", "--trap", "--root", hub_root, *flags]
        command += ["--log", log, "--hf-home", tmp_path / "home", "--", "env", *(f"{key}={env[key]}" for key in env)]
        done = subprocess.run(
            [*command, *KDLAB, *words], cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=600
        )
        lines = log.read_text().splitlines() if log.exists() else []
        return Done(done.returncode, done.stdout, done.stderr, [json.loads(line) for line in lines])

    return run


def test_what_passes_is_got_over_and_what_was_fetched_is_all_that_a_run_needs(faulty: Faulty) -> None:
    faults = [f"GET */{WEIGHTS}=cut:2", f"GET */{TRAIN}=503:1", "GET /api/models/*=503:1", "GET /api/datasets/*=429:1"]
    fetched = faulty("fetch", *RUN, faults=faults)
    assert fetched.code == 0, fetched.err
    assert sorted({str(one["fault"]) for one in fetched.log if "fault" in one}) == ["429", "503", "cut"]
    assert not [one["path"] for one in fetched.log if not one["path"].startswith(("/api/", "/datasets/", "/sentence-"))]

    offline = faulty("train", *RUN, HF_HUB_OFFLINE="1")
    assert offline.code == 0, offline.err
    assert offline.log == []  # the mirror is also the proxy for every other host
    again = faulty("train", *RUN)
    assert again.code == 0 and "run   " not in again.out  # the same fingerprints as with the Hub
    assert {one["method"] for one in again.log} <= {"GET"} and all("/revision/main" in one["path"] for one in again.log)


@pytest.mark.parametrize(
    ("faults", "what", "env"),
    [
        ([f"GET */{WEIGHTS}=503:99"], "model sentence-transformers/all-MiniLM-L6-v2: the Hub fails (503)", {}),
        ([f"GET */{TRAIN}=cut:99"], "the connection broke off", {}),
        ([f"GET */{TRAIN}=delay:3"], "the Hub does not answer in time", {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}),
        (["*/tokenizer.json=403:99"], "the Hub refuses (403)", {}),
        (["GET /api/*=500:99"], "the Hub fails (500)", {}),
    ],
)
def test_what_stays_is_told_in_one_message_and_goes_on_where_it_was(
    faulty: Faulty, faults: list[str], what: str, env: dict[str, str]
) -> None:
    failed = faulty("train", *RUN, faults=faults, **env)
    assert failed.code == 2 and "Traceback" not in failed.err and "run   " not in failed.out
    (said,) = [part for part in failed.err.split("error: ")[1:]]
    assert what in said and "where: http://127.0.0.1" in said and "fix:" in said and len(said) < 900
    done = faulty("fetch", *RUN)
    assert done.code == 0, done.err
    for name in (WEIGHTS, TRAIN):
        assert failed.bodies(name) + done.bodies(name) == 1, name  # nothing whole is fetched again
