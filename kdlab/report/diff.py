"""What differs between two runs, as plain JSON, and the same for a terminal of 80 columns.

    found = compared(a, b)          everything, "format": 1; scores are fractions, differences are b - a
    for part in shown(found): console.print(part)

Fingerprints say which stages are the same. Of a stage that is not, its values and inputs are compared, and what comes
from its inputs is followed up to the first stages that differ by themselves.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdlab.errors import StoreError
from kdlab.report.expected import text
from kdlab.report.predictions import SCORING, Asked, Predictions, load
from kdlab.report.settings import ABSENT, differences
from kdlab.report.summary import hundredfold, metric_name, probability, signed, titled
from kdlab.runs import AGAIN, Record, read_json
from kdlab.study import INCIDENTAL

FORMAT = 1
SIDES = ("a", "b")
APART = tuple(key for key in INCIDENTAL if key != "seed")  # settings that can't change a number
LONGEST = 120  # characters of a value on the terminal; JSON has all of it
CLOSE = 1e-9  # numbers nearer than this are the same prediction

Diff = dict[str, Any]
Pair = tuple[Record, Record]


def opened(folder: Path) -> Record:
    """Raises StoreError if the folder is not that of a run; of a sweep's folder it names `kdlab compare`."""
    inner = sorted(file.parent.name for file in folder.glob("*/run.json"))
    if inner and not (folder / "run.json").exists():
        raise StoreError(
            f"this is no run but a folder of {len(inner)} runs",
            where=str(folder),
            fix=f"`kdlab compare {shlex.quote(str(folder))}` sets them beside each other; `kdlab diff` takes two of "
            f"them, such as {shlex.quote(str(folder / inner[0]))}",
        )
    record = Record.open(folder)
    try:
        named = (record.family, record.method, record.task, record.model, record.seed, record.config["store"])
    except (KeyError, TypeError, ValueError):
        named = None
    if named is None or (record.result is not None and not {"run", "artifacts", "scores"} <= set(record.result)):
        broken = "run.json" if named is None else "result.json"
        raise StoreError(f"{broken} is not whole, or was written by another kdlab", where=str(folder), fix=AGAIN)
    return record


def compared(a: Record, b: Record, store: str | Path | None = None) -> Diff:
    """Everything that differs between two runs, finished or not. store: where their artifacts are; None: as they say.

    What can't be read is left out and told in "notes".
    """
    pair, notes = (a, b), _states(a, b)
    graphs = [_graph(record, notes) for record in pair]
    config = differences([a.config, b.config])
    found: Diff = {
        "format": FORMAT,
        **{side: _told(record) for side, record in zip(SIDES, pair, strict=True)},
        "config": [_both(path, values) for path, values in config.items() if not _apart(path)],
        "config_apart": [_both(path, values) for path, values in config.items() if _apart(path)],
        "command": _words(a, b),
        "data": _data(pair, graphs, store),
        "versions": _versions(pair),
        "graph": _graphs(*graphs),
        "scores": _scores(pair),
        "predictions": _predictions(pair, store, notes),
        "seconds": _seconds(pair),
        "warnings": _warnings(pair),
        "notes": notes,
    }
    return {**found, "identical": _identical(pair, found), "verdict": _verdict(pair, found)}


def _states(a: Record, b: Record) -> list[str]:
    told = []
    for side, record in zip(SIDES, (a, b), strict=True):
        if record.state != "finished":
            how = f"has failed ({record.failure.splitlines()[0]})" if record.failure else "has not finished"
            told.append(f"{side.upper()} {how}: it has no scores, versions or times yet")
    if a.folder.resolve() == b.folder.resolve():
        told.append("A and B are the same folder")
    if a.family != b.family:
        told.append(
            f"methods of two families ({a.family}, {b.family}): their settings and stages have little in common"
        )
    if a.task != b.task:
        told.append(f"two tasks ({a.task}, {b.task}): their scores say nothing about each other")
    modes = [(record.result or {}).get("inference", {}).get("mode") for record in (a, b)]
    if None not in modes and modes[0] != modes[1]:
        told.append(f"A is asked in the mode {modes[0]}, B in {modes[1]}; --all has every mode of both")
    return told


def _told(record: Record) -> dict[str, Any]:
    return {
        "name": record.name,
        "folder": str(record.folder),
        "state": record.state,
        "failure": record.failure,
        **{name: getattr(record, name) for name in ("family", "method", "task", "model", "seed", "command")},
        "identity": record.told.get("identity"),
    }


def _both(path: str, values: Sequence[Any]) -> dict[str, Any]:
    return {"path": path, **dict(zip(SIDES, values, strict=True))}


def _apart(path: str) -> bool:
    return path.partition(".")[0] in APART


def _words(a: Record, b: Record) -> dict[str, Any]:
    words = [list(record.told["overrides"]) for record in (a, b)]
    only = [[word for word in own if word not in other] for own, other in (words, words[::-1])]
    return {"a": a.command, "b": b.command, "only_a": only[0], "only_b": only[1]}


def _entries(a: Any, b: Any) -> list[dict[str, Any]]:
    """The paths at which two nested values differ."""
    return [_both(path, values) for path, values in differences([a, b]).items()]


# data and versions -------------------------------------------------------------------------------------------------


def _data(pair: Pair, graphs: Sequence[Sequence[Mapping[str, Any]]], store: str | Path | None) -> list[dict[str, Any]]:
    """Where rows came from, how many there are, what was done to them, and how many of each class are in each table."""
    told = []
    for record, graph in zip(pair, graphs, strict=True):
        result = record.result or {}
        own: dict[str, Any] = {
            f"{name} ({stage['label']})": stage["values"][name]
            for stage in (graph if all(graphs) else ())
            if "source" in stage["values"]
            for name in ("source", "splits", "evaluations")
            if stage["values"].get(name)
        }
        own |= {name: result[name] for name in ("rows", "conditions") if name in result}
        told.append({**own, **_facts(record, graph, store)})
    return [one for one in _entries(*told) if not _one_sided(one, pair)]


def _one_sided(one: Mapping[str, Any], pair: Pair) -> bool:
    """Whether a value is absent only because its run has not finished, or its artifact is gone."""
    lacks = {side: record.result is None for side, record in zip(SIDES, pair, strict=True)}
    return any(lacks[side] and one[side] == ABSENT for side in SIDES) or (
        ABSENT in (one["a"], one["b"]) and one["path"].startswith(("classes", "facts"))
    )


def _facts(record: Record, graph: Sequence[Mapping[str, Any]], store: str | Path | None) -> dict[str, Any]:
    """What the stages that read data say of it: noisy and empty rows, and the labels of each table counted."""
    found: dict[str, Any] = {"facts": {}, "classes": {}}
    for stage in graph:
        folder = record.store(store) / stage["artifact"]
        if "source" not in stage["values"] or not (folder / "facts.json").is_file():
            continue
        try:
            record.whole(stage["artifact"], store)
            facts = read_json(folder / "facts.json")
        except StoreError:
            continue
        kept = ("noisy", "unlabelled", "empty_texts", "shared_with_train")
        found["facts"] |= {name: {**found["facts"].get(name, {}), **facts[name]} for name in kept if name in facts}
        found["classes"] |= _classes(folder, facts.get("labels"))
    return {name: inner for name, inner in found.items() if inner}


def _classes(folder: Path, names: Sequence[str] | None) -> dict[str, dict[str, int]]:
    """Rows of each class, by table; {} for numbers."""
    if not names:
        return {}
    import pyarrow as pa

    counts = {}
    for file in sorted(folder.glob("*.arrow")):
        try:
            with pa.memory_map(str(file)) as source:
                labels = pa.ipc.open_file(source).read_all()["label"].to_pylist()
        except (OSError, KeyError, pa.ArrowException):
            continue
        counts[file.stem] = {name: labels.count(number) for number, name in enumerate(names)}
    return counts


def _versions(pair: Pair) -> list[dict[str, Any]]:
    if any(record.result is None for record in pair):
        return []
    names = ("versions", "git", "made_by")
    return _entries(*({name: (record.result or {}).get(name, {}) for name in names} for record in pair))


# graph -------------------------------------------------------------------------------------------------------------


def _graph(record: Record, notes: list[str]) -> list[dict[str, Any]]:
    try:
        if not record.graph:
            notes.append(f"{record.name} has no graph.json: its stages are not compared")
        return record.graph
    except StoreError as problem:
        notes.append(f"the stages of {record.name} are not compared: {problem.what} ({problem.where})")
        return []


def _graphs(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stages by what became of them; those that differ in the order of the graph. All empty if one is not known."""
    if not a or not b:
        return {"same": [], "only_a": [], "only_b": [], "differ": []}
    by_label = [{stage["label"]: stage for stage in graph} for graph in (a, b)]
    made = {stage["fingerprint"]: stage["label"] for stage in b}
    same = [
        {"label": one["label"], "label_b": made[one["fingerprint"]], "artifact": one["artifact"]}
        for one in a
        if one["fingerprint"] in made
    ]
    shared = {one["label"] for one in same}
    differ: dict[str, dict[str, Any]] = {}
    for stage in a:
        label = stage["label"]
        if label in by_label[1] and label not in shared:
            differ[label] = _why(stage, by_label[1][label], by_label, differ)
    known = shared | set(differ)
    taken = {one["label_b"] for one in same} | set(differ)
    return {
        "same": same,
        "only_a": [stage["label"] for stage in a if stage["label"] not in known],
        "only_b": [stage["label"] for stage in b if stage["label"] not in taken],
        "differ": list(differ.values()),
    }


def _why(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    by_label: Sequence[Mapping[str, Mapping[str, Any]]],
    before: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """own: values and inputs that differ by themselves; through: inputs that differ; causes: where all that began.

    before: the stages that come earlier in the graph and differ.
    """
    own: list[dict[str, Any]] = []
    made = [{stage["artifact"]: label for label, stage in own_side.items()} for own_side in by_label]
    through = []
    for name in dict.fromkeys([*a["inputs"], *b["inputs"]]):
        labels = [
            names.get(stage["inputs"][name], stage["inputs"][name]) if name in stage["inputs"] else ABSENT
            for names, stage in zip(made, (a, b), strict=True)
        ]
        if a["inputs"].get(name) == b["inputs"].get(name):
            continue
        if labels[0] == labels[1] and labels[0] in before:
            through.append(labels[0])
        else:
            own.append(_both(f"input {name}", labels))
    own += _entries(*({"function": stage["function"], "version": stage["version"]} for stage in (a, b)))
    own += _entries(a["values"], b["values"])
    causes = [{"stage": a["label"], **one} for one in own]
    for label in through:
        causes += [cause for cause in before[label]["causes"] if cause not in causes]
    return {
        "label": a["label"],
        "a": a["artifact"],
        "b": b["artifact"],
        "own": own,
        "through": through,
        "causes": causes,
        "because": _chain(a["label"], own, through, before),
    }


def _chain(
    label: str, own: Sequence[Mapping[str, Any]], through: Sequence[str], before: Mapping[str, Mapping[str, Any]]
) -> str:
    """From this stage to a first cause: "logits differs because teacher differs because of fit.lr: 0.1 -> 0.2"."""
    if own or not through:
        more = f" (and {len(own) - 1} more)" if len(own) > 1 else ""
        return f"{label} differs because of " + (f"{_change(own[0])}{more}" if own else "its code")
    shortest: str = min((before[one]["because"] for one in through), key=lambda line: line.count(" because "))
    return f"{label} differs because {shortest}"


def _change(one: Mapping[str, Any]) -> str:
    return f"{one['path']}: {_value(one['a'])} -> {_value(one['b'])}"


def _value(value: Any) -> str:
    """As YAML writes it, in one line of moderate length."""
    shown = json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else text(value)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 4]} ..."


# scores ------------------------------------------------------------------------------------------------------------


def _scores(pair: Pair) -> list[dict[str, Any]]:
    """Every score of either run: role, split, language, mode, metric, kind (selected, last, best), a, b, difference.

    Scores of two tasks have no difference.
    """
    sides = [_flat_scores(record.result or {}) for record in pair]
    found = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        a, b = (side.get(key) for side in sides)
        names = ("role", "split", "language", "mode", "metric", "kind")
        difference = None if a is None or b is None or pair[0].task != pair[1].task else b - a
        found.append({**dict(zip(names, key, strict=True)), "a": a, "b": b, "difference": difference})
    return found


def _flat_scores(result: Mapping[str, Any]) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for role in ("student", "teacher"):
        scores = (result.get(role) or {}).get("scores", result.get("scores", {}) if role == "student" else {})
        for split, metrics in scores.items():
            for metric, kinds in metrics.items():
                found |= {(role, split, "", "", metric, kind): value for kind, value in kinds.items()}
    for split, modes in result.get("languages", {}).items():
        for mode, languages in modes.items():
            for language, metrics in languages.items():
                place = ("student", split, language, mode)
                found |= {(*place, metric, "selected"): value for metric, value in metrics.items()}
    return {key: value for key, value in found.items() if isinstance(value, int | float) and math.isfinite(value)}


def _predictions(pair: Pair, store: str | Path | None, notes: list[str]) -> list[dict[str, Any]]:
    """On how many rows that both have predicted the students disagree, and who is right there."""
    if any(record.result is None for record in pair):
        return []
    sides: list[dict[Asked, Predictions]] = []
    for record in pair:
        try:
            sides.append(load(record, store))
        except StoreError as problem:
            notes.append(f"predictions are not compared: {problem.what} ({problem.where})")
            return []
    found = []
    own = [str((record.result or {}).get("inference", {}).get("mode", "")) for record in pair]
    for one in sides[0]:
        for other in sides[1]:
            if one[:2] != other[:2] or not (one.mode == other.mode or (one.mode, other.mode) == tuple(own)):
                continue
            agreement = _agreement(sides[0][one], sides[1][other])
            if isinstance(agreement, str):
                notes.append(f"predictions on {one} are not compared: {agreement}")
            elif agreement is not None:
                place = {"split": one.split, "language": one.language, "mode_a": one.mode, "mode_b": other.mode}
                found.append({**place, "own": [one.mode, other.mode] == own, **agreement})
    return found


def _agreement(a: Predictions, b: Predictions) -> dict[str, Any] | str | None:
    """Counts over the rows that both have; why they can't be compared; None: there are no such rows."""
    from scipy.stats import binomtest

    shared = [row for row in a.rows if row in b.rows]
    if not shared:
        return None
    if a.data != b.data:
        return "they were read from two sources"
    pairs = [(a.rows[row], b.rows[row]) for row in shared]
    unlike = sum(one.answer != other.answer for one, other in pairs)
    if unlike:
        return f"{unlike} of {len(pairs)} rows have another label, so the data is not the same"
    numbers = all(isinstance(one.prediction, float) for both in pairs for one in both)
    counts = {"both_right": 0, "both_wrong": 0, "a_right": 0, "b_right": 0}
    for one, other in pairs:
        if numbers and one.answer is not None:
            far = abs(one.prediction - one.answer) - abs(other.prediction - one.answer)
            counts["b_right"] += far > CLOSE
            counts["a_right"] += far < -CLOSE
        elif one.right is not None and other.right is not None:
            counts[_outcome(one.right, other.right)] += 1
    disagree = sum(
        abs(one.prediction - other.prediction) > CLOSE if numbers else one.prediction != other.prediction
        for one, other in pairs
    )
    decided = counts["a_right"] + counts["b_right"]
    judged = numbers or any(counts.values())
    p = float(binomtest(counts["a_right"], decided).pvalue) if decided else 1.0
    if numbers:
        del counts["both_right"], counts["both_wrong"]
    return {
        "rows": len(pairs),
        "rows_a": len(a.rows),
        "rows_b": len(b.rows),
        "disagree": disagree,
        **(counts if judged else dict.fromkeys(counts)),
        "p": p if judged else None,
        "test": "sign test over which is nearer" if numbers else "McNemar's exact test",
    }


def _outcome(a: bool, b: bool) -> str:
    return ("both_right" if b else "a_right") if a else ("b_right" if b else "both_wrong")


# time, warnings, and what it comes to ------------------------------------------------------------------------------


def _seconds(pair: Pair) -> dict[str, Any]:
    sides = [(record.result or {}).get("seconds_of_stages", {}) for record in pair]
    made = [(record.result or {}).get("artifacts", {}) for record in pair]
    stages = []
    for label in dict.fromkeys([*sides[0], *sides[1]]):
        names = [own.get(label) for own in made]
        shared = names[0] is not None and names[0] == names[1]
        stages.append({"label": label, "a": sides[0].get(label), "b": sides[1].get(label), "same_artifact": shared})
    total = [sum(own.values()) if own else None for own in sides]
    return {"stages": stages, "total": dict(zip(SIDES, total, strict=True))}


def _warnings(pair: Pair) -> dict[str, list[str]]:
    texts = [
        list(dict.fromkeys(f"{one['stage']}: {one['text']}" for one in (record.result or {}).get("warnings", [])))
        for record in pair
    ]
    return {
        "both": [line for line in texts[0] if line in texts[1]],
        "a": [line for line in texts[0] if line not in texts[1]],
        "b": [line for line in texts[1] if line not in texts[0]],
    }


def _identical(pair: Pair, found: Mapping[str, Any]) -> bool:
    return (
        not found["config"]
        and bool(found["graph"]["same"])
        and not _unlike_stages(found["graph"])
        and all(record.result is not None for record in pair)
        and not _unlike_scores(found)
    )


def _unlike_stages(graph: Mapping[str, Any]) -> list[str]:
    """Labels of the stages that are not the same, without those that only tell of another machine."""
    machine = {
        one["label"] for one in graph["differ"] if all(cause["path"].startswith("machine.") for cause in one["causes"])
    }
    found = [*(one["label"] for one in graph["differ"]), *graph["only_a"], *graph["only_b"]]
    return [label for label in found if label not in machine]


def _unlike_scores(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in found["scores"] if one["a"] != one["b"]]


def _verdict(pair: Pair, found: Mapping[str, Any]) -> str:
    settings = [one["path"] for one in found["config"]]
    graph = found["graph"]
    elsewhere = _unlike_stages(graph)
    finished = all(record.result is not None for record in pair)
    if _identical(pair, found):
        where = ", measured on two machines" if graph["differ"] else ""
        return f"identical: the same settings, stages and scores{where}"
    if settings == ["seed"]:
        return "the seed alone differs: the difference in scores is what chance makes of one method"
    if settings:
        return f"{_count(len(settings), 'setting')} not the same: {_list(settings, 3)}"
    if elsewhere:
        return "no setting differs, but the stages do: data, models or code are not the same (see the graph)"
    if not graph["same"]:
        return "no setting differs; the stages are not known"
    if not finished:
        return "no setting and no stage differs; what is not there yet can't be compared"
    return "no setting and no stage differs, but scores do: made by other versions, or on another machine"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _list(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# for the terminal --------------------------------------------------------------------------------------------------


def shown(found: Diff, *, everything: bool = False) -> list[RenderableType]:
    """Tables and lines. everything: also what can't change a number, what is the same, and every score."""
    parts: list[RenderableType] = [_head(found)]
    parts += [Text(f"note: {line}") for line in found["notes"]]
    parts += _setting_parts(found, everything)
    words = found["command"]
    if words["only_a"] or words["only_b"]:
        lines = [f"{side.upper()}: {shlex.join(words[f'only_{side}']) or '(nothing else)'}" for side in SIDES]
        parts.append(Text("\n".join(["words of one command only", *(f"  {line}" for line in lines), ""])))
    parts += _sided("data", found["data"])
    parts += _sided("versions", found["versions"])
    parts += _graph_parts(found["graph"], everything)
    parts += _score_parts(found, everything)
    parts += _prediction_parts(found, everything)
    parts += _second_parts(found["seconds"], everything)
    for side, title in (("a", "A only"), ("b", "B only"), *([("both", "both")] if everything else [])):
        parts += [Text(f"warning ({title}): {line}") for line in found["warnings"][side]]
    return parts


def _head(found: Diff) -> RenderableType:
    lines = []
    for side in SIDES:
        one = found[side]
        what = f"{one['method']}, {one['task']}, {one['model']}, seed {one['seed']}, {one['state']}"
        lines += [f"{side.upper()}  {one['folder']}", f"   {what}"]
    folders = Text("\n".join([*lines, ""]), no_wrap=True, overflow="ignore")  # a path is to be copied whole
    return Group(folders, Text(f"{found['verdict']}\n"))


def _setting_parts(found: Diff, everything: bool) -> list[RenderableType]:
    """Of two families only what both have, unless all is asked for."""
    entries, left = found["config"] + (found["config_apart"] if everything else []), 0
    if found["a"]["family"] != found["b"]["family"] and not everything:
        entries = [one for one in entries if ABSENT not in (one["a"], one["b"])]
        left = len(found["config"]) - len(entries)
    note = [Text(f"and {_count(left, 'setting')} that only one of the two families has (--all)\n")] if left else []
    return [*_sided("settings", entries), *note]


def _sided(title: str, entries: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    if not entries:
        return []
    table = _table(title, ["", "A", "B"], left=3)
    for one in entries:
        table.add_row(*map(Text, (one["path"], _value(one["a"]), _value(one["b"]))))
    return [table]


def _graph_parts(graph: Mapping[str, Any], everything: bool) -> list[RenderableType]:
    if not any(graph.values()):
        return []
    parts: list[RenderableType] = []
    lines = [f"graph: {_count(len(graph['same']), 'stage')} the same, {len(graph['differ'])} not"]
    for key, words in (("only_a", "only in A"), ("only_b", "only in B")):
        lines += [f"  {words}: {', '.join(graph[key])}"] if graph[key] else []
    renamed = [one for one in graph["same"] if one["label"] != one["label_b"]]
    lines += [f"  the same artifact: {one['label']} of A, {one['label_b']} of B" for one in renamed]
    if everything:
        lines += [f"  the same: {', '.join(one['label'] for one in graph['same'])}"] if graph["same"] else []
    parts.append(Text("\n".join([*lines, ""] if not graph["differ"] else lines)))
    if graph["differ"]:
        table = _table("", ["stage", "differs itself by", "and because of"], left=3)
        for one in graph["differ"]:
            own = [_change(each) for each in one["own"]]
            more = [] if everything or len(own) <= 4 else [f"and {len(own) - 3} more (--all)"]
            shown_own = own if everything or len(own) <= 4 else own[:3]
            table.add_row(Text(one["label"]), Text("\n".join([*shown_own, *more])), Text(", ".join(one["through"])))
        parts.append(table)
        last = next((one for one in graph["differ"] if one["label"] in SCORING), graph["differ"][-1])
        if last["through"] and not last["own"]:
            parts.append(Text(f"{last['because']}\n"))
    return parts


def _score_parts(found: Diff, everything: bool) -> list[RenderableType]:
    rows = [
        one
        for one in found["scores"]
        if everything or (one["kind"] == "selected" and not one["language"] and _of_interest(one, found["scores"]))
    ]
    if not rows:
        return []
    wide = any(one["language"] for one in rows)
    names = ["", "set", *(["language", "asked"] if wide else []), "metric"]
    table = _table("scores x 100", [*names, *(["kind"] if everything else []), "A", "B", "B - A"], left=len(names))
    for one in rows:
        place = [
            one["role"],
            one["split"],
            *([one["language"], one["mode"]] if wide else []),
            metric_name(one["metric"]),
        ]
        numbers = [hundredfold(one["a"]), hundredfold(one["b"]), signed(one["difference"])]
        table.add_row(*map(Text, [*place, *([one["kind"]] if everything else []), *numbers]))
    return [table]


def _of_interest(one: Mapping[str, Any], scores: Iterable[Mapping[str, Any]]) -> bool:
    """A teacher's scores are told where they differ: mostly one teacher serves both."""
    return one["role"] == "student" or any(each["a"] != each["b"] for each in scores if each["role"] == "teacher")


def _prediction_parts(found: Diff, everything: bool) -> list[RenderableType]:
    rows = [one for one in found["predictions"] if everything or (one["own"] and one["split"] != "heldout")]
    if not rows:
        return []
    modes = any(one["mode_a"] for one in rows)
    numbers = all(one["test"].startswith("sign") for one in rows)
    titles = ["set", *(["language"] if modes else []), *(["asked"] if modes and everything else [])]
    who = "nearer" if numbers else "right"
    table = _table(
        "the students' answers, row by row",
        [*titles, "rows", "disagree", f"only A\n{who}", f"only B\n{who}", "p"],
        left=len(titles),
    )
    for one in rows:
        asked = one["mode_a"] if one["mode_a"] == one["mode_b"] else f"{one['mode_a']}, {one['mode_b']}"
        place = [one["split"], *([one["language"]] if modes else []), *([asked] if modes and everything else [])]
        counts = [one["rows"], one["disagree"], one["a_right"], one["b_right"]]
        shown_counts = ["-" if count is None else str(count) for count in counts]
        table.add_row(*map(Text, [*place, *shown_counts, probability(one["p"])]))
    return [table, *map(Text, _test_notes(rows)), Text()]


def _test_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [f"p: {', '.join(dict.fromkeys(one['test'] for one in rows))}, of these two students only"]
    if len(rows) > 1:
        lines.append(f"{len(rows)} tests, none corrected for the others")
    if any(one["rows"] < max(one["rows_a"], one["rows_b"]) for one in rows):
        lines.append("rows: those that both have")
    return lines


def _second_parts(seconds: Mapping[str, Any], everything: bool) -> list[RenderableType]:
    rows = [one for one in seconds["stages"] if everything or not one["same_artifact"]]
    if not rows:
        return []
    table = _table("seconds of the stages", ["", "A", "B"], left=1)
    for one in rows:
        table.add_row(*map(Text, (one["label"], _time(one["a"]), _time(one["b"]))))
    left = len(seconds["stages"]) - len(rows)
    table.add_row(*map(Text, ("all stages", *(_time(seconds["total"][side]) for side in SIDES))))
    note = [Text(f"in the sum only: {_count(left, 'stage')} whose artifact both share\n")] if left else []
    return [table, *note]


def _time(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _table(title: str, columns: Sequence[str], *, left: int) -> Table:
    """The first `left` columns hold words, which are folded; the others numbers."""
    table = titled(title, [])
    for number, column in enumerate(columns):
        words = number < left
        table.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    if not title:
        table.title = None
    return table
