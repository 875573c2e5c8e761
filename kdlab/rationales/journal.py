"""The journal of paid answers: one JSON line each, appended and synced to disk before anything else happens with it.

A line holds `key`, `time` (UTC), `request` (all that the answer depends on, see `key_of`), `completion` (text,
finish_reason, the model as the server named it), `usage` (tokens) and `sha256`, the line's own checksum, which those of
older versions lack. No key and no header is ever written.

A line that a kill or a full disk tore is the last one and has no line end: it is cut off when the journal is opened
again, so that at most the answers that were on their way are asked anew. A damaged line elsewhere is an error: whether
it can be mended, or is worth its price once more, is for the user to say.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kdlab.errors import StoreError
from kdlab.integrity import SEAL, parsed, sealed, unsealed
from kdlab.rationales.completion import Completer, Completion, Done, Progress, Report, Request

if TYPE_CHECKING:
    from filelock import BaseFileLock


MEND = (
    "Look at the line. If it can be mended, take its sha256 out as well; if not, delete it: its request is then asked, "
    "and paid for, again."
)


def key_of(
    endpoint: str,
    model: str,
    api: str,
    prompt: str,
    sample: int,
    max_tokens: int,
    temperature: float,
    stop: Sequence[str],
) -> str:
    """The identity of a request: sha256 over sorted JSON of all that its answer depends on, 64 hexadecimal digits."""
    content = {
        "endpoint": endpoint.rstrip("/"),
        "model": model,
        "api": api,
        "prompt": prompt,
        "sample": int(sample),
        "max_tokens": int(max_tokens),
        "temperature": float(temperature),
        "stop": list(stop),
    }
    whole = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(whole.encode("ascii")).hexdigest()


def journal_path(folder: Path, endpoint: str, model: str) -> Path:
    """The file for the answers of one model at one endpoint: readable, and never that of another pair."""
    digest = hashlib.sha256(f"{endpoint.rstrip('/')}\n{model}".encode()).hexdigest()[:8]
    return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', model).strip('-.')[:60]}-{digest}.jsonl"


class Journal:
    """One file of answers; a context manager, inside of which this process alone writes to it.

    waiting: called once if another process has the journal, before waiting for it.
    Raises StoreError if the file is damaged or can't be written.
    """

    def __init__(self, path: Path, *, waiting: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._waiting = waiting
        self._lock: BaseFileLock | None = None
        self._file: int | None = None
        self._places: dict[str, tuple[int, int]] = {}  # of each key's line: where it begins, bytes
        self._end = 0  # bytes of whole lines

    def __enter__(self) -> Journal:
        from filelock import FileLock, Timeout

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path.with_suffix(".lock"))
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                self._waiting()
                self._lock.acquire(poll_interval=0.2)
            try:
                self._open()
            except BaseException:
                self._close()
                raise
        except OSError as error:
            raise self._unwritable("open", error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> Completion | None:
        """The answer to a request, None if it was never asked."""
        if key not in self._places:
            return None
        assert self._file is not None, "the journal is closed"
        start, size = self._places[key]
        _, completion = _parse(os.pread(self._file, size, start))
        return completion

    def add(self, key: str, request: Mapping[str, Any], completion: Completion) -> None:
        """Write an answer down; when this returns, it is on the disk. A key that is known keeps its first answer."""
        assert self._file is not None, "the journal is closed"
        if key in self._places:
            return
        entry = {
            "key": key,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "request": dict(request),
            "completion": {
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "model": completion.model,
            },
            "usage": {
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": completion.completion_tokens,
            },
        }
        line = sealed(entry).encode("ascii")
        try:
            self._write(line)
        except OSError as error:
            raise self._unwritable("write", error) from error
        self._places[key] = (self._end, len(line))
        self._end += len(line)

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        written = 0
        try:
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._end)  # a full disk: what is there stays whole
            raise

    def _open(self) -> None:
        new = not self.path.exists()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        if new:
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        self._places, self._end = {}, 0
        with open(self._file, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.strip(b" \r\n"):
                    self._end += len(line)
                    continue
                whole = line.endswith(b"\n")
                try:
                    key, _ = _parse(line)
                except ValueError as error:
                    if not whole:
                        break
                    raise StoreError(
                        f"The journal of answers is damaged: {error}.", where=f"{self.path}, line {number}", fix=MEND
                    ) from None
                self._places.setdefault(key, (self._end, len(line)))
                self._end += len(line)
                if not whole:
                    self._end += os.pwrite(self._file, b"\n", self._end)
                    break
        os.ftruncate(self._file, self._end)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _unwritable(self, doing: str, error: OSError) -> StoreError:
        return StoreError(
            f"The journal of answers can't be {'opened' if doing == 'open' else 'written'}: {error.strerror or error}.",
            where=str(self.path),
            fix="Make room on the disk or check its permissions, then run the same command again: "
            "every answer that was written is kept.",
        )


def damaged_lines(path: Path) -> list[str]:
    """Of a journal that nobody has open: what is wrong with it, one text a line. Raises OSError."""
    found = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                if line.strip(b" \r\n") and line.endswith(b"\n"):
                    _parse(line)
            except ValueError as error:
                found.append(f"line {number}: {error}")
    return found


def _parse(line: bytes) -> tuple[str, Completion]:
    """A line's key and answer. Keys that are not known here are ignored; ValueError if one that is needed is absent."""
    try:
        entry = parsed(line)
    except ValueError:
        raise ValueError("this line is no JSON") from None
    try:
        if isinstance(entry, dict) and SEAL in entry:
            entry = unsealed(line.decode("ascii").rstrip("\r\n") + "\n")
    except ValueError:
        raise ValueError("this line is not as it was written") from None
    try:
        key, answer, usage = entry["key"], entry["completion"], entry.get("usage") or {}
        completion = Completion(
            text=answer["text"],
            finish_reason=answer["finish_reason"],
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            model=answer.get("model"),
        )
    except (TypeError, KeyError, AttributeError):
        raise ValueError("this line has no key, completion.text or completion.finish_reason") from None
    if not (isinstance(key, str) and isinstance(completion.text, str) and isinstance(completion.finish_reason, str)):
        raise ValueError("key, completion.text and completion.finish_reason of this line are not all text")
    for tokens in (completion.prompt_tokens, completion.completion_tokens):
        if tokens is not None and type(tokens) is not int:
            raise ValueError(f"usage of this line counts {tokens!r} tokens")
    return key, completion


class Journaled:
    """A completer that asks for nothing twice: what the journal holds is answered from it, the rest is written down.

    Equal requests of one call are asked once, and each of them gets the answer.
    """

    def __init__(self, completer: Completer, journal: Journal) -> None:
        self.completer, self.journal = completer, journal
        self.ledger = completer.ledger

    def content(self, request: Request) -> dict[str, Any]:
        return self.completer.content(request)

    def known(self, requests: Sequence[Request]) -> list[Completion | None]:
        """What the journal holds for these requests; counted as spent, each answer once in the life of the ledger.

        Called for every step of a run before the first `complete`, it makes the budget see what later steps have cost.
        """
        found: list[Completion | None] = []
        for request in requests:
            key = key_of(**self.content(request))
            completion = self.journal.get(key)
            if completion is not None:
                self.ledger.recall(key, request, completion)
            found.append(completion)
        return found

    def complete(self, requests: Sequence[Request], done: Done, progress: Report | None = None) -> None:
        """Answer all requests: first those that the journal holds, then the others as their answers arrive."""
        answered = 0

        def report() -> None:
            if progress is not None:
                tokens, usd = self.ledger.tokens, self.ledger.usd
                progress(Progress(done=answered, total=len(requests), tokens=tokens, usd=usd))

        unknown: dict[str, list[int]] = {}  # key to the indices of its equal requests
        for index, completion in enumerate(self.known(requests)):
            if completion is None:
                unknown.setdefault(key_of(**self.content(requests[index])), []).append(index)
            else:
                answered += 1
                done(index, completion)
        report()
        keys = list(unknown)

        def arrived(position: int, completion: Completion) -> None:
            nonlocal answered
            indices = unknown[keys[position]]
            self.journal.add(keys[position], self.content(requests[indices[0]]), completion)
            for index in indices:
                answered += 1
                done(index, completion)
            report()

        if keys:
            self.completer.complete([requests[unknown[key][0]] for key in keys], arrived)
