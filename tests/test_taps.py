"""One contract for all architectures: what `Tapped` shows is what the stock model computes.

The expected values come from stock forward passes, from weights and hidden states, or from calling the stock
submodules by hand; never from kdlab's own table.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedModel

from kdlab.engine.recompute import recomputed
from kdlab.errors import ModelError
from kdlab.models.architectures import (
    ARCHITECTURES,
    available,
    estimate_parameters,
    hidden_size,
    num_heads,
    num_layers,
)
from kdlab.models.dropout import quick_dropout
from kdlab.models.projection import ProjectionHead
from kdlab.models.taps import Tap, Tapped

LAYERS, HEADS, WIDTH, LENGTH, PADDING = 3, 4, 16, 9, 0

SIZES = {
    "vocab_size": 40,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
DISENTANGLED = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 4,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES | {"type_vocab_size": 1, "pad_token_id": PADDING},
    "xlm-roberta": SIZES | {"type_vocab_size": 2, "pad_token_id": PADDING},
    "electra": SIZES | {"embedding_size": 8},
    "distilbert": {
        "vocab_size": 40,
        "dim": WIDTH,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "hidden_dim": 24,
        "max_position_embeddings": 32,
    },
    "mpnet": SIZES,
    "deberta-v2": SIZES | DISENTANGLED | {"share_att_key": True},
    "deberta-v2 convolution": SIZES
    | DISENTANGLED
    | {"share_att_key": False, "conv_kernel_size": 3, "type_vocab_size": 2, "position_biased_input": True},
    "modernbert": SIZES
    | {
        "local_attention": 4,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "pad_token_id": PADDING,
        "bos_token_id": 2,
        "cls_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
    },
}
PROJECTIONS = {  # paths of query, key and value in a layer
    "bert": "bert.encoder.layer.{}.attention.self.{}",
    "roberta": "roberta.encoder.layer.{}.attention.self.{}",
    "xlm-roberta": "roberta.encoder.layer.{}.attention.self.{}",
    "electra": "electra.encoder.layer.{}.attention.self.{}",
    "distilbert": "distilbert.transformer.layer.{}.attention.{:.1}_lin",
    "mpnet": "mpnet.encoder.layer.{}.attention.attn.{:.1}",
    "deberta-v2": "deberta.encoder.layer.{}.attention.self.{}_proj",
}


def kind_of(name: str) -> str:
    return name.split()[0]


def padding_of(name: str) -> int:
    return 1 if name == "mpnet" else PADDING


def tiny(name: str, attention: str = "eager", **changes: Any) -> PreTrainedModel:
    """A small model with large random weights, so that every part of it matters."""
    config = CONFIG_MAPPING[kind_of(name)](**(deepcopy(CONFIGS[name]) | {"num_labels": 3} | changes))
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.normal_(std=0.3, generator=draw)
            if weight.dim() == 1 and "norm" in key.lower() and key.endswith("weight"):
                weight.add_(1)
    return model.eval()


def batch_for(name: str, lengths: tuple[int, ...] = (9, 4, 6, 7), width: int = LENGTH) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 40, (len(lengths), LENGTH), generator=draw)
    segments = torch.randint(0, 2, (len(lengths), LENGTH), generator=draw)
    mask = (torch.arange(LENGTH) < torch.tensor(lengths)[:, None]).long()
    extra, padding = width - LENGTH, padding_of(name)
    return {
        "input_ids": functional.pad(ids.where(mask == 1, padding), (0, extra), value=padding),
        "attention_mask": functional.pad(mask, (0, extra)),
        "token_type_ids": functional.pad(segments * mask, (0, extra)),
    }


def stock_inputs(name: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a user of transformers would pass: segments only where the model knows two of them."""
    if name in ("bert", "xlm-roberta", "electra", "deberta-v2 convolution"):
        return batch
    return {key: value for key, value in batch.items() if key != "token_type_ids"}


def every_tap(name: str) -> list[Tap]:
    taps = [Tap("hidden", layer) for layer in range(LAYERS + 1)]
    shown = available(kind_of(name)) - {"hidden"}
    return taps + [Tap(other, layer) for other in sorted(shown) for layer in range(1, LAYERS + 1)]


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def hooks_on(model: nn.Module) -> dict[str, int]:
    """Names of the modules that carry hooks, with their number."""
    counts = {
        name: sum(len(value) for key, value in vars(module).items() if "_hooks" in key and value)
        for name, module in model.named_modules()
    }
    return {name: count for name, count in counts.items() if count}


@pytest.fixture(params=list(CONFIGS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


each_kernel = pytest.mark.parametrize(  # transformers has eager alone for mpnet and deberta-v2
    ("name", "kernel"),
    [(name, "eager") for name in CONFIGS]
    + [
        (name, kernel)
        for kernel in ("sdpa", "kdlab")
        for name in CONFIGS
        if kind_of(name) not in ("mpnet", "deberta-v2")
    ],
)


def visible(name: str, mask: Tensor) -> Tensor:
    """Rows [B,L] to compare. The two that also mask padded queries leave their states to the kernel."""
    return mask.bool() if kind_of(name) in ("deberta-v2", "modernbert") else torch.ones_like(mask).bool()


@each_kernel
def test_hidden_states_and_logits_are_those_of_the_stock_model(name: str, kernel: str) -> None:
    batch = batch_for(name)
    expected = tiny(name)(**stock_inputs(name, batch), output_hidden_states=True)
    views = Tapped(tiny(name, kernel))(batch, taps=[Tap("hidden", layer) for layer in range(LAYERS + 1)])
    assert list(views.hidden) == list(range(LAYERS + 1))
    close(views.logits, expected.logits)
    rows = visible(name, batch["attention_mask"])
    for layer, state in enumerate(expected.hidden_states):
        close(views.hidden[layer][rows], state[rows])
    assert torch.equal(views.mask, batch["attention_mask"])


@each_kernel
def test_projections_are_those_of_the_weights(name: str, kernel: str) -> None:
    model, batch = tiny(name, kernel), batch_for(name)
    views = Tapped(model)(batch, taps=every_tap(name))
    weights = model.state_dict()
    for layer in range(LAYERS):
        state = views.hidden[layer]
        for index, part in enumerate(("query", "key", "value")):
            if name == "modernbert":
                norm = weights.get(f"model.layers.{layer}.attn_norm.weight")
                inner = state if norm is None else functional.layer_norm(state, (WIDTH,), norm, eps=1e-5)
                weight = weights[f"model.layers.{layer}.attn.Wqkv.weight"].view(3, WIDTH, WIDTH)[index]
                flat = inner @ weight.T
            else:
                path = PROJECTIONS[kind_of(name)].format(layer, part)
                flat = state @ weights[f"{path}.weight"].T + weights[f"{path}.bias"]
            heads = torch.stack(flat.split(WIDTH // HEADS, dim=-1), dim=1)
            close(getattr(views, part)[layer + 1], heads)


@each_kernel
def test_softmax_of_attention_scores_is_the_stock_attention(name: str, kernel: str) -> None:
    batch = batch_for(name)
    tapped = Tapped(tiny(name, kernel))
    taps = [Tap("attention", layer) for layer in range(1, LAYERS + 1)]
    if kind_of(name) in ("deberta-v2", "modernbert"):
        with pytest.raises(ModelError, match="does not show 'attention'"):
            tapped(batch, taps=taps)
        return
    views = tapped(batch, taps=taps)
    assert not views.query and not views.key and not views.hidden
    expected = tiny(name)(**stock_inputs(name, batch), output_attentions=True).attentions
    unseen = (1 - batch["attention_mask"])[:, None, None, :] * -1e9
    for layer in range(1, LAYERS + 1):
        close((views.attention[layer] + unseen).softmax(-1), expected[layer - 1])


def mixed_by_hand(name: str, batch: dict[str, Tensor], lam: float) -> tuple[list[Tensor], Tensor]:
    """Hidden states and logits of the mixed batch, from the stock submodules called one by one."""
    model, kind = tiny(name), kind_of(name)
    base = model.base_model
    own = batch["attention_mask"]
    union = torch.stack([row | other for row, other in zip(own, reversed(own), strict=True)])
    inputs = {key: value for key, value in stock_inputs(name, batch).items() if key != "attention_mask"}
    if kind == "deberta-v2":
        inputs["mask"] = own
    embedded = base.embeddings(**inputs)
    if kind == "electra":
        embedded = base.embeddings_project(embedded)
    mixed = torch.stack(
        [lam * row + (1 - lam) * other for row, other in zip(embedded, reversed(embedded), strict=True)]
    )
    unseen = (1.0 - union)[:, None, None, :] * torch.finfo(torch.float32).min
    states = [mixed]
    if kind == "deberta-v2":
        states = list(base.encoder(mixed, union, output_hidden_states=True, return_dict=True).hidden_states)
        return states, model.classifier(model.pooler(states[-1]))
    if kind == "modernbert":
        places = torch.arange(LENGTH)
        far = (places[:, None] - places).abs() > 2
        near_only = unseen.expand(-1, 1, LENGTH, -1).masked_fill(far, torch.finfo(torch.float32).min)
        for layer in base.layers:
            seen = near_only if layer.attention_type == "sliding_attention" else unseen
            turns = base.rotary_emb(mixed, places[None], layer.attention_type)
            states.append(layer(states[-1], attention_mask=seen, position_embeddings=turns))
        states[-1] = base.final_norm(states[-1])
        return states, model.classifier(model.head(states[-1][:, 0]))
    if kind == "mpnet":
        bias = base.encoder.compute_position_bias(mixed)
        for layer in base.encoder.layer:
            states.append(layer(states[-1], unseen, bias)[0])
        return states, model.classifier(states[-1])
    for layer in base.transformer.layer if kind == "distilbert" else base.encoder.layer:
        states.append(layer(states[-1], unseen))
    if kind == "distilbert":
        return states, model.classifier(model.pre_classifier(states[-1][:, 0]).relu())
    return states, model.classifier(base.pooler(states[-1]) if kind == "bert" else states[-1])


@each_kernel
def test_mixed_forward_is_that_of_the_parts_called_by_hand(name: str, kernel: str) -> None:
    batch = batch_for(name)
    states, logits = mixed_by_hand(name, batch, 0.7)
    views = Tapped(tiny(name, kernel))(batch, taps=[Tap("hidden", layer) for layer in range(LAYERS + 1)], lam=0.7)
    assert views.mask.sum(1).tolist() == [9, 6, 6, 9]
    rows = visible(name, views.mask)
    for layer, state in enumerate(states):
        close(views.hidden[layer][rows], state[rows])
    close(views.logits, logits)


def rows_of(batch: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {key: value[rows] for key, value in batch.items()}


@each_kernel
def test_parts_of_a_batch_are_mixed_each_within_itself(name: str, kernel: str) -> None:
    batch = batch_for(name, lengths=(9, 4, 6, 7, 5, 8, 3, 9, 2))
    taps = [Tap("hidden", layer) for layer in range(LAYERS + 1)]
    tapped = Tapped(tiny(name, kernel), contrast=ProjectionHead(WIDTH, 5, "mlp", 1))
    whole = tapped(batch, taps=taps, lam=[0.7, None, 0.2])
    assert whole.mask.sum(1).tolist() == [9, 4, 9, 7, 5, 8, 3, 9, 3]
    for rows, lam in ((slice(0, 3), 0.7), (slice(3, 6), None), (slice(6, 9), 0.2)):
        alone = tapped(rows_of(batch, rows), taps=taps, lam=lam)
        assert torch.equal(whole.mask[rows], alone.mask)
        close(whole.logits[rows], alone.logits)
        assert whole.projected is not None and alone.projected is not None
        close(whole.projected[rows], alone.projected)
        seen = visible(name, alone.mask)
        for layer, state in alone.hidden.items():
            close(whole.hidden[layer][rows][seen], state[seen])


def test_a_list_of_one_or_of_none_is_no_other_mixing(name: str) -> None:
    tapped, batch = Tapped(tiny(name)), batch_for(name)
    assert torch.equal(tapped(batch, lam=[0.7]).logits, tapped(batch, lam=0.7).logits)
    clean = tapped(batch, lam=[None, None])
    assert torch.equal(clean.logits, tapped(batch).logits) and clean.mask is batch["attention_mask"]
    with pytest.raises(AssertionError, match="4 rows in 3 parts"):
        tapped(batch, lam=[0.7, None, None])


@each_kernel
def test_projected_is_the_heads_view_of_the_first_state(name: str, kernel: str) -> None:
    batch, head = batch_for(name), ProjectionHead(WIDTH, 5, "mlp", 1)
    expected = tiny(name)(**stock_inputs(name, batch), output_hidden_states=True)
    tapped = Tapped(tiny(name, kernel), projection=nn.Linear(WIDTH, 7), contrast=head)
    for taps in ([], [Tap("hidden", LAYERS)]):
        views = tapped(batch, taps=taps)
        assert views.projected is not None and list(views.hidden) == [tap.layer for tap in taps]
        close(views.projected, functional.normalize(head.layers(expected.hidden_states[-1][:, 0]), dim=-1))
        close(views.logits, expected.logits)
    assert hooks_on(tapped.model) == {}
    assert {key.split(".")[0] for key in tapped.state_dict()} == {"model", "projection", "contrast"}
    assert Tapped(tiny(name))(batch).projected is None


def test_mixing_comes_after_dropout(name: str) -> None:
    model, batch = tiny(name, **({"embedding_dropout": 0.5} if name == "modernbert" else {})), batch_for(name)
    model.train()
    inputs = {key: value for key, value in stock_inputs(name, batch).items() if key != "attention_mask"}
    if kind_of(name) == "deberta-v2":
        inputs["mask"] = batch["attention_mask"]
    torch.manual_seed(0)
    with quick_dropout(model, torch.device("cpu")):
        embedded = model.base_model.embeddings(**inputs)
    if name == "electra":
        embedded = model.base_model.embeddings_project(embedded)
    torch.manual_seed(0)
    views = Tapped(model)(batch, taps=[Tap("hidden", 0)], lam=0.6)
    close(views.hidden[0], 0.6 * embedded + 0.4 * embedded[[3, 2, 1, 0]])


@each_kernel
@pytest.mark.parametrize("lam", [None, 0.7])
def test_layers_computed_again_give_the_same_gradients(name: str, kernel: str, lam: float | None) -> None:
    """Of the logits and of all that can be read inside, with dropout, bit for bit."""
    batch, found = batch_for(name), []
    for wanted in (False, True):
        model = tiny(name, kernel).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.2
        torch.manual_seed(5)
        with recomputed(model, wanted=wanted):
            views = Tapped(model)(batch, taps=every_tap(name), lam=lam)
            inside = [views.hidden, views.attention, views.query, views.key, views.value]
            read = [torch.where(state.isfinite(), state, 0) for states in inside for state in states.values()]
            torch.autograd.backward(views.logits.square().sum() + sum(state.square().mean() for state in read))
        found.append([p.grad for p in model.parameters()])
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in found[0])
    for one, two in zip(*found, strict=True):
        assert (one is None and two is None) or torch.equal(one, two)


@each_kernel
@pytest.mark.parametrize("lam", [None, 0.7])
def test_padding_changes_nothing(name: str, kernel: str, lam: float | None) -> None:
    tapped = Tapped(tiny(name, kernel))
    short = tapped(batch_for(name), taps=every_tap(name), lam=lam)
    long = tapped(batch_for(name, width=LENGTH + 4), taps=every_tap(name), lam=lam)
    close(long.logits, short.logits)
    valid = short.mask.bool()
    for layer, state in short.hidden.items():
        close(long.hidden[layer][:, :LENGTH][valid], state[valid])
    for part in ("query", "key", "value"):
        for layer, heads in getattr(short, part).items():
            close(getattr(long, part)[layer].transpose(1, 2)[:, :LENGTH][valid], heads.transpose(1, 2)[valid])


def test_hooks_are_few_and_leave_no_trace(name: str) -> None:
    model, batch = tiny(name), batch_for(name)
    tapped = Tapped(model)
    seen: dict[str, int] = {}
    spy = model.base_model.register_forward_pre_hook(lambda *_: seen.update(hooks_on(model.base_model)))
    taps = [Tap("hidden", 2), Tap("query", 3)]
    tapped(batch, taps=taps)
    spy.remove()
    seen.pop("")
    assert len(seen) == 2 and all(".1" in path or ".2." in path for path in seen), seen
    assert hooks_on(model) == {}

    tapped(batch, taps=every_tap(name), lam=0.8)
    assert hooks_on(model) == {}

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    broken = model.get_submodule("classifier").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        tapped(batch, taps=every_tap(name), lam=0.8)
    broken.remove()
    assert hooks_on(model) == {}
    close(tapped(batch).logits, tiny(name)(**stock_inputs(name, batch)).logits)


def test_works_under_no_grad_and_autocast(name: str) -> None:
    batch = batch_for(name)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = tiny(name)(**stock_inputs(name, batch), output_hidden_states=True)
        views = Tapped(tiny(name))(batch, taps=every_tap(name))
        mixed = Tapped(tiny(name))(batch, taps=every_tap(name), lam=0.9)
    close(views.logits, expected.logits)
    for layer, state in enumerate(expected.hidden_states):
        close(views.hidden[layer], state)
    assert views.query[1].dtype == torch.bfloat16
    for part in mixed[1:6]:
        assert all(tensor.isfinite().all() and not tensor.requires_grad for tensor in part.values())


def test_two_forwards_before_one_backward(name: str) -> None:
    model, batch = tiny(name), batch_for(name)
    tapped, taps = Tapped(model), every_tap(name)

    def loss(lam: float | None) -> Tensor:
        views = tapped(batch, taps=taps, lam=lam)
        parts = [tensor for part in views[1:6] for tensor in part.values()]
        return sum((part.float() ** 2).mean() for part in parts) + views.logits.pow(2).mean()

    def gradients(*losses: Tensor) -> list[Tensor]:
        model.zero_grad()
        sum(losses).backward()
        return [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in model.parameters()]

    clean, mixed = gradients(loss(None)), gradients(loss(0.7))
    separate = [first + second for first, second in zip(clean, mixed, strict=True)]
    together = gradients(loss(None), loss(0.7))
    assert sum(int(gradient.abs().max() > 0) for gradient in together) >= len(together) - 2
    for got, expected in zip(together, separate, strict=True):
        close(got, expected, 1e-4)


def test_projection_maps_every_hidden_state() -> None:
    projection = nn.Linear(WIDTH, 5)
    tapped, batch = Tapped(tiny("bert"), projection=projection), batch_for("bert")
    views = tapped(batch, taps=[Tap("hidden", 0), Tap("hidden", 3)])
    expected = tiny("bert")(**batch, output_hidden_states=True).hidden_states
    for layer in (0, 3):
        close(views.hidden[layer], projection(expected[layer]))
    assert {key.split(".")[0] for key in tapped.state_dict()} == {"model", "projection"}


def test_official_head_is_a_relu_without_dropout() -> None:
    model = tiny("bert", classifier_dropout=0.9, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    batch = batch_for("bert")
    pooled = model.bert(**batch).pooler_output
    assert (pooled < 0).any()
    tapped = Tapped(model.train(), head="official")
    close(tapped(batch).logits, model.classifier(pooled.clamp(min=0)))
    assert hooks_on(model) == {}
    with pytest.raises(ModelError, match="bert only"):
        Tapped(tiny("roberta"), head="official")


def test_layers_that_are_not_there(name: str) -> None:
    tapped, batch = Tapped(tiny(name)), batch_for(name)
    for tap in (Tap("hidden", LAYERS + 1), Tap("hidden", -1), Tap("query", 0), Tap("value", LAYERS + 1)):
        with pytest.raises(ModelError, match=f"no {tap.name} of layer {tap.layer}"):
            tapped(batch, taps=[tap])
    with pytest.raises(ModelError, match="does not show 'keys'"):
        tapped(batch, taps=[Tap("keys", 1)])


def test_distributed_data_parallel_sees_the_whole_graph() -> None:
    batch = batch_for("bert")
    taps = [Tap("hidden", 3), Tap("attention", 3)]

    def gradients(module: nn.Module, model: nn.Module) -> list[Tensor | None]:
        views = module(batch, taps=taps, lam=0.7)
        (views.hidden[3].pow(2).mean() + views.attention[3].pow(2).mean()).backward()
        return [weight.grad for weight in model.parameters()]

    alone = Tapped(tiny("bert"), projection=nn.Linear(WIDTH, 5))
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(deepcopy(alone), find_unused_parameters=True)
        got, expected = gradients(wrapped, wrapped.module), gradients(alone, alone)
    finally:
        torch.distributed.destroy_process_group()
    for left, right in zip(got, expected, strict=True):
        assert (left is None or not left.any()) if right is None else torch.equal(left, right)


def test_the_table_agrees_with_the_models(name: str) -> None:
    model = tiny(name)
    config = model.config.to_dict()
    assert (num_layers(config), hidden_size(config), num_heads(config)) == (LAYERS, WIDTH, HEADS)
    assert estimate_parameters(config) == sum(weight.numel() for weight in model.parameters())


def test_sizes_that_a_config_leaves_out() -> None:
    for kind in ARCHITECTURES:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(CONFIG_MAPPING[kind]())
        assert estimate_parameters({"model_type": kind}) == model.num_parameters(), kind


def test_unknown_architecture_names_the_eight() -> None:
    with pytest.raises(ModelError) as error:
        available("gpt2")
    assert all(kind in str(error.value) for kind in ARCHITECTURES) and len(ARCHITECTURES) == 8
