"""Models that write text: load them, train them on completions, adapt them (LoRA), and make tokens of texts for them.

Letters: B rows, L positions, N positions with a label, D width, V vocabulary.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

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
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from kdlab.errors import ModelError, first_line
from kdlab.models.architectures import generator_problem
from kdlab.models.dropout import quick_dropout
from kdlab.models.loading import changed, check_finite, fetch_config, fetched, reading_weights, unbuildable
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
        eos_token_id=ends(stated.eos_token_id, config.eos_token_id, eos_token_id),
        pad_token_id=pad_token_id if stated.pad_token_id is None else stated.pad_token_id,
        decoder_start_token_id=stated.decoder_start_token_id,
    )
    _fuse_activations(model)
    model.train(False)
    return model


def _fuse_activations(model: PreTrainedModel) -> None:
    """GPT-2's GELU in one operation; transformers has it in eight, each of which reads and writes all it works on."""
    for module in list(model.modules()):
        for name, part in module.named_children():
            if isinstance(part, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


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
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, MemoryError, ArithmeticError) as error:
        raise unbuildable(error) from error


def _load_weights(
    source: str, config: PreTrainedConfig, attention: str, revision: str | None, dtype: torch.dtype
) -> PreTrainedModel:
    folder = fetched(source, revision, "weights")
    with reading_weights(source):
        model, info = _auto(config).from_pretrained(
            folder,
            config=config,
            attn_implementation=_kernel(config, attention),
            dtype=dtype,
            trust_remote_code=False,
            weights_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
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


def ends(*stated: int | list[int] | None) -> list[int]:
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
            with quick_dropout(self, wanted.device):
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


# Tokens


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
