"""The proof that each family survives kill -9: `kdlab verify-resume` over small runs of all three, on demo tasks.

    python scripts/kill.py [--kills 50] [--seed 0] [--family layers --family reasoning --family languages]

`reasoning` has its rationales from an endpoint that this script is, and counts what it was asked: an answer that is
in the journal is never asked for again, so that there are at most as many requests more as were on their way at each
kill. Needs no network. Exit code: 0 if nothing differed in any family, else 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SMALL = "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2, intermediate_size: 64}"
CPU = ["hardware=cpu", "hardware.threads=1"]
QUESTIONS, TESTS, CONCURRENCY = 48, 16, 4
FAMILIES = {
    "layers": ["method=cr_ild", "task=demo/nli", "model=tiny", "debug=fast"],
    "reasoning": [
        "method=ft_cot",
        "task=demo/coin_flip",
        f"task.generate.train={QUESTIONS}",
        f"task.generate.test={TESTS}",
        "task.generate.steps=2",
        "model=tiny_decoder",
        f"model.student.config={SMALL}",
        "method.student.epochs=2",
        "method.student.batch_size=8",
        "method.answer.max_tokens=24",
        "hardware.eval_batch=4",
        "rationales=openai",
        "rationales.model=oracle",
        f"rationales.concurrency={CONCURRENCY}",
        "rationales.price.input=1",
        "rationales.price.output=2",
    ],
    "languages": [
        "method=musc",
        "task=demo/sentiment_xx",
        "model=tiny_multilingual",
        "translator=rules",
        "task.languages=[en,es,fr]",
        "task.few.examples=96",
        "task.dev_limit=24",
        "task.test_limit=40",
        "curves=16",
        "method.student.epochs=2",
    ],
}


class Oracle(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint that knows how the coin lies, and counts what it is asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no error."""

    def answer(self, prompt: str) -> str:
        self.asked += 1
        time.sleep(0.02)  # so that some are on their way when the kill comes
        flips = prompt.rpartition("Q: ")[2].count(" flips ")
        word = "no" if flips % 2 else "yes"
        return f" {word}." if "Therefore, the answer is" in prompt else f" There are {flips} flips. So: {word}."


class Answer(BaseHTTPRequestHandler):
    server: Oracle
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        text = self.server.answer(prompt)
        choice = {"index": 0, "finish_reason": "stop", "text": text, "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
        told = {"id": "x", "object": "any", "model": body["model"], "choices": [choice], "usage": usage}
        content = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def prove(words: list[str], kills: int, seed: int) -> int:
    """The verb's exit code."""
    command = [sys.executable, "-m", "kdlab", "verify-resume", "--kills", str(kills), "--seed", str(seed)]
    return subprocess.run([*command, *words, *CPU], check=False).returncode


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each family")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="default: all")
    given = parser.parse_args(arguments)
    oracle = Oracle()
    threading.Thread(target=oracle.serve_forever, daemon=True).start()
    codes = []
    for family in given.family or FAMILIES:
        print(f"\n{family}: {given.kills} kills", flush=True)
        more = [f"rationales.base_url={oracle.url}"] if family == "reasoning" else []
        codes.append(prove([*FAMILIES[family], *more], given.kills, given.seed))
    print(f"\nrequests that the endpoint got, over all runs: {oracle.asked}")
    oracle.shutdown()
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main())
