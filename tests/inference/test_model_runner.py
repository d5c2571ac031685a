"""Texts that are only read are batched so that little is padded, and none is lost."""

from __future__ import annotations

from lcc.inference.model_runner import by_length


def test_batches_of_equal_lengths_are_large_and_others_end_when_they_have_enough() -> None:
    lengths = [16, 128, 64, 128, 16, 16]
    assert list(by_length(lengths, 4096, 4096)) == [[1, 3, 2, 0, 4, 5]]
    assert list(by_length(lengths, 4096, 256)) == [[1, 3], [2, 0, 4, 5]]
    assert list(by_length(lengths, 4096, 64)) == [[1, 3], [2], [0, 4, 5]]
    assert list(by_length([100] * 5, 200, 50)) == [[0, 1], [2, 3], [4]]
    assert list(by_length([], 10, 10)) == []
