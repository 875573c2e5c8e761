"""Models that write: loading, training on completions, adapters, and writing in batches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedModel,
)

import writers
from kdlab.errors import ModelError
from kdlab.models.architectures import (
    DECODERS,
    T5_KINDS,
    estimate_parameters,
    generator_problem,
    is_encoder_decoder,
    longest_input,
)
from kdlab.models.generator import Student, adapt, load_generator, prompt_ids, target_ids
from kdlab.models.writing import Generated, generate, stream
from kdlab.objectives.completion import token_loss

NAMES = ("gpt2", "llama", "gemma3_text", "t5", "bart")
LENGTHS = (5, 9, 3, 12, 20, 1, 7, 30)


# The table that needs no torch


@pytest.mark.parametrize("kind", [*DECODERS, *T5_KINDS])
def test_parameters_are_counted_exactly(kind: str) -> None:
    config = CONFIG_MAPPING[kind]()
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    assert estimate_parameters(config.to_dict()) == model.num_parameters()


@pytest.mark.parametrize("name", NAMES[:4])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_of_tiny_models(name: str, tied: bool) -> None:
    changes = {} if name == "t5" else {"tie_word_embeddings": tied}
    model = writers.writer(name, **changes)
    assert estimate_parameters(model.config.to_dict()) == sum(weight.numel() for weight in model.parameters())


def test_what_a_config_leaves_out() -> None:
    assert estimate_parameters({"model_type": "gpt2"}) == 124_439_808
    assert estimate_parameters({"model_type": "t5"}) == 60_506_624
    with pytest.raises(ModelError, match="the model's config has no num_hidden_layers"):
        estimate_parameters({"model_type": "llama"})
    with pytest.raises(ModelError, match="hidden_size='wide', which is no whole number"):
        estimate_parameters({"model_type": "llama", "num_hidden_layers": 2, "hidden_size": "wide"})


def test_kinds_and_reach() -> None:
    assert is_encoder_decoder({"model_type": "t5"}) and is_encoder_decoder({"is_encoder_decoder": True})
    assert not is_encoder_decoder({"model_type": "gpt2"})
    assert not is_encoder_decoder({"model_type": "t5", "is_encoder_decoder": False})
    assert longest_input({"model_type": "gpt2", "n_positions": 128}) == 128
    assert longest_input({"model_type": "gpt2"}) == 1024
    assert longest_input({"model_type": "llama", "max_position_embeddings": 2048}) == 2048
    assert longest_input({"model_type": "t5", "n_positions": 512}) is None
    assert generator_problem({"model_type": "gemma3_text"}) is None
    assert "bert reads texts and writes none" in str(generator_problem({"model_type": "bert"}))
    assert generator_problem({}) == "the config has no model_type"


# Loading


def test_a_saved_model_loads_with_plain_transformers_and_with_kdlab(tmp_path: Path) -> None:
    for name, auto in (("llama", AutoModelForCausalLM), ("t5", AutoModelForSeq2SeqLM)):
        model = writers.writer(name)
        model.save_pretrained(tmp_path / name)
        spec = {"path": str(tmp_path / name), "init": "pretrained"}
        for other in (auto.from_pretrained(tmp_path / name), load_generator(spec, attention="eager", seed=0)):
            assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
        assert not load_generator(spec, attention="sdpa", seed=0).training


def test_random_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two, other = writers.writer("gpt2", seed=3), writers.writer("gpt2", seed=3), writers.writer("gpt2", seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_settings_of_the_hub_about_writing_are_not_taken_over(tmp_path: Path) -> None:
    model = writers.writer("llama")
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=2.0, top_k=5, repetition_penalty=3.0, eos_token_id=[EOS_CHAT := 9, writers.EOS]
    )
    model.save_pretrained(tmp_path)
    loaded = load_generator({"path": str(tmp_path)}, attention="eager", seed=0)
    assert loaded.generation_config.eos_token_id == [EOS_CHAT, writers.EOS]
    assert not loaded.generation_config.do_sample and loaded.generation_config.repetition_penalty in (None, 1.0)
    plain = generate(writers.writer("llama"), writers.words(), writers.random_ids(LENGTHS), max_tokens=5)
    ours = generate(loaded, writers.words(), writers.random_ids(LENGTHS), max_tokens=5)
    for one, two in zip(ours, plain, strict=True):
        assert two.text.startswith(one.text) and one.tokens <= two.tokens


def spoil(folder: Path, what: str) -> None:
    """A saved llama with something wrong."""
    writers.writer("llama").save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    if what == "nothing":
        file.unlink()
    elif what == "missing":
        del weights["model.layers.1.mlp.up_proj.weight"]
    elif what == "nan":
        weights["model.norm.weight"][3] = math.nan
    elif what == "shape":
        weights["model.norm.weight"] = torch.ones(31)
    elif what == "surplus":
        weights["model.layers.2.mlp.up_proj.weight"] = torch.ones(2, 2)
    elif what == "broken":
        file.write_bytes(b"no tensors")
    if what in ("missing", "nan", "shape", "surplus"):
        save_file(weights, file, metadata={"format": "pt"})
    if what == "pickle":
        file.unlink()
        torch.save({"a": Path("x")}, folder / "pytorch_model.bin")
    if what == "unknown":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps(config | {"model_type": "my_model", "auto_map": {"AutoConfig": "x.y"}})
        )


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing", "the model has no weights"),
        ("missing", "1 weights are missing, the first is model.layers.1.mlp.up_proj.weight"),
        ("nan", "the weights hold NaN or infinity, first in model.norm.weight"),
        ("shape", r"1 weights do not fit the model: model.norm.weight is \[31\], should be \[32\]"),
        ("surplus", "1 weights have no place in the model, the first is model.layers.2.mlp.up_proj.weight"),
        ("broken", "the weights can't be read"),
        ("pickle", "the weights file holds more than plain tensors and is not opened"),
        ("unknown", "the model's config can't be used"),
    ],
)
def test_a_model_that_can_not_be_used_is_refused(what: str, said: str, tmp_path: Path) -> None:
    spoil(tmp_path, what)
    with pytest.raises(ModelError, match=said) as error:
        load_generator({"path": str(tmp_path)}, attention="eager", seed=0)
    assert error.value.where is not None and str(tmp_path) in error.value.where


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "bert"}, "bert reads texts and writes none"),
        ({"model_type": "camembert"}, "camembert reads texts and writes none"),
        ({"model_type": "vit"}, "transformers has no vit that writes text"),
        ({"model_type": "gtp2"}, "transformers knows no model_type 'gtp2'"),
        ({}, "the config has no model_type"),
        ({"model_type": "gpt2", "n_layers": 2}, "gpt2 has no setting 'n_layers'"),
        ({"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}, "can't be"),
    ],
)
def test_a_config_that_can_not_be_used_is_refused(config: dict[str, Any], said: str) -> None:
    spec = {"init": "random", "config": config}
    with pytest.raises(ModelError, match=said):
        load_generator(spec, attention="eager", seed=0, vocabulary=60, pad_token_id=0, eos_token_id=1)


def test_weights_need_a_name() -> None:
    with pytest.raises(ModelError, match="init: pretrained needs an id"):
        load_generator({"init": "pretrained"}, attention="eager", seed=0)


# Training


def test_the_loss_of_a_token_by_hand() -> None:
    """Two tokens: logits 0 and log 3 give 1/4 and 3/4."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    found = token_loss(logits, torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([math.log(4), math.log(4 / 3)])
    assert token_loss(logits.to(torch.bfloat16), torch.tensor([0, 1])).dtype == torch.float32


def batch_of(name: str, count: int = 11) -> dict[str, Any]:
    data = writers.sequences(count, encoder_decoder=name in ("t5", "bart"))
    return data.collate(np.arange(count), pad_token_id=writers.PAD, width=int(data.lengths.max()))


@pytest.mark.parametrize(("name", "attention"), [*((name, "eager") for name in NAMES), ("gemma3_text", "sdpa")])
def test_the_loss_is_that_of_the_model_itself(name: str, attention: str) -> None:
    """The mean over target tokens, softcap and T5's scale included, though the head sees those positions only."""
    model = writers.writer(name, attention=attention)
    student, batch = Student(model), batch_of(name)
    logits, targets = student(batch)
    assert student.sparse and len(logits) == len(targets) == (batch["labels"] != -100).sum()
    own = model(**{key: value for key, value in batch.items() if key != "index"}).loss
    ours = token_loss(logits, targets).mean()
    assert float(own.detach()) > 1
    torch.testing.assert_close(ours, own, rtol=1e-6, atol=1e-6)
    student.sparse = False
    whole, same = student(batch)
    torch.testing.assert_close(whole, logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(same, targets)


def test_padding_changes_nothing() -> None:
    for name in NAMES[:3]:
        student, data = Student(writers.writer(name)), writers.sequences(encoder_decoder=False)
        row, width = np.array([2]), int(data.lengths[2])
        alone = student(data.collate(row, pad_token_id=writers.PAD, width=width))[0]
        padded = student(data.collate(row, pad_token_id=writers.PAD, width=width + 9))[0]
        torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-5)


def test_a_head_that_looks_at_neighbours_gets_all_positions() -> None:
    class Mixing(torch.nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return super().forward(states + states.roll(1, dims=-2))

    model = writers.writer("gpt2")
    mixing = Mixing(32, writers.WORDS, bias=False)
    mixing.weight = model.lm_head.weight
    model.lm_head = mixing
    student, batch = Student(model), batch_of("gpt2")
    assert not student.sparse
    shifted = batch["labels"][:, 1:] != -100
    whole = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(student(batch)[0], whole[:, :-1][shifted])


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_state_holds_each_trained_weight_once(name: str, tmp_path: Path) -> None:
    student = Student(writers.writer(name))
    state = student.state_dict()
    assert sum(weight.numel() for weight in state.values()) == sum(p.numel() for p in student.parameters())
    save_file(state, tmp_path / "state.safetensors")
    other = Student(writers.writer(name, seed=9))
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert all(torch.equal(one, two) for one, two in zip(student.parameters(), other.parameters(), strict=True))
    first = next(iter(state))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({key: value for key, value in state.items() if key != first})


# Adapters

LORA = {"rank": 3, "alpha": 6.0, "dropout": 0.0, "targets": []}


def disturb(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(1), std=0.2)


@pytest.mark.parametrize("name", NAMES[:4])
def test_merged_adapters_give_the_same_logits(name: str, tmp_path: Path) -> None:
    calm = {"initializer_factor": 1.0} if name == "t5" else {}
    model, batch = writers.writer(name, **calm), batch_of(name)
    before = Student(model)(batch)[0].detach()
    merge = adapt(model, LORA, seed=5)
    student = Student(model)
    torch.testing.assert_close(student(batch)[0].detach(), before)  # B starts at zero
    disturb(model)
    adapted = student(batch)[0].detach()
    assert float((adapted - before).abs().max()) > 0.1
    merged = merge()
    torch.testing.assert_close(Student(merged)(batch)[0].detach(), adapted, rtol=1e-5, atol=1e-5)
    merged.save_pretrained(tmp_path)
    loaded = load_generator({"path": str(tmp_path)}, attention="eager", seed=0)
    torch.testing.assert_close(Student(loaded)(batch)[0].detach(), adapted, rtol=1e-5, atol=1e-5)
    assert all(weight.requires_grad for weight in merged.parameters())


def test_adapters_sit_on_all_linear_layers_but_the_head() -> None:
    model = writers.writer("llama")
    adapt(model, LORA, seed=5)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 7 * 2 and all("lora_" in name for name in trained)  # layers, maps, A and B
    assert set(Student(model).state_dict()) == {f"model.{name}" for name in trained}
    narrow = writers.writer("llama")
    adapt(narrow, {**LORA, "targets": ["q_proj", "v_proj"]}, seed=5)
    trained = {name for name, weight in narrow.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 2 * 2 and all(".q_proj." in name or ".v_proj." in name for name in trained)
    with pytest.raises(ModelError, match="the adapters can't be placed"):
        adapt(writers.writer("llama"), {**LORA, "targets": ["no_such_map"]}, seed=5)


# Tokens


def test_what_stands_around_prompts_and_targets() -> None:
    texts = ["w0 w1", "w2 w3 w4"]
    gemma, t5, gpt2 = writers.words(bos=True), writers.words(eos=True), writers.words(pad=False)
    assert prompt_ids(gemma, texts, encoder_decoder=False) == [[2, 3, 4], [2, 5, 6, 7]]
    assert target_ids(gemma, texts, encoder_decoder=False) == [[3, 4, 1], [5, 6, 7, 1]]
    assert prompt_ids(gpt2, texts, encoder_decoder=False) == [[3, 4], [5, 6, 7]]
    assert prompt_ids(t5, texts, encoder_decoder=True) == [[3, 4, 1], [5, 6, 7, 1]]
    assert target_ids(t5, texts, encoder_decoder=True) == [[3, 4, 1], [5, 6, 7, 1]]
    assert prompt_ids(t5, texts, encoder_decoder=False) == [[3, 4], [5, 6, 7]]  # a decoder is not told to stop
    assert target_ids(gpt2, texts, encoder_decoder=True) == [[3, 4, 1], [5, 6, 7, 1]]
    both = writers.words(bos=True, eos=True)
    assert prompt_ids(both, texts, encoder_decoder=False) == [[2, 3, 4], [2, 5, 6, 7]]
    assert target_ids(both, texts, encoder_decoder=False) == [[3, 4, 1], [5, 6, 7, 1]]


def test_where_they_are_cut() -> None:
    text = "w0 w1 w2 w3"
    gemma, t5 = writers.words(bos=True), writers.words(eos=True)
    assert prompt_ids(gemma, [text], encoder_decoder=False, limit=3) == [[2, 3, 4]]
    assert target_ids(gemma, [text], encoder_decoder=False, limit=4) == [[3, 4, 5, 6]]
    assert target_ids(gemma, [text], encoder_decoder=False, limit=5) == [[3, 4, 5, 6, 1]]
    assert prompt_ids(t5, [text], encoder_decoder=True, limit=3) == [[3, 4, 1]]
    assert target_ids(t5, [text], encoder_decoder=True, limit=3) == [[3, 4, 1]]
    assert target_ids(t5, [text], encoder_decoder=True, limit=5) == [[3, 4, 5, 6, 1]]


# Writing


@pytest.mark.parametrize(("name", "attention"), [*((name, "eager") for name in NAMES), ("gemma3_text", "sdpa")])
def test_a_batch_writes_what_its_prompts_write_alone(name: str, attention: str) -> None:
    model, tokenizer, prompts = writers.writer(name, attention=attention), writers.words(), writers.random_ids(LENGTHS)
    together = generate(model, tokenizer, prompts, max_tokens=7, batch_size=8)
    assert together == generate(model, tokenizer, prompts, max_tokens=7, batch_size=1)
    assert together == generate(model, tokenizer, [writers.text(ids) for ids in prompts], max_tokens=7, batch_size=3)
    assert len({one.text for one in together}) >= (3 if name == "bart" else 6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text"])
def test_greedy_writing_by_hand(name: str) -> None:
    """Without a cache, token after token, the likeliest next one."""
    model, tokenizer = writers.writer(name), writers.words()
    prompts = writers.random_ids((4, 11))
    for ids, found in zip(prompts, generate(model, tokenizer, prompts, max_tokens=6), strict=True):
        line = list(ids)
        for _ in range(6):
            with torch.no_grad():
                line.append(int(model(input_ids=torch.tensor([line])).logits[0, -1].argmax()))
            if line[-1] == writers.EOS:
                break
        own = line[len(ids) :]
        ended = own[-1] == writers.EOS
        wanted = tokenizer.decode(own, skip_special_tokens=True)
        assert found == Generated(wanted, len(own), "stop" if ended else "length")


def test_padding_that_is_attended_to_changes_what_gpt2_writes() -> None:
    """F2: only the longest prompt of a batch is answered as it is alone; by hand: pads are tokens like others."""
    model, tokenizer = writers.writer("gpt2"), writers.words()
    prompts = writers.random_ids((12, 3, 5, 7, 8, 2))
    right = generate(model, tokenizer, prompts, max_tokens=8)
    wrong = generate(model, tokenizer, prompts, max_tokens=8, unmasked_left_pad=True)
    assert wrong[0] == right[0]
    assert sum(one != two for one, two in zip(right, wrong, strict=True)) >= 3
    padded = [[writers.PAD] * (12 - len(ids)) + ids for ids in prompts]
    assert wrong == generate(model, tokenizer, padded, max_tokens=8)
    seq2seq = writers.writer("t5")
    right = generate(seq2seq, tokenizer, prompts, max_tokens=8)
    assert generate(seq2seq, tokenizer, prompts, max_tokens=8, unmasked_left_pad=True) == right


def test_writing_stops_at_a_stop_string_and_cuts_it_off() -> None:
    model, tokenizer = writers.writer("llama", seed=2), writers.words()
    prompts = writers.random_ids(LENGTHS)
    free = generate(model, tokenizer, prompts, max_tokens=10)
    stop = free[1].text.split()[3]
    stopped = generate(model, tokenizer, prompts, max_tokens=10, stop=[stop])
    for text, found in zip([one.text for one in free], stopped, strict=True):
        before, there, _ = text.partition(stop)
        if there:
            assert found == Generated(before, len(before.split()) + 1, "stop")
        else:
            assert found.text == text
    pair = " ".join(free[1].text.split()[3:5])
    (found,) = generate(model, tokenizer, prompts[1:2], max_tokens=10, stop=[pair])
    assert (found.text, found.tokens, found.finish_reason) == (free[1].text.partition(pair)[0], 5, "stop")


def test_the_last_position_is_a_bound() -> None:
    """64 positions: 60 tokens leave 4, whatever the other prompts of the batch may write."""
    model, tokenizer = writers.writer("gpt2", seed=3, eos_token_id=None), writers.words()
    prompts = writers.random_ids((60, 2, 63, 57))
    found = generate(model, tokenizer, prompts, max_tokens=9)
    assert [one.tokens for one in found if one.finish_reason == "length"]
    assert all(one.tokens <= room for one, room in zip(found, (4, 9, 1, 7), strict=True))
    assert found == generate(model, tokenizer, prompts, max_tokens=9, batch_size=1)
    with pytest.raises(ModelError, match="prompt 1 has 64 tokens of the model's 64: none is left"):
        generate(model, tokenizer, writers.random_ids((3, 64)), max_tokens=9)
    with pytest.raises(ModelError, match="prompt 0 is empty"):
        generate(model, tokenizer, [[]], max_tokens=9)
    with pytest.raises(ModelError, match="prompt 0 has 65 tokens"):
        generate(writers.writer("bart"), tokenizer, writers.random_ids((65,)), max_tokens=9)


def test_draws_follow_the_softmax_and_the_seed() -> None:
    model, tokenizer, prompts = writers.writer("llama"), writers.words(), writers.random_ids(LENGTHS)

    def draw(**changes: Any) -> list[Generated]:
        return generate(model, tokenizer, prompts, **{"max_tokens": 8, "temperature": 0.7, "seed": 1, **changes})

    assert draw() == draw() == draw(batch_size=3)
    assert draw() != draw(seed=2) and draw() != draw(temperature=0.0)
    assert draw(temperature=1e-4) == draw(temperature=0.0)
    seeds = list(range(100, 108))
    assert draw(seed=seeds)[2] == generate(model, tokenizer, [prompts[2]], max_tokens=8, temperature=0.7, seed=[102])[0]
    state = torch.get_rng_state()
    draw()
    assert torch.equal(torch.get_rng_state(), state)

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompts[0]])).logits[0, -1]
    wanted = torch.softmax(logits / 2.5, -1)
    draws = generate(model, tokenizer, [prompts[0]] * 1500, max_tokens=1, temperature=2.5, batch_size=500)
    found = torch.zeros(writers.WORDS)
    for one in draws:
        token = writers.EOS if one.finish_reason == "stop" else tokenizer.convert_tokens_to_ids(one.text or "<pad>")
        found[token] += 1 / len(draws)
    known = [number for number in range(writers.WORDS) if number not in (writers.PAD, writers.BOS)]
    assert float(wanted.max()) < 0.9
    assert float((found - wanted)[known].abs().max()) < 4 * math.sqrt(0.25 / len(draws))


def test_progress_and_the_longest_first() -> None:
    """Prompt 7 ends with its first token, prompt 1 takes its place at once, and so on: prompts 2 and 7 write one token,
    the others two."""
    model, tokenizer, prompts = writers.writer("gpt2"), writers.words(), writers.random_ids(LENGTHS)
    seen: list[tuple[int, int]] = []
    generate(model, tokenizer, prompts, max_tokens=2, batch_size=3, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 8), (4, 8), (5, 8), (8, 8)]
    some = [list(found) for found in stream(model, tokenizer, prompts, max_tokens=2, batch_size=3)]
    assert some == [[7], [3, 4, 1], [2], [6, 0, 5]]
    assert generate(model, tokenizer, [], max_tokens=2) == []


def test_a_model_in_training_goes_on_training() -> None:
    model, tokenizer = writers.writer("gpt2", resid_pdrop=0.5), writers.words()
    prompts = writers.random_ids(LENGTHS)
    wanted = generate(model, tokenizer, prompts, max_tokens=4)
    model.train()
    assert generate(model, tokenizer, prompts, max_tokens=4) == wanted and model.training
