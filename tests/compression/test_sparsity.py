"""A pattern makes exactly the zeros it says, also of equal scores."""

from __future__ import annotations

import pytest
import torch

from lcc.compression.sparsity import (
    Pattern,
    rows_without_lowest,
    rows_without_lowest_in_torch,
    without_lowest,
    without_lowest_in_torch,
)


@pytest.mark.parametrize(
    ("word", "sparsity", "num_zeros"),
    [
        ("unstructured", 0.3, 10),
        ("2:4", 0.5, 16),
        ("4:8", 0.5, 16),
        ("block16", 0.5, 16),
        ("block8", 0.25, 8),
    ],
)
def test_every_row_has_the_zeros_asked(word: str, sparsity: float, num_zeros: int) -> None:
    pattern = Pattern(word, sparsity)
    assert pattern.num_zeros(32) == num_zeros
    for scores in (torch.rand(5, 32), torch.ones(5, 32)):
        assert (~pattern.mask(scores)).sum(dim=1).tolist() == [num_zeros] * 5


def test_a_run_goes_by_the_sum_of_its_scores() -> None:
    scores = torch.tensor([[0.0, 0, 0, 0, 0, 0, 0, 9, *[1.0] * 8]])
    kept = Pattern("block8", 0.5).mask(scores)
    assert kept[0].tolist() == [True] * 8 + [False] * 8


@pytest.mark.parametrize("num", [0, 1, 7, 20])
def test_as_many_of_equal_scores_go_as_asked(num: int) -> None:
    scores = torch.tensor([1.0, 1.0, 2.0, 1.0, 3.0] * 4).view(4, 5)
    kept = without_lowest(scores, num)
    assert int((~kept).sum()) == num
    if num <= 12:
        assert bool(kept[scores > 1.0].all())
    if num:
        assert torch.equal(kept, without_lowest_in_torch(scores, num))


def test_the_compiled_choice_equals_plain_torch() -> None:
    scores = torch.randn(300, 70, generator=torch.Generator().manual_seed(0)).square()
    scores[:, :9] = 0.0  # Dead inputs cost nothing.
    for num in (1, 2000, 10500, 20999, 21000):
        assert torch.equal(without_lowest(scores, num), without_lowest_in_torch(scores, num))


def test_the_compiled_choice_in_rows_equals_plain_torch() -> None:
    scores = torch.randn(300, 70, generator=torch.Generator().manual_seed(0)).square()
    scores[:, :9] = 0.0
    nums = torch.arange(300) % 71
    expected = rows_without_lowest_in_torch(scores, nums)
    assert torch.equal(rows_without_lowest(scores, nums), expected)
    assert torch.equal(rows_without_lowest(scores.T.contiguous().T, nums), expected)
    assert (~expected).sum(dim=1).tolist() == nums.tolist()
