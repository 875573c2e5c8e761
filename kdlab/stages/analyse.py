"""Look at a finished student: how flat its loss is, what noise on its weights does, how far it is from its teacher.

Nothing is trained here. Models run in fp32 and eval mode; whatever is done to weights is undone bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor, nn

from kdlab.artifacts import write_json
from kdlab.context import Context
from kdlab.data.batches import EncodedSplit
from kdlab.data.metrics import score
from kdlab.engine import device
from kdlab.errors import ConfigError, TrainingError
from kdlab.integrity import kept_lines, sealed
from kdlab.models.taps import Tap, Tapped, Views, available
from kdlab.objectives.layer_map import layer_pairs
from kdlab.objectives.logits import hard_label
from kdlab.stages.encoder import TaskData, answers, on, saved_model

Array = np.ndarray[Any, Any]
Weights = dict[str, Tensor]
T = TypeVar("T")

TOLERANCE = 0.1  # a loss that rises by less is still in the flat area around the student
FINER = 20  # cells of the finer grid on which areas are measured, along one cell of the surface
DIRECTIONS = 72  # points on a circle around the student
SMALL = 16  # rows of a batch where no other size matters: little padding
RINGS = 20  # circles between the student and the surface's edge


# the loss surface --------------------------------------------------------------------------------------------------


def loss_surface(
    context: Context, *, model: Path, data: Path, points: int, span: float, rows: int, seed: int, pad_to_max: bool
) -> None:
    """Hard-label loss on `rows` training rows at points x points places in the plane of two random directions.

    The directions are filter-normalised (Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", section 4):
    a Gaussian direction each, in which every filter is scaled to the norm of the student's own filter. A filter is a
    row of a weight matrix: what makes one output of a linear map, or the vector of one token, position or segment.
    Biases and the weights of normalisation layers, which have one dimension, do not move (section 4, as for batch
    normalisation), nor do the vectors of tokens that occur in none of the rows, which could change no loss.
    One unit of distance is a step as long as the weights themselves.

    Leaves surface.json: `axis` [points] (the student in the middle), `loss` [points, points] (first direction, then
    second; nats, or squared units of the label), and the flatness numbers of `flatness`.
    """
    task = TaskData(data)
    subject = _ready(context, model)
    split = task.split("train")
    chosen = sample(len(split), rows, seed)
    batches = _batches(subject, task, split, chosen, pad_to_max, size=SMALL)
    first, second = (filter_direction(subject.model, batches, seed, number) for number in (0, 1))
    axis = span * np.arange(-(points // 2), points // 2 + 1) / (points // 2)
    places = [(float(a), float(b)) for a in axis for b in axis]

    with weights_restored(subject.model) as kept:

        def measure(place: tuple[float, float]) -> dict[str, float]:
            shift(subject.model, kept, ((place[0], first), (place[1], second)))
            return {"loss": _loss(_logits(subject, batches), batches, task.kind)}

        found = measured(context, places, measure)
    losses = np.array([one["loss"] for one in found]).reshape(points, points)
    result = {"rows": len(chosen), "axis": axis.tolist(), "loss": losses.tolist(), **flatness(losses, axis)}
    write_json(context.out / "surface.json", result)


def filter_direction(model: nn.Module, batches: Sequence[Mapping[str, Tensor]], seed: int, number: int) -> Weights:
    """Random direction `number` by parameter, filter-normalised; the parameters that it leaves alone are not in it.

    The numbers drawn depend on the shapes and the seed only: models of one shape get the same Gaussian directions.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
    tokens = model.get_input_embeddings().weight  # type: ignore[operator]
    seen = torch.unique(torch.cat([batch["input_ids"].flatten() for batch in batches]))
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        direction = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        if parameter is tokens:
            occurs = torch.zeros(len(parameter), dtype=torch.bool, device=parameter.device)
            occurs[seen] = True
            direction[~occurs] = 0.0
        found[name] = filter_normalised(direction, parameter.detach())
    return found


def filter_normalised(direction: Tensor, weight: Tensor) -> Tensor:
    """`d_i / |d_i| * |w_i|` for each filter i, the first dimension: [F, ...] -> [F, ...]. A zero filter stays zero."""
    ours, theirs = direction.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1)
    factor = torch.where(ours > 0, theirs / ours.clamp(min=torch.finfo(ours.dtype).tiny), 0.0)
    return direction * factor.view(-1, *[1] * (direction.dim() - 1))


def flatness(losses: Array, axis: Array) -> dict[str, Any]:
    """How flat a surface is around its middle; `rise` is the loss less that of the student.

    * `mean_rise`: the mean rise over all points of the grid within the circle that touches the square's edges, the
      middle left out. Lower is flatter.
    * `flat_area`: the share of the square in which the rise is below TOLERANCE (bilinear between the points), from 0
      to 1. Higher is flatter.
    * `profile`: for circles of growing radius around the student, the mean rise on the circle (bilinear).
    """
    middle = len(axis) // 2
    rise = losses - losses[middle, middle]
    distance = np.hypot(axis[:, None], axis[None, :])
    span = float(axis[-1])
    inside = (distance > 0) & (distance <= span * (1 + 1e-9))
    between = RegularGridInterpolator((axis, axis), rise)
    cells = (len(axis) - 1) * FINER
    fine = -span + (np.arange(cells) + 0.5) * (2 * span / cells)
    area = between(np.stack(np.meshgrid(fine, fine, indexing="ij"), axis=-1))  # [cells, cells]
    angles = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1)  # [DIRECTIONS, 2]
    radii = span * np.arange(RINGS + 1) / RINGS
    profile = [float(between(np.clip(radius * circle, -span, span)).mean()) for radius in radii]
    return {
        "center": float(losses[middle, middle]),
        "mean_rise": float(rise[inside].mean()),
        "flat_area": float((area < TOLERANCE).mean()),
        "tolerance": TOLERANCE,
        "profile": {"distance": radii.tolist(), "rise": profile},
    }


# noise on the weights ----------------------------------------------------------------------------------------------


def weight_noise(
    context: Context,
    *,
    model: Path,
    data: Path,
    scales: Sequence[float],
    draws: int,
    rows: int,
    seed: int,
    metric: str,
    pad_to_max: bool,
) -> None:
    """Score and hard-label loss on `rows` dev rows under Gaussian noise on every weight.

    The noise on a tensor of weights has the standard deviation scale * (root mean square of that tensor): biases and
    normalisation layers too. Draw k is the same noise at every scale, and for every model of the same shape.

    Leaves noise.json: for each scale, 0 (the student as it is) first, `score` and `loss`: their `mean`, their sample
    standard `deviation`, and the `draws` themselves. Scale 0 is the run's selected score where the rows are all of dev.
    """
    task = TaskData(data)
    subject = _ready(context, model)
    split = task.split("dev")
    chosen = sample(len(split), rows, seed)
    # if the rows are all, the batches of `stages.encoder.predict` and the order of the split: equal to the last bit
    batches = _batches(subject, task, split, chosen, pad_to_max, size=context.hardware.eval_batch)
    order = torch.argsort(torch.cat([batch["index"] for batch in batches])).cpu()
    labels = split.labels[chosen]
    shaken = [scale for scale in scales if scale > 0]
    cases = [(0.0, 0), *((scale, draw) for scale in shaken for draw in range(draws))]

    with weights_restored(subject.model) as kept:

        def measure(case: tuple[float, int]) -> dict[str, float]:
            scale, draw = case
            if scale:
                shift(subject.model, kept, [(scale, noise(kept, seed, draw))])
            logits = _logits(subject, batches)
            found = answers(logits.cpu()[order].numpy(), task.kind)
            return {"loss": _loss(logits, batches, task.kind), "score": score(metric, found, labels)}

        found = dict(zip(cases, measured(context, cases, measure), strict=True))
    levels = [[one for case, one in found.items() if case[0] == scale] for scale in (0.0, *shaken)]
    result = {
        "metric": metric,
        "rows": len(chosen),
        "of": len(split),
        "scales": [0.0, *shaken],
        "score": [_spread([one["score"] for one in level]) for level in levels],
        "loss": [_spread([one["loss"] for one in level]) for level in levels],
    }
    write_json(context.out / "noise.json", result)


def noise(weights: Weights, seed: int, draw: int) -> Weights:
    """Gaussian noise by parameter, with the root mean square of the weights as its standard deviation."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, draw]).generate_state(1)[0]))
    return {
        name: torch.randn(value.shape, generator=generator).to(value.device) * value.square().mean().sqrt()
        for name, value in weights.items()
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "deviation": deviation, "draws": list(values)}


# the distance to the teacher ---------------------------------------------------------------------------------------


def layer_distance(
    context: Context,
    *,
    model: Path,
    teacher: Path,
    data: Path,
    layers: Path | None = None,
    layer_map: str | None,
    pairs: Sequence[str],
    rows: int,
    seed: int,
    pad_to_max: bool,
) -> None:
    """How far each student layer is from a teacher layer, on train and on dev, equally many rows of each.

    For the student (`model`) and for what the layer stage left (`layers`), per pair (student layer, teacher layer):

    * `attention`: KL(teacher || student) of the attention rows in nats, mean over heads, valid query rows, examples.
    * `hidden`: |h_S - h_T|^2 / |h_T|^2, both summed over all valid tokens; h_S goes through the projection that the
      layer stage has learned, if it has. None where the widths differ and there is none.
    * `cka`: 1 - linear CKA of the token states (Kornblith et al. 2019, "Similarity of Neural Network Representations
      Revisited", section 3), features centred over all valid tokens. Whatever the widths; from 0 to 1.

    Pairs are those of the run's layer map (`layer_map` with `pairs`; None: it has none, or one of all to all), those of
    the uniform map where the depths divide, and the two last layers. Leaves distance.json with `students`, by name
    ("layers", "student") and split; beside the pairs' numbers, `similarity` is the linear CKA of every student layer
    with every teacher layer, 0 the embedding output: [S + 1, T + 1].
    """
    task = TaskData(data)
    guide = _ready(context, teacher)
    folders = {"layers": layers, "student": model} if layers != model else {"student": model}
    pupils = {name: _ready(context, folder) for name, folder in folders.items() if folder is not None}
    linear = _projection([model] if layers is None else [model, layers])
    mapped, chosen = compared_pairs(layer_map, pairs, pupils["student"].num_layers, guide.num_layers)
    no_attention = _why_no_attention(pupils["student"], guide)
    splits = {name: task.split(name) for name in ("train", "dev")}
    count = min(rows, *(len(split) for split in splits.values()))

    found: dict[str, dict[str, Any]] = {name: {} for name in pupils}
    for name, split in splits.items():
        sums = {which: Distances(chosen, linear=linear, attention=not no_attention) for which in pupils}
        with torch.no_grad():
            for batch in _batches(guide, task, split, sample(len(split), count, seed), pad_to_max, size=SMALL):
                target = guide(batch, taps=_taps(guide, chosen, 1, attention=not no_attention))
                for which, pupil in pupils.items():
                    views = pupil(batch, taps=_taps(pupil, chosen, 0, attention=not no_attention))
                    sums[which].add(views, target)
        for which in pupils:
            found[which][name] = sums[which].result()
    result = {
        "rows": count,
        "pairs": [list(pair) for pair in chosen],
        "mapped": [list(pair) for pair in mapped],
        "projected": linear is not None,
        "no_attention": no_attention,
        "students": found,
    }
    write_json(context.out / "distance.json", result)


def compared_pairs(
    layer_map: str | None, pairs: Sequence[str], student_layers: int, teacher_layers: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(the pairs of the run's own layer map, all pairs that are compared)."""
    own = [] if layer_map is None else layer_pairs(layer_map, student_layers, teacher_layers, pairs=pairs)
    uniform: list[tuple[int, int]] = []
    with suppress(ConfigError):  # the depths do not divide
        uniform = layer_pairs("uniform", student_layers, teacher_layers)
    return sorted(own), sorted({*own, *uniform, (student_layers, teacher_layers)})


class Distances:
    """Sums over batches from which the distances of one student to its teacher follow."""

    def __init__(self, pairs: Sequence[tuple[int, int]], *, linear: nn.Linear | None, attention: bool) -> None:
        self.pairs, self.linear, self.attention = pairs, linear, attention
        self.examples = 0
        self.divergence = [0.0] * len(pairs)  # sums of the examples' KL
        self.error = [0.0] * len(pairs)  # sums of squares
        self.size = [0.0] * len(pairs)
        self.comparable = True
        self.agreement = Agreement()

    def add(self, student: Views, teacher: Views) -> None:
        """One batch, seen by both."""
        self.examples += len(student.mask)
        valid = student.mask.bool()
        ours, theirs = (
            [view.hidden[layer][valid].cpu() for layer in sorted(view.hidden)] for view in (student, teacher)
        )  # by layer [tokens, D]
        self.agreement.add(ours, theirs)
        for number, (i, j) in enumerate(self.pairs):
            if self.attention:
                values = attention_kl(student.attention[i], teacher.attention[j], student.mask)
                self.divergence[number] += float(values.sum())
            state = ours[i] if self.linear is None else self.linear(ours[i])
            self.comparable = self.comparable and state.shape == theirs[j].shape
            if self.comparable:
                self.error[number] += float((state.double() - theirs[j].double()).square().sum())
                self.size[number] += float(theirs[j].double().square().sum())

    def result(self) -> dict[str, Any]:
        similarity = self.agreement.similarity()
        return {
            "attention": [value / self.examples if self.attention else None for value in self.divergence],
            "hidden": [
                error / size if self.comparable else None for error, size in zip(self.error, self.size, strict=True)
            ],
            "cka": [1.0 - similarity[i][j] for i, j in self.pairs],
            "similarity": similarity,
        }


class Agreement:
    """Running sums for the linear CKA of every student layer with every teacher layer.

    CKA = |Y'X|^2 / (|X'X| |Y'Y|), Frobenius norms, columns centred. States are shifted by the first batch's mean
    before they are multiplied, so that centring takes little away and single precision is enough for the products.
    """

    def __init__(self) -> None:
        self.count = 0
        self.shifts: list[list[Tensor]] = []  # [D] by side and layer
        self.sums: list[list[Tensor]] = []
        self.own: list[list[Tensor]] = []  # [D, D] by side and layer
        self.cross: list[list[Tensor]] = []  # [D of the teacher, D of the student] by student and teacher layer

    def add(self, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
        """The states of the same tokens, by layer: [tokens, D]."""
        if not self.count:
            self.shifts = [[states.mean(0) for states in side] for side in (ours, theirs)]
        self.count += len(ours[0])
        shifted = [
            [states - shift for states, shift in zip(side, shifts, strict=True)]
            for side, shifts in zip((ours, theirs), self.shifts, strict=True)
        ]
        _accumulate(self.sums, [[x.double().sum(0) for x in side] for side in shifted])
        _accumulate(self.own, [[(x.T @ x).double() for x in side] for side in shifted])
        _accumulate(self.cross, [[(y.T @ x).double() for y in shifted[1]] for x in shifted[0]])

    def similarity(self) -> list[list[float]]:
        """[student layers, teacher layers], each from 0 to 1; 0 where a layer does not vary."""

        def norm(products: Tensor, left: Tensor, right: Tensor) -> float:
            return float((products - torch.outer(left, right) / self.count).norm())

        def alike(i: int, j: int) -> float:
            ours, theirs = (norm(self.own[s][k], self.sums[s][k], self.sums[s][k]) for s, k in ((0, i), (1, j)))
            shared = norm(self.cross[i][j], self.sums[1][j], self.sums[0][i])
            return min(1.0, shared**2 / (ours * theirs)) if ours * theirs else 0.0

        return [[alike(i, j) for j in range(len(self.own[1]))] for i in range(len(self.own[0]))]


def _accumulate(sums: list[list[Tensor]], values: list[list[Tensor]]) -> None:
    if not sums:
        sums.extend(values)
        return
    for row, more in zip(sums, values, strict=True):
        for total, value in zip(row, more, strict=True):
            total += value


def attention_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(teacher || student) of attention rows, mean over heads and valid query rows, in double precision on the CPU.

    student, teacher: scores before softmax [B, h, L, L]; mask: [B, L] of keys and of query rows. Returns [B].
    """
    valid = mask.cpu().bool()
    hidden = ~valid[:, None, None, :]
    log_student, log_teacher = (
        scores.cpu().double().masked_fill(hidden, torch.finfo(torch.float64).min).log_softmax(-1)
        for scores in (student, teacher)
    )
    parts = (log_teacher.exp() * (log_teacher - log_student)).masked_fill(hidden, 0.0)
    rows = parts.sum(-1).mean(1)  # [B, L]
    return (rows * valid).sum(-1) / valid.sum(-1)


def _taps(model: Tapped, pairs: Sequence[tuple[int, int]], side: int, *, attention: bool) -> list[Tap]:
    """All hidden states, and the attention of the layers that are compared. side: 0 the student, 1 the teacher."""
    compared = sorted({pair[side] for pair in pairs}) if attention else []
    states = [Tap("hidden", layer) for layer in range(model.num_layers + 1)]
    return states + [Tap("attention", layer) for layer in compared]


def _why_no_attention(student: Tapped, teacher: Tapped) -> str:
    """Why attention rows can't be compared; nothing if they can."""
    for model in (student, teacher):
        if "attention" not in available(model.kind):
            return f"{model.kind} does not show its attention scores"
    if student.num_heads != teacher.num_heads:
        return f"the student has {student.num_heads} attention heads, its teacher {teacher.num_heads}"
    return ""


def _projection(folders: Sequence[Path]) -> nn.Linear | None:
    """The linear map on student states that a layer stage left, on the CPU."""
    for folder in folders:
        file = folder / "projection.safetensors"
        if file.exists():
            weights = load_file(file)
            linear = nn.Linear(weights["weight"].shape[1], weights["weight"].shape[0])
            linear.load_state_dict(weights)
            return linear
    return None


# what all of them share --------------------------------------------------------------------------------------------


def sample(count: int, rows: int, seed: int) -> Array:
    """Numbers of `rows` of `count` rows, drawn without replacement, in order; all of them if there are no more."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:rows])


def shift(model: nn.Module, kept: Weights, steps: Sequence[tuple[float, Weights]]) -> None:
    """Set the weights to the kept ones plus each direction times its factor."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(kept[name])
            for factor, direction in steps:
                if factor and name in direction:
                    parameter.add_(direction[name], alpha=factor)


@contextmanager
def weights_restored(model: nn.Module) -> Iterator[Weights]:
    """Gives the weights by name, and puts them back bit by bit whatever happens inside."""
    kept = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    try:
        yield kept
    finally:
        shift(model, kept, ())


def measured(context: Context, cases: Sequence[T], measure: Callable[[T], dict[str, float]]) -> list[dict[str, float]]:
    """What `measure` gives for each case; those that an interrupted attempt has measured are taken from `work`."""
    file = context.work / "measured.jsonl"
    context.work.mkdir(parents=True, exist_ok=True)
    lines, damage = kept_lines(file)
    found: list[dict[str, float]] = lines[: len(cases)]
    if damage is not None:
        context.note(f"damaged: {damage}; what follows is measured again")
    for case in cases[len(found) :]:
        one = measure(case)
        if not np.isfinite(one["loss"]):
            raise TrainingError(
                f"the loss of the shifted weights is {one['loss']}",
                where=str(context.out),
                fix="look at a smaller part of the surface: --span 0.1",
            )
        with open(file, "a", encoding="utf-8") as log:
            log.write(sealed(one))
        found.append(one)
        context.show({"step": len(found), "steps": len(cases), **one})
    return found


def _ready(context: Context, folder: Path) -> Tapped:
    """The model of an artifact, for looking at."""
    place = device.pick_device(context.hardware)
    kernel = device.attention_kernel(context.hardware)
    return saved_model(folder / "model", kernel=kernel).to(place).eval().requires_grad_(False)


def _batches(
    model: Tapped, task: TaskData, split: EncodedSplit, chosen: Array, pad_to_max: bool, *, size: int
) -> list[dict[str, Tensor]]:
    """The chosen rows on the model's device, the longest first."""
    place = next(model.parameters()).device
    ordered = chosen[np.argsort(-split.lengths[chosen], kind="stable")]
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return [on(place, task.rows(split, part.tolist(), pad_to_max=pad_to_max)) for part in parts]


def _logits(model: Tapped, batches: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """[N, C] in the order of the batches."""
    with torch.no_grad():
        return torch.cat([model(batch).logits for batch in batches])


def _loss(logits: Tensor, batches: Sequence[Mapping[str, Tensor]], kind: str) -> float:
    """Mean cross entropy with the labels, or mean squared error."""
    labels = torch.cat([batch["labels"] for batch in batches])
    return float(hard_label(logits, labels, kind=kind).mean())
