"""The whole job around the training step: start-up, cached commands, a sweep, data preparation, evaluation, plans.

Everything is a real command in a process of its own, in a temporary folder, on the embedded task and on made-up rows.
"""

from __future__ import annotations

import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.machine import Row, Settings, interleave, seconds
from kdlab.cli import VERBS
from kdlab.models.taps import Tapped
from kdlab.stages.encoder import TaskData, on, predict, saved_model

NAME = "jobs"
METHODS = ("ft", "kd", "pkd", "tinybert", "minilm_v2", "l_ild", "cr_ild")
SEEDS = (1, 2, 3)
TASK = ("task=demo/nli", "model=tiny", "tracking=none")
SHORT = (*TASK, "debug=fast")  # four steps a stage
SWEEP = (*TASK, "debug=fast", "debug.rows=1000", "debug.steps=150")
PLANNED = (  # 216 jobs
    "method=ft,kd,pkd,tinybert,minilm_v2,l_ild,u_ild,cr_ild,cr_ild_official",
    "task=demo/nli,glue/rte,glue/cola,glue/mrpc,glue/stsb,glue/qnli,glue/sst2,glue/mnli",
    "seed=1,2,3",
    "task.max_length=64",
    "model=tiny",
)
ROWS = 100_000  # of the file that is prepared
WORDS = 20_000  # that its texts are made of
KNOWN = 15_000  # of them that the tokenizer knows whole
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
MAX_LENGTH = 128


def run(settings: Settings) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        yield from start_up(settings, place / "start")
        yield from sweep(settings, place / "sweep")
        yield from data(settings, place / "data")


def command(settings: Settings, place: Path, *words: str) -> str:
    """What a command prints. Raises CalledProcessError if it fails."""
    place.mkdir(parents=True, exist_ok=True)
    threads = str(settings.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "kdlab", *words],
        cwd=place,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return done.stdout


def start_up(settings: Settings, place: Path) -> Iterator[Row]:
    """Each verb on what is finished already; `train` the second time."""
    first = seconds(partial(command, settings, place, "train", "method=kd", "name=kd", *SHORT))
    command(settings, place, "train", "method=ft", "name=ft", *SHORT)
    (place / "rows.jsonl").write_text('{"premise": "Anna helped Ben", "hypothesis": "Ben helped Anna"}\n')
    student = "outputs/runs/kd"
    verbs: dict[str, Sequence[str]] = {
        "--help": ["--help"],
        **{f"{verb} --help": [verb, "--help"] for verb in VERBS},
        "list methods": ["list", "methods"],
        "completion": ["completion", "bash"],
        "plan": ["plan", "method=kd", *SHORT],
        f"plan -m ({9 * 8 * 3} jobs)": ["plan", "-m", *PLANNED],
        "train, all cached": ["train", "method=kd", "name=kd", *SHORT],
        "compare": ["compare", "outputs/runs"],
        "diff": ["diff", student, "outputs/runs/ft"],
        "store ls": ["store", "ls"],
        "store verify": ["store", "verify"],
        "predict": ["predict", student, "--input", "rows.jsonl"],
        "export": ["export", student, "--to", "exported", "--force"],
        "doctor": ["doctor"],
    }
    found = interleave({verb: partial(command, settings, place, *words) for verb, words in verbs.items()}, settings)
    for verb, value in found.items():
        yield {"table": "seconds from start to end, median", "command": f"kdlab {verb}", "seconds": value}
    yield {"table": "train", "first time": first, "second time": found["train, all cached"]}


def sweep(settings: Settings, place: Path) -> Iterator[Row]:
    """7 methods x 3 seeds that share a store, and each method alone with an empty one."""
    axes = (f"method={','.join(METHODS)}", f"seed={','.join(map(str, SEEDS))}")
    together = seconds(partial(command, settings, place / "together", "train", "-m", *axes, *SWEEP))
    again = seconds(partial(command, settings, place / "together", "train", "-m", *axes, *SWEEP))
    alone = [
        seconds(partial(command, settings, place / method, "train", f"method={method}", f"seed={SEEDS[0]}", *SWEEP))
        for method in METHODS
    ]
    made = [manifest["made"]["seconds"] for manifest in manifests(place / "together")]
    jobs = len(METHODS) * len(SEEDS)
    yield {
        "table": "a sweep; separate: one seed of each method was run alone, and counts for all three",
        "jobs": jobs,
        "stages": len(made),
        "sweep s": together,
        "its stages s": sum(made),
        "sweep / stages": together / sum(made),
        "beside stages, a job s": (together - sum(made)) / jobs,
        "separate s": sum(alone) * len(SEEDS),
        "sweep / separate": together / (sum(alone) * len(SEEDS)),
        "second time s": again,
    }


def data(settings: Settings, place: Path) -> Iterator[Row]:
    """A file of rows, prepared and read with a tokenizer of word pieces, and the student's answers to its dev part."""
    place.mkdir(parents=True)
    words = made_up(place / "rows.csv", ROWS)
    tiny_model(place / "model", words[:KNOWN])
    run_of_rows = (
        "method=ft",
        "name=rows",
        "task=demo/nli",
        "task.source.path=rows.csv",
        "task.splits.dev=null",
        "task.splits.test=null",
        "task.rows=null",
        "task.labels=[yes,no]",
        f"task.max_length={MAX_LENGTH}",
        "model=minilm_6_to_3",
        "model.teacher.id=model",
        "model.student.num_layers=2",
        "tracking=none",
        "debug=fast",
        "debug.rows=null",
        "debug.steps=1",
        "task.dev_limit=10000",
        f"hardware.threads={settings.threads}",
    )
    command(settings, place, "train", *run_of_rows)
    by_label = {manifest["label"]: manifest for manifest in manifests(place)}
    for label in ("prepare", "tokenise"):
        took = by_label[label]["made"]["seconds"]
        yield {
            "table": f"data, {ROWS} rows, once for all jobs with the same tokenizer",
            "stage": label,
            "seconds": took,
            "rows/s": ROWS / took,
        }
    yield from evaluation(settings, place, by_label)


def evaluation(settings: Settings, place: Path, by_label: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    """`predict` of the stages, and the same model on batches in the order of the file, each padded to its longest."""
    store = place / "outputs" / "artifacts"
    task = TaskData(store / by_label["tokenise"]["artifact"])
    model = saved_model(store / by_label["student"]["artifact"] / "model", kernel="sdpa")
    split, size = task.split("dev"), 64

    def in_file_order() -> np.ndarray[Any, Any]:
        model.eval()
        with torch.no_grad():
            found = [
                Tapped.forward(model, on(torch.device("cpu"), task.rows(split, range(start, start + size)))).logits
                for start in range(0, len(split) - size + 1, size)
            ]
        return torch.cat(found).numpy()

    torch.set_num_threads(settings.threads)
    contenders: dict[str, Callable[[], object]] = {
        "predict (sorted by length)": partial(predict, model, task, split, batch_size=size, pad_to_max=False),
        "in the order of the file": in_file_order,
    }
    for name, took in interleave(contenders, settings).items():
        rows = len(split) if "sorted" in name else len(split) // size * size
        yield {
            "table": f"evaluation of an encoder, mean {statistics.fmean(split.lengths.tolist()):.0f} tokens",
            "order": name,
            "seconds": took,
            "rows/s": rows / took,
        }


def manifests(place: Path) -> list[dict[str, Any]]:
    """Of all artifacts in a folder's store, each with the name of its folder as `artifact`."""
    files = sorted((place / "outputs" / "artifacts").glob("*/manifest.json"))
    return [{**json.loads(file.read_text(encoding="utf-8")), "artifact": file.parent.name} for file in files]


def made_up(file: Path, rows: int) -> list[str]:
    """Write rows of two texts of made-up words, of 5 to 40 and of 3 to 15, and a label; returns the words."""
    rng = random.Random(0)
    words = ["".join(rng.choices(LETTERS, k=rng.randint(2, 9))) for _ in range(WORDS)]
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["premise", "hypothesis", "label"])
        for number in range(rows):
            texts = (" ".join(rng.choices(words, k=rng.randint(*sizes))) for sizes in ((5, 40), (3, 15)))
            writer.writerow([*texts, ("yes", "no")[number % 2]])
    return words


def tiny_model(folder: Path, words: Sequence[str]) -> None:
    """A BERT of four narrow layers with a tokenizer of word pieces: these words, and letters for all others."""
    pieces = [*SPECIAL.values(), *LETTERS, *(f"##{letter}" for letter in LETTERS), *words]
    numbers = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(piece, numbers[piece]) for piece in ("[CLS]", "[SEP]")],
    )
    build: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    build(tokenizer_object=backend, **SPECIAL).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(numbers),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        pad_token_id=0,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
