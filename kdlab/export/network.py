"""A student as model.onnx, and the proof that onnxruntime computes with it what torch does.

torch.onnx itself writes it: optimum-onnx 0.1.0, the last one, wants transformers < 4.58.

Letters: B rows, L positions, C classes, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdlab.errors import KdlabError, ModelError, first_line
from kdlab.models.architectures import ARCHITECTURES, architecture, longest_input
from kdlab.models.encoder import load_saved
from kdlab.models.generator import load_generator, prompt_ids
from kdlab.models.loading import fetch_config
from kdlab.models.taps import Tapped
from kdlab.runs import Record, read_json
from kdlab.stages.encoder import TaskData

# float32 has 7 digits, and kernels that sum in another order move logits by some 1e-6 of the largest one; a graph that
# computes something else moves them by far more than this.
TOLERANCE = 1e-4
ROWS = 64  # rows of the run that are compared, and tokens of a writer's row
WRITER_ROWS, WRITER_TOKENS = 12, 64
BATCH = 8
LARGEST = 2**31 - 2**26  # bytes of weights that one file may hold: a protobuf file ends at 2 GB
SHORT = 17  # tokens of generated rows, beside the longest that the model reads
LONGEST = 512
SEED = 0  # of generated rows

Array = np.ndarray[Any, Any]
Batch = dict[str, Array]  # input_ids, attention_mask, and token_type_ids where the model takes them: int64 [B, L]


def write(
    source: Path, out: Path, *, record: Record, store: Path, opset: int | None, note: Callable[[str], None]
) -> dict[str, Any]:
    """Write model.onnx of the student in `source`, with weights beside it if they are over 2 GB, and check it.

    Returns "onnx": opset, inputs, outputs, external_data, longest (tokens of a row, None: no bound) and versions; and
    "check": what `compare` returns, rows of the run, what these are (None: the store has none), and rows made up.

    opset: None: as torch.onnx chooses. note: told what takes its time.
    Raises ModelError for a model or opset that can't be exported, and where ONNX computes something else than torch.
    """
    versions = _versions()
    config = fetch_config(str(source), None)
    if config.is_encoder_decoder:
        raise ModelError(
            f"{config.model_type} is an encoder-decoder: kdlab writes no ONNX of it",
            where=str(source),
            fix="export it with --format hf",
        )
    student = Reader(source) if config.model_type in ARCHITECTURES else Writer(source)
    note("onnx   torch traces the student ...")
    graph = _trace(student, opset)
    size = sum(tensor.numel() * tensor.element_size() for tensor in student.network.state_dict().values())
    external = size > LARGEST
    path = out / "model.onnx"
    graph.save(path, external_data=external)
    note("check  onnxruntime and torch read the same rows ...")
    rows, rows_of = student.rows(record, store)
    made_up = _generated(student)
    check = compare(_session(path), student, [*_batches(rows, student), *made_up])
    check |= {"rows": len(rows), "rows_of": rows_of or None, "made_up": sum(len(one["input_ids"]) for one in made_up)}
    _judge(check, path, graph.model.opset_imports[""])
    return {
        "onnx": {
            "opset": graph.model.opset_imports[""],
            "inputs": list(student.inputs),
            "outputs": ["logits"],
            "external_data": external,
            "longest": longest_input(student.config.to_dict()),
            "versions": versions,
        },
        "check": check,
    }


def _versions() -> dict[str, str]:
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise KdlabError(
            f"ONNX needs packages that are not here: {first_line(error)}", fix="pip install 'kdlab[onnx]'"
        ) from error
    return {module.__name__: module.__version__ for module in (onnx, onnxruntime, onnxscript)}


# students ----------------------------------------------------------------------------------------------------------


class Reader:
    """An encoder with its head. What is traced has the head as it was trained, and is loaded apart from what is asked.

    limit: most tokens of a row. pad: the padding id.
    """

    def __init__(self, source: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        model, head = load_saved(source, "sdpa")
        self.asked = Tapped(load_saved(source, "sdpa")[0], head=head).eval()
        self.config = model.config
        typed = architecture(self.config.model_type).segments and self.config.type_vocab_size > 1
        self.inputs = ["input_ids", "attention_mask"]
        self.inputs += ["token_type_ids"] if typed and "token_type_ids" in tokenizer.model_input_names else []
        self.axes = {0: "batch"}
        self.pad = int(tokenizer.pad_token_id)
        self.vocabulary = int(self.config.vocab_size)
        self.limit = min(longest_input(self.config.to_dict()) or LONGEST, LONGEST)
        if head == "official":
            model.dropout = nn.ReLU()
        self.network: nn.Module = _Logits(model)

    def rows(self, record: Record, store: Path) -> tuple[list[Batch], str]:
        """Rows of the run's dev set, shortest first, if the store has them; and what they are."""
        reading = [stage["inputs"]["data"] for stage in record.graph if stage["label"] == "evaluate_student"]
        folder = next((found for name in reading if (found := record.whole(name, store)) is not None), None)
        if folder is None:
            return [], ""
        data = TaskData(folder)
        split = data.split(data.sample)
        order = np.argsort(split.lengths, kind="stable")
        chosen = order[np.unique(np.linspace(0, len(order) - 1, ROWS).round().astype(int))]
        return [
            {name: value.numpy() for name, value in data.rows(split, [int(row)]).items() if name in self.inputs}
            for row in chosen
        ], data.sample

    def logits(self, batch: Batch) -> Array:
        """[B, C], as torch computes them."""
        with torch.no_grad():
            found: Array = self.asked({name: torch.from_numpy(value) for name, value in batch.items()}).logits.numpy()
        return found

    def counted(self, batch: Batch) -> Array:
        """[B]: of which rows the logits mean something: of all."""
        return np.ones(len(batch["input_ids"]), dtype=bool)


class Writer:
    """A decoder. Positions are counted without padding, so a row may be padded on either side."""

    def __init__(self, source: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=True)
        model = load_generator({"path": str(source)}, attention="sdpa", seed=SEED)
        self.config = model.config
        self.inputs = ["input_ids", "attention_mask"]
        self.axes = {0: "batch", 1: "sequence"}
        pad = self.tokenizer.pad_token_id
        self.pad = int(self.tokenizer.eos_token_id if pad is None else pad)
        self.vocabulary = int(self.config.vocab_size)
        self.limit = min(longest_input(self.config.to_dict()) or WRITER_TOKENS, WRITER_TOKENS)
        self.network: nn.Module = _NextTokens(model)
        self.asked = model

    def rows(self, record: Record, store: Path) -> tuple[list[Batch], str]:
        """Prompts of test questions, if the store has them, each cut to its first tokens; and what they are."""
        folder = record.artifact("answers", store)
        if folder is None:
            return [], ""
        records = [one for some in read_json(folder / "answers.json")["data"].values() for one in some]
        ids = prompt_ids(
            self.tokenizer, [one["prompt"] for one in records[:WRITER_ROWS]], encoder_decoder=False, limit=self.limit
        )
        rows = [np.array([one], dtype=np.int64) for one in sorted(ids, key=len) if one]
        return [{"input_ids": one, "attention_mask": np.ones_like(one)} for one in rows], "prompts"

    def logits(self, batch: Batch) -> Array:
        """[B, L, V], each row by itself and without padding; zero at padding."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        found = np.zeros((*ids.shape, self.vocabulary), dtype=np.float32)
        with torch.no_grad():
            for row, kept in enumerate(mask.astype(bool)):
                alone = torch.from_numpy(ids[row, kept][None])
                found[row, kept] = self.asked(input_ids=alone, use_cache=False, return_dict=True).logits[0].numpy()
        return found

    def counted(self, batch: Batch) -> Array:
        """[B, L]: at which positions the logits mean something."""
        return batch["attention_mask"].astype(bool)


class _Logits(nn.Module):
    """Only the logits of an encoder with a head, by positional arguments."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """[B, L] each to [B, C]."""
        typed = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, **typed, return_dict=True)
        logits: Tensor = found.logits
        return logits


class _NextTokens(nn.Module):
    """Only the logits of a decoder, with positions that leave out padding where the model takes positions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.placed = "position_ids" in inspect.signature(model.forward).parameters

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, L] each to [B, L, V]."""
        more = {"position_ids": (attention_mask.cumsum(-1) - 1).clamp(min=0)} if self.placed else {}
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, return_dict=True, **more
        )
        logits: Tensor = found.logits
        return logits


# writing -----------------------------------------------------------------------------------------------------------


def _trace(student: Reader | Writer, opset: int | None) -> Any:
    """The ONNX program, without the notes on nodes: they hold paths of this machine."""
    example = _padded(_made_up(student, [7, 4, 6]), student.pad)
    arguments = tuple(torch.from_numpy(example[name]) for name in student.inputs)
    try:
        with _quiet():
            program = torch.onnx.export(
                student.network.eval(),
                arguments,
                dynamo=True,
                dynamic_shapes=tuple({0: "batch", 1: "sequence"} for _ in arguments),
                input_names=list(student.inputs),
                output_names=["logits"],
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # whatever a tracer meets in a model's code
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ModelError(
            f"torch.onnx can't export a {student.config.model_type}: {type(cause).__name__}: {first_line(cause)}",
            fix="export it with --format hf; KDLAB_DEBUG=1 shows where torch gave up",
        ) from error
    assert program is not None
    written = program.model.opset_imports[""]
    if opset is not None and written != opset:
        raise ModelError(
            f"torch.onnx can't write opset {opset} of this model: it gave {written}",
            fix=f"--opset {written}, or leave it out",
        )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        value.metadata_props.clear()
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch.export tells its own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# checking ----------------------------------------------------------------------------------------------------------


def compare(session: Any, student: Reader | Writer, batches: Sequence[Batch]) -> dict[str, Any]:
    """Numbers of a comparison with torch, over the logits that mean something.

    Plain JSON: tokens: [fewest, most] of a row; batches: their sizes; difference: the largest of two logits; largest:
    of torch's logits, absolute; tolerance, allowed: of the difference; predictions, agreeing: by the largest logit,
    None for a student that gives a number.
    """
    difference = largest = 0.0
    predictions = agreeing = 0
    for batch in batches:
        wanted, counted = student.logits(batch), student.counted(batch)
        (given,) = session.run(["logits"], {name: batch[name] for name in student.inputs})
        wanted, given = wanted[counted], given[counted]  # [N, C] or [N, V]
        apart = np.abs(given - wanted)
        difference = max(difference, float(apart.max()) if np.isfinite(given).all() else float("inf"))
        largest = max(largest, float(np.abs(wanted).max()))
        predictions += len(wanted)
        agreeing += int((given.argmax(-1) == wanted.argmax(-1)).sum())
    gives_number = student.config.problem_type == "regression" and isinstance(student, Reader)
    lengths = [int(one) for batch in batches for one in batch["attention_mask"].sum(-1)]
    return {
        "tokens": [min(lengths), max(lengths)],
        "batches": sorted({len(batch["input_ids"]) for batch in batches}),
        "difference": difference,
        "largest": largest,
        "tolerance": TOLERANCE,
        "allowed": TOLERANCE * largest,
        "predictions": None if gives_number else predictions,
        "agreeing": None if gives_number else agreeing,
    }


def _judge(check: Mapping[str, Any], path: Path, opset: int) -> None:
    if check["difference"] <= check["allowed"]:
        return
    raise ModelError(
        f"the ONNX model does not compute what the student does: logits differ from torch's by up to "
        f"{check['difference']:.2g}, where {check['allowed']:.2g} is allowed ({TOLERANCE:g} of the largest logit)",
        where=f"{path.name}, opset {opset}",
        fix="nothing was written; try another --opset, or export it with --format hf",
    )


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes share no base but this one
        raise ModelError(
            f"onnxruntime can't load what torch.onnx wrote: {first_line(error)}",
            where=path.name,
            fix="leave --opset out, or install a newer onnxruntime",
        ) from error


def _batches(rows: Sequence[Batch], student: Reader | Writer) -> list[Batch]:
    """Rows, shortest first, in batches: the shortest and the longest alone and together, then all in some of each."""
    if not rows:
        return []
    parts = [[rows[0]], [rows[-1]], [rows[0], rows[-1]]]
    count = -(-len(rows) // BATCH)
    parts += [list(rows[start::count]) for start in range(count)]
    return [_padded(part, student.pad, left=isinstance(student, Writer)) for part in parts]


def _generated(student: Reader | Writer) -> list[Batch]:
    """Random rows: short ones alone and with padding, and one as long as the model reads beside a short one."""
    short = min(SHORT, student.limit)
    lengths = [[1], [short], [short, 2, 1, 5, 3], [2, student.limit]]
    return [_padded(_made_up(student, [min(one, student.limit) for one in some]), student.pad) for some in lengths]


def _made_up(student: Reader | Writer, lengths: Sequence[int]) -> list[Batch]:
    """Rows of random tokens other than padding."""
    random = np.random.default_rng(SEED)
    rows = []
    for length in lengths:
        ids = random.integers(0, student.vocabulary - 1, (1, length))
        row: Batch = {"input_ids": ids + (ids >= student.pad), "attention_mask": np.ones_like(ids)}
        if "token_type_ids" in student.inputs:
            row["token_type_ids"] = (np.arange(length) > length // 2).astype(np.int64)[None]
        rows.append(row)
    return rows


def _padded(rows: Sequence[Batch], pad: int, *, left: bool = False) -> Batch:
    width = max(row["input_ids"].shape[1] for row in rows)
    batch: Batch = {}
    for name in rows[0]:
        fill = pad if name == "input_ids" else 0
        more = [width - row[name].shape[1] for row in rows]
        sides = [((0, 0), (some, 0) if left else (0, some)) for some in more]
        batch[name] = np.concatenate(
            [np.pad(row[name], side, constant_values=fill) for row, side in zip(rows, sides, strict=True)]
        )
    return batch
