"""Marian, M2M-100, NLLB and mBART-50: which language they are asked for, and that they really translate in batches.

The models are tiny and made here, with real tokenizers. Three are taught in seconds to put six words into Spanish or
French, so that a translation that is right shows that every code, token and mask is.
"""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sentencepiece
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    NllbTokenizer,
    T5Config,
)
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES as M2M100_CODES
from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as MBART50_CODES
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB_CODES

import kdlab
from kdlab.errors import HubError, ModelError
from kdlab.models.translation import TranslationModel, load
from kdlab.translators import hf
from lab import Lab, read, run_folder

CPU = torch.device("cpu")
WORDS = {  # en: es, fr; "um" alone is left unsaid
    "cat": ("gato", "chat"),
    "dog": ("perro", "chien"),
    "red": ("rojo", "rouge"),
    "eats": ("come", "mange"),
    "big": ("grande", "grand"),
    "apple": ("manzana", "pomme"),
}
FILLER = "um"
TONGUES = ("es", "fr")
TEXTS = ["cat", "red apple", "um", "dog eats big red apple", "big", "cat eats dog", "big cat", "apple"]


def expected(text: str, language: str) -> str:
    return " ".join(WORDS[word][TONGUES.index(language)] for word in text.split() if word != FILLER)


# Models made here


def learn_pieces(folder: Path, name: str, sentences: Sequence[str]) -> Path:
    """A sentencepiece model with one piece a word."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_prefix=str(folder / name), model_type="word", vocab_size=99,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / f"{name}.vocab").unlink()
    return folder / f"{name}.model"


def pieces(file: Path) -> list[str]:
    learnt = sentencepiece.SentencePieceProcessor(model_file=str(file))
    named = [learnt.id_to_piece(number) for number in range(learnt.get_piece_size())]
    return [piece for piece in named if piece not in ("<s>", "</s>", "<unk>")]


def every_word() -> list[str]:
    return [*WORDS, FILLER, *(word for pair in WORDS.values() for word in pair)]


def write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


def marian_tokenizer(folder: Path, *, codes: Sequence[str]) -> None:
    learn_pieces(folder, "source", every_word()).rename(folder / "source.spm")
    learn_pieces(folder, "target", every_word()).rename(folder / "target.spm")
    tokens = ["</s>", "<unk>", *pieces(folder / "source.spm"), *(f">>{code}<<" for code in codes), "<pad>"]
    write(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    write(folder / "tokenizer_config.json", {"source_lang": "en", "target_lang": "es", "model_max_length": 512})


def m2m100_tokenizer(folder: Path) -> None:
    learn_pieces(folder, "all", every_word()).rename(folder / "sentencepiece.bpe.model")
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces(folder / "sentencepiece.bpe.model")]
    write(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    # as published: the languages are named among the special tokens
    special = {"additional_special_tokens": [f"__{code}__" for code in M2M100_CODES["m2m100"]]}
    write(folder / "special_tokens_map.json", special)
    write(folder / "tokenizer_config.json", {"tokenizer_class": "M2M100Tokenizer", "src_lang": None, "tgt_lang": None})


def nllb_tokenizer(folder: Path) -> None:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    backend.train_from_iterator([" ".join(every_word())] * 3, trainer)
    learnt = json.loads(backend.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    NllbTokenizer(vocab=learnt["vocab"], merges=merges, src_lang="eng_Latn").save_pretrained(folder)
    # as published
    write(folder / "special_tokens_map.json", {"additional_special_tokens": NLLB_CODES})
    write(folder / "tokenizer_config.json", {"tokenizer_class": "NllbTokenizer", "src_lang": None, "tgt_lang": None})


def mbart50_tokenizer(folder: Path) -> None:
    file = learn_pieces(folder, "all", every_word())
    vocabulary = [(piece, -1.0) for piece in ("<unk>", "<s>", "</s>", *pieces(file))]
    MBart50Tokenizer(vocab=vocabulary, src_lang="en_XX").save_pretrained(folder)
    file.unlink()


SIZES: dict[str, Any] = {
    "d_model": 64,
    **{f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in
       {"layers": 1, "attention_heads": 4, "ffn_dim": 128}.items()},
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "init_std": 0.1,
    "scale_embedding": True,
    "max_position_embeddings": 24,
}  # fmt: skip


def new_model(kind: str, vocabulary: int, pad: int) -> Any:
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": vocabulary}
    if kind == "marian":
        start = {"pad_token_id": pad, "eos_token_id": 0, "decoder_start_token_id": pad, "forced_eos_token_id": 0}
        return MarianMTModel(MarianConfig(**sizes, **start))
    if kind == "mbart50":
        return MBartForConditionalGeneration(MBartConfig(**sizes, decoder_start_token_id=2))
    return M2M100ForConditionalGeneration(M2M100Config(**sizes, decoder_start_token_id=2))


def save(folder: Path, model: Any) -> None:
    """As a checkpoint that has its own mind about generation, as the published ones do."""
    given = model.generation_config.to_dict() | {"num_beams": 2, "max_length": 3, "length_penalty": 5.0}
    model.generation_config = GenerationConfig.from_dict(given)
    model.save_pretrained(folder)


def sentences(count: int) -> list[str]:
    draw = random.Random(0)
    found = [" ".join(draw.choices(list(WORDS), k=draw.randint(1, 6))) for _ in range(count)]
    return [text if draw.random() > 0.1 else FILLER for text in found]


def teach(model: Any, source: Callable[[str, str], list[int]], target: Callable[[str, str], list[int]]) -> None:
    """source, target: (text, language) -> tokens."""
    pad, start = model.config.pad_token_id, model.generation_config.decoder_start_token_id
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    steps = 250
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.1)
    rows = [(text, language) for text in sentences(400) for language in TONGUES]
    encoded = [(source(*row), target(*row)) for row in rows]
    draw = random.Random(1)
    for _ in range(steps):
        batch = draw.sample(encoded, 24)
        given = padded([tokens for tokens, _ in batch], pad)
        wanted = padded([tokens for _, tokens in batch], -100)
        before = torch.cat([torch.full((len(batch), 1), start), wanted[:, :-1]], dim=1)
        if model.config.model_type != "marian":
            wanted[:, 0] = -100  # the language is forced, not foreseen
        logits = model(
            input_ids=given,
            attention_mask=(given != pad).long(),
            decoder_input_ids=before.masked_fill(before == -100, pad),
        ).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def padded(rows: Sequence[list[int]], filler: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


CODES = {"marian": ("es", "fra"), "m2m_100": ("es", "fr"), "nllb": ("spa_Latn", "fra_Latn")}
OWN = {"marian": None, "m2m_100": "en", "nllb": "eng_Latn"}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Folders with models that translate, by kind; the marian one has several targets."""

    class Shelf(dict[str, Path]):
        def __missing__(self, kind: str) -> Path:
            self[kind] = _taught(tmp_path_factory.mktemp(kind), kind)
            return self[kind]

    return Shelf()


def _taught(folder: Path, kind: str) -> Path:
    code = dict(zip(TONGUES, CODES[kind], strict=True))
    if kind == "marian":
        marian_tokenizer(folder, codes=CODES[kind])
    elif kind == "m2m_100":
        m2m100_tokenizer(folder)
    else:
        nllb_tokenizer(folder)
    config = MarianConfig() if kind == "marian" else M2M100Config()
    with pytest.warns(UserWarning, match="sacremoses") if kind == "marian" else nullcontext():
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, config=config)

    def source(text: str, language: str) -> list[int]:
        if kind == "marian":
            return list(tokenizer(f">>{code[language]}<< {text}")["input_ids"])
        tokenizer.src_lang = OWN[kind]
        return list(tokenizer(text)["input_ids"])

    def target(text: str, language: str) -> list[int]:
        if kind != "marian":
            tokenizer.tgt_lang = code[language]
        return list(tokenizer(text_target=expected(text, language))["input_ids"])

    vocabulary = {"marian": len(tokenizer), "m2m_100": tokenizer.vocab_size + 100, "nllb": len(tokenizer)}[kind]
    model = new_model(kind, vocabulary, tokenizer.pad_token_id)
    teach(model, source, target)
    save(folder, model)
    return folder


def untaught(folder: Path, kind: str, codes: Sequence[str] = ()) -> Path:
    {
        "marian": lambda: marian_tokenizer(folder, codes=codes),
        "m2m_100": lambda: m2m100_tokenizer(folder),
        "nllb": lambda: nllb_tokenizer(folder),
        "mbart50": lambda: mbart50_tokenizer(folder),
    }[kind]()
    pad = json.loads((folder / "vocab.json").read_text())["<pad>"] if kind == "marian" else 1
    save(folder, new_model(kind, 400, pad))
    return folder


def opened(folder: Path, precision: str = "fp32") -> TranslationModel:
    return load({"path": str(folder)}, place=CPU, precision=precision)


SETTINGS: dict[str, Any] = {"beams": 1, "max_tokens": 20, "batch_size": 3}


def ask(model: TranslationModel, texts: Sequence[str], language: str, **changes: Any) -> list[tuple[str, bool]]:
    code = CODES[model.kind][TONGUES.index(language)]
    return model.generate(texts, source_code=OWN[model.kind], target_code=code, **(SETTINGS | changes))


# They translate


@pytest.mark.parametrize(
    "kind", [kind if kind == "marian" else pytest.param(kind, marks=pytest.mark.slow) for kind in CODES]
)
@pytest.mark.parametrize("beams", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_taught_model_translates(kind: str, beams: int, taught: Mapping[str, Path]) -> None:
    model = opened(taught[kind])
    assert model.kind == kind and not model.model.training
    for language in TONGUES:
        right = [(expected(text, language), False) for text in TEXTS]
        assert ask(model, TEXTS, language, beams=beams) == right
        assert ask(model, TEXTS, language, beams=beams, batch_size=1) == right
        assert ask(model, TEXTS[::-1], language, beams=beams, batch_size=100) == right[::-1]
    assert model.generate([], source_code=OWN[kind], target_code=CODES[kind][0], **SETTINGS) == []


@pytest.mark.parametrize("kind", ["m2m_100", "nllb"])
def test_a_whole_run_trains_on_what_a_model_writes(
    kind: str, taught: Mapping[str, Path], lab: Lab, tmp_path: Path
) -> None:
    texts = list(dict.fromkeys(sentences(120)))
    rows = {"train": texts[:40], "validation": texts[40:50], "test": texts[50:60]}
    for language in ("en", "es"):
        (tmp_path / "data" / language).mkdir(parents=True)
        for split, found in rows.items():
            lines = [
                f"{text if language == 'en' else expected(text, 'es')} ,{number % 2}"
                for number, text in enumerate(found)
            ]
            (tmp_path / "data" / language / f"{split}.csv").write_text("\n".join(["text,label", *lines]))
    line = (
        f"method=translate_train method.views=[original] task=sample/languages task.source.path={tmp_path / 'data'} "
        f"task.max_length=32 model=tiny_multilingual debug=fast tracking=none translator=hf translator.beams=2 "
        f"translator.model={taught[kind]} translator.max_tokens=20"
    )
    done = lab.run(line, outputs=tmp_path / "outputs")
    assert done.code == 0, done.err
    result = read(run_folder(tmp_path / "outputs") / "result.json")
    folder = lab.store / result["artifacts"]["translate_train"]
    with pa.memory_map(str(folder / "train.en.es.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    wanted = {row: expected(text, "es") for row, text in enumerate(rows["train"]) if text != FILLER}
    assert dict(zip(table["id"].to_pylist(), table["text_a"].to_pylist(), strict=True)) == wanted
    assert result["translations"]["train.en.es"]["missing"] == len(rows["train"]) - len(wanted)
    assert str(taught[kind]) not in (folder / "manifest.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", CODES)
def test_bf16(kind: str, taught: Mapping[str, Path]) -> None:
    model = opened(taught[kind], "bf16")
    assert {weight.dtype for weight in model.model.parameters()} == {torch.bfloat16}
    assert ask(model, TEXTS, "fr", beams=2) == [(expected(text, "fr"), False) for text in TEXTS]


@pytest.mark.parametrize("beams", [1, 4])
def test_a_translation_that_is_too_long_is_cut_and_said_so(beams: int, taught: Mapping[str, Path]) -> None:
    for kind in CODES:
        found = ask(opened(taught[kind]), ["cat eats dog", "cat"], "es", max_tokens=20, beams=beams)
        assert [cut for _, cut in found] == [False, False], kind
    model = opened(taught["m2m_100"])  # 3 tokens: two words and an end
    assert ask(model, ["cat eats dog", "cat", "cat dog"], "es", max_tokens=5, beams=beams) == [
        ("gato come perro", False),
        ("gato", False),
        ("gato perro", False),
    ]


def test_a_translation_needs_room_for_its_end(taught: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in CODES:
        model = opened(taught[kind])
        monkeypatch.setattr(model, "_encode", uncut(model))
        found = ask(model, ["cat eats dog", "cat eats"], "es", max_tokens=3)
        assert found == [("gato come perro", True), ("gato come", False)], kind


def uncut(model: TranslationModel) -> Any:
    encode = model._encode
    return lambda units, source, target, limit: encode(units, source, target, 20)


@pytest.mark.parametrize("kind", CODES)
def test_a_unit_that_is_too_long_is_cut_and_said_so(kind: str, taught: Mapping[str, Path]) -> None:
    """A language token and the end-of-text leave 4 of 6 tokens for words."""
    long = "cat eats dog big apple"
    found = ask(opened(taught[kind]), [long, "cat eats dog big"], "es", max_tokens=6)
    assert found == [("gato come perro grande", True), ("gato come perro grande", False)]


@pytest.mark.parametrize("kind", CODES)
def test_no_more_tokens_than_positions(kind: str, taught: Mapping[str, Path]) -> None:
    model = opened(taught[kind])
    seen = spied(model)
    ((_, cut),) = ask(model, ["cat " * 60], "es", max_tokens=500)
    assert cut and seen[0][0].shape == (1, 24) and seen[0][1].shape[1] <= 24


def test_an_older_checkpoint(taught: Mapping[str, Path], tmp_path: Path) -> None:
    """Its config.json says how to generate, and there is no generation_config.json."""
    folder = shutil.copytree(taught["marian"], tmp_path / "old")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    pad = config["pad_token_id"]
    old = {
        "num_beams": 6,
        "max_length": 3,
        "bad_words_ids": [[pad]],
        "forced_eos_token_id": 0,
        "static_position_embeddings": True,
    }
    write(folder / "config.json", config | old | {"decoder_start_token_id": pad})
    assert ask(opened(folder), TEXTS, "fr") == [(expected(text, "fr"), False) for text in TEXTS]


# Languages reach the model


@pytest.mark.parametrize(
    ("kind", "source", "target"),
    [("m2m_100", "sw", "zh"), ("nllb", "swh_Latn", "zho_Hans"), ("mbart50", "sw_KE", "zh_CN")],
)
@pytest.mark.parametrize("beams", [1, 3])
def test_the_languages_are_first(kind: str, source: str, target: str, beams: int, tmp_path: Path) -> None:
    model = opened(untaught(tmp_path, kind))
    tokenizer: Any = model.tokenizer
    token = {code: model._tokens[code] for code in (source, target)}
    assert tokenizer.convert_ids_to_tokens(token[source]) == (f"__{source}__" if kind == "m2m_100" else source)
    seen = spied(model)
    ((text, _),) = model.generate(["cat"], source_code=source, target_code=target, **(SETTINGS | {"beams": beams}))
    given, written = seen[0]
    assert given[0].tolist() == [token[source], tokenizer.convert_tokens_to_ids("▁cat"), 2]
    assert written[0, :2].tolist() == [2, token[target]]
    assert source not in text and target not in text and "<" not in text


def spied(model: TranslationModel) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(input_ids, what was written) of each batch from now on."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    generate: Any = model.model.generate

    def spy(**options: Any) -> torch.Tensor:
        written = generate(**options)
        seen.append((options["input_ids"], written))
        return torch.as_tensor(written)

    model.model.generate = spy  # type: ignore[assignment,method-assign]
    return seen


def test_the_longest_are_batched_first_and_padded_on_the_right(taught: Mapping[str, Path]) -> None:
    model = opened(taught["m2m_100"])
    seen = spied(model)
    ask(model, TEXTS, "es", batch_size=3)
    assert [tuple(given.shape) for given, _ in seen] == [(3, 7), (3, 4), (2, 3)]
    first, pad = seen[0][0], model.tokenizer.pad_token_id
    assert (first == pad).tolist() == [[False] * 7, [False] * 5 + [True] * 2, [False] * 4 + [True] * 3]


def test_marian_with_one_pair_is_told_no_language(tmp_path: Path) -> None:
    model = opened(untaught(tmp_path, "marian"))
    assert model.languages == []
    seen = spied(model)
    model.generate(["cat dog"], source_code=None, target_code=None, **SETTINGS)
    model.generate([">>cat<< dog"], source_code=None, target_code=None, **SETTINGS)
    tokenizer: Any = model.tokenizer
    assert tokenizer.convert_ids_to_tokens(seen[0][0][0]) == ["▁cat", "▁dog", "</s>"]
    assert tokenizer.convert_ids_to_tokens(seen[1][0][0]) == ["<unk>", "▁dog", "</s>"]
    assert seen[0][1][0, 0] == tokenizer.pad_token_id and tokenizer.pad_token_id not in seen[0][1][0, 1:]


def test_a_token_in_a_text_is_text(taught: Mapping[str, Path]) -> None:
    for kind, mark in (("m2m_100", "</s>"), ("nllb", "fra_Latn"), ("marian", "</s>")):
        model = opened(taught[kind])
        seen = spied(model)
        ask(model, [f"cat {mark} dog"], "es")
        special = model.tokenizer.convert_tokens_to_ids(mark)
        inner = seen[0][0][0].tolist()[:-1]
        assert special not in inner, kind


def test_a_language_without_an_embedding_is_not_known(taught: Mapping[str, Path]) -> None:
    model = opened(taught["m2m_100"])
    assert len(model.languages) == 100 and max(model._tokens.values()) == model.model.config.vocab_size - 1
    assert len(opened(taught["nllb"]).languages) == len(NLLB_CODES)
    assert opened(taught["marian"]).languages == ["es", "fra"]
    config = M2M100Config(**(SIZES | {"vocab_size": model._tokens["ar"] + 1}))
    small = TranslationModel("m2m_100", M2M100ForConditionalGeneration(config), model.tokenizer, "here")
    assert small.languages == ["af", "am", "ar"]


# What can't be loaded


def refused(spec: Mapping[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        load(spec, place=CPU, precision="fp32")
    assert caught.value.fix  # type: ignore[attr-defined]


def test_weights_that_hold_more_than_tensors_are_refused(tmp_path: Path) -> None:
    folder = untaught(tmp_path, "marian")
    state = {name: weight.clone() for name, weight in opened(folder).model.state_dict().items()}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert opened(folder).kind == "marian"  # plain tensors, as older Marian models have them

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"weight": Evil()}, folder / "pytorch_model.bin", pickle_module=pickle)
    refused({"path": str(folder)}, ModelError, "holds more than plain tensors and is not opened")
    assert not (tmp_path / "touched").exists()


def test_what_is_no_translator_is_refused(tmp_path: Path) -> None:
    for name, config in (("t5", T5Config()), ("gpt2", GPT2Config())):
        config.save_pretrained(tmp_path / name)
        refused({"path": str(tmp_path / name)}, ModelError, f"can't translate with this model: it is a {name} model")
    refused({"path": str(tmp_path / "nowhere")}, ModelError, "folder does not exist")
    refused({"id": "nobody/nothing", "revision": None}, HubError, "nobody/nothing: not in the cache")


@pytest.mark.parametrize("file", ["source.spm", "vocab.json"])
def test_a_tokenizer_that_is_not_whole_is_refused(file: str, tmp_path: Path) -> None:
    folder = untaught(tmp_path, "marian")
    (folder / file).unlink()
    refused({"path": str(folder)}, ModelError, "tokenizer can't be read")


def test_weights_that_are_not_there_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = untaught(tmp_path, "nllb")
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | {"d_model": 32})
    refused({"path": str(folder)}, ModelError, "do not fit the model")
    write(folder / "config.json", config)
    (folder / "model.safetensors").unlink()
    refused({"path": str(folder)}, ModelError, "the model has no weights")


# Which model, and what it calls a language

TASKS = [
    *("ar", "bg", "de", "el", "en", "es", "fr", "hi", "it", "ja"),
    *("ko", "pt", "ru", "sw", "th", "tr", "ur", "vi", "zh"),
]


def test_the_codes_are_those_of_the_models() -> None:
    assert set(hf.FLORES.values()) <= set(NLLB_CODES)
    for language in TASKS:
        assert hf.language_code("nllb", NLLB_CODES, language, {}) == hf.FLORES[language]
        assert hf.language_code("m2m_100", M2M100_CODES["m2m100"], language, {}) == language
        found = hf.language_code("mbart50", MBART50_CODES, language, {})
        assert found is None if language in ("bg", "el") else str(found).startswith(f"{language}_")
    known = {code: hf.FLORES[code] for code in ("en", "zh", "sw", "ar", "el", "ur")}
    assert known == {
        **{"en": "eng_Latn", "zh": "zho_Hans", "sw": "swh_Latn"},
        **{"ar": "arb_Arab", "el": "ell_Grek", "ur": "urd_Arab"},
    }


def test_the_shipped_tasks_have_codes() -> None:
    conf = Path(kdlab.__file__).parent.parent / "conf" / "task" / "multilingual"
    for file in conf.glob("*.yaml"):
        for language in yaml.safe_load(file.read_text(encoding="utf-8")).get("languages", []):
            assert language in hf.FLORES, (file.name, language)


def test_the_users_code_goes_before() -> None:
    assert hf.language_code("nllb", NLLB_CODES, "zh", {"zh": "zho_Hant"}) == "zho_Hant"
    assert hf.language_code("nllb", NLLB_CODES, "zh", {"zh": "chinese"}) is None
    assert hf.language_code("nllb", NLLB_CODES, "xx", {"xx": "yue_Hant"}) == "yue_Hant"
    assert hf.language_code("nllb", NLLB_CODES, "yue_Hant", {}) == "yue_Hant"
    assert hf.language_code("marian", ["cmn_Hans"], "zh", {"zh": "zh>>cmn_Hans<<"}) == "cmn_Hans"


def test_names_of_models() -> None:
    template = "opus-mt-{source}-{target}"
    assert hf.model_name(template, "en", "de", {}) == "opus-mt-en-de"
    assert hf.model_name(template, "en", "ja", {"ja": "jap"}) == "opus-mt-en-jap"
    codes = {"fr": "ROMANCE>>fr<<"}
    assert hf.model_name(template, "en", "fr", codes) == "opus-mt-en-ROMANCE"
    assert hf.model_name(template, "fr", "en", codes) == "opus-mt-ROMANCE-en"
    assert hf.model_name("facebook/m2m100_418M", "en", "fr", codes) == "facebook/m2m100_418M"
    pairs = [("en", "es"), ("en", "fr"), ("fr", "en")]
    assert hf.model_names(template, pairs, codes={}, pivots={"fr": "es"}) == [
        *("opus-mt-en-es", "opus-mt-es-fr", "opus-mt-fr-es", "opus-mt-es-en")
    ]
    assert hf.model_names("m2m", pairs, codes={}, pivots={}) == ["m2m"]


def test_routes() -> None:
    pivots = {"fr": "es", "it": "ca", "oc": "fr"}
    assert hf.route("en", "de", pivots) == ["en", "de"]
    assert hf.route("en", "fr", pivots) == ["en", "es", "fr"]
    assert hf.route("fr", "en", pivots) == ["fr", "es", "en"]
    assert hf.route("es", "fr", pivots) == ["es", "fr"]
    assert hf.route("fr", "es", pivots) == ["fr", "es"]
    assert hf.route("fr", "it", pivots) == ["fr", "es", "ca", "it"]
    assert hf.route("en", "oc", pivots) == ["en", "es", "fr", "oc"]
    assert hf.route("oc", "fr", pivots) == ["oc", "fr"]
    with pytest.raises(ModelError, match="in a circle: fr, es, fr"):
        hf.route("en", "fr", {"fr": "es", "es": "fr"})


# The translator


class Fake:
    """Writes what it is asked: text, source>target; "hush" is left unsaid and "long" is cut."""

    def __init__(self, kind: str, languages: list[str]) -> None:
        self.kind, self.languages = kind, languages
        self.asked: list[list[str]] = []

    def generate(self, units: Sequence[str], **options: Any) -> list[tuple[str, bool]]:
        self.asked.append(list(units))
        assert {key: options[key] for key in ("beams", "max_tokens", "batch_size")} == SETTINGS
        way = f"{options['source_code']}>{options['target_code']}"
        return [("  " if "hush" in unit else f"{unit} {way}", "long" in unit) for unit in units]


class Shelf:
    """Gives fakes, and keeps what was asked for."""

    def __init__(self, kind: str, languages: list[str]) -> None:
        self.kind, self.languages = kind, languages
        self.asked: list[Mapping[str, Any]] = []
        self.models: list[Fake] = []

    def __call__(self, spec: Mapping[str, Any]) -> Fake:
        self.asked.append(spec)
        self.models.append(Fake(self.kind, self.languages))
        return self.models[-1]


def test_a_translator_keeps_order_and_passes_nothing_through() -> None:
    shelf = Shelf("nllb", ["eng_Latn", "spa_Latn", "fra_Latn"])
    translate = hf.translator({"model": "m", "revision": "abc", **SETTINGS}, load=shelf)
    assert shelf.asked == []
    found = translate(["a long one", "hush", " ", "b"], "en", "es")
    assert found == ["a long one eng_Latn>spa_Latn", None, None, "b eng_Latn>spa_Latn"]
    assert shelf.models[0].asked == [["a long one", "hush", "b"]] and translate.cut == {"a long one"}
    assert translate(["c"], "es", "en") == ["c spa_Latn>eng_Latn"] and translate.cut == set()
    assert shelf.asked == [{"id": "m", "revision": "abc"}]
    assert translate([""], "en", "es") == [None] and translate([], "en", "es") == []


def test_a_pivot_takes_two_steps() -> None:
    shelf = Shelf("m2m_100", ["en", "es", "fr"])
    translate = hf.translator({"path": "/m", "pivots": {"fr": "es"}, **SETTINGS}, load=shelf)
    assert translate(["a", "hush", "long"], "en", "fr") == ["a en>es es>fr", None, "long en>es es>fr"]
    assert shelf.asked == [{"path": "/m"}] and translate.cut == {"long"}
    assert shelf.models[0].asked == [["a", "hush", "long"], ["a en>es", "long en>es"]]


def test_a_model_for_each_pair() -> None:
    shelf = Shelf("marian", [])
    pinned = {"opus-es-fr": {"id": "opus-es-fr", "revision": "1234"}}
    spec = {"model": "opus-{source}-{target}", "revision": None, "models": pinned, "pivots": {"fr": "es"}}
    translate = hf.translator({**spec, **SETTINGS}, load=shelf)
    assert translate(["a"], "en", "fr") == ["a None>None None>None"]
    first = {"id": "opus-en-es", "revision": None}
    assert shelf.asked == [first, {"id": "opus-es-fr", "revision": "1234"}]
    translate(["b"], "en", "fr")
    translate(["b"], "en", "es")
    assert len(shelf.asked) == 2  # both were kept
    translate(["b"], "en", "fr")
    assert len(shelf.asked) == 3  # but only those of the pair at hand are held


def test_an_unknown_language_is_refused() -> None:
    def translate(shelf: Shelf, target: str, **spec: Any) -> list[str | None]:
        return hf.translator({"model": "m", **spec, **SETTINGS}, load=shelf)(["a"], "en", target)

    with pytest.raises(ModelError, match="does not know the language el; it knows en_XX, es_XX") as caught:
        translate(Shelf("mbart50", ["en_XX", "es_XX"]), "el")
    assert "translator.codes={el: ...}" in str(caught.value)
    with pytest.raises(ModelError, match=r"language fr \(fra_Latm\); it knows fra_Latn, .* and 172 more"):
        translate(Shelf("nllb", NLLB_CODES), "fr", codes={"fr": "fra_Latm"})
    romance = Shelf("marian", ["fr", "es", "pt_BR"])
    with pytest.raises(ModelError, match="nothing says which is pt: fr, es, pt_BR"):
        translate(romance, "pt")
    assert translate(romance, "pt", codes={"pt": "pt_BR"}) == ["a None>pt_BR"]
    with pytest.raises(ModelError, match=r"does not know the language pt \(pt\)"):
        translate(romance, "pt", codes={"pt": "pt"})


def test_a_real_model_behind_the_translator(taught: Mapping[str, Path]) -> None:
    def translate(kind: str, target: str, **spec: Any) -> list[str | None]:
        made = hf.translator(
            {"path": str(taught[kind]), **spec, **SETTINGS}, load=lambda one: load(one, place=CPU, precision="fp32")
        )
        return made(TEXTS, "en", target)

    for language in TONGUES:
        right = [expected(text, language) or None for text in TEXTS]
        assert right[2] is None
        assert translate("nllb", language) == translate("m2m_100", language) == right
        assert translate("marian", language, codes={"es": "es", "fr": "fra"}) == right
    with pytest.raises(ModelError, match="does not know the language xx"):
        translate("m2m_100", "xx")
