"""The typed configuration of a run, and the checks that need no data and no model.

The dataclasses are the schema that Hydra composes against (`kdlab.cli` registers them); after composition no
`DictConfig` exists in the package. Each field's comment says what it means; `choices` lists the allowed words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

REQUIRED: Any = "???"  # omegaconf's mark of a value that must be given
LAYER_MAPS = ("last", "uniform", "skip", "top", "last_to_all", "pairs", "transport")


def choice(default: str, *choices: str) -> Any:
    """A field that takes one of the words in `choices`."""
    return field(default=default, metadata={"choices": choices})


def choices(default: list[str], *allowed: str) -> Any:
    """A field that takes a list of the words in `allowed`."""
    return field(default_factory=lambda: list(default), metadata={"choices": allowed})


@dataclass(kw_only=True)
class Source:
    """Where a task's rows come from: exactly one of `hub`, `path` and `demo`."""

    hub: str | None = None  # a data set on the Hub: "nyu-mll/glue"
    config: str | None = None  # its configuration: "rte"; of a task in several languages "{language}"
    data_dir: str | None = None  # its folder, where the data set has folders in place of configurations: "{language}"
    revision: str | None = None  # branch, tag or commit; pinned to a commit when the run is planned
    path: str | None = None  # a local file, or a folder with one file per split: csv, tsv, jsonl, parquet
    demo: str | None = None  # an embedded generator: "nli"
    language: str | None = None  # demo: of an embedded task in several languages, one
    columns: list[str] = field(default_factory=list)  # path: names of the columns of files without a header line
    key: str | None = None  # kind=reasoning with path: the folder has the reasoning-teacher layout, and this is its key


@dataclass(kw_only=True)
class Splits:
    """Names of the source's splits. A local single file has only `train`; `dev` is then cut from it.

    With path and several languages, `{language}` stands for the language: "{language}/train", "{language}.train.1000".

    A reasoning task has no dev: its questions are those of train and then of test (if it is named), and
    `task.partition` says which of them are trained on.
    """

    train: str = "train"
    dev: str | None = "validation"
    test: str | None = None


@dataclass(kw_only=True)
class Evaluation:
    """A further evaluation set, scored beside dev (MNLI mismatched) or only predicted (AX has no labels)."""

    split: str = REQUIRED
    config: str | None = None  # a configuration other than the task's
    data_dir: str | None = None  # a folder other than the task's
    language: str | None = None  # of an embedded task in several languages


@dataclass(kw_only=True)
class Epochs:
    """The task's own schedule, which the methods' `epochs` refer to."""

    teacher: int = 4
    student: int = 4
    layers: int = 20
    logits: int = 4
    joint: int = 4


@dataclass(kw_only=True)
class Few:
    """Few samples: a part of the training rows, held-out rows included, drawn before anything else."""

    examples: int | None = None  # so many training rows, drawn with the run's seed; None: all
    balanced: bool = False  # as many of each class; where a class has too few, all of it
    teacher: str = choice("same", "same", "own")  # own: the teacher's rows are drawn with its own seed, as in the paper
    seed: int | None = None  # of the rows drawn; None: the run's


@dataclass(kw_only=True)
class Imbalance:
    """Long-tailed classes: of the k-th most frequent of C, at most n * ratio^(-(k-1)/(C-1)) rows are kept."""

    ratio: float = 1.0  # rows of the most frequent class over rows of the rarest; 1: off
    seed: int = 0  # of the rows kept


@dataclass(kw_only=True)
class Noise:
    """Symmetric label noise on training and held-out rows; dev, test and further sets stay as they are."""

    rate: float = 0.0  # chance of a label to become another class, each equally likely
    seed: int = 0  # its own, so that all seeds of a sweep see the same noise, as in the paper
    teacher: str = choice("noisy", "noisy", "clean")  # which labels the teacher is trained on


@dataclass(kw_only=True)
class Passages:
    """How the texts of a corpus become rows (kind=text)."""

    unit: str = choice("row", "row", "pair")  # pair: two consecutive sentences of a document
    min_words: int = 11  # pair: shorter sentences are left out before they are paired
    keep: float = 1.0  # pair: share of the documents that is used
    limit: int | None = None  # at most so many rows; of a corpus on the Hub no more than these are read
    seed: int = 0  # of the documents kept


@dataclass(kw_only=True)
class Partition:
    """Which questions of a reasoning task are trained on and which are the test; drawn as the paper did, seed 0."""

    rule: str = choice("source", "source", "random", "template", "first")
    # source: as the source's own splits say; where it has one split only, random: 70 % of all;
    # template: whole groups of questions that differ in numbers and names only; first: the first `train` questions
    train: int | None = None  # rule=first: so many
    limit: int | None = None  # at most so many training questions, drawn from them
    size: int | None = None  # questions of the whole data set, of which a source may hold a part; None: all it has
    until: str | None = None  # rule=template: a group has the same text up to this, in place of numbers and names


@dataclass(kw_only=True)
class Generate:
    """What an embedded reasoning task makes (source.demo)."""

    train: int = 1000  # questions; none of train is in test
    test: int = 300
    steps: int = 4  # flips, words, swaps or sums of a question
    objects: int = 3  # shuffled objects: players
    seed: int = 0


@dataclass(kw_only=True)
class Task:
    """A data set, the question asked of it, and how answers are scored."""

    name: str = REQUIRED
    kind: str = choice("classification", "classification", "regression", "reasoning", "text")  # text: no labels
    source: Source = field(default_factory=Source)
    text: list[str] = REQUIRED  # one or two columns
    label: str = "label"  # the column with the label
    labels: list[str] | None = None  # names of the classes in the order of their ids; none for regression
    label_names: dict[str, str] = field(default_factory=dict)  # class names by what the column holds: "1.0": neg
    languages: list[str] = field(default_factory=list)  # codes (en, es) of what is scored; none: a task in one language
    source_language: str = "en"  # whose training rows have labels, and are translated
    language_names: dict[str, str] = field(default_factory=dict)  # what the source calls a language: en: english
    splits: Splits = field(default_factory=Splits)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)  # further sets, by name
    metric: str = choice("accuracy", "accuracy", "f1", "macro_f1", "mcc", "pearson_spearman", "pearson", "spearman")
    metrics: list[str] = choices(
        [], "accuracy", "f1", "macro_f1", "mcc", "pearson_spearman", "pearson", "spearman"
    )  # further metrics to report
    max_length: int = 128  # tokens; longer texts are cut
    pad_to_max: bool = False  # pad every batch to max_length, as the official code does
    heldout: float = 0.1  # share of train kept for selection (select_on=heldout)
    few: Few = field(default_factory=Few)
    imbalance: Imbalance = field(default_factory=Imbalance)
    noise: Noise = field(default_factory=Noise)
    passages: Passages = field(default_factory=Passages)
    answer: str = choice("number", "number", "choice", "yes_no", "text")  # kind=reasoning: what an answer is
    choices: str | None = None  # answer=choice: the letters, "ABCDE"
    options: str | None = None  # answer=choice: the column with the options, which are written behind the question
    suffix: str = ""  # kind=reasoning: written behind each question, before its options
    after: str | None = None  # kind=reasoning: the answer is what follows this in its column ("####")
    compare: str = choice("string", "string", "number")  # answer=number: "18.0" is no "18", as in the official code
    partition: Partition = field(default_factory=Partition)
    generate: Generate = field(default_factory=Generate)
    dev_limit: int | None = None  # score only so many rows of dev (of each language), the same for every seed
    test_limit: int | None = None  # several languages: score only so many rows of each one's test
    epochs: Epochs = field(default_factory=Epochs)
    rows: int | None = None  # training rows, only for the estimates of `kdlab plan`


@dataclass(kw_only=True)
class Encoder:
    """One model. `init` says where its weights come from."""

    id: str | None = None  # a model on the Hub, or a local folder
    revision: str | None = None  # branch, tag or commit; pinned to a commit when the run is planned
    init: str = choice("pretrained", "pretrained", "cut", "random")  # cut: layers of the teacher's pre-trained base
    num_layers: int | None = None  # cut: the first so many layers
    layers: list[int] | None = None  # cut: these layers of the teacher, counted from 0
    config: dict[str, Any] = field(default_factory=dict)  # changes to config.json; for random without id, all of it
    head: str = choice("stock", "stock", "official")  # official: a ReLU before the classifier and no dropout there


@dataclass(kw_only=True)
class Price:
    """US dollars per million tokens; None: as the dated table of `kdlab.rationales.prices` has it."""

    input: float | None = None
    output: float | None = None
    training: float | None = None  # model.price: of fine-tuning, each epoch's tokens; the table has none


@dataclass(kw_only=True)
class Model:
    """The teacher, the student, and the tokenizer that both read with."""

    name: str = REQUIRED
    kind: str = choice("encoder", "encoder", "decoder", "endpoint")
    # decoder: generates text, encoder-decoders (T5) included; endpoint: a student trained and asked through an API
    teacher: Encoder = field(default_factory=Encoder)
    student: Encoder = field(default_factory=Encoder)
    tokenizer: str = choice("pretrained", "pretrained", "words", "pieces")
    # words: one token per word of the training texts; pieces: byte-level BPE learned on them, digits apart (decoder)
    vocabulary: int = 512  # tokenizer=pieces: at most so many tokens
    base_url: str | None = None  # kind=endpoint: None: what OPENAI_BASE_URL says, else OpenAI's own
    api: str = choice("auto", "auto", "completions", "chat")  # kind=endpoint; auto: as rationales.api
    epochs: int | None = None  # kind=endpoint: of its fine-tuning; None: as the endpoint chooses, as in the paper
    price: Price = field(default_factory=Price)  # kind=endpoint: of the student, fine-tuned if it is


@dataclass(kw_only=True)
class Fit:
    """How one stage is trained."""

    epochs: int = 4
    lr: float = 3e-5
    batch_size: int = 32  # examples per optimiser step, over all processes
    warmup: float = 0.1  # share of the steps
    schedule: str = choice("linear", "linear", "cosine", "constant")
    optimizer: str = choice("adamw", "adamw", "bert_adam")
    weight_decay: float = 0.01  # not on biases and normalisation weights
    clip: float = 1.0  # global gradient norm; 0: off
    drop_last: bool = False  # skip an epoch's last batch if it is short
    eval_steps: int = 0  # steps between evaluations; 0: once an epoch
    patience: int = 0  # evaluations without improvement before stopping; 0: never stop early


@dataclass(kw_only=True)
class Consistency:
    """Holds the student's mixed view to its clean views."""

    weight: float = 0.0
    ramp: str = choice("linear", "linear", "constant")  # linear: weight * epoch / epochs, epoch counted from 0
    terms: list[str] = choices(["attention", "hidden"], "attention", "hidden")
    target: str = choice("student", "student", "ema")  # whose clean view: the student itself or its moving average
    decay: float = 0.999  # of the moving average


@dataclass(kw_only=True)
class Transport:
    """The many-to-many layer map of BERT-EMD."""

    update_weights: bool = True  # after each forward pass, towards the layers that cost less
    separate: bool = True  # layer weights of each relation for itself; else their mean after each update
    reset_each_epoch: bool = False  # start every epoch with equal weights, as the official code does


@dataclass(kw_only=True)
class LayerObjective(Fit):
    """What of the inner layers is distilled, and how."""

    relations: list[str] = choices(
        ["attention", "hidden"], "attention", "hidden", "embedding", "patient", "query", "key", "value"
    )
    layer_map: str = choice("last", *LAYER_MAPS)
    pairs: list[str] = field(default_factory=list)  # layer_map=pairs: [1-2,2-4], student layer - teacher layer
    relation_divergence: str = choice("kl", "kl", "mse", "l1")  # of attention, query, key, value
    hidden_divergence: str = choice("mse", "mse", "l1")  # of hidden, embedding, patient
    relation_heads: int = 0  # query, key, value: split into so many heads; 0: the model's own
    normalise: bool = True  # patient: scale vectors to length 1
    relation_mask: str = choice("union", "union", "own", "none")  # keys that a relation sees; own: not the partner's
    pad_rows: str = choice("exclude", "exclude", "include")  # include: average padded rows in, as the official code
    projection: str = choice("auto", "auto", "always")  # linear map on student states; auto: only if widths differ
    mixup: float = 0.0  # alpha of Beta(alpha, alpha); 0: inputs are not mixed
    consistency: Consistency = field(default_factory=Consistency)
    transport: Transport = field(default_factory=Transport)


@dataclass(kw_only=True)
class LayerFit(LayerObjective):
    """Distillation of inner layers."""

    teacher: str = choice("finetuned", "finetuned", "pretrained")  # pretrained: the teacher before fine-tuning


@dataclass(kw_only=True)
class Mixed:
    """Logits of mixed inputs, beside or in place of the clean ones."""

    mixup: float = 0.0  # alpha of Beta(alpha, alpha); 0: inputs are not mixed
    logit: float = 1.0  # weight of the soft labels of mixed inputs
    label: float = 0.0  # weight of the hard labels of mixed inputs
    target: str = choice("mixed", "mixed", "clean")  # the teacher's logits: of the mixture, or mixed from clean ones


@dataclass(kw_only=True)
class LogitFit(Fit):
    """Distillation of logits."""

    temperature: float = 2.0
    alpha: float = 0.0  # weight of the hard labels; the soft ones get 1 - alpha
    regression_scale: str = choice("none", "none", "tau2")  # tau2: multiply the regression loss by temperature^2
    clean: float = 1.0  # weight of the clean inputs' loss
    mixed: Mixed = field(default_factory=Mixed)

    @property
    def learns_clean(self) -> bool:
        """Whether the teacher's logits of clean inputs are a target."""
        return (self.clean > 0 and self.alpha < 1) or self._mixes("clean")

    @property
    def learns_mixtures(self) -> bool:
        """Whether the teacher's logits of mixed inputs are a target."""
        return self._mixes("mixed")

    def _mixes(self, target: str) -> bool:
        return self.mixed.mixup > 0 and self.mixed.logit > 0 and self.mixed.target == target


@dataclass(kw_only=True)
class JointFit(LayerObjective):
    """Distillation of inner layers and logits in one stage."""

    layer_weight: float = 0.5  # of the sum of all layer terms
    logit_weight: float = 0.5  # of (1 - alpha) * soft labels + alpha * hard labels
    temperature: float = 2.0
    alpha: float = 0.0
    regression_scale: str = choice("none", "none", "tau2")


@dataclass(kw_only=True)
class Method:
    """Base of every family's configuration."""

    name: str = REQUIRED
    family: str = REQUIRED


@dataclass(kw_only=True)
class Distillation(Method):
    """The family of layer distillation: fine-tune a teacher, distil its layers, distil its logits."""

    family: str = "distillation"
    stages: list[str] = choices(["teacher", "layers", "logits"], "teacher", "student", "layers", "logits", "joint")
    teacher: Fit = field(default_factory=Fit)
    student: Fit = field(default_factory=Fit)
    layers: LayerFit = field(default_factory=LayerFit)
    logits: LogitFit = field(default_factory=LogitFit)
    joint: JointFit = field(default_factory=JointFit)
    teacher_seed: int = 42  # one teacher serves all seeds of a sweep, as in the papers
    weak_teacher: str = choice("stop", "stop", "warn")  # what to do with a teacher no better than the majority class


@dataclass(kw_only=True)
class Prompt:
    """How questions and rationales become text. Source: reasoning-teacher src/data/format.py."""

    template: str = choice("ft_cot_token", "zs", "zs_cot", "fs_cot", "ft_token", "ft_cot_token", "ft_cot_natural")
    delimiters: str = choice("release", "release", "paper_gpt3")  # paper_gpt3: on lines of their own
    strip_fields: bool = True  # strip question, rationale and answer, as the released code does
    natural_comma: bool = False  # ft_cot_natural: look for "Therefore, the answer is", which is never trained
    exemplars: str | None = None  # fs_cot: a file in the official layout; None: kdlab's own for the embedded tasks
    too_long: str = choice("exemplars", "exemplars", "right")  # drop exemplars; right: cut the prompt's end off
    overlap: str = choice("exclude", "exclude", "keep")  # test questions that are exemplars: not asked, or asked too
    max_prompt: int = 512  # tokens; 768 for few-shot in the official code


@dataclass(kw_only=True)
class Curation:
    """Which of the teacher's rationales the student is trained on."""

    correct: bool = True  # only those that end in the right answer
    parser: str = choice("official", "official", "strict")
    complete: bool = False  # only those that ended by themselves, not at max_tokens
    duplicates: bool = False  # keep repeated rationales of a question
    min_words: int = 1  # of a rationale
    max_words: int | None = None
    per_question: int | None = None  # at most so many of each question, the first ones
    on_constant: str = choice("warn", "warn", "stop")  # a teacher that gives one answer to (nearly) everything


@dataclass(kw_only=True)
class Lora:
    """Low-rank adapters, merged into the weights when the student is done."""

    rank: int = 0  # 0: off, all weights are trained
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] = field(default_factory=list)  # names of modules; none: all linear layers but the head


@dataclass(kw_only=True)
class StudentFit(Fit):
    """Fine-tuning of a student that generates; the loss is on the completion only."""

    max_target: int = 512  # tokens of a completion; longer ones are cut
    max_steps: int | None = None  # optimiser steps at most, so that runs with other D or data cost the same
    lora: Lora = field(default_factory=Lora)


@dataclass(kw_only=True)
class Answering:
    """How a student answers: greedily, in batches."""

    max_tokens: int = 1024
    max_tokens_while_training: int | None = None  # of the answers that select a checkpoint; None: max_tokens
    parser: str = choice("official", "official", "strict")
    unmasked_left_pad: bool = False  # attend to padding and count it in positions, as the official GPT-2 evaluation


@dataclass(kw_only=True)
class Reasoning(Method):
    """The family of Fine-tune-CoT: a teacher writes rationales, the right ones fine-tune a student, which answers."""

    family: str = "reasoning"
    stages: list[str] = choices(["rationales", "student", "answer"], "rationales", "student", "answer")
    prompt: Prompt = field(default_factory=Prompt)
    samples: int = 1  # D: rationales of each question
    temperature: float = 0.0  # of the teacher; 0: greedy, which gives the same text D times
    curation: Curation = field(default_factory=Curation)
    student: StudentFit = field(default_factory=StudentFit)
    answer: Answering = field(default_factory=Answering)


@dataclass(kw_only=True)
class Rationales:
    """Who writes the rationales."""

    name: str = REQUIRED
    kind: str = choice("rules", "rules", "openai", "local", "recorded")
    model: str | None = None  # openai: the endpoint's name for it; local: Hub id or folder; recorded: its base_model
    revision: str | None = None  # local
    path: str | None = None  # recorded: the folder that holds completion_data, or a file
    key: str | None = None  # recorded: the completion_key, "zs_cot", "zs_cot_t70_8aug"
    base_url: str | None = None  # openai: None: what OPENAI_BASE_URL says, else OpenAI's own
    api: str = choice("auto", "auto", "completions", "chat")
    # openai; auto: completions, but chat for those models of OpenAI's own that only chat
    prompt: str = choice("zs_cot", "zs_cot", "fs_cot")  # openai, local: two steps, or with exemplars
    exemplars: str | None = None  # fs_cot: as method.prompt.exemplars
    max_tokens: int = 128  # of each of the two steps
    stop: list[str] = field(default_factory=lambda: ["END"])
    questions: list[str] = choices(["train"], "train", "test")  # test: to score the teacher beside the student
    error_rate: float = 0.0  # rules: share of the rationales that go wrong
    seed: int = 0  # rules, and local with a temperature; its own, so that all seeds of a sweep share the rationales
    concurrency: int = 8  # openai: requests in flight
    timeout: float = 120.0  # openai: seconds for one answer
    attempts: int = 8  # openai: at most so many tries of one request
    price: Price = field(default_factory=Price)


@dataclass(kw_only=True)
class Contrast:
    """Supervised contrastive loss on the projected [CLS] vectors of a text and its translation."""

    weight: float = 0.0  # lambda; hard labels get 1 - lambda; 0: off
    temperature: float = 0.3
    base_temperature: float = 1.0  # the loss is scaled by temperature / base_temperature
    positives: str = choice("epsilon", "epsilon", "clamp")  # divisor: positives + epsilon; clamp: at least 1
    epsilon: float = 1e-4
    head: str = choice("mlp", "mlp", "linear")  # of the projection, which is not part of the student
    size: int = 128  # of the projected vectors


@dataclass(kw_only=True)
class PairFit(Fit):
    """Training on a source-language text and its translation, which share a label; or on one text alone."""

    alpha: float = 0.5  # weight of the source-language text's labels; the translation's get 1 - alpha
    mixup: float = 0.0  # alpha of Beta(alpha, alpha), not folded; 0: no mixed views
    mixed_source: float = 1.0  # weight of the mixed source-language text beside its clean one (beta1)
    mixed_target: float = 1.0  # the same of the translation (beta2)
    contrast: Contrast = field(default_factory=Contrast)
    normalise_terms: bool = False  # scale the terms' weights to 1 - lambda for labels and lambda for contrast


@dataclass(kw_only=True)
class Selection:
    """Which scores choose the checkpoint: their mean over languages."""

    languages: str = choice("all", "all", "source")  # source: the source language's rows only
    view: str = choice("original", "original", "translated", "both")


@dataclass(kw_only=True)
class Crosslingual(Method):
    """The family of MUSC: one multilingual student, trained and asked on texts and their translations."""

    family: str = "crosslingual"
    texts: str = choice("translated", "original", "translated", "back_translated")  # OR, MT, BT of training
    # original: each language's own rows; translated: the source language's rows and their translations, in pairs;
    # back_translated: each language's own rows, to the source language and back
    languages: list[str] = field(default_factory=list)  # trained on; none: all, for texts=translated but the source's
    student: PairFit = field(default_factory=PairFit)
    select: Selection = field(default_factory=Selection)
    views: list[str] = choices(["original", "translated"], "original", "translated", "back_translated")
    # of the rows to be scored: OR; MT: in the source language; BT: to the source language and back
    inference: str = choice("both", "original", "translated", "both")  # the run's own score; all are reported
    ensemble: str = choice("probabilities", "probabilities", "logits")  # inference=both: mean, or sum
    share: float = 0.5  # inference=both: of the translated view in the mean


@dataclass(kw_only=True)
class Translator:
    """Who translates. `{source}` and `{target}` in `model` and `path` stand for the languages' codes."""

    name: str = REQUIRED
    kind: str = choice("rules", "rules", "apertium", "hf", "recorded")
    model: str | None = None  # hf: Hub id or folder: facebook/m2m100_418M, Helsinki-NLP/opus-mt-{source}-{target}
    revision: str | None = None  # hf
    path: str | None = None  # recorded: a file, or a folder with XTREME's files
    codes: dict[str, str] = field(default_factory=dict)  # the translator's name of a language: zh: zho_Hant
    pivots: dict[str, str] = field(default_factory=dict)  # languages that are reached by another one: fr: es
    unit: str = choice("text", "text", "sentence")  # sentence: texts are cut into sentences, each is translated alone
    beams: int = 5  # hf
    max_tokens: int = 256  # hf: of a unit and of its translation; longer ones are cut, and counted
    batch_size: int = 32  # hf: units at once
    precision: str = choice("fp32", "fp32", "bf16")  # hf
    max_missing: float = 0.1  # share of a table's rows without translation above which translating stops


@dataclass(kw_only=True)
class Budget:
    """Where spending stops, in each stage by itself that pays an endpoint: rationales, student, answers; None: nowhere.

    A stage counts what its own requests have cost, those that the journals answer included; not what other stages cost.
    """

    usd: float | None = None
    tokens: int | None = None


@dataclass(kw_only=True)
class Hardware:
    """Placement: none of it enters a model's fingerprint, but for the rows of a pass in which examples are coupled."""

    name: str = REQUIRED
    device: str = choice("auto", "auto", "cpu", "cuda", "mps")
    threads: int = 0  # 0: as torch chooses; of several jobs at once, each its share of the cores
    processes: int = 1  # on this machine, that train each stage together
    micro_batch: int = 0  # rows per forward pass and process; 0: the whole batch
    eval_batch: int = 64
    checkpoint_seconds: float = 60.0  # at least so long between two checkpoints; 0: after every step
    attention: str = choice("auto", "auto", "eager", "sdpa")  # kernel of encoders
    compile: str = choice("off", "off", "on", "cuda_graphs")  # torch.compile of trained models' layers; on a GPU
    recompute: bool = False  # layers' insides once more for the gradients: the same numbers from less memory, slower


def together(hardware: Hardware) -> int:
    """How many processes share a batch: those that torchrun started, or that the run starts itself."""
    return max(int(os.environ.get("WORLD_SIZE", "1")), hardware.processes)


@dataclass(kw_only=True)
class Tracking:
    name: str = REQUIRED
    mode: str = choice("auto", "auto", "online", "offline", "none")  # auto: online if a key is configured
    project: str = "kdlab"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Debug:
    name: str = "off"
    steps: int | None = None  # at most so many optimiser steps per stage
    rows: int | None = None  # at most so many rows per split

    @property
    def short(self) -> bool:
        """Whether stages see few of many rows: then nothing is computed for all of them in advance."""
        return self.steps is not None and self.rows is None


@dataclass(kw_only=True)
class Expected:
    """The papers' numbers of an experiment, which `kdlab compare` sets beside its own; nothing of it enters a stage."""

    source: str = ""  # where the numbers come from: paper, table, notebook
    protocol: str = ""  # how they were obtained, so that nobody compares unlike things
    note: str = ""  # what is not there, and why
    axes: list[str] = field(default_factory=list)  # groups (method, task, model) or keys: [model, method.samples, task]
    scores: dict[str, Any] = field(default_factory=dict)
    # nested in the order of the axes, x 100 as papers print them; null: the paper has no number there


@dataclass(kw_only=True)
class Run:
    """Everything a run is made of."""

    method: Method = REQUIRED
    model: Model = REQUIRED
    task: Task = REQUIRED
    supplement: Task | None = None  # what the layer stage is trained on, in place of the task: task@supplement=NAME
    rationales: Rationales = field(default_factory=lambda: Rationales(name="rules"))
    translator: Translator = field(default_factory=lambda: Translator(name="rules"))
    budget: Budget = field(default_factory=Budget)
    hardware: Hardware = REQUIRED
    tracking: Tracking = REQUIRED
    debug: Debug = field(default_factory=Debug)
    seed: int = 42
    precision: str = choice("fp32", "fp32", "bf16", "fp16")  # of training; evaluation is always fp32
    select_on: str = choice("heldout", "heldout", "dev", "last", "test")
    # which scores choose a stage's checkpoint; test: only for reasoning and crosslingual, as the papers' code does
    curves: int = 256  # rows of train and of dev on which each trained stage's loss is followed; 0: none
    name: str | None = None  # of the run or the sweep; default: made from what it does
    fresh: list[str] = field(default_factory=list)  # stages to run again, with all that depends on them
    store: str = "outputs/artifacts"
    outputs: str = "outputs"
    expected: Expected = field(default_factory=Expected)  # given by experiments


# Keys of Run that change no number.
PLACEMENT = ("hardware", "tracking", "fresh", "name", "store", "outputs", "expected")


def trained_languages(task: Task, method: Crosslingual) -> list[str]:
    """The languages trained on, in the task's order; the source's rows stand in every pair of texts=translated."""
    known = [language for language in task.languages if language in (method.languages or task.languages)]
    return [language for language in known if method.texts != "translated" or language != task.source_language]


def read_languages(task: Task, method: Crosslingual) -> list[str]:
    """The languages whose own training rows are read."""
    return [task.source_language] if method.texts == "translated" else trained_languages(task, method)


def asked_languages(run: Run, method: Crosslingual) -> dict[str, list[str]]:
    """By split, the languages whose rows are translated to be asked.

    Where the source has no dev, it is cut from the train rows that are read. Recorded translations are those of train
    and test (XTREME has none of dev), so that dev is not looked up there unless it chooses the checkpoint by them.
    """
    task = run.task
    if not set(method.views) & {"translated", "back_translated"}:
        return {}
    others = [language for language in task.languages if language != task.source_language]
    dev = [language for language in others if task.splits.dev is not None or language in read_languages(task, method)]
    if run.translator.kind == "recorded" and (run.select_on != "dev" or method.select.view == "original"):
        dev = []
    found = {"dev": dev, "test": others if task.splits.test is not None else []}
    return {split: languages for split, languages in found.items() if languages}


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield (path, value, field metadata) for every field below a dataclass."""
    for item in fields(node):
        value = getattr(node, item.name)
        where = f"{path}.{item.name}" if path else item.name
        yield where, value, dict(item.metadata)
        if is_dataclass(value):
            yield from walk(value, where)
        elif isinstance(value, dict):
            for key, inner in value.items():
                if is_dataclass(inner):
                    yield from walk(inner, f"{where}.{key}")
