"""From a reasoning task's source to the questions of a run: partition, few, held-out, limits, baselines of answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdlab.context import Context
from kdlab.data import partition as parting
from kdlab.data.answers import Form, gold
from kdlab.data.questions import Questions, read_questions
from kdlab.errors import DataError

SPLIT_SEED = 0  # of held-out and limited questions: the same for every seed of a run
Row = dict[str, Any]
Array = np.ndarray[Any, Any]


def prepare_questions(
    ctx: Context,
    *,
    source: Mapping[str, Any],
    splits: Mapping[str, Any],
    text: Sequence[str],
    label: str,
    answer: str,
    choices: str | None,
    options: str | None,
    suffix: str,
    after: str | None,
    compare: str,
    partition: Mapping[str, Any],
    generate: Mapping[str, int] | None,
    heldout: float,
    few: Mapping[str, Any] | None,
    dev_limit: int | None,
    rows: int | None,
) -> None:
    """Write `train.jsonl`, `test.jsonl`, and `heldout.jsonl` if `heldout` is a share: rows as in kdlab.data.questions.

    In this order: `partition` parts all questions of the data set into train and test; its `limit` and then `few`
    (`examples` with `seed`) draw from train, whether or not the source has these questions; the share `heldout` of
    what is left is set aside; `dev_limit` draws from test, `rows` from every split. All but `few` is drawn by fixed
    seeds: so every run is scored on the same questions. Questions stay in the order of the data set.

    source ... compare, partition, generate: fields of `kdlab.config.Task`.

    Facts, also in facts.json: rows, characters (of all questions) and shared_with_train (rows with the question of a
    train or held-out row) per split; answer: fields of Form; majority_answer: the most frequent one of train;
    majority[split].accuracy: of always giving it; chance[split].accuracy: of guessing by train's frequencies,
    sum_a p_train(a) p_split(a); conditions: what partition, few and heldout did; warnings.

    Raises DataError for questions that can't be used or a test that has none, HubError where the Hub can't give them.
    """
    warnings: list[str] = []
    found = read_questions(
        source,
        splits=splits,
        text=text,
        label=label,
        answer=answer,
        choices=choices,
        options=options,
        suffix=suffix,
        after=after,
        compare=compare,
        generate=generate,
    )
    known = {row["id"]: row for row in found.rows}
    size = _size(found, partition["size"])
    rule, train, test = _parted(found, partition, size)
    conditions: dict[str, Any] = {
        "partition": {"rule": rule, "questions": size, "train": len(train), "test": len(test)},
        "few": None,
        "heldout": None,
    }
    if few:
        if few["examples"] > len(train):
            warnings.append(
                f"few.examples={few['examples']}: there are only {len(train)} training questions, all are used"
            )
        before, train = len(train), parting.draw(train, few["examples"], seed=few["seed"])
        conditions["few"] = {**few, "before": before, "after": len(train)}
    split = {"train": _there(known, train), "test": _there(known, test)}
    if len(found.rows) < size:
        warnings.append(
            f"the source has {len(found.rows)} of the {size} questions: {len(split['train'])} of {len(train)} to train"
            f" on, {len(split['test'])} of {len(test)} to test on"
        )
    if not split["test"]:
        raise DataError(
            f"There is no test question: the partition by {rule!r} leaves none of the {len(found.rows)} questions.",
            where=found.where,
            fix="Name a split in task.splits.test, or set task.partition to leave some questions out of train.",
        )
    if not split["train"]:
        warnings.append("there are no training questions")
    elif heldout:
        split["train"], split["heldout"] = _set_aside(split["train"], heldout)
        conditions["heldout"] = {"share": heldout, "train": len(split["train"]), "heldout": len(split["heldout"])}
    if dev_limit is not None:
        split["test"] = _draw(split["test"], dev_limit)
    if rows is not None:
        split = {name: _draw(part, rows) for name, part in split.items()}
    form = Form(kind=answer, choices=found.choices, compare=compare, cleanse=answer == "text")
    _publish(ctx, split, {**_facts(split, form, warnings), "conditions": conditions, "warnings": warnings})


def _publish(ctx: Context, split: Mapping[str, Sequence[Row]], facts: Mapping[str, Any]) -> None:
    for name, part in split.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in part]
        (ctx.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    (ctx.out / "facts.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    ctx.facts.update(facts)


def _size(found: Questions, asked: int | None) -> int:
    """How many questions the whole data set has, of which a source may hold a part."""
    count, last = len(found.rows), max(row["id"] for row in found.rows)
    if asked is None and last >= count:
        raise DataError(
            f"The source holds {count} questions with places up to {last}: a part of a data set of unknown size.",
            where=found.where,
            fix="Set task.partition.size to the number of questions of the whole data set.",
        )
    if asked is not None and last >= asked:
        raise DataError(
            f"The source has a question in place {last}, and the whole data set is said to have {asked}.",
            where=found.where,
            fix="Set task.partition.size to the number of questions, or to null if the source has them all.",
        )
    return count if asked is None else asked


def _parted(found: Questions, partition: Mapping[str, Any], size: int) -> tuple[str, Array, Array]:
    """(the rule that was used, places of train, places of test)."""
    rule, own = partition["rule"], found.train
    if rule == "source" and own is None:
        rule = "random"
    if rule == "source":
        assert own is not None
        train, test = parting.first_split(len(found.rows), own)
    elif rule == "first":
        if partition["train"] >= size:
            raise DataError(
                f"The first {partition['train']} questions are to be trained on, and there are {size}.",
                where=found.where,
                fix="Lower task.partition.train.",
            )
        train, test = parting.first_split(size, partition["train"])
    elif rule == "random":
        train, test = parting.random_split(size)
    else:
        if len(found.rows) < size:
            raise DataError(
                f"Groups of similar questions need all {size} questions, and the source has {len(found.rows)}.",
                where=found.where,
                fix="Give the whole data set, or take task.partition.rule=random.",
            )
        train, test = parting.grouped_split([parting.template(stem, partition["until"]) for stem in found.stems])
    if partition["limit"] is not None:
        train = parting.draw(train, partition["limit"])
    return rule, train, test


def _there(known: Mapping[int, Row], places: Array) -> list[Row]:
    return [known[place] for place in places.tolist() if place in known]


def _set_aside(train: list[Row], share: float) -> tuple[list[Row], list[Row]]:
    count = round(len(train) * share)
    if not 0 < count < len(train):
        raise DataError(
            f"{len(train)} training questions are too few to set aside {share:.0%} for the held-out part.",
            where="task.heldout",
            fix="Give more questions, or set select_on=last.",
        )
    chosen = set(np.random.default_rng(SPLIT_SEED).permutation(len(train))[:count].tolist())
    return (
        [row for place, row in enumerate(train) if place not in chosen],
        [row for place, row in enumerate(train) if place in chosen],
    )


def _draw(part: list[Row], limit: int) -> list[Row]:
    if limit >= len(part):
        return part
    chosen = np.sort(np.random.default_rng(SPLIT_SEED).permutation(len(part))[:limit])
    return [part[place] for place in chosen.tolist()]


def _facts(split: Mapping[str, list[Row]], form: Form, warnings: list[str]) -> dict[str, Any]:
    """What is known of the questions, and `warnings` with what there is to say of them."""
    trained = {row["question"] for name in ("train", "heldout") for row in split.get(name, [])}
    shared = sum(row["question"] in trained for row in split["test"])
    if shared:
        warnings.append(f"{shared} of {len(split['test'])} questions of test are questions of train too")
    found = {name: shares(part, form) for name, part in split.items()}
    if len(found["train"]) == 1 and len(split["train"]) > 1:
        warnings.append(f"every training question has the same answer, {split['train'][0]['answer']!r}")
    most = max(found["train"], key=lambda key: found["train"][key], default=None)
    scored = [name for name in split if name != "train" and split["train"]]
    return {
        "rows": {name: len(part) for name, part in split.items()},
        "characters": {name: sum(len(row["question"]) for row in part) for name, part in split.items()},
        "shared_with_train": {"test": shared},
        "answer": {
            "kind": form.kind,
            "choices": form.choices,
            "compare": form.compare,
            **({"cleanse": True} if form.cleanse else {}),
        },
        "majority_answer": most,
        **baselines(found["train"], {name: found[name] for name in scored}),
    }


def baselines(train: Mapping[str, float], parts: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """majority and chance of each part, from shares of answers: that of train's most frequent one, and of guessing."""
    most = max(train, key=lambda key: train[key], default="")
    return {
        "majority": {name: {"accuracy": part.get(most, 0.0)} for name, part in parts.items()},
        "chance": {
            name: {"accuracy": sum(share * part.get(key, 0.0) for key, share in train.items())}
            for name, part in parts.items()
        },
    }


def shares(part: Sequence[Row], form: Form) -> dict[str, float]:
    """The share of each answer, in the shape of predictions, in the order of their first appearance."""
    counts = Counter(_shape(row["answer"], form) for row in part)
    return {key: count / len(part) for key, count in counts.items()}


def _shape(answer: str, form: Form) -> str:
    shaped = gold(answer, form)
    return f"{float(shaped):.15g}" if form.kind == "number" and form.compare == "number" else shaped
