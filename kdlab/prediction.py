"""What `kdlab predict` does: a finished student answers rows of one's own, a chunk at a time.

Needs the run's folder only (run.json and student/), not its store; a model that was prompted as it is is found where
its run found it. Texts are read and cut as the run has read them, so that answers to the run's own rows are the run's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

from kdlab.config import Crosslingual, Hardware, Reasoning, Run
from kdlab.data.rows import Row, read_rows
from kdlab.errors import ConfigError, DataError, ModelError, StoreError, disk_errors
from kdlab.methods.reasoning import letters, task_key
from kdlab.runs import Record

CHUNK_BATCHES = 64  # of an encoder: rows of which those of like length are put together
WRITING_BATCHES = 4  # of a model that writes
SHOWN = 10  # bad rows that a message lists


class Answerer(Protocol):
    """A loaded student. chunk: rows that it wants at once."""

    chunk: int

    def answer(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """What each row is answered, as it is written out."""
        ...


@dataclass
class BadRows:
    """What can't be answered."""

    first: list[str] = field(default_factory=list)
    count: int = 0

    def __call__(self, line: int, why: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(f"line {line} {why}")

    def told(self) -> str:
        more = [f"and {self.count - len(self.first)} more"] if self.count > len(self.first) else []
        return "\n".join([*self.first, *more])


@dataclass(frozen=True)
class Done:
    """answered: rows, in so many seconds; skipped: those that could not be; untranslated: that lacked a translation."""

    answered: int
    seconds: float
    skipped: BadRows
    untranslated: int


def check(record: Record, run: Run, *, probabilities: bool, language: str | None) -> None:
    """Raises StoreError if the run has not finished, ConfigError for what its student can't be asked."""
    _ = record.finished
    problems = []
    writes = isinstance(run.method, Reasoning)
    if language is not None and not isinstance(run.method, Crosslingual):
        problems.append(f"--language {language}: run {record.name} is in one language")
    if probabilities and (writes or run.task.kind == "regression"):
        gives = "writes its answers" if writes else "gives numbers"
        problems.append(f"--probabilities: the student of run {record.name} {gives}, so there are none")
    if writes and run.model.kind == "endpoint":
        problems.append(f"run {record.name}: its student is behind an endpoint; predict asks models on this machine")
    if problems:
        raise ConfigError(problems)


def columns(run: Run, given: str, *, language: str | None = None) -> tuple[list[str], int]:
    """(the columns to read: the task's texts, then translations of them; how many are translations).

    given: "text_a=premise,text_b=hypothesis", for the first and second text, or by the task's own names; of a run in
    several languages translation=COLUMN, of pairs translation_a and translation_b, which rows in the source language
    have no use for. language: of the rows. Raises ConfigError for other names.
    """
    task = run.task
    own = ["question"] if isinstance(run.method, Reasoning) else list(task.text)
    places = {name: number for number, name in enumerate(own)} | {"text_a": 0}
    if len(own) == 2:
        places["text_b"] = 1
    translations = []
    if isinstance(run.method, Crosslingual):
        translations = ["translation"] if len(own) == 1 else ["translation_a", "translation_b"]
    found, translated, problems = list(own), dict.fromkeys(translations, ""), []
    for pair in filter(None, (word.strip() for word in given.split(","))):
        name, _, column = pair.partition("=")
        if not column or name not in {**places, **translated}:
            problems.append(f"--columns {pair}: write NAME=COLUMN; names: {', '.join([*places, *translated])}")
        elif name in translated:
            translated[name] = column
        else:
            found[places[name]] = column
    if any(translated.values()) and not all(translated.values()):
        problems.append(f"--columns: give both of {' and '.join(translated)}, or none")
    if problems:
        raise ConfigError(problems)
    more = [column for column in translated.values() if column and language != task.source_language]
    return found + more, len(more)


def predict(
    path: Path | None,
    form: str,
    wanted: Sequence[str],
    *,
    translations: int,
    skip_bad: bool,
    load: Callable[[], Answerer],
    out: Path | None,
) -> Done:
    """Answer the rows of a file (None: standard input) and write a JSON object each (None: to standard output).

    wanted, translations: as `columns` gives them. A file is looked through before anything is loaded or written; what
    is in the way of standard input's rows is met in its turn. `out` gets its name when all is done.

    Raises DataError for rows that can't be answered, unless they are to be skipped.
    """
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        what = "it is a folder" if out.is_dir() else "there is no such folder"
        raise StoreError(f"the output can't be written: {what}", where=str(out), fix="give --output FILE in a folder")
    if out is not None and path is not None and out.exists() and out.samefile(path):
        raise StoreError("the output would replace the input", where=str(out), fix="give --output another name")
    how = {"optional": translations}
    if path is not None and not skip_bad:
        found = BadRows()
        count = sum(1 for _ in read_rows(path, form, wanted, bad=found, **how))
        _refuse(found, count + found.count, str(path))
    skipped = BadRows()

    def bad(line: int, why: str) -> None:
        skipped(line, why)
        if not skip_bad:
            _refuse(skipped, None, "standard input")

    rows = read_rows(path, form, wanted, bad=bad, **how)
    first = next(rows, None)
    if first is None:
        raise DataError(
            "There is no row to answer." + (f" Bad ones:\n{skipped.told()}" if skipped.count else ""),
            where="standard input" if path is None else str(path),
        )
    answerer = load()
    answered = untranslated = 0
    started = time.monotonic()
    with _writing(out) as file:
        for chunk in _chunks(first, rows, answerer.chunk):
            for row, one in zip(chunk, answerer.answer(chunk), strict=True):
                named = {} if row.id is None else {"id": row.id}
                file.write(json.dumps({**named, "line": row.line, **one}, ensure_ascii=False, default=str) + "\n")
            file.flush()
            answered += len(chunk)
            untranslated += sum(not has_translation(row, translations) for row in chunk) if translations else 0
    return Done(answered, time.monotonic() - started, skipped, untranslated)


def has_translation(row: Row, translations: int) -> bool:
    return translations > 0 and any(text.strip() for text in row.texts[-translations:])


def _refuse(found: BadRows, count: int | None, where: str) -> None:
    if found.count:
        share = "A row" if count is None else f"{found.count} of {count} rows"
        raise DataError(
            f"{share} can't be answered:\n{found.told()}",
            where=where,
            fix="correct them, or leave them out with --skip-bad",
        )


def _chunks(first: Row, rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    chunk = [first, *islice(rows, size - 1)]
    while chunk:
        yield chunk
        chunk = list(islice(rows, size))


@contextmanager
def _writing(out: Path | None) -> Iterator[IO[str]]:
    """A file that gets its name when all is written; None: standard output, which streams."""
    if out is None:
        yield sys.stdout
        return
    scratch = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with disk_errors("writing the predictions", out):
        try:
            with open(scratch, "w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, out)
        finally:
            with suppress(FileNotFoundError):
                scratch.unlink()


# students ----------------------------------------------------------------------------------------------------------


def load(
    record: Record,
    run: Run,
    *,
    hardware: Hardware,
    batch: int,
    probabilities: bool,
    translations: int,
    language: str | None,
) -> Answerer:
    """The run's student. Raises ModelError if it is not there, StoreError if it is damaged."""
    record.refuse_damaged_student()
    if isinstance(run.method, Reasoning):
        return Writer(record, run, hardware=hardware, batch=batch)
    return Classifier(
        record.folder / "student",
        run,
        hardware=hardware,
        batch=batch,
        probabilities=probabilities,
        translations=translations,
        language=language,
    )


class Classifier:
    """An encoder with a head, of one language or several: classes or numbers.

    translations: how many of a row's texts are translations, the last ones; a row that has them is answered in the
    run's own mode of inference, another one from its own texts. language: of the rows, to be told.
    """

    def __init__(
        self,
        folder: Path,
        run: Run,
        *,
        hardware: Hardware,
        batch: int,
        probabilities: bool = False,
        translations: int = 0,
        language: str | None = None,
    ) -> None:
        from transformers import AutoTokenizer

        from kdlab.engine import device
        from kdlab.stages.encoder import saved_model

        _require(folder)
        place = device.pick_device(hardware)
        self.model = saved_model(folder, kernel=device.attention_kernel(hardware)).to(place).freeze()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.backend_tokenizer.enable_truncation(run.task.max_length)
        self.pad_to = run.task.max_length if run.task.pad_to_max else None
        config: Any = self.model.model.config
        self.classes: list[str] | None = None
        if config.problem_type != "regression":
            self.classes = [str(config.id2label[number]) for number in range(config.num_labels)]
        self.width = int(config.num_labels)
        self.method, self.batch, self.chunk = run.method, batch, batch * CHUNK_BATCHES
        self.probabilities, self.translations, self.language = probabilities, translations, language

    def logits(self, texts: Sequence[tuple[str, ...]]) -> Any:
        """float32 [rows, classes], in the order of the texts; those of like length are read together."""
        import pyarrow as pa

        from kdlab.data.batches import Batches, EncodedSplit
        from kdlab.data.tasks import table
        from kdlab.stages.encoder import read_batches
        from kdlab.stages.tokenise import encode

        parts = [pa.array(list(part), pa.string()) for part in zip(*texts, strict=True)]
        encoded, _ = encode(self.tokenizer, table(*parts))
        batches = Batches(
            EncodedSplit(encoded),
            batch_size=self.batch,
            seed=0,
            shuffle=False,
            pad_token_id=self.tokenizer.pad_token_id,
            pad_to=self.pad_to,
        )
        return read_batches(self.model, batches, rows=len(texts), width=self.width)

    def answer(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        own = len(rows[0].texts) - self.translations
        plain = self.logits([row.texts[:own] for row in rows])
        if self.classes is None:
            return [{"prediction": float(line[0])} for line in plain]
        scores = [_softmax(line) for line in plain]
        having = [number for number, row in enumerate(rows) if has_translation(row, self.translations)]
        if having:
            for number, line in zip(having, self._together(rows, having, plain, own), strict=True):
                scores[number] = line
        return [self._told(line) for line in scores]

    def _together(self, rows: Sequence[Row], having: Sequence[int], plain: Any, own: int) -> list[Any]:
        """Probabilities of the rows with a translation, in the run's mode of inference."""
        from kdlab.stages.crosslingual import modes

        method = self.method
        assert isinstance(method, Crosslingual)
        translated = self.logits([rows[number].texts[own:] for number in having])
        views = {"original": plain[having], "translated": translated}
        found = modes(views, ensemble=method.ensemble, share=method.share)[method.inference]
        summed = method.inference != "both" or method.ensemble == "logits"
        return [_softmax(line) if summed else line for line in found]

    def _told(self, scores: Any) -> dict[str, Any]:
        assert self.classes is not None
        told: dict[str, Any] = {} if self.language is None else {"language": self.language}
        told["prediction"] = self.classes[int(scores.argmax())]
        if self.probabilities:
            shares = zip(self.classes, scores, strict=True)
            told["probabilities"] = {name: round(float(share), 6) for name, share in shares}
        return told


def _softmax(logits: Any) -> Any:
    import numpy as np

    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()


class Writer:
    """A model that writes rationales and answers, asked as its run asked it."""

    def __init__(self, record: Record, run: Run, *, hardware: Hardware, batch: int) -> None:
        from kdlab.data.answers import Form
        from kdlab.data.prompts import Style, read_exemplars
        from kdlab.engine import device
        from kdlab.stages.generation import KERNEL, named_generator, saved_generator

        method, task = run.method, run.task
        assert isinstance(method, Reasoning)
        asked = next((stage["values"] for stage in record.graph if stage["label"] == "answers"), None)
        if asked is None:
            raise ModelError("the run does not say how its student is asked", where=str(record.folder / "graph.json"))
        folder = record.folder / "student"
        if "student" in method.stages:
            _require(folder)
            model, self.tokenizer = saved_generator(folder, attention=KERNEL)
        else:
            spec = asked["model"]
            more = {} if "revision" in spec else {"path": str(Path(str(run.model.student.id)).expanduser())}
            model, self.tokenizer = named_generator({**spec, **more}, attention=KERNEL)
        self.model: Any = model.to(device.pick_device(hardware))  # type: ignore[arg-type]
        self.style = Style(**asked["style"])
        shots = method.prompt.template == "fs_cot"
        self.exemplars = read_exemplars(method.prompt.exemplars, task_key(task)) if shots else []
        self.form = Form(kind=task.answer, choices=letters(task), compare=task.compare, cleanse=task.answer == "text")
        self.method, self.batch, self.chunk = method, batch, batch * WRITING_BATCHES
        archive = task.source.path is not None and task.source.key is not None  # whose questions have it already
        self.suffix = "" if archive else task.suffix

    def answer(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        from kdlab.stages.generation import answer_questions

        answering, prompt = self.method.answer, self.method.prompt
        found = answer_questions(
            self.model,
            self.tokenizer,
            [{"question": self._question(row.texts[0])} for row in rows],
            self.style,
            max_tokens=answering.max_tokens,
            max_prompt=prompt.max_prompt,
            too_long=prompt.too_long,
            exemplars=self.exemplars,
            batch_size=self.batch,
            unmasked_left_pad=answering.unmasked_left_pad and self.style.model_type == "decoder",
        )
        return [self._told(one) for one in found]

    def _question(self, text: str) -> str:
        return text if text.endswith(self.suffix) else text + self.suffix

    def _told(self, one: Any) -> dict[str, Any]:
        """prediction: the answer that is read out of the text, or None; complete: the text ended by itself."""
        from kdlab.data.answers import parse
        from kdlab.data.prompts import answer_prefix

        text = one.completion.text
        parsed = parse(
            text,
            template=self.style.template,
            form=self.form,
            parser=self.method.answer.parser,
            natural_comma=self.style.natural_comma,
        )
        prefix = answer_prefix(self.style)
        rationale = one.reasoning.text if one.reasoning is not None else text.partition(prefix)[0] if prefix else ""
        return {
            "prediction": parsed.prediction,
            "rationale": rationale.strip(),
            "text": text.strip(),
            "complete": one.completion.finish_reason == "stop",
        }


def _require(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            "the run has no student that can be loaded",
            where=str(folder),
            fix="give the run's command again: it puts the student back",
        )


def told(done: Done) -> Iterable[str]:
    """What there is to say when all is answered, a line each."""
    rate = done.answered / max(done.seconds, 1e-9)
    yield f"{done.answered} rows in {done.seconds:.1f} s, {rate:.0f} a second"
    if done.skipped.count:
        yield f"skipped {done.skipped.count}:\n{done.skipped.told()}"
    if done.untranslated:
        yield f"{done.untranslated} of them without a translation: answered from their own text"
