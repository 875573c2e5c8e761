"""GLUE's test sets, and how its leaderboard wants their predictions.

Eleven files, each with the header "index<TAB>prediction" and a line for each test row, in order, counted from 0. Names,
labels and numbers of rows as in the sources that several public submissions share (nyu-mll/jiant's submission
formatter, BERT-of-Theseus, character-bert); rows of CoLA, STS-B, QNLI, RTE and WNLI also counted in nyu-mll/glue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kdlab.config import Evaluation, Task

HUBS = ("nyu-mll/glue", "glue")
HIGHEST = 5.0  # score of STS-B; the lowest is 0
NLI = {name: name for name in ("entailment", "neutral", "contradiction")}
TWO_WAY = {name: name for name in ("entailment", "not_entailment")}


def _numbered(*names: str) -> dict[str, str]:
    return {name: str(number) for number, name in enumerate(names)}


@dataclass(frozen=True, kw_only=True)
class HiddenSet:
    """One file of a submission."""

    file: str
    task: str  # the configuration of nyu-mll/glue whose model answers it
    rows: int
    answers: Mapping[str, str] | None  # what is written for each class; None: a number
    split: str = "test"
    config: str | None = None  # the configuration that has the rows, where it is another

    @property
    def name(self) -> str:
        """Of the set in an evaluation."""
        return self.config or self.split


HIDDEN_SETS = (
    HiddenSet(file="CoLA.tsv", task="cola", rows=1063, answers=_numbered("unacceptable", "acceptable")),
    HiddenSet(file="SST-2.tsv", task="sst2", rows=1821, answers=_numbered("negative", "positive")),
    HiddenSet(file="MRPC.tsv", task="mrpc", rows=1725, answers=_numbered("not_equivalent", "equivalent")),
    HiddenSet(file="QQP.tsv", task="qqp", rows=390965, answers=_numbered("not_duplicate", "duplicate")),
    HiddenSet(file="STS-B.tsv", task="stsb", rows=1379, answers=None),
    HiddenSet(file="MNLI-m.tsv", task="mnli", rows=9796, answers=NLI, split="test_matched"),
    HiddenSet(file="MNLI-mm.tsv", task="mnli", rows=9847, answers=NLI, split="test_mismatched"),
    HiddenSet(file="QNLI.tsv", task="qnli", rows=5463, answers=TWO_WAY),
    HiddenSet(file="RTE.tsv", task="rte", rows=3000, answers=TWO_WAY),
    HiddenSet(file="WNLI.tsv", task="wnli", rows=146, answers=_numbered("not_entailment", "entailment")),
    HiddenSet(file="AX.tsv", task="mnli", rows=1104, answers=NLI, config="ax"),
)


def hidden_sets(task: Task) -> dict[str, HiddenSet]:
    """The hidden test sets of a task of GLUE, by name; {} for another task.

    A task is one of GLUE by its data set on the Hub, or called glue/... with local files, which have no AX.
    """
    hub = task.source.hub in HUBS
    key = task.source.config if hub else task.name.removeprefix("glue/") if task.name.startswith("glue/") else None
    key = "mnli" if key == "ax" else key
    return {one.name: one for one in HIDDEN_SETS if one.task == key and (hub or one.config is None)}


def evaluation(one: HiddenSet) -> Evaluation:
    """The set as a further one of its task."""
    return Evaluation(split=one.split, config=one.config)
