"""kdlab.engine.feed and kdlab.engine.compiling: what a GPU's loop needs, as far as a processor can show it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import toy
from kdlab.engine.compiling import compile_layers
from kdlab.engine.feed import DEPTH, ahead, feed
from kdlab.models.taps import Tap

Step = list[dict[str, Any]]


def test_steps_come_in_their_order_and_are_made_in_advance() -> None:
    made: list[int] = []
    enough = threading.Event()

    def steps() -> Iterator[Step]:
        for number in range(9):
            made.append(number)
            if number == DEPTH:
                enough.set()
            yield [{"x": torch.tensor(number), "real": True}]

    found = ahead(steps(), pin=False)
    first = next(found)
    assert enough.wait(5), "the next steps are made while the first is used"
    rest = list(found)
    assert [int(step[0]["x"]) for step in [first, *rest]] == made == list(range(9))


def test_errors_of_the_thread_are_raised_where_steps_are_used() -> None:
    def steps() -> Iterator[Step]:
        yield [{"x": 1}]
        raise ValueError("a bad row")

    found = ahead(steps(), pin=False)
    next(found)
    with pytest.raises(ValueError, match="a bad row"):
        next(found)


def test_the_thread_ends_with_its_reader() -> None:
    def steps() -> Iterator[Step]:
        while True:
            yield [{"x": 1}]

    found = ahead(steps(), pin=False)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "feed"]


def test_a_processor_makes_its_batches_itself() -> None:
    batches = toy.batches()
    before = threading.active_count()
    found = feed(batches.epoch(0), torch.device("cpu"))
    first = next(found)
    assert threading.active_count() == before
    assert torch.equal(first[0]["input_ids"], next(batches.epoch(0))[0]["input_ids"])


class Counted:
    """A backend for torch.compile that runs graphs as they are, and counts."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Any:
        def run(*given: Any) -> Any:
            self.runs += 1
            return graph.forward(*given)

        return run


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of torch's own tracing
def test_compiled_layers_give_the_same_views_and_gradients() -> None:
    ids = torch.arange(12).view(3, 4) % 7 + 1
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    taps = [Tap("attention", 3), Tap("hidden", 3), Tap("hidden", 0)]
    plain, compiled = (toy.encoder(layers=3).train() for _ in range(2))
    backend = Counted()
    assert compile_layers(compiled, "on", backend=backend) == 3
    found = []
    for model in (plain, compiled):
        views = model(batch, taps=taps, lam=0.7)
        loss = views.logits.square().sum() + views.attention[3].square().mean() + views.hidden[3].square().mean()
        torch.autograd.backward(loss)
        found.append((views, [p.grad for p in model.parameters()]))
    (one, gradients), (two, others) = found
    assert backend.runs == 2, "two layers are compiled; the third is read inside"
    torch.testing.assert_close(two.attention[3], one.attention[3])
    torch.testing.assert_close(two.hidden[3], one.hidden[3])
    torch.testing.assert_close(two.hidden[0], one.hidden[0])
    for mine, theirs in zip(gradients, others, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-6)


def test_off_compiles_nothing_and_lists_of_unlike_modules_are_searched() -> None:
    model = nn.ModuleDict({"towers": nn.ModuleList([nn.ModuleList([nn.Linear(1, 1)] * 2), nn.Linear(1, 1)])})
    assert compile_layers(model, "off") == 0
    assert compile_layers(model, "on", backend="eager") == 2
