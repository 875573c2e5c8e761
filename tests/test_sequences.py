"""Rows of prompt and completion: what a batch holds, and how much of it is padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import writers
from kdlab.data.batches import Batches
from kdlab.data.sequences import Sequences, open_sequences, padded_tokens
from kdlab.errors import DataError

PROMPTS = [[5, 6], [7], [8, 9, 10]]
TARGETS = [[11, 1], [12, 13, 14, 1], [1]]
PAD = 0


def rows(*, encoder_decoder: bool) -> Sequences:
    return Sequences(writers.table(PROMPTS, TARGETS), encoder_decoder=encoder_decoder)


def test_a_decoder_reads_prompt_and_target_and_is_asked_for_the_target() -> None:
    found = rows(encoder_decoder=False)
    batch = found.collate(np.array([1, 0]), pad_token_id=PAD, width=6)
    assert batch["input_ids"].tolist() == [[7, 12, 13, 14, 1, PAD], [5, 6, 11, 1, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 12, 13, 14, 1, -100], [-100, -100, 11, 1, -100, -100]]
    assert batch["index"].tolist() == [1, 0]
    assert found.lengths.tolist() == [4, 5, 4] and found.highest_token == 14 and len(found) == 3


def test_an_encoder_decoder_reads_the_prompt_and_is_asked_for_the_target() -> None:
    batch = rows(encoder_decoder=True).collate(np.array([0, 2]), pad_token_id=PAD, width=5)
    assert batch["input_ids"].tolist() == [[5, 6, PAD], [8, 9, 10]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[11, 1], [1, -100]]
    assert batch["decoder_attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert {str(values.dtype) for values in batch.values()} == {"torch.int64"}


@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_batches_of_sequences(encoder_decoder: bool) -> None:
    """Every row once, in micro-batches and processes, each batch no wider than its longest row."""
    data = writers.sequences(23, encoder_decoder=encoder_decoder)
    seen: list[int] = []
    for rank in (0, 1):
        batches = Batches(data, batch_size=5, seed=3, shuffle=True, pad_token_id=PAD, rank=rank, world=2, micro_batch=2)
        for step in batches.epoch(0):
            for part in step:
                numbers = part["index"].numpy()
                lengths = data.prompts.lengths if encoder_decoder else data.lengths
                assert part["input_ids"].shape == (len(numbers), lengths[numbers].max())
                assert (part["labels"] != -100).sum() == data.targets.lengths[numbers].sum()
                seen += numbers.tolist() if part["real"] else []
    assert sorted(seen) == list(range(23))


def test_the_cost_of_padding_to_the_longest_of_all() -> None:
    """Eight rows of 4 tokens and eight of 20: buckets of eight need no padding, the whole split is 16 rows of 20."""
    prompts, targets = [[5] * 2] * 8 + [[5] * 15] * 8, [[1] * 2] * 8 + [[1] * 5] * 8
    decoder = Sequences(writers.table(prompts, targets), encoder_decoder=False)
    assert padded_tokens(decoder, batch_size=8) == {"whole_split": 320, "buckets": 192}
    seq2seq = Sequences(writers.table(prompts, targets[8:] + targets[:8]), encoder_decoder=True)
    assert padded_tokens(seq2seq, batch_size=8) == {"whole_split": 16 * (15 + 5), "buckets": 8 * 7 + 8 * 17}


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no encoded rows of 'train'") as error:
        open_sequences(tmp_path, encoder_decoder=False)
    assert error.value.where == str(tmp_path)
