"""Batches are a function of lengths, seed and epoch, and waste little on padding."""

from __future__ import annotations

import random

from lcc.training.batches import batches_from, epoch_batches, epoch_ends, micro_batches, share_of_rank

LENGTHS = [random.Random(i).randint(5, 60) for i in range(500)]


def test_every_example_comes_once_an_epoch_and_batches_keep_the_budget() -> None:
    batches = epoch_batches(LENGTHS, batch_tokens=256, seed=0, epoch=0)
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    assert all(sum(LENGTHS[i] for i in batch) <= 256 for batch in batches)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first = epoch_batches(LENGTHS, batch_tokens=256, seed=0, epoch=0)
    assert first == epoch_batches(LENGTHS, batch_tokens=256, seed=0, epoch=0)
    assert first != epoch_batches(LENGTHS, batch_tokens=256, seed=0, epoch=1)
    assert first != epoch_batches(LENGTHS, batch_tokens=256, seed=1, epoch=0)


def test_padding_is_a_small_share() -> None:
    padded = 0
    for batch in epoch_batches(LENGTHS, batch_tokens=256, seed=0, epoch=0):
        for piece in micro_batches(batch, LENGTHS, micro_tokens=256):
            padded += len(piece) * max(LENGTHS[i] for i in piece)
    assert padded < 1.05 * sum(LENGTHS)


def test_ranks_share_a_batch_without_overlap() -> None:
    pieces = micro_batches(range(40), LENGTHS, micro_tokens=128)
    shares = [share_of_rank(pieces, LENGTHS, rank=r, world_size=3) for r in range(3)]
    assert sorted(i for share in shares for piece in share for i in piece) == list(range(40))
    assert all(len(p) * max(LENGTHS[i] for i in p) <= 128 for p in pieces)


def test_a_run_continues_in_the_middle_of_an_epoch() -> None:
    options = {"batch_tokens": 256, "seed": 3}
    whole = list(batches_from(LENGTHS, start=0, stop=200, **options))
    assert list(batches_from(LENGTHS, start=90, stop=200, **options)) == whole[90:]


def test_fractions_of_epochs_and_a_step_limit_end_training() -> None:
    options = {"batch_tokens": 256, "seed": 0}
    size = len(epoch_batches(LENGTHS, epoch=0, **options))
    assert epoch_ends(LENGTHS, epochs=0.5, max_steps=None, **options) == [round(size / 2)]
    assert epoch_ends(LENGTHS, epochs=3, max_steps=size + 4, **options)[-1] == size + 4
