"""Questions, completions and very small students for tests of the family of Fine-tune-CoT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlab.artifacts import write_json
from kdlab.config import Hardware
from kdlab.context import Context
from kdlab.stages.completions import Row, write_records, write_rows

SMALL = "hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2, intermediate_size: 64"
DATA = (  # 24 questions to train on and 8 to test on
    "task=demo/coin_flip task.generate.train=24 task.generate.test=8 task.generate.steps=2 hardware=cpu "
    "hardware.threads=1 tracking=none"
)
WORDS = f"{DATA} model=tiny_decoder 'model.student.config={{{SMALL}}}'"  # a student of 24 thousand parameters
YES_NO: dict[str, Any] = {"kind": "yes_no", "choices": None, "compare": "string"}
NUMBER: dict[str, Any] = {"kind": "number", "choices": None, "compare": "string"}


class Told(Context):
    """A context that keeps what it is told."""

    def __init__(self, out: Path, stage: str, **more: Any) -> None:
        self.notes: list[str] = []
        self.warned: list[str] = []
        hardware = Hardware(name="test", device="cpu", threads=1, eval_batch=more.pop("eval_batch", 64))
        super().__init__(
            out=out, stage=stage, hardware=hardware, note=self.notes.append, warn=self.warned.append, **more
        )


def context(root: Path, stage: str, **more: Any) -> Told:
    """Of a stage that is being built in the store `root`; given again, it finds what the last attempt left."""
    out = root / "building" / stage
    (out / "work").mkdir(parents=True, exist_ok=True)
    return Told(out, stage, **more)


def question(number: int, answer: str = "yes", **more: Any) -> Row:
    return {"id": number, "question": f"Is question {number} easy?", "answer": answer, **more}


def questions(folder: Path, form: Mapping[str, Any] = YES_NO, **splits: Sequence[Row]) -> Path:
    """What `prepare_questions` leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "facts.json", {"answer": dict(form)})
    for name, rows in splits.items():
        write_rows(folder, name, rows)
    return folder


def completion(row: Row, text: str, index: int = 0, **more: Any) -> Row:
    """A record of a teacher that was asked in two steps."""
    first = f"Q: {row['question']}\nA: Let's think step by step."
    thought = f" Thought {index} of {row['id']}."
    return {
        "sample_index": row["id"],
        "completion_index": index,
        "question": row["question"],
        "answer": row["answer"],
        "reasoning_prompt": first,
        "reasoning_completion": thought,
        "reasoning_finish_reason": "stop",
        "prompt": f"{first}{thought}\nTherefore, the answer is",
        "completion": text,
        "finish_reason": "stop",
        **more,
    }


def completions(folder: Path, records: Sequence[Row], *, template: str = "zs_cot", name: str = "completions") -> Path:
    """What `rationalise` leaves; name="answers": what `answer` leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[int, list[Row]] = {}
    for one in records:
        found.setdefault(one["sample_index"], []).append(one)
    write_records(
        folder / f"{name}.json", found, model="teacher", task_key="easy", completion_key="zs_cot", template=template
    )
    return folder
