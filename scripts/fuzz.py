"""Feeds the readers of kdlab with damaged files, and says what they got wrong.

    python scripts/fuzz.py [--seconds 60] [--seed 0] [--target journal --target metrics ...]

A reader may give what is there or raise an error that can be mended (`kdlab.errors`). It may not raise anything else,
give a record that a strict reading of the same bytes does not give, or take longer than LIMIT seconds. What is found
is printed, with the file that did it, which is kept in --keep. Exit code: 0 if nothing was found, else 1.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdlab.artifacts import FORMAT, Store, write_json
from kdlab.config import Budget
from kdlab.data import archive, prompts, rows, tasks
from kdlab.engine.metrics_log import MetricsLog
from kdlab.errors import KdlabError
from kdlab.integrity import SEAL
from kdlab.rationales import endpoint, journal, recorded
from kdlab.rationales.client import Passing
from kdlab.rationales.completion import Completion
from kdlab.runs import Record
from kdlab.translators import recorded as translations

LIMIT = 10  # seconds for one file
WORDS = [
    *(
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"null",
        b"true",
        b"{}",
        b"[]",
        b'""',
        b'"',
        b"\\",
        b"\\ud800",
        b"\\u0000",
        b"\0",
    ),
    *(
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xc3",
        b"\r",
        b"\r\n",
        b"\n",
        b"\n\n",
        b"\t",
        b",",
        b":",
        b"}",
        b"]",
        b"-1",
        b"0.0",
    ),
    *(b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, "\u2028".encode(), "é猫".encode(), b"1_000", b"0x10", b"{", b"$"),
]


class Wrong(Exception):
    """A reader gave what is not there."""


@dataclass(frozen=True)
class Target:
    """valid: the bytes of a good file; read: what the reader makes of a file; strict: raises Wrong, given the file's
    bytes and what was read of them."""

    name: str
    file: str
    valid: Callable[[], bytes]
    read: Callable[[Path], Any]
    strict: Callable[[bytes, Any], None] = lambda content, found: None


def demand(holds: bool, what: str) -> None:
    if not holds:
        raise Wrong(what)


# The journal of paid answers

ANSWERS = {
    f"{number:064x}": Completion(
        text=("yes", "no\n", "é猫 \u2028", '"', "")[number % 5],
        finish_reason="stop",
        prompt_tokens=number,
        completion_tokens=None,
        model="m",
    )
    for number in range(8)
}


def write_journal() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        with journal.Journal(path) as file:
            for key, answer in ANSWERS.items():
                file.add(key, {"prompt": "Why?"}, answer)
        return path.read_bytes()


def read_journal(path: Path) -> dict[str, Completion | None]:
    with journal.Journal(path) as file:
        return {key: file.get(key) for key in ANSWERS} | {"": Completion(str(len(file)), "")}


def judge_journal(content: bytes, found: dict[str, Completion | None]) -> None:
    """Each line has a checksum: what is given is what was written, and no whole line is lost."""
    written = write_journal_once().splitlines(keepends=True)
    whole = {line for line in content.splitlines(keepends=True) if line in written}
    for (key, answer), line in zip(ANSWERS.items(), written, strict=True):
        demand(found[key] in (None, answer), f"another answer to {key}: {found[key]}")
        demand(found[key] is not None or line not in whole, f"the answer to {key} is lost")


_JOURNAL: list[bytes] = []


def write_journal_once() -> bytes:
    if not _JOURNAL:
        _JOURNAL.append(write_journal())
    return _JOURNAL[0]


# Recorded completions


def write_recorded() -> bytes:
    def record(number: int, index: int) -> dict[str, Any]:
        return {
            "sample_index": number,
            "completion_index": index,
            "question": f"What is {number}?",
            "answer": str(number),
            "reasoning_prompt": "Q: ...",
            "reasoning_completion": "é猫",
            "prompt": "Q: ...",
            "completion": f" {number}.",
            "finish_reason": "stop",
        }

    data = {str(number): [record(number, index) for index in range(2)] for number in range(6)}
    metadata = {"base_model": "m", "completion_key": "zs_cot", "prediction_template": "zs_cot"}
    return json.dumps({"metadata": metadata, "data": data}, indent=1, ensure_ascii=False).encode()


def read_recorded(path: Path) -> Any:
    return recorded.read(path), recorded.prediction_template(path), recorded.origin(path)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    demand(len(dict(pairs)) == len(pairs), "one of two values of a key")
    return dict(pairs)


def judge_recorded(content: bytes, found: Any) -> None:
    plain = json.loads(content.decode("utf-8-sig"), object_pairs_hook=unique)
    records, template, _ = found
    demand(template == plain["metadata"]["prediction_template"], "another template")
    demand(sorted(map(str, records)) == sorted(plain["data"]), "other questions")
    for number, given in records.items():
        raw = sorted(plain["data"][str(number)], key=lambda one: one["completion_index"])
        wanted = [{name: one.get(name) for name in recorded.FIELDS} for one in raw]
        demand(given == wanted, f"other records of question {number}")


# What an endpoint answers


def write_response() -> bytes:
    message = {"role": "assistant", "content": "Yes, é猫."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    return json.dumps({"id": "x", "model": "m-2024", "choices": [choice], "usage": usage}, indent=1).encode()


def read_response(path: Path) -> Completion | None:
    asked = endpoint.Endpoint(
        base_url="http://127.0.0.1:1/v1",
        model="m",
        api="chat",
        max_tokens=8,
        temperature=0.0,
        stop=[],
        concurrency=1,
        timeout=1.0,
        attempts=1,
        budget=Budget(),
        price=None,
    )
    run = endpoint._Run(asked, [], lambda index, completion: None, None, key="no-key")
    try:
        return run._read(path.read_bytes().decode("utf-8", "replace"))  # as the client decodes
    except Passing:
        return None


def judge_response(content: bytes, found: Completion | None) -> None:
    if found is None:
        return
    found.text.encode("utf-8")
    payload = json.loads(content.decode("utf-8", "replace"))
    message = payload["choices"][0]["message"]
    said = message.get("content") or message.get("refusal") or ""
    demand(found.text == said.encode("utf-8", "replace").decode("utf-8"), "another text")
    for tokens in (found.prompt_tokens, found.completion_tokens):
        demand(tokens is None or (type(tokens) is int and tokens >= 0), "no count of tokens")


# Files of runs and of the store

MANIFEST = {
    "label": "x",
    "values": {"lr": 1e-3},
    "facts": {"é": 1},
    "made": {"at": "2026"},
    "format": FORMAT,
    "files": {},
}
TOLD = {
    "run_id": "0" * 16,
    "name": "good",
    "config": {
        "method": {"name": "kd", "family": "distillation"},
        "task": {"name": "glue/rte"},
        "model": {"name": "tiny"},
        "seed": 1,
        "store": "artifacts",
    },
    "overrides": ["method=kd", "seed=1"],
    "identity": "0" * 64,
}
RESULT = {"metric": "accuracy", "scores": {"dev": {"accuracy": {"selected": 0.5}}}, "artifacts": {"student": "x-1"}}
NAMED = {"function": "a:b", "version": 1, "values": {}, "inputs": {}}
GRAPH = [{"label": label, "artifact": f"{label}-1", "fingerprint": label, **NAMED} for label in ("teacher", "student")]


def sealed(value: Any) -> Callable[[], bytes]:
    def write() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            write_json(Path(folder) / "a.json", value, seal=True)
            return (Path(folder) / "a.json").read_bytes()

    return write


def plainly(value: Any) -> Callable[[], bytes]:
    return lambda: json.dumps(value, indent=2, sort_keys=True).encode()


def read_manifest(path: Path) -> Any:
    found = Store(path.parent.parent).find(path.parent.name)
    return None if found is None else (found.manifest, found.facts)


def judge_manifest(content: bytes, found: Any) -> None:
    demand(found is None or found[0] == MANIFEST, "another manifest")


def read_run(path: Path) -> Any:
    """All that is asked of every run."""
    record = Record.open(path.parent)
    told = (record.config, record.family, record.method, record.task, record.model, record.seed, record.command)
    return told, record.state, record.graph, record.store(), record.points, record.artifact("student")


def judge_run(content: bytes, found: Any) -> None:
    if SEAL in json.loads(content):  # without it, it is one of an older version
        demand(found[0][0] == TOLD["config"], "another configuration")


def beside(name: str, value: Any) -> Callable[[Path], Any]:
    """A reader of a run's other files, beside a good run.json."""

    def read(path: Path) -> Any:
        write_json(path.parent / name, value, seal=name == "run.json")
        return read_run(path)

    return read


def write_metrics() -> bytes:
    points = [{"step": step, "loss": 1 / (step + 1), "split": "é", "none": None} for step in range(8)]
    return "".join(f"{json.dumps(point, ensure_ascii=False)}\n" for point in points).encode()


def judge_metrics(content: bytes, found: Any) -> None:
    demand(found == [json.loads(line) for line in content.split(b"\n")[:-1]], "other points")


# Prompts, questions, rows, translations


def write_exemplars() -> bytes:
    text = "Q: What is 1 and 1?\nA: 1 and 1 is 2. The answer is 2.\nQ: And 2?\nA: It is 4. The answer is 4."
    return json.dumps({"addsub": {"prompt": text}, "other": {"prompt": ""}}, indent=1).encode()


def exemplars_of(path: Path) -> list[str]:
    return prompts.read_exemplars(path, "addsub")


def questions_of(path: Path) -> list[dict[str, Any]]:
    return archive.read_dataset(path, "addsub")


def judge_exemplars(content: bytes, found: list[str]) -> None:
    demand("\n".join(found) == json.loads(content.decode("utf-8-sig"))["addsub"]["prompt"], "other exemplars")


def write_archive() -> bytes:
    questions = [{"sample_index": n, "question": f"What is {n}?", "answer": str(n)} for n in range(6)]
    return json.dumps({"metadata": {"dataset_key": "addsub"}, "data": questions}, indent=1).encode()


def judge_archive(content: bytes, found: list[dict[str, Any]]) -> None:
    plain = json.loads(content.decode("utf-8-sig"))
    plain = plain["data"] if isinstance(plain, dict) else plain
    demand([{**row, "sample_index": None} for row in plain] == [{**row, "sample_index": None} for row in found], "rows")


TEXTS = ["a", "b, c", 'd "e"', "f g", "é猫", "", "h i j", "k"]


def write_csv() -> bytes:
    quoted = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    return ("text,label\r\n" + "".join(f"{text},{n % 2}\r\n" for n, text in enumerate(quoted))).encode()


def write_tsv() -> bytes:
    return ("text\tlabel\n" + "".join(f"{text}\t{n % 2}\n" for n, text in enumerate(TEXTS))).encode()


def write_jsonl() -> bytes:
    return "".join(f"{json.dumps({'id': n, 'text': text, 'label': n % 2})}\n" for n, text in enumerate(TEXTS)).encode()


def write_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS, "label": [n % 2 for n in range(len(TEXTS))]}), sink)
    return bytes(sink.getvalue().to_pybytes())


def write_review() -> bytes:
    found = "".join(f"<item><text>{n} é &amp; b</text><label>{n % 2}</label></item>" for n in range(6))
    return f"<items>\n{found}\n</items>".encode()


def read_task(path: Path) -> Any:
    raw = tasks.read_raw({"path": str(path)}, "train", text=["text"], label="label")
    table = tasks.canonical(raw, text=["text"], label="label", labels=["0", "1"], kind="classification")
    return table.to_pydict()


def judge_jsonl(content: bytes, found: Any) -> None:
    lines = [json.loads(line) for line in content.decode("utf-8-sig").split("\n") if line.strip()]
    demand(len(lines) == len(found["text_a"]), "another number of rows")
    for line, text in zip(lines, found["text_a"], strict=True):
        demand(line["text"] == text or not isinstance(line["text"], str), f"another text: {text!r}")


def read_asked(form: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        bad: list[int] = []
        found = list(rows.read_rows(path, form, ["text"], bad=lambda line, why: bad.append(line)))
        for row in found:
            json.dumps([row.id, row.texts], ensure_ascii=False, default=str).encode()
        return found, bad

    return read


def judge_asked(content: bytes, found: Any) -> None:
    answered, bad = found
    lines = content.split(b"\n")
    for row in answered:
        line = json.loads(lines[row.line - 1].decode("utf-8-sig" if row.line == 1 else "utf-8"))
        demand(not isinstance(line["text"], str) or row.texts == (line["text"],), f"another text in line {row.line}")
    filled = sum(bool(line.strip(b" \t\r\x0b\x0c\x1c\x1d\x1e\x1f")) for line in lines)
    demand(len(answered) + len(bad) >= filled - 2, "rows are lost")  # what str.strip takes for blank may be more


def write_translations() -> bytes:
    found = [{"source": text, "target": f"{text}!", "source_language": "en", "target_language": "es"} for text in TEXTS]
    return "".join(f"{json.dumps(row)}\n" for row in found).encode()


def write_pairs() -> bytes:
    return write_csv().replace(b"text,label", b"source,target")


def judge_translations(content: bytes, found: Any) -> None:
    lines = [json.loads(line) for line in content.decode("utf-8-sig").split("\n") if line.strip()]
    demand(
        [(row.text, row.translation) for row in found[0]] == [(row["source"], row["target"]) for row in lines], "rows"
    )


TARGETS = [
    Target("journal", "a.jsonl", write_journal_once, read_journal, judge_journal),
    Target("recorded", "D_x.json", write_recorded, read_recorded, judge_recorded),
    Target("response", "a.json", write_response, read_response, judge_response),
    Target("manifest", "x-1/manifest.json", sealed(MANIFEST), read_manifest, judge_manifest),
    Target("run", "good/run.json", sealed(TOLD), read_run, judge_run),
    Target("run_unsealed", "good/run.json", plainly(TOLD), read_run),
    Target("result", "good/result.json", sealed(RESULT), beside("run.json", TOLD)),
    Target("result_unsealed", "good/result.json", plainly(RESULT), beside("run.json", TOLD)),
    Target("graph", "good/graph.json", plainly(GRAPH), beside("run.json", TOLD)),
    Target("metrics", "metrics.jsonl", write_metrics, MetricsLog.read, judge_metrics),
    Target("points", "good/metrics.jsonl", write_metrics, beside("run.json", TOLD)),
    Target("exemplars", "a.json", write_exemplars, exemplars_of, judge_exemplars),
    Target("archive", "addsub.json", write_archive, questions_of, judge_archive),
    Target("csv", "train.csv", write_csv, read_task),
    Target("tsv", "train.tsv", write_tsv, read_task),
    Target("jsonl", "train.jsonl", write_jsonl, read_task, judge_jsonl),
    Target("parquet", "train.parquet", write_parquet, read_task),
    Target("review", "train.review", write_review, read_task),
    Target("asked_csv", "a.csv", write_csv, read_asked("csv")),
    Target("asked_tsv", "a.tsv", write_tsv, read_asked("tsv")),
    Target("asked_jsonl", "a.jsonl", write_jsonl, read_asked("jsonl"), judge_asked),
    Target("asked_parquet", "a.parquet", write_parquet, read_asked("parquet")),
    Target("translations", "a.jsonl", write_translations, translations.read, judge_translations),
    Target("translations_csv", "a.csv", write_pairs, translations.read),
    Target("xtreme", "a.tsv", lambda: b"a b\tc\td\te\t0\n" * 9, translations.read),
]


def mutated(valid: bytes, rng: random.Random) -> bytes:
    """A file with one to four faults; now and then one of nothing but random bytes."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(200))
    content = valid
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        content = rng.choice(FAULTS)(content, rng)
    return content


def _place(content: bytes, rng: random.Random) -> int:
    return rng.randrange(len(content) + 1)


def flip(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return content
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def behead(content: bytes, rng: random.Random) -> bytes:
    return content[_place(content, rng) :]


def leave_out(content: bytes, rng: random.Random) -> bytes:
    start = _place(content, rng)
    return content[:start] + content[start + rng.randrange(1, 40) :]


def repeat(content: bytes, rng: random.Random) -> bytes:
    start = _place(content, rng)
    return content[:start] + content[start : start + rng.randrange(1, 200)] + content[start:]


def insert(content: bytes, rng: random.Random) -> bytes:
    place = _place(content, rng)
    return content[:place] + rng.choice(WORDS) + content[place:]


def overwrite(content: bytes, rng: random.Random) -> bytes:
    place, word = _place(content, rng), rng.choice(WORDS)
    return content[:place] + word + content[place + len(word) :]


def replace_value(content: bytes, rng: random.Random) -> bytes:
    """Put a word where JSON has a value: behind a colon, up to the next comma or line end."""
    places = [number for number, byte in enumerate(content) if byte == ord(":")]
    if not places:
        return insert(content, rng)
    start = rng.choice(places) + 1
    ends = [end for mark in (b",", b"\n", b"}") if (end := content.find(mark, start)) >= 0]
    return content[:start] + rng.choice(WORDS) + content[min(ends, default=len(content)) :]


def shuffle_lines(content: bytes, rng: random.Random) -> bytes:
    """Double, lose, move or join lines."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return content
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            lines.insert(other, lines[one])
        case 1:
            del lines[one]
        case 2:
            lines[one], lines[other] = lines[other], lines[one]
        case _:
            lines[one] = lines[one].rstrip(b"\r\n")
    return b"".join(lines)


def splice(content: bytes, rng: random.Random) -> bytes:
    """The beginning of one line and the end of another."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return content
    one, other = rng.choice(lines), rng.choice(lines)
    lines[rng.randrange(len(lines))] = one[: _place(one, rng)] + other[_place(other, rng) :]
    return b"".join(lines)


FAULTS = [flip, cut, behead, leave_out, repeat, insert, overwrite, replace_value, shuffle_lines, splice]


class TooSlow(BaseException):
    """A reader does not come back; no `except Exception` may take it for its own."""


@contextmanager
def limited() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def trouble(target: Target, content: bytes, folder: Path) -> str | None:
    """What a reader gets wrong with these bytes; None: nothing. Leaves the file in the folder."""
    path = folder / target.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        with limited():
            found = target.read(path)
    except KdlabError:
        return None
    except TooSlow:
        return f"takes more than {LIMIT} s"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(last.filename).name}, {last.name}: {str(error)[:120]}"
    try:
        target.strict(content, found)
    except Exception as error:
        return f"silently wrong: {type(error).__name__}: {str(error)[:200]}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=[target.name for target in TARGETS])
    parser.add_argument("--keep", type=Path, help="a folder for the files that are read wrongly")
    given = parser.parse_args()
    chosen = [target for target in TARGETS if given.target is None or target.name in given.target]
    found: Counter[tuple[str, str]] = Counter()
    tried: Counter[str] = Counter()
    rngs = {target.name: random.Random(f"{given.seed} {target.name}") for target in chosen}
    end = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory() as scratch:
        while time.monotonic() < end:
            for target in chosen:
                content = mutated(target.valid(), rngs[target.name])
                tried[target.name] += 1
                problem = trouble(target, content, Path(scratch) / target.name)
                if problem is None:
                    continue
                found[target.name, problem.partition(":")[0]] += 1
                if found[target.name, problem.partition(":")[0]] == 1:
                    print(f"{target.name}: {problem}", flush=True)
                    if given.keep is not None:
                        given.keep.mkdir(parents=True, exist_ok=True)
                        (given.keep / f"{target.name}-{tried[target.name]}").write_bytes(content)
    print(f"{tried.total()} files, {min(tried.values(), default=0)} or more a reader; {found.total()} read wrongly")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
