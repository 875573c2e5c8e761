"""A training step of kdlab and of the plain baselines, beside each other, the Trainer of transformers and the machine.

Models have the size of MiniLM (6 layers, width 384; students 3) or of multilingual-e5-small (12 layers, 250,037
tokens), with random weights and dropout 0.1; batches hold 32 rows of real lengths, or 32 pairs. kdlab's run in its own
loop (`engine.loop.fit`): collation, autocast, division, clipping, optimiser and log are in their time. Every contender
of a job trains on the same batches, a few that stand for an epoch's: of all batches in the order of their length, the
middle ones of so many equal parts. A figure is the mean over them of the median over rounds.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate.state import AcceleratorState
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks import lengths, plain
from benchmarks.machine import (
    Row,
    Settings,
    flops,
    give_back,
    interleave_steps,
    memory_as_it_is,
    peak,
    peak_memory,
)
from kdlab import compose
from kdlab.config import Crosslingual, Distillation, Fit, Hardware
from kdlab.context import Context
from kdlab.data.batches import Batches, EncodedSplit, Rows
from kdlab.data.pairs import LanguageBatches, PairRows
from kdlab.engine import device
from kdlab.engine.loop import Plan, Progress, Step, Steps, fit
from kdlab.engine.optimizer import build_optimizer
from kdlab.engine.tables import TableGradients
from kdlab.engine.tables import values as numbers
from kdlab.methods.distillation import FIT_FIELDS, stage_objective
from kdlab.models.encoder import load_encoder
from kdlab.models.projection import ProjectionHead
from kdlab.models.taps import Tapped
from kdlab.stages.pair_steps import PairStep
from kdlab.stages.steps import TEACHER_LOGITS, JointStep, LabelStep, LayerStep, LogitStep, Objective

NAME = "training"
BATCH = 32
WIDTH, HEADS = 384, 12
TEACHER, STUDENT, MULTILINGUAL = 6, 3, 12  # layers
TOKENS, MANY_TOKENS = 30522, 250037  # vocabularies of BERT and of multilingual-e5-small
PROJECTED = 128
LONGEST = 128
METHODS = ("kd", "mixkd", "pkd", "tinybert", "u_ild", "minilm", "minilm_v2", "bert_emd", "l_ild", "cr_ild", "joint")
CPU = torch.device("cpu")

# Seconds a step of the authors' own code in fp32, by job and width of its batches, on two cores whose matrix products
# reach OFFICIAL_PEAK: measured by the project on another machine of the kind.
OFFICIAL = {
    ("cr_ild", "RTE", 128): 3.5,
    ("cr_ild", "CoLA", 64): 1.6,
    ("cr_ild", "CoLA", 128): 3.7,
    ("tinybert", "RTE", 128): 2.7,
    ("kd", "RTE", 128): 2.3,
}
OFFICIAL_PEAK = 165e9
NEAR = 0.2  # how far from an official figure a baseline may be

Chosen = Sequence[np.ndarray]  # the row numbers of each batch
Stepper = Callable[[Chosen], list[float]]  # trains on these batches, one after the other: seconds of each step


# data ------------------------------------------------------------------------------------------------------------


def encoded(counts: np.ndarray, *, tokens: int, labels: int, seed: int = 0) -> EncodedSplit:
    """Rows of these lengths, in random order: random ids below `tokens`, none of them 0, and random labels."""
    rng = np.random.default_rng(seed)
    counts = rng.permutation(counts)
    return _split(counts, rng, tokens=tokens, labels=labels)


def _split(counts: np.ndarray, rng: np.random.Generator, *, tokens: int, labels: int) -> EncodedSplit:
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    ids = pa.ListArray.from_arrays(offsets, pa.array(rng.integers(1, tokens, counts.sum()), pa.int32()))
    columns = {
        "id": pa.array(np.arange(len(counts))),
        "input_ids": ids,
        "label": pa.array(rng.integers(0, labels, len(counts))),
    }
    return EncodedSplit(pa.table(columns))


def encoded_pairs(counts: np.ndarray, *, tokens: int, labels: int, seed: int = 0) -> PairRows:
    """Texts and translations of these lengths [rows, 2], in random order."""
    rng = np.random.default_rng(seed)
    source, target = rng.permutation(counts).T
    return PairRows(*(_split(side, rng, tokens=tokens, labels=labels) for side in (source, target)))


def representative(rows: Rows, batches: Chosen, count: int) -> list[np.ndarray]:
    """`count` batches that stand for all: the middle ones of as many equal parts, in the order of their width."""
    whole = [batch for batch in batches if len(batch) == len(batches[0])]
    ordered = sorted(whole, key=lambda batch: int(rows.lengths[batch].max()))
    return [ordered[int((part + 0.5) * len(ordered) / count)] for part in range(count)]


def epoch_of(rows: Rows) -> list[np.ndarray]:
    """The batches that kdlab makes of an epoch."""
    return Batches(rows, batch_size=BATCH, seed=0, shuffle=True, pad_token_id=0).order(0)


def real_tokens(rows: Rows, batch: np.ndarray) -> int:
    return int(rows.collate(batch, pad_token_id=0, width=LONGEST)["attention_mask"].sum())


class Marked(Batches):
    """Batches of the given rows, and the time when the loop asks for each; the last mark is when it has had enough."""

    def __init__(self, rows: Rows, chosen: Chosen) -> None:
        super().__init__(rows, batch_size=BATCH, seed=0, shuffle=True, pad_token_id=0)
        self.chosen = list(chosen)
        self.marks: list[float] = []

    def __len__(self) -> int:
        return len(self.chosen)

    def order(self, epoch: int) -> list[np.ndarray]:
        return self.chosen

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[dict[str, Any]]]:
        with closing(super().epoch(epoch, start)) as steps:  # type: ignore[type-var]
            try:
                self.marks.append(time.perf_counter())
                for step in steps:
                    yield step
                    self.marks.append(time.perf_counter())
            except GeneratorExit:
                self.marks.append(time.perf_counter())
                raise

    @property
    def seconds(self) -> list[float]:
        return [float(step) for step in np.diff(self.marks)]


# contenders ------------------------------------------------------------------------------------------------------


def shape(layers: int, *, tokens: int = TOKENS, dropout: float = 0.1) -> dict[str, Any]:
    return {
        "vocab_size": tokens,
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }


def stock(layers: int, *, labels: int = 2, attention: str = "eager", **options: Any) -> BertForSequenceClassification:
    torch.manual_seed(layers)
    config = BertConfig(**shape(layers, **options), id2label=dict(enumerate(map(str, range(labels)))))
    config._attn_implementation = attention
    return BertForSequenceClassification(config)


def ours(layers: int, *, labels: int = 2, **options: Any) -> Tapped:
    spec = {"init": "random", "config": {"model_type": "bert", **shape(layers, **options)}}
    kernel = device.attention_kernel(Hardware(name="cpu", device="cpu"))
    return Tapped(load_encoder(spec, num_labels=labels, kind="classification", labels=None, attention=kernel, seed=0))


def preset(method: str, stage: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the method's preset trains a stage, and what it minimises."""
    model, task = ("tiny_multilingual", "demo/sentiment_xx") if method == "musc" else ("tiny", "demo/nli")
    (job,) = compose.jobs([f"method={method}", f"task={task}", f"model={model}"]).jobs
    settings = job.run.method
    assert isinstance(settings, Distillation | Crosslingual)
    values: Fit = getattr(settings, stage)
    trained = {name: value for name, value in asdict(values).items() if name in FIT_FIELDS}
    if stage in ("layers", "logits", "joint"):
        return trained, stage_objective(values)  # type: ignore[arg-type]
    return trained, {name: value for name, value in asdict(values).items() if name not in FIT_FIELDS}


def fitted(
    model: nn.Module,
    objective: Step,
    rows: Rows,
    values: Mapping[str, Any],
    precision: str,
    *,
    checkpoint_seconds: float = math.inf,
    recompute: bool = False,
    once: bool = False,
) -> Stepper:
    """Steps of `engine.loop.fit` in a folder that is removed afterwards.

    values: the fields of `config.Fit`. checkpoint_seconds, recompute: as in `config.Hardware`. once: train the model
    itself, which can be done once, and not a copy each time.
    """
    plan = Plan(
        **{name: value for name, value in values.items() if name not in ("batch_size", "drop_last", "epochs")},
        epochs=1,
        seed=0,
        precision=precision,
    )
    hardware = Hardware(name="cpu", device="cpu", checkpoint_seconds=checkpoint_seconds, recompute=recompute)

    def train(chosen: Chosen) -> list[float]:
        batches = Marked(rows, chosen)
        steps: Steps = LanguageBatches({"only": batches}) if isinstance(rows, PairRows) else batches
        pupil = model if once else copy.deepcopy(model)  # accelerate changes the model that it is given
        with tempfile.TemporaryDirectory() as folder:
            fit(pupil, objective, steps, plan, Context(out=Path(folder), stage="timed", hardware=hardware))
        return batches.seconds

    return train


def padded(step: Callable[[dict[str, torch.Tensor]], object], rows: Rows, width: int) -> Stepper:
    """Steps of a plain baseline, on batches that are ready before."""

    def train(chosen: Chosen) -> list[float]:
        times = []
        with memory_as_it_is():
            for numbers in chosen:
                batch = rows.collate(numbers, pad_token_id=0, width=width)
                start = time.perf_counter()
                step(batch)
                times.append(time.perf_counter() - start)
        return times

    return train


def paired(step: plain.Musc) -> Callable[[dict[str, torch.Tensor]], object]:
    def run(batch: dict[str, torch.Tensor]) -> object:
        sides = {name: batch[name].chunk(2) for name in ("input_ids", "attention_mask")}
        labels = {"labels": batch["labels"]}
        source, target = ({name: found[side] for name, found in sides.items()} | labels for side in (0, 1))
        return step([(source, target)])

    return run


# jobs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One comparison. contenders: by precision, the baseline that ratios are taken to first."""

    name: str
    task: str
    width: int  # that baselines pad to
    rows: Rows
    contenders: Callable[[str], Mapping[str, Stepper]]
    batches: int


def layer_objective(method: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The layer stage of a preset, its consistency terms at work from the first epoch on."""
    values, objective = preset(method, "layers")
    objective["consistency"] = {**objective["consistency"], "ramp": "constant"}
    return values | {"batch_size": BATCH}, objective | changes


def distilled(name: str, task: str, counts: np.ndarray, width: int, also: Sequence[int] = ()) -> Job:
    """Distillation, or fine-tuning, of a MiniLM-sized model. also: other widths that a baseline pads to in fp32."""
    rows = encoded(counts, tokens=TOKENS, labels=2)
    baselines: dict[str, type[plain.Distillation]] = {
        "cr_ild": plain.CrIld,
        "tinybert": plain.TinyBert,
        "kd": plain.LogitKd,
        "ft": plain.FineTuning,
    }

    def contenders(precision: str) -> dict[str, Stepper]:
        if name == "ft":
            guide, student = None, plain.Reader(stock(TEACHER))
        else:
            guide, student = plain.Reader(stock(TEACHER)), plain.Reader(stock(STUDENT), student=True)
        baseline = baselines[name](student, guide, precision)
        widths = (width, *also) if precision == "fp32" else (width,)
        found = {f"plain, {each} tokens": padded(baseline, rows, each) for each in widths}
        if name == "ft":
            return found | {
                "kdlab": fitted(ours(TEACHER), LabelStep("classification"), rows, preset("ft", "student")[0], precision)
            }
        pupil, teacher = ours(STUDENT), ours(TEACHER).freeze()
        place: dict[str, Any] = {"precision": precision, "place": CPU}
        if name == "kd":
            values, objective = preset("kd", "logits")
            taught = copy.copy(rows)
            taught.extra = {TEACHER_LOGITS: np.random.default_rng(0).standard_normal((len(rows), 2), dtype=np.float32)}
            kept = LogitStep(None, objective, kind="classification", **place)
            asked = LogitStep(teacher, objective, kind="classification", **place)
            return found | {
                "kdlab": fitted(pupil, kept, taught, values, precision),
                "kdlab, teacher asked": fitted(pupil, asked, rows, values, precision),
            }
        values, objective = layer_objective("cr_ild" if name == "cr_ild" else "u_ild")
        step = LayerStep(teacher, objective, layers=(STUDENT, TEACHER), **place)
        return found | {
            "kdlab": fitted(pupil, step, rows, values, precision),
            "kdlab, BertAdam": fitted(pupil, step, rows, values | {"optimizer": "bert_adam"}, precision),
        }

    return Job(name, task, width, rows, contenders, batches=3)


def musc_student() -> tuple[Tapped, PairStep, dict[str, Any]]:
    values, objective = preset("musc", "student")
    student = ours(MULTILINGUAL, labels=3, tokens=MANY_TOKENS)
    student.contrast = ProjectionHead(WIDTH, PROJECTED, "mlp", 0)
    return student, PairStep(objective, paired=True), values


def plain_musc(precision: str) -> plain.Musc:
    head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, PROJECTED))
    return plain.Musc(plain.Reader(stock(MULTILINGUAL, labels=3, tokens=MANY_TOKENS)), head, precision)


def musc() -> Job:
    rows = encoded_pairs(lengths.XNLI, tokens=MANY_TOKENS, labels=3)

    def contenders(precision: str) -> dict[str, Stepper]:
        student, step, values = musc_student()
        four = PairStep(preset("musc", "student")[1], paired=True, fused=False)
        return {
            f"plain, {LONGEST} tokens": padded(paired(plain_musc(precision)), rows, LONGEST),
            "kdlab": fitted(student, step, rows, values, precision),
            "kdlab, four passes": fitted(student, four, rows, values, precision),
            "kdlab, recompute": fitted(student, step, rows, values, precision, recompute=True),
        }

    return Job("musc", "XNLI", LONGEST, rows, contenders, batches=2)


def jobs() -> list[Job]:
    return [
        distilled("cr_ild", "RTE", lengths.RTE, 128),
        distilled("cr_ild", "CoLA", lengths.COLA, 64, also=[128]),
        distilled("tinybert", "RTE", lengths.RTE, 128),
        distilled("kd", "RTE", lengths.RTE, 128),
        distilled("ft", "RTE", lengths.RTE, 128),
        distilled("ft", "CoLA", lengths.COLA, 64),
        musc(),
    ]


def warmed(stepper: Stepper, chosen: Chosen) -> Callable[[], list[float]]:
    """The steps of a call whose first batch comes twice and counts once."""
    return lambda: stepper([chosen[0], *chosen])[1:]


def in_turn(contenders: Mapping[str, Stepper], chosen: Chosen) -> dict[str, Callable[[], list[float]]]:
    """kdlab's loop starts anew at each call, and warms up each time; baselines go on from their last call."""
    return {
        name: partial(stepper, chosen) if _is_baseline(name) else warmed(stepper, chosen)
        for name, stepper in contenders.items()
    }


def _is_baseline(name: str) -> bool:
    return name.startswith("plain")


def count(contenders: Mapping[str, Stepper], chosen: Chosen, counted: dict[str, float]) -> None:
    """Fill in FLOP a step of the contenders that `counted` lacks; run one step of the baselines that it has."""
    for name, stepper in contenders.items():
        some = chosen[:1] if _is_baseline(name) else chosen  # a baseline's batches are all of one size
        if name not in counted:
            counted[name] = flops(partial(stepper, some)) / len(some)
        elif _is_baseline(name):
            stepper(some)


def compared(job: Job, precision: str, settings: Settings, counted: dict[str, float]) -> Iterator[Row]:
    """A row a contender. counted: FLOP a step by contender, filled where it is not there yet."""
    chosen = representative(job.rows, epoch_of(job.rows), job.batches)
    contenders = job.contenders(precision)
    count(contenders, chosen, counted)
    limit = peak(precision)
    found = interleave_steps(in_turn(contenders, chosen), settings)
    limit = max(limit, peak(precision))
    tokens = float(np.mean([real_tokens(job.rows, batch) for batch in chosen]))
    first = float(np.mean(found[next(iter(found))]))
    for name, times in found.items():
        step = float(np.mean(times))
        yield {
            "table": "steps",
            "job": job.name,
            "task": job.task,
            "dtype": precision,
            "contender": name,
            "s_a_step": step,
            "tokens_a_s": tokens / step,
            "times_plain": first / step,
            "gflop": counted[name] / 1e9,
            "of_peak": counted[name] / step / limit,
            "peak_gflops": limit / 1e9,
        }


def against_official(rows: Sequence[Row]) -> Iterator[Row]:
    """Whether baselines reproduce the figures of the authors' code: as they are, or scaled to its machine's peak."""
    for row in rows:
        for (job, task, width), seconds in OFFICIAL.items():
            if (row["job"], row["task"], row["contender"]) != (job, task, f"plain, {width} tokens"):
                continue
            measured, limit = float(row["s_a_step"]), float(row["peak_gflops"]) * 1e9
            scaled = measured * limit / OFFICIAL_PEAK
            yield {
                "table": "official code, fp32",
                "job": job,
                "task": task,
                "tokens": width,
                "official_s": seconds,
                "plain_s": measured,
                "over_official": measured / seconds,
                "scaled_s": scaled,
                "scaled_over_official": scaled / seconds,
                "peak_gflops": limit / 1e9,
                "verdict": verdict(measured / seconds, scaled / seconds),
            }


def verdict(measured: float, scaled: float) -> str:
    """Of a baseline's seconds over those of the official code, as measured and scaled by the machines' peaks."""
    if abs(measured - 1) <= NEAR:
        return "within 20 %"
    if abs(scaled - 1) <= NEAR:
        return "within 20 % when scaled"
    return "quicker than the official code" if scaled < 1 else "slower than the official code"


# every method ----------------------------------------------------------------------------------------------------


def step_of(method: str, teacher: Tapped, precision: str) -> tuple[dict[str, Any], Objective]:
    """How the method's preset trains the stage after the teacher, and its step."""
    placed: dict[str, Any] = {"precision": precision, "place": CPU}
    stage = "joint" if method == "joint" else "logits" if method in ("kd", "mixkd") else "layers"
    values, objective = layer_objective(method) if stage == "layers" else preset(method, stage)
    if stage == "logits":
        return values, LogitStep(teacher, objective, kind="classification", **placed)
    layers = LayerStep(teacher, objective, layers=(STUDENT, TEACHER), **placed)
    return values, layers if stage == "layers" else JointStep(layers, objective, kind="classification")


def methods(settings: Settings) -> Iterator[Row]:
    """A step of every method of layer distillation beside one of KD whose teacher is asked, on a middling RTE batch."""
    rows = encoded(lengths.RTE, tokens=TOKENS, labels=2)
    chosen = representative(rows, epoch_of(rows), 1)
    precision = settings.precisions[-1]
    teacher = ours(TEACHER).freeze()
    steps = {name: step_of(name, teacher, precision) for name in METHODS}
    contenders = {
        name: warmed(fitted(ours(STUDENT), objective, rows, values, precision), chosen)
        for name, (values, objective) in steps.items()
    }
    found = {name: float(np.mean(times)) for name, times in interleave_steps(contenders, settings).items()}
    for name, step in found.items():
        yield {
            "table": "methods, RTE",
            "dtype": precision,
            "method": name,
            "s_a_step": step,
            "times_kd": step / found["kd"],
        }


# beside the Trainer ----------------------------------------------------------------------------------------------


class Ordered(Trainer):
    """The Trainer with its samples in a given order."""

    order: Sequence[int] = ()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order


class Marks(TrainerCallback):
    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.marks.append(time.perf_counter())


def longest(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Padded to the longest, as transformers' DataCollatorWithPadding does."""
    ids = [torch.tensor(feature["input_ids"]) for feature in features]
    padded_ids = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    labels = torch.tensor([feature["labels"] for feature in features])
    return {"input_ids": padded_ids, "attention_mask": (padded_ids != 0).long(), "labels": labels}


def trained_by_trainer(rows: EncodedSplit, attention: str, precision: str) -> Stepper:
    """Seconds of all steps but the first: the Trainer says when a step ends, not when it starts."""
    data = []
    for number in range(len(rows)):
        row = rows.collate(np.array([number]), pad_token_id=0, width=int(rows.lengths[number]))
        data.append({"input_ids": row["input_ids"][0].tolist(), "labels": int(row["labels"][0])})

    def train(chosen: Chosen) -> list[float]:
        marks = Marks()
        AcceleratorState._reset_state(reset_partial_state=False)
        with tempfile.TemporaryDirectory() as folder, memory_as_it_is():
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                max_steps=len(chosen),
                learning_rate=2e-5,
                weight_decay=0.01,
                bf16=precision == "bf16",
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            trainer = Ordered(stock(TEACHER, attention=attention), arguments, longest, data, callbacks=[marks])
            trainer.remove_callback(PrinterCallback)
            trainer.order = np.concatenate(list(chosen)).tolist()
            trainer.train()
        return [float(step) for step in np.diff(marks.marks)]

    return train


def beside_trainer(settings: Settings) -> Iterator[Row]:
    """Plain fine-tuning on RTE: batches of a whole epoch as each side makes them, represented by a few."""
    rows = encoded(lengths.RTE, tokens=TOKENS, labels=2)
    draw = torch.Generator().manual_seed(0)
    grouped = np.array(list(LengthGroupedSampler(BATCH, lengths=rows.lengths.tolist(), generator=draw)))
    random = torch.randperm(len(rows), generator=draw).numpy()
    whole = len(rows) // BATCH * BATCH
    made = {
        "grouped": list(grouped[:whole].reshape(-1, BATCH)),
        "random": list(random[:whole].reshape(-1, BATCH)),
        "kdlab": epoch_of(rows),
    }
    chosen = {name: representative(rows, batches, 5) for name, batches in made.items()}
    for precision in settings.precisions:
        trainer = {kernel: trained_by_trainer(rows, kernel, precision) for kernel in ("sdpa", "eager")}
        loop = fitted(ours(TEACHER), LabelStep("classification"), rows, preset("ft", "student")[0], precision)
        contenders = {
            "Trainer, sdpa": (trainer["sdpa"], "random"),
            "Trainer, eager": (trainer["eager"], "random"),
            "Trainer, eager, by length": (trainer["eager"], "grouped"),
            "kdlab": (loop, "kdlab"),
        }
        steppers = {name: _with_warm_up(*contender, chosen) for name, contender in contenders.items()}
        found = {name: float(np.mean(times)) for name, times in interleave_steps(steppers, settings).items()}
        for name, (_, batches) in contenders.items():
            tokens = float(np.mean([real_tokens(rows, batch) for batch in chosen[batches]]))
            yield {
                "table": "plain fine-tuning, RTE",
                "dtype": precision,
                "contender": name,
                "steps_a_s": 1 / found[name],
                "tokens_a_s": tokens / found[name],
                "times_kdlab": found[name] / found["kdlab"],
            }


def _with_warm_up(stepper: Stepper, batches: str, chosen: Mapping[str, Chosen]) -> Callable[[], list[float]]:
    count = len(chosen[batches])
    return lambda: stepper([chosen[batches][0], *chosen[batches]])[-count:]


# the machine's limit ---------------------------------------------------------------------------------------------


def of_the_peak(settings: Settings) -> Iterator[Row]:
    """Training of a MiniLM-sized encoder on 32 rows of 128 tokens, with and without dropout."""
    rows = encoded(np.full(4 * BATCH, LONGEST), tokens=TOKENS, labels=2)
    chosen = epoch_of(rows)[:3]
    values = preset("ft", "student")[0]
    counted: dict[str, float] = {}
    for precision in settings.precisions:
        contenders: dict[str, Stepper] = {}
        for rate in (0.1, 0.0):
            own = plain.FineTuning(plain.Reader(stock(TEACHER, dropout=rate)), None, precision)
            contenders[f"plain, dropout {rate}"] = padded(own, rows, LONGEST)
            model = ours(TEACHER, dropout=rate)
            contenders[f"kdlab, dropout {rate}"] = fitted(model, LabelStep("classification"), rows, values, precision)
        count(contenders, chosen, counted)
        limit = peak(precision)
        found = interleave_steps(in_turn(contenders, chosen), settings)
        limit = max(limit, peak(precision))
        for name, times in found.items():
            step = float(np.mean(times))
            yield {
                "table": "of the peak: 6 layers, 32 x 128 tokens",
                "dtype": precision,
                "contender": name,
                "s_a_step": step,
                "tokens_a_s": BATCH * LONGEST / step,
                "gflops": counted[name] / step / 1e9,
                "peak_gflops": limit / 1e9,
                "of_peak": counted[name] / step / limit,
            }


# overhead --------------------------------------------------------------------------------------------------------


def bare(model: Tapped, objective: Objective, rows: Rows, values: Mapping[str, Any], precision: str) -> Stepper:
    """What no loop can do without: forward, backward, clipping and optimiser, on batches that are ready before."""

    def train(chosen: Chosen) -> list[float]:
        student = copy.deepcopy(model).train()
        optimizer = build_optimizer(
            student, name=values["optimizer"], lr=values["lr"], weight_decay=values["weight_decay"], fused=True
        )
        parameters = list(student.parameters())
        tables = TableGradients(student, CPU, processes=1)
        progress = Progress(0, 1, 0, 1, 1, np.random.default_rng(0))
        ready = [batches[0] for batches in Marked(rows, chosen).epoch(0)]
        times = []

        def cast(*given: Any, **named: Any) -> Any:
            with device.autocast(CPU, precision):
                return student(*given, **named)

        for batch in ready:
            start = time.perf_counter()
            loss = objective(cast, batch, progress)  # type: ignore[arg-type]
            torch.autograd.backward(loss.total / loss.count)
            tables.gather()
            gradients = [numbers(weight.grad) for weight in parameters if weight.grad is not None]
            norm = float(nn.utils.get_total_norm(gradients))
            torch._foreach_mul_(gradients, min(1.0, values["clip"] / (norm + 1e-6)))
            tables.spread()
            optimizer.step()
            tables.clear()
            optimizer.zero_grad()
            times.append(time.perf_counter() - start)
        return times

    return train


def overhead(settings: Settings) -> Iterator[Row]:
    """Loop, log and store over the bare step, on RTE, in the last dtype: where it is quickest, they weigh most.

    The log has a point every step, more than in any real run. checkpoint_s: seconds of one checkpoint;
    store_overhead: their share of the time, as often as a run makes them.
    """
    rows = encoded(lengths.RTE, tokens=TOKENS, labels=2)
    chosen = representative(rows, epoch_of(rows), 6)
    values = preset("ft", "student")[0]
    objective = LabelStep("classification")
    every = Hardware(name="cpu").checkpoint_seconds
    precision = settings.precisions[-1]
    model = ours(TEACHER)
    contenders = {
        "bare": bare(model, objective, rows, values, precision),
        "loop": fitted(model, objective, rows, values, precision),
        "store": fitted(model, objective, rows, values, precision, checkpoint_seconds=0),
    }
    found = interleave_steps({name: warmed(stepper, chosen) for name, stepper in contenders.items()}, settings)
    # the last step has no checkpoint
    step, loop, store = (float(np.mean(found[name][:-1])) for name in ("bare", "loop", "store"))
    yield {
        "table": "overhead, RTE",
        "dtype": precision,
        "bare_s": step,
        "loop_s": loop,
        "loop_overhead": loop / step - 1,
        "checkpoint_s": store - loop,
        "store_overhead": (store - loop) / every,
    }


# memory ----------------------------------------------------------------------------------------------------------


def train_musc(contender: str, precision: str, pairs: int) -> None:
    """A step on so many pairs of 128 tokens, after one on two pairs that makes the optimiser's averages."""
    rows = encoded_pairs(np.full((pairs, 2), LONGEST), tokens=MANY_TOKENS, labels=3)
    chosen = [np.arange(2), np.arange(pairs)]
    if contender == "plain":
        padded(paired(plain_musc(precision)), rows, LONGEST)(chosen)
    else:
        student, step, values = musc_student()
        fitted(student, step, rows, values, precision, recompute=contender == "kdlab, recompute", once=True)(chosen)


def memory(settings: Settings) -> Iterator[Row]:
    """Of MUSC with 12 layers. The plain baseline has 8 pairs and 16, and 32 by the line through them."""
    for precision in settings.precisions:
        few, more = (peak_memory(train_musc, "plain", precision, pairs) for pairs in (8, 16))
        found = {"plain, extrapolated": few + 3 * (more - few)}
        found |= {name: peak_memory(train_musc, name, precision, 32) for name in ("kdlab", "kdlab, recompute")}
        for name, most in found.items():
            yield {
                "table": "memory of musc: 12 layers, 32 pairs of 128 tokens",
                "dtype": precision,
                "contender": name,
                "peak_gb": most / 1e9,
            }


def run(settings: Settings) -> Iterator[Row]:
    yield from memory(settings)  # in processes of their own, while this one is small
    of_fp32: list[Row] = []
    for job in jobs():
        counted: dict[str, float] = {}
        for precision in reversed(settings.precisions):  # operations are counted where they are quickest
            for row in compared(job, precision, settings, counted):
                of_fp32 += [row] if precision == "fp32" else []
                yield row
        give_back()
    yield from against_official(of_fp32)
    yield from methods(settings)
    yield from beside_trainer(replace(settings, seconds=settings.seconds / 2))
    give_back()
    yield from of_the_peak(settings)
    yield from overhead(settings)
