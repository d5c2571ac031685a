"""Repair is least squares, and never makes a layer worse."""

from __future__ import annotations

import pytest
import torch

from lcc.compression.prune_width import bias_repair, relative_error, ridge_repair


def test_ridge_repair_equals_least_squares() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    weight, kept = torch.randn(5, 12, dtype=torch.float64), torch.tensor([0, 2, 3, 7, 8, 11])
    repaired = ridge_repair(weight, x.T @ x, kept, damping=1e-12)
    expected = torch.linalg.lstsq(x[:, kept], x @ weight.T).solution.T
    assert torch.allclose(repaired, expected, atol=1e-6)


def test_repair_lowers_the_error_and_leaves_a_whole_layer_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 8) @ torch.randn(8, 8)
    weight, gram, kept = torch.randn(4, 8), x.T @ x, torch.tensor([0, 1, 2, 4, 6])
    repaired = ridge_repair(weight, gram, kept, damping=0.01)
    plain = relative_error(weight, weight[:, kept], kept, gram)
    assert relative_error(weight, repaired, kept, gram) < 0.7 * plain
    assert torch.allclose(ridge_repair(weight, gram, torch.arange(8), damping=0.5), weight)


def test_relative_error_is_that_of_the_outputs() -> None:
    torch.manual_seed(0)
    x, weight, kept = torch.randn(50, 6), torch.randn(3, 6), torch.tensor([1, 4])
    lost = ((x @ weight.T - x[:, kept] @ weight[:, kept].T) ** 2).sum() / ((x @ weight.T) ** 2).sum()
    found = relative_error(weight, weight[:, kept], kept, x.T @ x)
    assert found == pytest.approx(float(lost), rel=1e-4)


def test_bias_repair_keeps_the_mean_output() -> None:
    torch.manual_seed(0)
    x, weight, kept = torch.randn(50, 6) + 1, torch.randn(3, 6), torch.tensor([1, 4, 5])
    bias = bias_repair(weight, x.mean(0), kept)
    after = (x[:, kept] @ weight[:, kept].T + bias).mean(0)
    assert torch.allclose(after, (x @ weight.T).mean(0), atol=1e-5)
