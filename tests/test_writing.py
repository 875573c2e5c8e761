"""Rows that join and leave while a model writes: the same texts as transformers' `generate` for each prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.activations import NewGELUActivation

import writers
from kdlab.models import writing
from kdlab.models.packing import FEWEST, Packed
from kdlab.models.writing import Generated, generate, stream, way_of_writing

LENGTHS = (5, 9, 3, 12, 20, 1, 7, 30, 18, 2, 25, 11)
ROPE = {key: value for key, value in writers.CONFIGS["llama"].items() if key != "model_type"}
MORE: dict[str, dict[str, Any]] = {
    "mistral": {"model_type": "mistral", **ROPE, "sliding_window": 8},
    "gemma2": {"model_type": "gemma2", **ROPE, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "bloom": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    "opt": {
        "model_type": "opt",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 32,
        "init_std": 0.3,
    },
    "llama4_text": {
        "model_type": "llama4_text",
        **ROPE,
        "attention_chunk_size": 8,
        "head_dim": 8,
        "intermediate_size_mlp": 64,
        "num_local_experts": 2,
    },
    "mamba": {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
}
WAYS = {
    "gpt2": "joining",
    "llama": "joining",
    "gemma3_text": "joining",
    "mistral": "joining",
    "gemma2": "joining",
    "opt": "joining",
    "bloom": "joining",
    "t5": "joining",
    "bart": "leaving",  # a position of the decoder is that of the whole batch
    "llama4_text": "whole",  # chunks of positions
    "mamba": "whole",  # states, no keys
}


@pytest.fixture(autouse=True)
def _more_models(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in MORE.items():
        monkeypatch.setitem(writers.CONFIGS, name, config)


def alone(model: PreTrainedModel, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """What transformers writes behind each prompt."""
    settings = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, pad_token_id=writers.PAD, eos_token_id=writers.EOS
    )
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        found.append(written[0, 1 if model.config.is_encoder_decoder else len(prompt) :].tolist())
    return found


def read(ids: list[int]) -> Generated:
    ended = ids[-1] == writers.EOS
    return Generated(writers.words().decode(ids, skip_special_tokens=True), len(ids), "stop" if ended else "length")


@pytest.mark.parametrize("attention", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"])
@pytest.mark.parametrize(("name", "way"), WAYS.items())
def test_every_model_writes_what_it_writes_alone(name: str, way: str, attention: str) -> None:
    model, prompts = writers.writer(name, attention=attention), writers.random_ids(LENGTHS)
    assert way_of_writing(model) == way
    wanted = [read(ids) for ids in alone(model, prompts, 14)]
    for size in (1, 4, 12):
        assert generate(model, writers.words(), prompts, max_tokens=14, batch_size=size) == wanted


def test_rows_of_a_batch_end_when_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that counts down to end-of-text, 1. While prompts wait, a step has as many rows as there are places."""
    model = writers.writer("gpt2")
    model.register_forward_hook(count_down, with_kwargs=True)
    monkeypatch.setitem(writing._WAYS, model, "joining")
    sizes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(lambda _, __, given: sizes.append(given["input_ids"].shape), with_kwargs=True)
    prompts = [[40, 1 + tokens] for tokens in (9, 2, 5, 1, 30, 3, 4, 7)]
    found = generate(model, writers.words(), prompts, max_tokens=40, batch_size=3)
    assert [one.tokens for one in found] == [9, 2, 5, 1, 30, 3, 4, 7]
    assert all(one.finish_reason == "stop" for one in found)
    steps = [rows for rows, width in sizes if width == 1]
    assert sum(steps) == sum(one.tokens - 1 for one in found), "no row is computed after its end"
    assert steps == sorted(steps, reverse=True) and max(steps) == 3


def count_down(module: Any, _: Any, given: dict[str, Any], output: Any) -> None:
    last = given["input_ids"][:, -1:]
    output.logits[:, -1].scatter_add_(1, last - 1, torch.full(last.shape, 1e3))


def test_a_prompt_of_several_samples_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = writers.writer("llama"), writers.words()
    way_of_writing(model)
    one, two = writers.random_ids((9, 6))
    prompts, drawn = [*[one] * 5, *[two] * 3], {"max_tokens": 8, "temperature": 1.0, "seed": list(range(8))}
    wanted = [
        generate(model, tokenizer, [prompt], **{**drawn, "seed": [seed]})[0] for seed, prompt in enumerate(prompts)
    ]
    assert len({found.text for found in wanted}) == 8
    for size in (8, 3):
        shapes: list[tuple[int, int]] = []
        hook = model.register_forward_pre_hook(
            lambda _, __, given, shapes=shapes: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        assert generate(model, tokenizer, prompts, **drawn, batch_size=size) == wanted
        hook.remove()
        assert sum(rows for rows, width in shapes if width > 1) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("name", "limit"), [("gpt2", "n_positions"), ("gemma3_text", "max_position_embeddings")], ids=["gpt2", "gemma3"]
)
def test_samples_join_when_the_long_prompt_they_were_read_with_has_left(
    name: str, limit: str, temperature: float
) -> None:
    """The long one has a position for one token only: then what is kept is as wide as a short one."""
    model, tokenizer = writers.writer(name, **{limit: 21}), writers.words()
    long, short = writers.random_ids((20, 4))
    prompts, settings = [long, *[short] * 6], {"max_tokens": 9, "temperature": temperature}
    seeds = list(range(len(prompts)))
    wanted = [
        generate(model, tokenizer, [one], **settings, seed=[seed])[0] for seed, one in zip(seeds, prompts, strict=True)
    ]
    assert wanted[0].tokens == 1 < max(one.tokens for one in wanted[1:4])
    assert generate(model, tokenizer, prompts, **settings, seed=seeds, batch_size=4) == wanted


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text", "t5"])
def test_memory_is_renewed_in_the_middle_of_a_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = writers.writer(name), writers.random_ids(LENGTHS)
    wanted = generate(model, writers.words(), prompts, max_tokens=30, batch_size=4)
    monkeypatch.setattr(writing, "SLACK", 3)
    monkeypatch.setattr(writing, "READING", 12)
    assert generate(model, writers.words(), prompts, max_tokens=30, batch_size=4) == wanted


def test_padding_that_is_attended_to_is_that_of_a_batch() -> None:
    """F2, in several batches: each prompt is padded to the longest of the prompts it is sorted in with."""
    model, tokenizer, prompts = writers.writer("gpt2"), writers.words(), writers.random_ids(LENGTHS)
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    padded: dict[int, list[int]] = {}
    for start in range(0, len(order), 5):
        some = order[start : start + 5]
        longest = len(prompts[some[0]])
        padded |= {number: [writers.PAD] * (longest - len(prompts[number])) + prompts[number] for number in some}
    wanted = [read(ids) for ids in alone(model, [padded[number] for number in range(len(prompts))], 8)]
    found = generate(model, tokenizer, prompts, max_tokens=8, batch_size=5, unmasked_left_pad=True)
    assert found == wanted and found != generate(model, tokenizer, prompts, max_tokens=8, batch_size=5)


@pytest.mark.parametrize("name", ["gpt2", "mamba"])
def test_the_model_is_as_it_was_between_two_texts(name: str) -> None:
    model, prompts = writers.writer(name), writers.random_ids(LENGTHS)
    wanted = generate(model, writers.words(), prompts, max_tokens=14)
    model.train()
    found: dict[int, Generated] = {}
    for some in stream(model, writers.words(), prompts, max_tokens=14, batch_size=4):
        found |= some
        assert model.training and torch.is_grad_enabled()
        assert not any("forward" in vars(module) for module in model.modules())
    assert [found[number] for number in range(len(prompts))] == wanted


@pytest.mark.parametrize("stop", ["w7", "7", "w2 w7", " "])
@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_a_stop_string_ends_a_text_wherever_it_begins(name: str, stop: str) -> None:
    model, prompts = writers.writer(name, seed=2), writers.random_ids(LENGTHS)
    free = generate(model, writers.words(), prompts, max_tokens=20)
    found = generate(model, writers.words(), prompts, max_tokens=20, stop=[stop], batch_size=4)
    for one, whole in zip(found, free, strict=True):
        before, there, _ = whole.text.partition(stop)
        assert one.text == before and (one.finish_reason == "stop" if there else one == whole)


# Weights in the kernel's order


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_packed_weights_give_the_same_logits(name: str, dtype: torch.dtype) -> None:
    model = writers.writer(name).to(dtype)
    ids = torch.tensor(writers.random_ids((12, 12)))
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if name == "t5" else {})
    with torch.no_grad():
        wanted = model(**inputs).logits
        with Packed(model, rows=24).used():
            found = model(**inputs).logits
        near = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found, wanted, rtol=near, atol=near * float(wanted.abs().max()))
        assert torch.equal(model(**inputs).logits, wanted)


@pytest.mark.parametrize(
    ("prompts", "size", "packed"),
    [(FEWEST + 1, FEWEST, True), (FEWEST + 1, FEWEST - 1, False), (FEWEST - 1, 32, False), (1, 1, False)],
)
def test_weights_are_packed_for_many_rows_only(prompts: int, size: int, packed: bool) -> None:
    model = writers.writer("gpt2")
    way_of_writing(model)
    replaced: set[bool] = set()
    model.register_forward_pre_hook(
        lambda *_: replaced.add(any("forward" in vars(module) for module in model.modules()))
    )
    generate(model, writers.words(), writers.random_ids(LENGTHS[:prompts]), max_tokens=4, batch_size=size)
    assert replaced == {packed}


def test_weights_that_are_trained_are_packed_anew() -> None:
    model, prompts = writers.writer("gpt2"), writers.random_ids(LENGTHS)
    before = generate(model, writers.words(), prompts, max_tokens=8)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5).add_(0.01 * weight.sin())
    after = generate(model, writers.words(), prompts, max_tokens=8)
    assert after == [read(ids) for ids in alone(model, prompts, 8)] and after != before


def test_gelu_in_one_operation_is_that_of_gpt2() -> None:
    model = writers.writer("gpt2")
    assert not any(isinstance(module, NewGELUActivation) for module in model.modules())
    values = torch.linspace(-9, 9, 1001, dtype=torch.float64, requires_grad=True)
    fused = model.transformer.h[0].mlp.act(values)
    (slope,) = torch.autograd.grad(fused.sum(), values)
    plain = NewGELUActivation()(values)
    (wanted,) = torch.autograd.grad(plain.sum(), values)
    torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, wanted, rtol=1e-12, atol=1e-12)
    assert model.config.activation_function == "gelu_new"
