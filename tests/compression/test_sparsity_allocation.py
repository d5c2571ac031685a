"""Every rule keeps the total sparsity, within the bounds of what a block can lose."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from lcc.compression.sparsity import MOST, by_depth, by_outliers, centred, outlier_share, uniform

SIZES = {f"layers.{i}": 100 * (1 + i % 3) for i in range(6)}


def total(shares: dict[str, float], sizes: dict[str, int] = SIZES) -> float:
    return sum(shares[name] * size for name, size in sizes.items()) / sum(sizes.values())


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_all_rules_keep_the_total(sparsity: float) -> None:
    outliers = {name: 0.01 * i for i, name in enumerate(SIZES)}
    for shares in (
        uniform(SIZES, sparsity),
        by_outliers(outliers, SIZES, sparsity, bound=0.08),
        by_depth([list(SIZES)], SIZES, sparsity, beta=0.02),
        by_depth([list(SIZES)[:2], list(SIZES)[2:]], SIZES, sparsity, beta=0.3),
    ):
        assert total(shares) == pytest.approx(sparsity, abs=1e-9)
        assert all(0 <= share <= MOST for share in shares.values())


def test_blocks_with_outliers_keep_more_within_the_bound() -> None:
    outliers = dict(zip(SIZES, (0.05, 0.01, 0.02, 0.03, 0.04, 0.0), strict=True))
    shares = by_outliers(outliers, SIZES, 0.5, bound=0.08)
    assert sorted(shares, key=shares.__getitem__) == sorted(outliers, key=outliers.__getitem__, reverse=True)
    assert max(shares.values()) - min(shares.values()) == pytest.approx(0.16)


def test_equal_blocks_get_equal_shares() -> None:
    shares = by_outliers(dict.fromkeys(SIZES, 0.02), SIZES, 0.5, bound=0.08)
    assert list(shares.values()) == pytest.approx([0.5] * len(SIZES))


def test_depth_is_an_arithmetic_progression_in_each_stack() -> None:
    stacks = [list(SIZES)[:3], list(SIZES)[3:]]
    shares = by_depth(stacks, SIZES, 0.5, beta=0.05)
    for stack in stacks:
        steps = [shares[b] - shares[a] for a, b in pairwise(stack)]
        assert steps == pytest.approx([0.05] * 2)
        assert total(shares, {name: SIZES[name] for name in stack}) == pytest.approx(0.5)


def test_who_would_leave_the_bounds_stays_at_them() -> None:
    shares = centred({"a": -1.0, "b": 0.0, "c": 1.0}, {"a": 1, "b": 1, "c": 1}, 0.5)
    assert shares["a"] == 0.0 and shares["c"] == MOST
    assert sum(shares.values()) == pytest.approx(1.5)


def test_outliers_are_counted_over_all_layers_of_a_block() -> None:
    scores = [torch.ones(4, 4), torch.ones(2, 2)]
    scores[0][0, 0] = 20.0  # The mean is 39 / 20.
    assert outlier_share(scores, factor=5.0) == pytest.approx(1 / 20)
