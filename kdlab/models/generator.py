"""Models that write text: load them, train them on completions, adapt them (LoRA), and let them write in batches.

Letters: B rows, L positions, N positions with a label, D width, V vocabulary.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.pytorch_utils import Conv1D

from kdlab.errors import ModelError
from kdlab.models.architectures import generator_problem, longest_input
from kdlab.models.loading import changed, check_finite, fetch_config, first_line, reading_weights
from kdlab.models.surgery import seeded

IGNORED = -100  # the label of a position that nothing is asked of
_EXTRAS = frozenset({"decoder_start_token_id", "forced_eos_token_id"})  # read from a config, and no fields of its class
_DERIVED = {"num_hidden_layers": "layer_types"}  # made anew by the config's class

# Loading


def load_generator(
    spec: Mapping[str, Any],
    *,
    attention: str,
    seed: int,
    vocabulary: int | None = None,
    pad_token_id: int | None = None,
    eos_token_id: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A ...ForCausalLM or, by its config, an encoder-decoder, in eval mode. Its generation_config is greedy and plain.

    spec: the keys of `kdlab.config.Encoder`, plus "path", a local folder that takes the place of `id`.
      init "pretrained": the weights of path or id; "random": new ones for the config of path or id, or for `config`
      alone.
    attention: "eager" or "sdpa" (an architecture that has only eager gets that).
    seed: of new weights; the global random state stays as it is.
    vocabulary, pad_token_id, eos_token_id: those of the tokenizer, for a model made of `config` alone.

    Raises HubError if the model or its revision is not there, ModelError if it writes no text (an encoder), or its
    weights are missing, do not fit, or are not finite.
    """
    init = spec.get("init", "pretrained")
    source: str | None = spec.get("path") or spec.get("id")
    if source is None and init != "random":
        raise ModelError(
            f"a model with init: {init} needs an id",
            where="model",
            fix="give a model on the Hub or a local folder",
        )
    config = _read_config(source, spec, vocabulary, pad_token_id, eos_token_id)
    if init == "random":
        model = _new(config, attention, seed, dtype)
    else:
        assert source is not None
        with seeded(seed):
            model = _load_weights(source, config, attention, spec.get("revision"), dtype)
    stated = model.generation_config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=stated.bos_token_id,
        eos_token_id=_ends(stated.eos_token_id, config.eos_token_id, eos_token_id),
        pad_token_id=pad_token_id if stated.pad_token_id is None else stated.pad_token_id,
        decoder_start_token_id=stated.decoder_start_token_id,
    )
    model.train(False)
    return model


def _read_config(
    source: str | None, spec: Mapping[str, Any], vocabulary: int | None, pad: int | None, eos: int | None
) -> PreTrainedConfig:
    changes = dict(spec.get("config") or {})
    if source is None:
        kind = str(changes.get("model_type") or "")
        if kind not in CONFIG_MAPPING:
            raise ModelError(
                f"transformers knows no model_type {kind!r}" if kind else "the config has no model_type",
                where="model.config",
                fix="name one that writes text: gpt2, llama, qwen3, gemma3_text, t5, ...",
            )
        base: PreTrainedConfig = CONFIG_MAPPING[kind]()
        changes = {"vocab_size": vocabulary, "pad_token_id": pad, "eos_token_id": eos} | changes
        if "bos_token_id" in base.to_dict():
            changes = {"bos_token_id": None} | changes
        if base.is_encoder_decoder:
            changes = {"decoder_start_token_id": pad, "forced_eos_token_id": None} | changes
    else:
        base = fetch_config(source, spec.get("revision"))
    _check_kind(base, source)
    return changed(base, changes, whole=source is not None, extras=_EXTRAS, derived=_DERIVED)


def _check_kind(config: PreTrainedConfig, source: str | None) -> None:
    where = source or "model.config"
    kind, writes = config.model_type, config.is_encoder_decoder or getattr(config, "is_decoder", False)
    problem = generator_problem({"model_type": kind, "is_encoder_decoder": writes})
    if problem is None and not writes and type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        problem = f"{kind} reads texts and writes none"
    if problem is None and type(config) not in _mapping(config):
        problem = f"transformers has no {kind} that writes text"
    if problem is not None:
        raise ModelError(
            f"this model can't be a student that writes: {problem}",
            where=where,
            fix="use a decoder or an encoder-decoder: gpt2, llama, qwen3, gemma3_text, t5, ...",
        )


def _mapping(config: PreTrainedConfig) -> Any:
    return MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING


def _auto(config: PreTrainedConfig) -> Any:
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _kernel(config: PreTrainedConfig, attention: str) -> str:
    return attention if getattr(_mapping(config)[type(config)], "_supports_sdpa", False) else "eager"


def _new(config: PreTrainedConfig, attention: str, seed: int, dtype: torch.dtype) -> PreTrainedModel:
    try:
        with seeded(seed):
            model: PreTrainedModel = _auto(config).from_config(
                config, attn_implementation=_kernel(config, attention), dtype=dtype, trust_remote_code=False
            )
            return model
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise ModelError(f"no model can be built from the config: {first_line(error)}", where="model.config") from error


def _load_weights(
    source: str, config: PreTrainedConfig, attention: str, revision: str | None, dtype: torch.dtype
) -> PreTrainedModel:
    with reading_weights(source):
        model, info = _auto(config).from_pretrained(
            source,
            config=config,
            attn_implementation=_kernel(config, attention),
            dtype=dtype,
            trust_remote_code=False,
            weights_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **({"revision": revision} if revision else {}),
        )
    fix = "check that config.json belongs to these weights, and model.config for changed sizes"
    wrong = sorted(info["mismatched_keys"])
    if wrong:
        name, found, wanted = wrong[0]
        raise ModelError(
            f"{len(wrong)} weights do not fit the model: {name} is {list(found)}, should be {list(wanted)}",
            where=source,
            fix=fix,
        )
    absent = sorted(info["missing_keys"])
    if absent:
        raise ModelError(f"{len(absent)} weights are missing, the first is {absent[0]}", where=source, fix=fix)
    surplus = sorted(name for name in info["unexpected_keys"] if re.search(r"\.\d+\..*\.(weight|bias)$", name))
    if surplus:
        raise ModelError(
            f"{len(surplus)} weights have no place in the model, the first is {surplus[0]}", where=source, fix=fix
        )
    check_finite(model, source)
    loaded: PreTrainedModel = model
    return loaded


def _ends(*stated: int | list[int] | None) -> list[int]:
    """All tokens that end a text."""
    flat = (token for some in stated for token in (some if isinstance(some, list) else [some]))
    return list(dict.fromkeys(token for token in flat if token is not None))


# Training


class Student(nn.Module):
    """A generator as the loop trains it: `student(batch)` gives logits [N, V] and labels [N] where there is a label.

    The head is applied to those positions only, which the padding and the prompts are not. Its state is the trained
    weights, each once: tied ones have one name, and of an adapted model the frozen ones are left out.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._wanted: Tensor | None = None  # [B, L] bool, positions that the head is to see
        self.register_state_dict_post_hook(_keep_trained)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_miss_only_trained)  # type: ignore[no-untyped-call]
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self.sparse = False  # whether the head may see fewer positions: its result is computed position by position
        if head is not None:
            head.register_forward_pre_hook(self._pick, with_kwargs=True)
            self.sparse = self._agrees()

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """batch: what `data.sequences.Sequences.collate` makes."""
        labels = batch["labels"]
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        if self.model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = self._shifted(labels)
            inputs["decoder_attention_mask"] = batch["decoder_attention_mask"]
        else:  # position t predicts token t + 1
            labels = torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORED)], dim=1)
        wanted = labels != IGNORED  # [B, L]
        return self._logits(inputs, wanted), labels[wanted]

    def _logits(self, inputs: Mapping[str, Any], wanted: Tensor) -> Tensor:
        self._wanted = wanted if self.sparse else None
        try:
            logits: Tensor = self.model(**inputs).logits
        finally:
            self._wanted = None
        return logits if self.sparse else logits[wanted]

    def _pick(self, head: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if self._wanted is None:
            return None
        return (args[0][self._wanted], *args[1:]), named  # [N, D]

    def _shifted(self, labels: Tensor) -> Tensor:
        """What the decoder reads: its start token, then the targets without their last one."""
        start, pad = self.model.config.decoder_start_token_id, self.model.config.pad_token_id
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = start
        return shifted.masked_fill(shifted == IGNORED, pad)

    @torch.no_grad()
    def _agrees(self) -> bool:
        """Whether the model gives the same logits when its head sees only some positions, tried on four tokens."""
        device = next(self.model.parameters()).device
        ids = torch.arange(4, device=device)[None] % self.model.config.get_text_config().vocab_size
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        if self.model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        wanted = torch.tensor([[False, True, False, True]], device=device)
        was_training = self.model.training
        self.model.train(False)
        whole = self._logits(inputs, wanted)
        agrees = False
        with suppress(RuntimeError, ValueError, IndexError, TypeError, AttributeError):
            self.sparse = True
            agrees = torch.allclose(self._logits(inputs, wanted), whole, rtol=1e-4, atol=1e-5)
        self.sparse = False
        self.model.train(was_training)
        return agrees


def _trained(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def _keep_trained(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    kept = {f"{prefix}{name}" for name in _trained(module)}
    for name in [name for name in state if name.startswith(prefix) and name not in kept]:
        del state[name]


def _miss_only_trained(module: nn.Module, keys: Any) -> None:
    missing = [name for name in keys.missing_keys if name in _trained(module)]
    keys.missing_keys[:] = missing


def adapt(model: PreTrainedModel, lora: Mapping[str, Any], *, seed: int) -> Callable[[], PreTrainedModel]:
    """Put low-rank adapters into `model` and freeze all else. Calling the result merges them into the weights.

    lora: rank, alpha, dropout, targets (names of modules; none: all linear layers but the head), as `config.Lora`.
    Raises ModelError for a target that is not there.
    """
    from peft import LoraConfig, get_peft_model

    targets = list(lora.get("targets") or ())
    config = LoraConfig(
        r=int(lora["rank"]),
        lora_alpha=float(lora["alpha"]),  # type: ignore[arg-type]
        lora_dropout=float(lora["dropout"]),
        target_modules=targets or "all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    try:
        with seeded(seed), warnings.catch_warnings():
            # peft still asks by the name that transformers 5.24 gives up
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(
            f"the adapters can't be placed: {first_line(error)}",
            where="method.student.lora.targets",
            fix="name modules of the model, or none for all linear layers",
        ) from error

    def merge() -> PreTrainedModel:
        merged: PreTrainedModel = adapted.merge_and_unload()  # type: ignore[assignment]
        for parameter in merged.parameters():
            parameter.requires_grad_(True)
        return merged

    return merge


# Writing


@dataclass(frozen=True)
class Generated:
    """What a model wrote."""

    text: str  # without end-of-text and stop string
    tokens: int  # generated, the end-of-text token and those of the stop string included
    finish_reason: str  # "stop": end-of-text or stop string; "length": max_tokens or the model's last position


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, encoder_decoder: bool, limit: int | None = None
) -> list[list[int]]:
    """Prompts as tokens, with what the tokenizer puts around a text (BOS); a decoder gets no end-of-text behind them.

    limit: longer prompts are cut on the right, as in the official code; an encoder-decoder's end-of-text stays.
    """
    end = tokenizer.eos_token_id
    found: list[list[int]] = []
    for ids in tokenizer(list(texts), verbose=False)["input_ids"] if texts else []:
        ended = len(ids) > 1 and ids[-1] == end
        if ended and not encoder_decoder:
            ids, ended = ids[:-1], False
        if limit is not None and len(ids) > limit:
            ids = [*ids[: limit - 1], end] if ended else ids[:limit]
        found.append(list(ids))
    return found


def target_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, encoder_decoder: bool, limit: int | None = None
) -> list[list[int]]:
    """Completions as tokens with end-of-text behind them, once; a decoder's have nothing in front.

    limit: longer ones are cut, the end-of-text of a decoder's with them, so that it learns no end in mid-sentence; that
    of an encoder-decoder's stays. Source: reasoning-teacher src/custom/data_module.py.
    """
    end = tokenizer.eos_token_id
    found: list[list[int]] = []
    for ids in tokenizer(list(texts), add_special_tokens=encoder_decoder, verbose=False)["input_ids"] if texts else []:
        ids = list(ids)
        while ids and ids[-1] == end:
            ids.pop()
        if encoder_decoder:
            found.append([*ids[: None if limit is None else limit - 1], end])
        else:
            found.append([*ids, end][:limit])
    return found


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    stop: Sequence[str] = (),
    batch_size: int = 32,
    seed: int | Sequence[int] = 0,
    unmasked_left_pad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Generated]:
    """What `model` writes behind each prompt, in the order of the prompts; see `stream`.

    progress: called with (prompts done, all prompts) after each batch.
    """
    found: dict[int, Generated] = {}
    batches = stream(
        model,
        tokenizer,
        prompts,
        max_tokens=max_tokens,
        temperature=temperature,
        stop=stop,
        batch_size=batch_size,
        seed=seed,
        unmasked_left_pad=unmasked_left_pad,
    )
    for batch in batches:
        found |= batch
        if progress is not None:
            progress(len(found), len(prompts))
    return [found[number] for number in range(len(prompts))]


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    stop: Sequence[str] = (),
    batch_size: int = 32,
    seed: int | Sequence[int] = 0,
    unmasked_left_pad: bool = False,
) -> Iterator[dict[int, Generated]]:
    """Batch after batch, what `model` writes behind each prompt, by the prompt's number; the longest prompts first.

    Padding is masked and not counted in positions, so a batch gives the texts that its prompts give alone.

    prompts: texts, or token ids as `prompt_ids` makes them.
    max_tokens: of a completion; fewer where the model has no more positions.
    temperature: 0: the likeliest token at each step; else tokens are drawn from softmax(logits / temperature).
    seed: of the draws; a sequence: one for each prompt. A prompt's draws depend on its seed (of one for all: on its
      number, too) and not on the prompts beside it.
    unmasked_left_pad: attend to a decoder's padding and count it in positions, as the official evaluation of GPT-2 does
      (F2, src/custom/model.py validation_step).

    Raises ModelError for a prompt that is empty or leaves no position for an answer.
    """
    assert max_tokens > 0 and batch_size > 0 and temperature >= 0
    writer = _Writer(model, tokenizer, temperature, [text for text in stop if text], unmasked_left_pad)
    texts = [one for one in prompts if isinstance(one, str)]
    encoded = iter(prompt_ids(tokenizer, texts, encoder_decoder=writer.encoder_decoder))
    ids = [next(encoded) if isinstance(one, str) else list(one) for one in prompts]
    seeds = [(seed, number) for number in range(len(ids))] if isinstance(seed, int) else [(one,) for one in seed]
    room = [writer.room(tokens, max_tokens, number) for number, tokens in enumerate(ids)]
    order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
    # A batch holds prompts that may be continued by equally many tokens, so that none goes beyond the last position.
    for allowed, group in groupby(order, key=lambda number: room[number]):
        rows = list(group)
        for start in range(0, len(rows), batch_size):
            numbers = rows[start : start + batch_size]
            found = writer.write([ids[number] for number in numbers], allowed, [seeds[number] for number in numbers])
            yield dict(zip(numbers, found, strict=True))


class _Writer:
    """One way of writing: model, tokenizer, temperature, where to stop."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        temperature: float,
        stop: Sequence[str],
        unmasked: bool,
    ) -> None:
        self.model, self.tokenizer, self.temperature = model, tokenizer, temperature
        self.stop, self.unmasked = list(stop), unmasked
        self.encoder_decoder: bool = model.config.is_encoder_decoder
        self.limit = longest_input(model.config.to_dict())
        self.ends = _ends(tokenizer.eos_token_id, model.generation_config.eos_token_id)  # type: ignore[union-attr]
        if not self.ends:
            raise ModelError("the tokenizer has no end-of-text token", fix="use the tokenizer of a model that writes")
        self.pad = self.ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def room(self, ids: Sequence[int], max_tokens: int, number: int) -> int:
        """How many tokens may follow a prompt."""
        if not ids:
            raise ModelError(f"prompt {number} is empty")
        if self.limit is None:
            return max_tokens
        room = self.limit - (0 if self.encoder_decoder else len(ids))
        if room < 1 or len(ids) > self.limit:
            raise ModelError(
                f"prompt {number} has {len(ids)} tokens of the model's {self.limit}: none is left for an answer",
                fix="lower method.prompt.max_prompt, or use a model with more positions",
            )
        return min(room, max_tokens)

    def write(self, prompts: Sequence[Sequence[int]], allowed: int, seeds: Sequence[Sequence[int]]) -> list[Generated]:
        place = next(self.model.parameters()).device
        width = max(map(len, prompts))
        input_ids = torch.full((len(prompts), width), self.pad, dtype=torch.int64)
        mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(prompts):
            where = slice(0, len(ids)) if self.encoder_decoder else slice(width - len(ids), width)
            input_ids[row, where] = torch.tensor(ids)
            mask[row, where] = 1
        if self.unmasked and not self.encoder_decoder:
            mask.fill_(1)
        first = 1 if self.encoder_decoder else width  # where the written tokens begin
        was_training = self.model.training
        self.model.train(False)
        written: Tensor = self.model.generate(  # type: ignore[operator]
            input_ids=input_ids.to(place),
            attention_mask=mask.to(place),
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                max_new_tokens=allowed,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                pad_token_id=self.pad,
                eos_token_id=self.ends,
            ),
            logits_processor=LogitsProcessorList([_Draw(seeds, self.temperature)] if self.temperature else []),
            stopping_criteria=StoppingCriteriaList([_StopAt(self.tokenizer, self.stop, first)] if self.stop else []),
        )
        self.model.train(was_training)
        return [self.judge(row, allowed) for row in written[:, first:].tolist()]

    def judge(self, ids: list[int], allowed: int) -> Generated:
        """ids: what was written, with padding behind it if other rows of the batch went on."""
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        text = self._text(ids if end is None else ids[:end])
        cut = min((place for some in self.stop if (place := text.find(some)) >= 0), default=None)
        if cut is None:
            tokens = len(ids) if end is None else end + 1
            return Generated(text, tokens, "length" if end is None else "stop")
        tokens = next(n for n in range(1, len(ids) + 1) if any(some in self._text(ids[:n]) for some in self.stop))
        return Generated(text[:cut], tokens, "stop")

    def _text(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class _Draw(LogitsProcessor):
    """Add Gumbel noise, from a generator of each row's own: then the likeliest token is one drawn from the softmax."""

    def __init__(self, seeds: Sequence[Sequence[int]], temperature: float) -> None:
        self.seeds, self.temperature = seeds, temperature
        self.generators: list[torch.Generator] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """scores: [B, V]."""
        if not self.generators:
            self.generators = [torch.Generator(scores.device).manual_seed(_mixed(seed)) for seed in self.seeds]
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / self.temperature - noise.log()


def _mixed(seed: Sequence[int]) -> int:
    return int(np.random.SeedSequence([abs(one) for one in seed]).generate_state(1, np.uint64)[0] >> 1)


class _StopAt(StoppingCriteria):
    """Ends a row whose last tokens hold a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], first: int) -> None:
        self.tokenizer, self.stop, self.first = tokenizer, stop, first
        self.reach = max(len(text.encode()) for text in stop) + 4  # tokens; each is a byte of text or more

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        tails = input_ids[:, max(self.first, input_ids.shape[1] - self.reach) :].tolist()
        texts = [self.tokenizer.decode(tail, clean_up_tokenization_spaces=False) for tail in tails]
        found = [any(some in text for some in self.stop) for text in texts]
        return torch.tensor(found, device=input_ids.device)
