"""Models that translate: Marian, M2M-100, NLLB and mBART-50, loaded with their tokenizers and writing in batches.

Letters: B units, L tokens.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from kdlab.errors import ModelError, first_line
from kdlab.models.architectures import longest_input
from kdlab.models.generator import load_generator
from kdlab.models.loading import fetch_config, fetched

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KERNEL = "sdpa"  # all four have it
KINDS = {  # (model_type, class of the tokenizer) -> kind
    ("marian", "MarianTokenizer"): "marian",
    ("m2m_100", "M2M100Tokenizer"): "m2m_100",
    ("m2m_100", "NllbTokenizer"): "nllb",
    ("mbart", "MBart50Tokenizer"): "mbart50",
}
_FLORES = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")  # how NLLB names languages: eng_Latn

logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load(spec: Mapping[str, Any], *, place: torch.device, precision: str) -> TranslationModel:
    """The model and tokenizer of {"id", "revision"} on the Hub, or of {"path"}, a folder; in eval mode on `place`.

    precision: "fp32" or "bf16". At bf16 the weights are held in bf16, not cast by autocast at each step: half the
    memory. transformers computes the beams' scores in fp32 either way.

    Raises HubError if the model or its revision is not there; ModelError if it is none of the four kinds, its tokenizer
    can't be read, or its weights are missing, do not fit, hold more than plain tensors, or are not finite.
    """
    source = str(spec.get("path") or spec["id"])
    if spec.get("path") and not Path(source).is_dir():
        raise ModelError("the translator's folder does not exist", where=source, fix="check translator.model")
    config = fetch_config(source, spec.get("revision"))
    _refuse_unless(config.model_type in {kind for kind, _ in KINDS}, source, f"it is a {config.model_type} model")
    tokenizer = _tokenizer(source, spec.get("revision"), config)
    kind = KINDS.get((config.model_type, type(tokenizer).__name__))
    _refuse_unless(kind is not None, source, f"{config.model_type} with a {type(tokenizer).__name__}")
    assert kind is not None
    model = load_generator(spec, attention=KERNEL, seed=0, dtype=DTYPES[precision])
    return TranslationModel(kind, model.to(place), tokenizer, source)  # type: ignore[arg-type]


def _refuse_unless(fits: bool, source: str, what: str) -> None:
    if not fits:
        raise ModelError(
            f"kdlab can't translate with this model: {what}",
            where=source,
            fix="use Marian (opus-mt), M2M-100, NLLB-200 or mBART-50",
        )


def _tokenizer(source: str, revision: str | None, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    folder = fetched(source, revision, "tokenizer")
    try:
        with warnings.catch_warnings():
            # Marian's tokenizer asks for it, and never calls what it would be used for.
            warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, config=config, trust_remote_code=False
            )
            return tokenizer
    except Exception as error:  # whatever missing or broken files make sentencepiece or a parser raise
        raise _broken(source, error) from error


def _broken(source: str, error: Exception) -> ModelError:
    return ModelError(
        f"the translator's tokenizer can't be read: {first_line(error)}",
        where=source,
        fix="fetch the model again, with all files of its tokenizer (Marian: source.spm, target.spm, vocab.json)",
    )


class TranslationModel:
    """A translator and its tokenizer.

    kind: one of the values of KINDS. languages: the codes that it knows, in the tokenizer's own words (en, eng_Latn,
    en_XX; of a Marian model with several targets fra for the token >>fra<<); none for a Marian model of one pair.
    """

    def __init__(self, kind: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        self.kind, self.model, self.tokenizer, self.source = kind, model, tokenizer, source
        self._tokens = _language_tokens(kind, tokenizer, int(model.config.vocab_size))
        self.languages = list(self._tokens)
        if not self.languages and kind != "marian":
            raise ModelError("the translator's tokenizer knows no language", where=source, fix="fetch the model again")
        self._reach = longest_input(model.config.to_dict())
        self._silent = {*tokenizer.all_special_ids, *self._tokens.values()}  # tokens that are no text
        # Never written: padding, with which Marian's decoder starts, and embeddings without a token, as M2M-100 has 8.
        meant = {*_pieces(tokenizer), *self._tokens.values()} - {model.generation_config.pad_token_id}  # type: ignore[union-attr]
        vocabulary = int(getattr(model.config, "decoder_vocab_size", None) or model.config.vocab_size)
        self._barred = [token for token in range(vocabulary) if token not in meant]

    def generate(
        self,
        units: Sequence[str],
        *,
        source_code: str | None,
        target_code: str | None,
        beams: int,
        max_tokens: int,
        batch_size: int,
    ) -> list[tuple[str, bool]]:
        """Each unit's translation, and whether the unit or the translation was cut, in the order of the units.

        Beam search that stops as soon as it has `beams` whole texts (1 beam: greedy), nothing drawn; what the
        checkpoint says of generation is not used but for its special tokens. The longest units are batched first.
        Padding is masked, so but for rounding a unit's translation does not depend on its batch.

        source_code: of `languages`; None for Marian. target_code: of `languages`; None for a Marian model without any.
        max_tokens: of a unit, with the tokens around it, and of a translation, with its end-of-text, without its
        language; fewer where the model has no more positions.
        """
        assert beams > 0 and max_tokens > 1 and batch_size > 0
        for code in (source_code, target_code):
            assert code is None or code in self._tokens, f"{code!r} is not among {self.languages}"
        limit = max_tokens if self._reach is None else min(max_tokens, self._reach)
        ids, cut = self._encode(units, source_code, target_code, limit)
        settings = self._settings(target_code, beams, max_tokens)
        found: dict[int, tuple[str, bool]] = {}
        order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            written = self._write([ids[number] for number in numbers], settings)
            for number, (text, ended) in zip(numbers, written, strict=True):
                found[number] = (text, cut[number] or not ended)
        return [found[number] for number in range(len(ids))]

    def _encode(
        self, units: Sequence[str], source_code: str | None, target_code: str | None, limit: int
    ) -> tuple[list[list[int]], list[bool]]:
        """Tokens of each unit, and whether it had more. What looks like a special token in a unit is plain text."""
        if source_code is not None:
            self.tokenizer.src_lang = source_code  # type: ignore[attr-defined]
        if self.kind == "marian":
            # The tokenizer takes >>...<< at the very start of a text for a language; behind a space it is text.
            prefix = "" if target_code is None else f">>{target_code}<<"
            units = [f"{prefix} {unit}" if prefix or unit.startswith(">>") else unit for unit in units]
        if not units:
            return [], []
        options: dict[str, Any] = {"split_special_tokens": True, "verbose": False}
        ids = [list(some) for some in self.tokenizer(list(units), **options)["input_ids"]]
        cut = [len(some) > limit for some in ids]
        for number, unit in enumerate(units):
            if cut[number]:
                options |= {"truncation": True, "max_length": limit}
                ids[number] = list(self.tokenizer(unit, **options)["input_ids"])
        return ids, cut

    def _settings(self, target_code: str | None, beams: int, max_tokens: int) -> GenerationConfig:
        stated = self.model.generation_config
        forced = target_code is not None and self.kind != "marian"
        first = 2 if forced else 1  # the decoder's start token, and the language
        room = max_tokens if self._reach is None else min(max_tokens, self._reach - first)
        assert stated is not None
        return GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=room + first - 1,
            num_beams=beams,
            early_stopping=beams > 1,
            do_sample=False,
            forced_bos_token_id=self._tokens[str(target_code)] if forced else None,
            decoder_start_token_id=stated.decoder_start_token_id,
            eos_token_id=stated.eos_token_id,
            pad_token_id=stated.pad_token_id,
            suppress_tokens=self._barred,
        )

    @torch.inference_mode()
    def _write(self, batch: list[list[int]], settings: GenerationConfig) -> list[tuple[str, bool]]:
        """The texts for tokens, and whether each came to its end."""
        width = max(len(ids) for ids in batch)
        pad = int(settings.pad_token_id)
        tokens = torch.tensor(
            [[*ids, *[pad] * (width - len(ids))] for ids in batch], device=self.model.device
        )  # [B, L]
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch], device=self.model.device)
        generate: Any = self.model.generate
        written = generate(input_ids=tokens, attention_mask=mask, generation_config=settings)  # [B, L']
        ends = set(settings.eos_token_id)
        found = []
        for row in written[:, 1:].tolist():  # the first is the decoder's start, in NLLB the end-of-text token
            ended = any(token in ends for token in row)
            text = self.tokenizer.decode(
                [token for token in row if token not in self._silent], clean_up_tokenization_spaces=False
            )
            assert isinstance(text, str)
            found.append((text.strip(), ended))
        return found


def _pieces(tokenizer: Any) -> Iterable[int]:
    """The tokens that have a text; those of the target, where a Marian model has two vocabularies."""
    slow: Mapping[int, str] | None = getattr(tokenizer, "decoder", None) if not tokenizer.is_fast else None
    return tokenizer.get_vocab().values() if slow is None else slow


def _language_tokens(kind: str, tokenizer: Any, vocabulary: int) -> dict[str, int]:
    """Code -> token, of the languages for which the model has an embedding."""
    if kind == "marian":
        tokens = tokenizer.supported_language_codes
        found = {token[2:-2]: tokenizer.convert_tokens_to_ids(token) for token in tokens}  # >>fra<<
    elif kind == "nllb":
        codes = [token for token in tokenizer.all_special_tokens if _FLORES.fullmatch(token)]
        found = {code: tokenizer.convert_tokens_to_ids(code) for code in codes}
    else:
        found = dict(tokenizer.lang_code_to_id)
    return {code: token for code, token in found.items() if token != tokenizer.unk_token_id and token < vocabulary}
