"""A stand-in for Apertium: a program of that name, with modes, that writes down what it is asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

PROGRAM = """#!{python} -IS
import json, os, sys, time
from pathlib import Path
folder, mode = Path(sys.argv[2]), sys.argv[4]
assert sys.argv[1] == "-d" and sys.argv[3] == "-u" and (folder / "modes" / (mode + ".mode")).is_file(), sys.argv
sent = sys.stdin.buffer.read().decode("utf-8")
texts = sent.split("\\n\\n")
assert texts.pop() == "" and not any("\\n" in text for text in texts), sent
with open(folder / "asked.jsonl", "a") as file:
    file.write(json.dumps([mode, texts]) + "\\n")
order = (folder / "order").read_text() if (folder / "order").exists() else ""
if order == "hang":
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)
if order == "fail":
    sys.exit("Error: the engine is on fire")
if order == "die":
    os.kill(os.getpid(), 9)
if order == "lose":
    texts = texts[:-1]
ending = {{"spa": "o", "es": "o", "fr": "eau"}}.get(mode.split("-")[1], "a")
for text in texts:
    words = ["" if word == "uh" else word if word == "@user" else word + ending for word in text.split()]
    sys.stdout.buffer.write((" ".join(words) + "\\n\\n").encode("utf-8"))
"""


class FakeApertium:
    """Adds "o" to each word where it translates into Spanish, "eau" into French, "a" into others; drops "uh"."""

    def __init__(self, root: Path, *modes: str) -> None:
        self.bin, self.data = root / "bin", root / "share" / "apertium"
        self.bin.mkdir(parents=True)
        (self.data / "modes").mkdir(parents=True)
        program = self.bin / "apertium"
        program.write_text(PROGRAM.format(python=sys.executable))
        program.chmod(0o755)
        for mode in modes:
            self.add(mode)

    def add(self, mode: str) -> Path:
        """Install a mode; gives its data file."""
        data = self.data / f"{mode}.automorf.bin"
        data.write_text(f"words of {mode}")
        (self.data / "modes" / f"{mode}.mode").write_text(f"lt-proc '{data}' | apertium-tagger -g $2 | lt-proc $1\n")
        return data

    def order(self, what: str) -> None:
        """What it does from now on: hang, fail, die, lose (a text); "": work."""
        (self.data / "order").write_text(what)

    @property
    def asked(self) -> list[tuple[str, list[str]]]:
        """(mode, texts) of each call."""
        file = self.data / "asked.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [(mode, texts) for mode, texts in map(json.loads, lines)]


def install(monkeypatch: pytest.MonkeyPatch, root: Path, *modes: str) -> FakeApertium:
    """Put one first on PATH."""
    fake = FakeApertium(root, *modes)
    monkeypatch.setenv("PATH", f"{fake.bin}:/usr/bin:/bin")
    monkeypatch.delenv("APERTIUM_DATADIR", raising=False)
    return fake
