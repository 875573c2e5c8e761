"""Cutting, loading and saving encoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from kdlab.errors import HubError, ModelError
from kdlab.models.encoder import load_encoder, load_saved, save_student
from kdlab.models.surgery import cut
from test_taps import CONFIGS, LAYERS, batch_for, kind_of, stock_inputs, tiny

TASK: dict[str, Any] = {
    "num_labels": 3,
    "kind": "classification",
    "labels": ["yes", "maybe", "no"],
    "attention": "sdpa",
    "seed": 5,
}
LAYER_PATHS = {"distilbert": "transformer.layer.", "modernbert": "layers."}


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "word": 2}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


def saved(folder: Path, name: str = "bert", **changes: Any) -> Path:
    tiny(name, **changes).save_pretrained(folder)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights.pop(name)
    save_file(weights if tensor is None else weights | {name: tensor}, path, metadata={"format": "pt"})


def same(left: PreTrainedModel, right: PreTrainedModel) -> bool:
    one, two = left.state_dict(), right.state_dict()
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("layers", [[0, 1], [0, 2], [1, 2]])
@pytest.mark.parametrize("name", CONFIGS)
def test_cut_copies_the_chosen_layers(name: str, layers: list[int], tmp_path: Path) -> None:
    teacher = tiny(name)
    before = torch.get_rng_state()
    student = cut(teacher, layers, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(student) is type(teacher)
    assert student.config.num_hidden_layers == len(layers) and teacher.config.num_hidden_layers == LAYERS

    prefix = f"{student.base_model_prefix}.{LAYER_PATHS.get(kind_of(name), 'encoder.layer.')}"
    theirs = teacher.state_dict()
    for key, tensor in student.state_dict().items():
        if key.startswith(prefix):
            place, rest = key.removeprefix(prefix).split(".", 1)
            assert torch.equal(tensor, theirs[f"{prefix}{layers[int(place)]}.{rest}"]), key
        elif "classifier" in key:
            assert not torch.equal(tensor, theirs[key]), key
        else:
            assert torch.equal(tensor, theirs[key]), key
    if name == "modernbert":
        assert student.config.layer_types == [teacher.config.layer_types[layer] for layer in layers]
    assert same(student, cut(teacher, layers, seed=1)) and not same(student, cut(teacher, layers, seed=2))

    save_student(student, tokenizer(), tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    inputs = stock_inputs(name, batch_for(name))
    torch.testing.assert_close(again(**inputs).logits, student(**inputs).logits, rtol=1e-5, atol=1e-5)


def test_a_whole_cut_gives_the_hidden_states_of_the_teacher() -> None:
    for name in CONFIGS:
        teacher, inputs = tiny(name), stock_inputs(name, batch_for(name))
        student = cut(teacher, range(LAYERS))
        expected = teacher(**inputs, output_hidden_states=True).hidden_states
        got = student(**inputs, output_hidden_states=True).hidden_states
        assert all(torch.equal(one, two) for one, two in zip(got, expected, strict=True)), name


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([0, 3], "no layer 3"),
        ([-1], "no layer -1"),
        ([], "no layer was chosen"),
        ([1, 0], "increasing order"),
        ([1, 1], "increasing order"),
    ],
)
def test_cut_refuses_layers(layers: list[int], message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        cut(tiny("bert"), layers)
    assert "model.student.layers" in str(error.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_new_head_comes_from_the_seed_alone(name: str, tmp_path: Path) -> None:
    saved(tmp_path, name, num_labels=2)
    spec = {"id": str(tmp_path), "init": "pretrained"}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = load_encoder(spec, **TASK)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert same(first, load_encoder(spec, **TASK))
    assert not same(first, load_encoder(spec, **TASK | {"seed": 6}))
    base = tiny(name, num_labels=2).base_model.state_dict()
    assert all(torch.equal(tensor, base[key]) for key, tensor in first.base_model.state_dict().items())
    assert {weight.dtype for weight in first.parameters()} == {torch.float32} and not first.training
    assert first.config.id2label == {0: "yes", 1: "maybe", 2: "no"} and first.config.label2id["no"] == 2
    assert first.config.problem_type == "single_label_classification"
    expected = "eager" if kind_of(name) in ("mpnet", "deberta-v2") else "sdpa"
    assert first.config._attn_implementation == expected


def test_a_head_that_fits_is_kept_and_changes_are_applied(tmp_path: Path) -> None:
    spec = {"id": "some/name", "path": str(saved(tmp_path)), "config": {"hidden_dropout_prob": 0.25}}
    model = load_encoder(spec, **TASK)
    assert same(model, tiny("bert"))
    assert model.config.hidden_dropout_prob == 0.25 and model.bert.embeddings.dropout.p == 0.25


def test_a_pre_trained_model_without_classifier(tmp_path: Path) -> None:
    BertForMaskedLM(tiny("bert").config).save_pretrained(tmp_path)
    model = load_encoder({"id": str(tmp_path)}, **TASK)
    expected = load_file(tmp_path / "model.safetensors")
    one = "bert.encoder.layer.2.output.dense.weight"
    assert torch.equal(model.state_dict()[one], expected[one])
    assert same(model, load_encoder({"id": str(tmp_path)}, **TASK))


def test_cut_by_number_and_by_list(tmp_path: Path) -> None:
    saved(tmp_path)
    teacher = tiny("bert").bert.encoder.layer
    for chosen, wanted in (({"num_layers": 2}, [0, 1]), ({"layers": [0, 2]}, [0, 2])):
        model = load_encoder({"path": str(tmp_path), "init": "cut"} | chosen, **TASK)
        for place, layer in enumerate(wanted):
            one, two = model.bert.encoder.layer[place].state_dict(), teacher[layer].state_dict()
            assert all(torch.equal(one[key], two[key]) for key in one)
        assert model.config.num_hidden_layers == 2 and model.config.id2label[1] == "maybe"
    with pytest.raises(ModelError, match="which layers"):
        load_encoder({"path": str(tmp_path), "init": "cut"}, **TASK)


@pytest.mark.parametrize("name", CONFIGS)
def test_random_weights_from_a_config_alone(name: str) -> None:
    spec = {"init": "random", "config": {"model_type": kind_of(name)} | CONFIGS[name]}
    before = torch.get_rng_state()
    model = load_encoder(spec, **TASK)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(model, load_encoder(spec, **TASK))
    assert not same(model, load_encoder(spec, **TASK | {"seed": 1}))
    assert not model.training
    inputs = stock_inputs(name, batch_for(name))
    assert model(**inputs).logits.shape == (4, 3)
    regression = {"num_labels": 1, "kind": "regression", "labels": None}
    model = load_encoder(spec, **TASK | regression)
    assert model(**inputs).logits.shape == (4, 1) and model.config.problem_type == "regression"


@pytest.mark.parametrize("name", CONFIGS)
def test_random_weights_for_another_model_s_config(name: str, tmp_path: Path) -> None:
    smaller = {"num_hidden_layers": 2, "hidden_size": 8}
    model = load_encoder({"id": str(saved(tmp_path, name)), "init": "random", "config": smaller}, **TASK)
    assert model.config.num_hidden_layers == 2
    assert model(**stock_inputs(name, batch_for(name))).logits.shape == (4, 3)
    assert not torch.equal(next(model.parameters()), next(tiny(name).parameters()))


def test_the_head_is_remembered(tmp_path: Path) -> None:
    for head in ("official", "stock"):
        spec = {"init": "random", "config": {"model_type": "bert"} | CONFIGS["bert"], "head": head}
        model = load_encoder(spec, **TASK)
        save_student(model, tokenizer(), tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["kdlab_head"] == head
        again, found = load_saved(tmp_path, "eager")
        assert found == head and same(again, model) and not again.training
        assert again.config._attn_implementation == "eager"
        assert again.config.id2label == {0: "yes", 1: "maybe", 2: "no"}
    assert AutoTokenizer.from_pretrained(tmp_path)("word")["input_ids"] == [2]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def refuse(spec: dict[str, Any], *parts: str, error: type[Exception] = ModelError) -> None:
    with pytest.raises(error) as caught:
        load_encoder(spec, **TASK)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_absent_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuse({"id": "kdlab-test/absent", "revision": "v1"}, "kdlab-test/absent at v1", error=HubError)
    refuse({"id": str(tmp_path / "absent")}, "absent", error=HubError)
    (tmp_path / "empty").mkdir()
    refuse({"id": str(tmp_path / "empty")}, "no config.json", str(tmp_path / "empty"))
    refuse({}, "needs an id")


def test_unsupported_architectures(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=9)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    refuse({"id": str(tmp_path)}, "'gpt2' is not supported", "modernbert")
    (tmp_path / "config.json").write_text("{")
    refuse({"id": str(tmp_path)}, "config.json can't be read")
    (tmp_path / "config.json").write_text("{}")
    edit(tmp_path, model_type="of-my-own", auto_map={"AutoConfig": "code.py--Config"})
    refuse({"id": str(tmp_path)}, "can't be used", "never runs code")
    refuse({"init": "random"}, "no model_type")


def test_settings_that_do_not_exist(tmp_path: Path) -> None:
    saved(tmp_path)
    refuse({"id": str(tmp_path), "config": {"hidden_dropout_prop": 0.0}}, "did you mean hidden_dropout_prob?")
    refuse({"id": str(tmp_path), "config": {"model_type": "roberta"}}, "can't be changed")
    refuse({"id": str(tmp_path), "config": {"hidden_size": "wide"}}, "can't be used")
    wrong = {"model_type": "bert"} | CONFIGS["bert"] | {"hidden_size": 10}
    refuse({"init": "random", "config": wrong}, "not a multiple")


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    saved(tmp_path / "sizes")
    edit(tmp_path / "sizes", intermediate_size=20)
    refuse({"id": str(tmp_path / "sizes")}, "9 weights do not fit", "is [24], should be [20]", str(tmp_path))
    saved(tmp_path / "deeper")
    edit(tmp_path / "deeper", num_hidden_layers=4)
    refuse({"id": str(tmp_path / "deeper")}, "16 weights are missing", "bert.encoder.layer.3")
    edit(tmp_path / "deeper", num_hidden_layers=2)
    refuse({"id": str(tmp_path / "deeper")}, "16 weights have no place", "encoder.layer.2")


def test_weights_that_are_missing_or_broken(tmp_path: Path) -> None:
    one = "bert.encoder.layer.1.output.dense.weight"
    saved(tmp_path / "one")
    edit_weights(tmp_path / "one", one, None)
    refuse({"id": str(tmp_path / "one")}, "1 weights are missing", one)
    saved(tmp_path / "nan")
    edit_weights(tmp_path / "nan", one, torch.full((16, 24), float("nan")))
    refuse({"id": str(tmp_path / "nan")}, "NaN", one)
    saved(tmp_path / "none")
    (tmp_path / "none" / "model.safetensors").unlink()
    refuse({"id": str(tmp_path / "none")}, "no weights")
    saved(tmp_path / "short")
    path = tmp_path / "short" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuse({"id": str(tmp_path / "short")}, "can't be read")


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tiny("bert").state_dict(), tmp_path / "pytorch_model.bin")
    assert same(load_encoder({"id": str(tmp_path)}, **TASK), tiny("bert"))
    torch.save({"bert.pooler.dense.bias": Evil()}, tmp_path / "pytorch_model.bin")
    refuse({"id": str(tmp_path)}, "more than plain tensors", "safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_saved_model_must_be_whole(tmp_path: Path) -> None:
    saved(tmp_path)
    edit_weights(tmp_path, "classifier.bias", None)
    with pytest.raises(ModelError, match=r"1 weights are missing, the first is classifier\.bias"):
        load_saved(tmp_path, "eager")
