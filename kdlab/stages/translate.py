"""Tables of texts, translated: by Apertium, a Hugging Face model, recorded translations, or rules."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from kdlab.context import Context
from kdlab.data.languages import View
from kdlab.data.passages import sentences
from kdlab.engine.progress import duration
from kdlab.errors import DataError
from kdlab.stages.prepare import read_table, shared_rows, write_table
from kdlab.translators import apertium, hf, recorded, rules
from kdlab.translators.memory import Memory, Remembered, Translate, memory_path

SHOWN_EVERY = 10.0  # seconds between two lines of progress
MANY_UNCHANGED = 0.1  # share of a table's texts that come back as they were, from which on it is said
UNSPACED = ("ja", "zh")  # languages that put nothing between two sentences
_FULL_WIDTH = re.compile(r"(?<=[。！？])")  # ends a sentence without a blank


def translate(
    ctx: Context,
    *,
    translator: Mapping[str, Any],
    jobs: Sequence[Mapping[str, str]],
    data: Path,
    sets: Path | None = None,
) -> None:
    """Write `{job["write"]}.arrow` for each job: the rows of `{job["read"]}.arrow` that got a translation.

    translator: kind, unit (text: as a whole; sentence: sentence by sentence), and what identifies its translations:
        apertium: routes, by "source-target" what `apertium.identity` gives; rules: identity
        recorded: path, pattern (see `recorded.Recorded`), codes; what pins its files
        hf: model and models (by name); or path, and of several local ones pattern and models; and codes, pivots, beams,
            max_tokens, precision, batch_size
    jobs: {"read", "write", "source", "target"}: names of tables, codes of languages. Tables are read from `data`, or
    from `sets`, whichever has them.
    Where more than the share `ctx.requests.max_missing` of a table's rows has no translation, the stage stops.

    Ids, labels and further columns are carried along; empty texts and nulls stay as they are. Line ends and runs of
    blanks in a text become single blanks. A row is left out if any part of its texts has no translation.

    Apertium and models translate nothing twice: what they gave is kept in `ctx.translations` (see
    `kdlab.translators.memory`), so that an interrupted stage goes on where it was.

    Facts, also in facts.json: labels (those of `data`); by table written in jobs: rows (read), missing (rows left out);
    units, how many different ones were translated, of which fresh and remembered, and cut (to fit the model); of texts,
    empty (there was nothing to translate) and unchanged (the translation is the text, but for capitals);
    shared_with_train: of translated dev and test rows, those that are a training row of that language in `data`.

    Raises DataError where too much is missing, and as the translators do.
    """
    ask = _Asking(ctx, translator)
    facts: dict[str, dict[str, int]] = {}
    warnings: list[str] = []
    for job in jobs:
        folder = data if sets is None or (data / f"{job['read']}.arrow").exists() else sets
        table, counts, first = _translated(read_table(folder, job["read"]), job, ask)
        _check_missing(job, counts, first, translator["kind"], ctx.requests.max_missing)
        write_table(ctx, job["write"], table)
        facts[job["write"]] = counts
        warnings += _worth_saying(job, counts, translator)
        counts["shared_with_train"] = _shared(table, job, data)
        if counts["shared_with_train"]:
            warnings.append(
                f"{counts['shared_with_train']} of {table.num_rows} rows of {job['write']} have the same texts as a "
                f"training row in {job['target']}"
            )
    warnings += ask.warnings()
    for line in warnings:
        ctx.warn(line)
    labels = json.loads((data / "facts.json").read_text(encoding="utf-8"))["labels"]
    whole = {"labels": labels, "jobs": facts, "warnings": warnings}
    (ctx.out / "facts.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    ctx.facts.update(labels=labels, jobs=facts)


class _Asking:
    """Translations of units by one translator, with its memory; models and files stay open from job to job."""

    def __init__(self, ctx: Context, translator: Mapping[str, Any]) -> None:
        self.ctx, self.translator = ctx, translator
        self.recorded: recorded.Recorded | None = None
        self.model: hf.Translator | None = None
        self.engine = self._engine()

    def __call__(self, units: Sequence[str], job: Mapping[str, str]) -> tuple[dict[str, str | None], dict[str, int]]:
        """(the translation of each different unit; how many of them were fresh, remembered and cut)."""
        different = list(dict.fromkeys(units))
        source, target = job["source"], job["target"]
        with self._remembering(job) as engine:
            found = dict(zip(different, engine(different, source, target), strict=True))
        if isinstance(engine, Remembered):
            return found, {"fresh": engine.fresh, "remembered": engine.remembered, "cut": engine.cut}
        return found, {"fresh": len(different), "remembered": 0, "cut": 0}

    def warnings(self) -> list[str]:
        """What there is to say of the files of recorded translations."""
        found = []
        for pair, counts in (self.recorded.counts if self.recorded else {}).items():
            lead, names = "-".join(pair), ", ".join(file.name for file in counts.files)
            if counts.conflicts:
                found.append(f"{lead}: texts with several translations in {names}, the first taken: {counts.conflicts}")
            if counts.skipped:
                found.append(f"{lead}: broken lines in {names}, skipped: {counts.skipped}")
        return found

    def _engine(self) -> Translate:
        translator, kind = self.translator, self.translator["kind"]
        if kind == "rules":
            return rules.translate
        if kind == "recorded":
            self.recorded = recorded.Recorded(
                Path(translator["path"]), translator.get("pattern"), translator.get("codes")
            )
            return self.recorded
        if kind == "apertium":
            routes = translator["routes"]
            return lambda texts, source, target: apertium.translate(texts, routes[f"{source}-{target}"]["modes"])
        assert kind == "hf", kind
        self.model = self._models()
        return self.model

    def _models(self) -> hf.Translator:
        def load(model: Mapping[str, Any]) -> Any:
            from kdlab.engine.device import pick_device  # late: they load torch, which other translators don't need
            from kdlab.models import translation

            return translation.load(model, place=pick_device(self.ctx.hardware), precision=self.translator["precision"])

        spec = dict(self.translator)
        if spec.get("pattern"):  # local models below one folder
            root = Path(spec["path"])
            places = {str(root / name): {"path": str(root / name)} for name in spec["models"]}
            spec |= {"path": str(root / spec["pattern"]), "models": places}
        return hf.translator(spec, load=load)

    @contextmanager
    def _remembering(self, job: Mapping[str, str]) -> Iterator[Translate]:
        known = _identity(self.translator, job["source"], job["target"])
        if known is None:
            yield self.engine
            return
        name, identity = known
        model = self.model
        with Memory(memory_path(self.ctx.translations, name, identity), identity) as memory:
            yield Remembered(
                self.engine,
                memory,
                cut=None if model is None else lambda: model.cut,
                progress=self._progress(job),
            )
            if memory.damaged:
                self.ctx.note(f"damaged: {memory.damaged} rows of {memory.path}; their texts are translated again")

    def _progress(self, job: Mapping[str, str]) -> Callable[[int, int], None]:
        started = shown = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal shown
            passed = time.monotonic()
            if passed - shown < SHOWN_EVERY:
                return
            shown = passed
            self.ctx.note(f"      {self.ctx.stage} {job['write']} {done}/{total}: {duration(passed - started)}")

        return show


def _identity(translator: Mapping[str, Any], source: str, target: str) -> tuple[str, dict[str, Any]] | None:
    """(a name for people, what tells the translations of this pair from others); None: not worth to be remembered."""
    if translator["kind"] == "apertium":
        route = translator["routes"][f"{source}-{target}"]
        return f"apertium-{'-'.join(route['modes'])}", {"kind": "apertium", **route}
    if translator["kind"] != "hf":
        return None
    codes, pivots = translator["codes"], translator["pivots"]
    way = hf.route(source, target, pivots)
    template = translator.get("pattern") or translator.get("model") or ""
    names = hf.model_names(template, [(source, target)], codes=codes, pivots=pivots)
    local = translator.get("content")
    models = {name: {"content": local} if local else dict(translator["models"][name]) for name in names}
    settings = {name: translator[name] for name in ("beams", "max_tokens", "precision", "batch_size")}
    called = {language: codes[language] for language in way if language in codes}
    identity = {"kind": "hf", "models": models, "way": way, "codes": called, **settings}
    return f"hf-{names[0] or Path(translator['path']).name}", identity


def _translated(table: pa.Table, job: Mapping[str, str], ask: _Asking) -> tuple[pa.Table, dict[str, int], str | None]:
    """(the rows that got a translation, counts, the first text without one)."""
    columns = {name: table[name].to_pylist() for name in ("text_a", "text_b")}
    texts = [text for column in columns.values() for text in column if text is not None]
    parts = {text: _units(text, whole=ask.translator["unit"] == "text") for text in texts}
    found, counts = ask([unit for text in texts for unit in parts[text]], job)
    between = "" if job["target"] in UNSPACED else " "

    def translation(text: str) -> str | None:
        """A blank text stays as it is; one of which a part has no translation has none."""
        written = [found[unit] for unit in parts[text]]
        if not written:
            return text
        return None if None in written else between.join(map(str, written))

    translations = {text: translation(text) for text in parts}
    missing = [text for text in texts if translations[text] is None]
    lost = set(missing)
    kept = [lost.isdisjoint(row) for row in zip(*columns.values(), strict=True)]
    counts |= {
        "rows": table.num_rows,
        "missing": kept.count(False),
        "units": counts["fresh"] + counts["remembered"],
        "empty": sum(not parts[text] for text in texts),
        "unchanged": sum(bool(parts[text]) and _same(text, translations[text]) for text in texts),
    }
    for name, column in columns.items():
        written = [None if text is None else translations[text] for text in column]
        table = table.set_column(table.column_names.index(name), name, pa.array(written, pa.string()))
    return table.filter(pa.array(kept, pa.bool_())), counts, missing[0] if missing else None


def _units(text: str, whole: bool) -> list[str]:
    """What is translated by itself; nothing of a blank text."""
    if whole:
        return [" ".join(text.split())] if text.strip() else []
    parts = [part for sentence in sentences(text) for part in _FULL_WIDTH.split(sentence)]
    return [" ".join(part.split()) for part in parts if part.strip()]


def _same(text: str, other: str | None) -> bool:
    return other is not None and " ".join(text.split()).casefold() == " ".join(other.split()).casefold()


def _shared(table: pa.Table, job: Mapping[str, str], data: Path) -> int:
    train = str(View("train", job["target"]))
    if View.of(job["write"]).split == "train" or not (data / f"{train}.arrow").exists():
        return 0
    return shared_rows(table, read_table(data, train))


def _check_missing(
    job: Mapping[str, str], counts: Mapping[str, int], first: str | None, kind: str, max_missing: float
) -> None:
    rows, missing = counts["rows"], counts["missing"]
    if missing <= max_missing * rows and (not rows or missing < rows):
        return
    fix = "Choose another translator"
    if kind == "recorded":
        fix = "Set translator.path to translations of this very data, or choose another translator"
    raise DataError(
        f"{missing} of the {rows} rows of {job['read']} have no translation from {job['source']} to {job['target']}, "
        f"and {max_missing:.0%} may be without.\n  the first: {first!r}",
        where=f"translator, kind {kind}",
        fix=f"{fix}; or raise translator.max_missing to go on without them.",
    )


def _worth_saying(job: Mapping[str, str], counts: Mapping[str, int], translator: Mapping[str, Any]) -> list[str]:
    pair = f"{job['source']}-{job['target']}"
    found = []
    if counts["missing"]:
        found.append(f"{pair}: {counts['missing']} of {counts['rows']} rows of {job['read']} have no translation")
    if counts["unchanged"] > MANY_UNCHANGED * (counts["rows"] or 1):
        found.append(
            f"{pair}: texts of {job['read']} ({counts['rows']} rows) that came back as they were: {counts['unchanged']}"
        )
    if counts["cut"]:
        found.append(
            f"{pair}: {counts['cut']} of {counts['units']} {translator['unit']}s of {job['read']} were cut to "
            f"{translator['max_tokens']} tokens, or their translations"
        )
    return found
