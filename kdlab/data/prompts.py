"""Questions, rationales and answers as the text that a model reads and learns to write.

Source: reasoning-teacher src/data/format.py, papers.md 2.2. Templates:

* zs, zs_cot (two steps), fs_cot: prompting only
* ft_token: answers only; ft_cot_token, ft_cot_natural: Fine-tune-CoT with "-->" or a sentence before the answer

Departures: encoder_decoder has zs_cot and ft_cot_natural, which the official code refuses (F9). Both get the decoder's
prompt, as fs_cot does there, and the target loses its leading blank, as that of ft_cot_token does.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdlab.errors import DataError

TEMPLATES = ("zs", "zs_cot", "fs_cot", "ft_token", "ft_cot_token", "ft_cot_natural")
TRAINABLE = ("ft_token", "ft_cot_token", "ft_cot_natural")
TRIGGER = "Therefore, the answer is"

_STEPS = "Let's think step by step."
EMBEDDED = Path(__file__).parent / "demo" / "exemplars.json"  # kdlab's own


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a question becomes a prompt and its rationale and answer a target; the switches of papers.md 2.4."""

    template: str  # one of TEMPLATES
    model_type: str = "decoder"  # or encoder_decoder
    delimiters: str = "release"  # paper_gpt3: on lines of their own (F5); an encoder_decoder has none to move
    strip_fields: bool = True  # blanks around question, rationale and answer are cut off (F4)
    natural_comma: bool = False  # the answer of ft_cot_natural is looked for behind what is never trained (F3)
    stop: str | None = None  # written at the end of a target, behind a blank

    def __post_init__(self) -> None:
        assert self.template in TEMPLATES, self.template
        assert self.model_type in ("decoder", "encoder_decoder"), self.model_type
        assert self.delimiters in ("release", "paper_gpt3"), self.delimiters


def prompt(
    question: str,
    style: Style,
    *,
    step: int | None = None,
    reasoning_prompt: str | None = None,
    rationale: str | None = None,
    exemplars: Sequence[str] = (),
    trigger: str = TRIGGER,
) -> str:
    """What the model reads.

    step: zs_cot only: 1 asks for a rationale, 2 for the answer to `rationale`. reasoning_prompt: step 2 only, what was
    asked in step 1; None: made from the question. trigger: step 2 only, asks for the answer. exemplars: fs_cot only.
    """
    decoder = style.model_type == "decoder"
    question = _field(question, style)
    if style.template == "zs":
        return f"Q: {question}\n\nA:" if decoder else f"question: {question}"
    if style.template == "zs_cot":
        first = f"Q: {question}\nA: {_STEPS}"
        if step == 1:
            return first
        assert step == 2 and rationale is not None, "zs_cot has the steps 1 and 2, and step 2 needs a rationale"
        if reasoning_prompt is not None:
            first = _field(reasoning_prompt, style)
        return f"{first}{_field(rationale, style)}\n{trigger}"
    if style.template == "fs_cot":
        return "\n".join([*exemplars, f"Q: {question}\nA:"])
    if style.template == "ft_cot_natural":
        return f"Q: {question}\n\nA: {_STEPS}\n\n"
    if not decoder:
        return question
    return f"{question}\n\n###\n\n" if style.delimiters == "paper_gpt3" else f"{question} ###"


def target(answer: str, rationale: str | None, style: Style) -> str:
    """What the model learns to write: `answer` is the gold one, also behind a rationale that ends in another.

    rationale: not used by ft_token. Raises DataError for a template that is for prompting only.
    """
    if style.template not in TRAINABLE:
        raise DataError(
            f"The template {style.template} is for prompting: there is nothing to train on.",
            where="method.prompt.template",
            fix=f"Use one of {', '.join(TRAINABLE)}.",
        )
    decoder = style.model_type == "decoder"
    apart = decoder and style.delimiters == "paper_gpt3"
    text = _field(answer, style)
    if style.template != "ft_token":
        assert rationale is not None, f"{style.template} needs a rationale"
        rationale = _field(rationale, style)
        between = "\n\n" if apart else " "
        if style.template == "ft_cot_token":
            text = f"{rationale}{between}-->{between}{text}"
        else:
            text = f"{rationale}\n\nTherefore the answer is{between}{text}"
    if decoder:
        text = f" {text}"
    return text if style.stop is None else f"{text} {style.stop}"


def answer_prefix(style: Style) -> str | None:
    """What stands before the answer in a completion; None: the completion is the answer.

    Source: evaluator.py:8-17. F3: ft_cot_natural is trained on the sentence without a comma.
    """
    if style.template == "ft_cot_token":
        return "-->"
    if style.template == "fs_cot":
        return "The answer is"
    if style.template == "ft_cot_natural":
        return "Therefore, the answer is" if style.natural_comma else "Therefore the answer is"
    return None


def _field(text: str, style: Style) -> str:
    return text.strip() if style.strip_fields else text


# Exemplars of few-shot-CoT


def read_exemplars(path: Path | str | None, key: str) -> list[str]:
    """The solved questions of a data set, each "Q: ...\\nA: ... The answer is X."; joined by newlines: the prompt.

    path: a file in the official layout, {key: {"prompt": "Q: ...\\nA: ...\\nQ: ..."}}; None: kdlab's own, for the
    embedded tasks. Raises DataError for a file that can't be read and for a key that it lacks.
    """
    file = EMBEDDED if path is None else Path(path).expanduser()
    own = "Give a file in the layout of reasoning-teacher's few_shot_cot_prompts.json as method.prompt.exemplars."
    try:
        content = json.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        what = f"The file with exemplars can't be read: {error.strerror or error}."
        raise DataError(what, where=str(file), fix=own) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"The file with exemplars is no JSON: {error}.", where=str(file), fix=own) from error
    if not isinstance(content, dict):
        raise DataError("The file with exemplars is no JSON object.", where=str(file), fix=own)
    if key not in content:
        where = "kdlab's own exemplars, for the embedded tasks" if path is None else str(file)
        there = ", ".join(sorted(content)) or "nothing"
        raise DataError(f"There are no exemplars for {key!r}. There are: {there}.", where=where, fix=own)
    entry = content[key]
    text = entry.get("prompt") if isinstance(entry, dict) else None
    if not isinstance(text, str) or re.search("[\ud800-\udfff]", text):
        raise DataError("The entry has no text `prompt`.", where=f"{file}, {key}", fix=own)
    exemplars = re.split(r"\n(?=Q:)", text)
    for number, exemplar in enumerate(exemplars, start=1):
        if not exemplar.startswith("Q:") or "\nA:" not in exemplar:
            raise DataError(
                f"Exemplar {number} is no question with its answer: {exemplar[:60]!r}.",
                where=f"{file}, {key}",
                fix='Write each as "Q: ...\\nA: ... The answer is X.", with a newline between two.',
            )
    return exemplars


def is_exemplar(question: str, exemplars: Sequence[str]) -> bool:
    """Whether an exemplar asks this very question, however its options are written.

    Date Understanding and StrategyQA have such test questions; the official OpenAI rows leave them out, those of open
    models do not (papers.md F7).
    """
    return _stem(question) in {_stem(exemplar.partition("\nA:")[0].removeprefix("Q:")) for exemplar in exemplars}


def _stem(question: str) -> str:
    """Letters and digits of a question, without "Yes or no" before and options behind it."""
    text = re.split(r"which choice is true|answer choices", question.lower())[0]
    return re.sub(r"[\W_]+", "", text).removeprefix("yesorno")


def fit_exemplars(
    exemplars: Sequence[str],
    question: str,
    style: Style,
    *,
    length: Callable[[str], int],
    limit: int,
    how: str = "exemplars",
) -> str:
    """The few-shot prompt of a question, in at most `limit` of what `length` counts (tokens).

    how="exemplars": exemplars are left out from the front, as few as needed. The question is always whole: if it is
    too long by itself, so is what comes back. how="right": the end is cut off, and with it the question, as in the
    official code (data_module.py:108-121, F6), to a character instead of a token.
    """
    assert style.template == "fs_cot" and how in ("exemplars", "right"), (style.template, how)

    def left(dropped: int) -> str:
        return prompt(question, style, exemplars=exemplars[dropped:])

    if how == "exemplars":
        return left(bisect_left(range(len(exemplars)), True, key=lambda dropped: length(left(dropped)) <= limit))
    text = left(0)
    if length(text) <= limit:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if length(text[:middle]) <= limit:
            fits = middle
        else:
            too_long = middle
    return text[:fits]
