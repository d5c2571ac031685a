"""GPTQ stores plain group quantization, and loses less than rounding on the same grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lcc.calibration.statistics import LayerStats, Sums
from lcc.compression.obs_solver import layer_error
from lcc.compression.quantization_grid import IntGrid, search_scales
from lcc.config.cards import Mistakes, decode, find_card
from lcc.methods.quantizers.gptq import Gptq


def correlated(num_inputs: int = 256) -> tuple[Tensor, LayerStats]:
    """A weight, and inputs of very different size that mix: condition of the Gram above 1e3."""
    torch.manual_seed(0)
    x = torch.randn(4096, num_inputs) @ torch.randn(num_inputs, num_inputs)
    sums = Sums(gram=True)
    sums.add(x * torch.logspace(0, 1.5, num_inputs)[torch.randperm(num_inputs)])
    stats = sums.stats()
    assert stats.gram is not None and torch.linalg.cond(stats.gram.double()) > 1e3
    return torch.randn(64, num_inputs), stats


def error_of(name: str, grid: IntGrid, **options: Any) -> float:
    weight, stats = correlated()
    assert stats.gram is not None
    dense = decode(find_card("quantizers", name), options).quantize(weight, stats, grid).dense()
    return layer_error(dense - weight, weight, stats.gram)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_loses_less_than_scale_search_and_that_less_than_nearest(bits: int, symmetric: bool) -> None:
    grid = IntGrid(bits, 64, "float32", symmetric)
    gptq = error_of("gptq", grid)
    assert gptq <= error_of("gptq", grid, act_order=False)
    assert gptq <= error_of("scale_search", grid) <= error_of("nearest", grid)


def test_act_order_keeps_the_groups_of_the_layout() -> None:
    """Scales are those of neighbouring inputs, so that a file needs no index of groups."""
    weight, stats = correlated()
    grid = IntGrid(4, 32, "bfloat16", False)
    found: Any = decode(Gptq, {"act_order": True}).quantize(weight, stats, grid)
    scale, zero = search_scales(weight, grid, stats.diagonal)
    assert torch.equal(found.scale, scale) and torch.equal(found.zero, zero)
    packed = {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point"}
    assert set(found.tensors()) == packed


def test_a_grid_of_one_scale_per_row_works() -> None:
    assert error_of("gptq", IntGrid(4, None, "float32")) < error_of("nearest", IntGrid(4, None, "float32"))


def test_inputs_that_do_not_mix_are_rounded_to_nearest() -> None:
    weight = torch.randn(8, 32)
    sums = Sums(gram=True)
    sums.add(torch.eye(32) * 3)
    grid = IntGrid(4, 32, "float32")
    found = decode(Gptq, {}).quantize(weight, sums.stats(), grid).dense()
    scale, zero = search_scales(weight, grid, sums.stats().diagonal)
    assert torch.allclose(found, grid.round(weight, scale, zero))


def test_plain_rounding_stays_where_it_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, stats = correlated()
    grid = IntGrid(4, 64, "float32")
    worse = torch.zeros(weight.shape, dtype=torch.int8)
    monkeypatch.setattr(Gptq, "_codes", lambda *_: worse)
    found = decode(Gptq, {}).quantize(weight, stats, grid).dense()
    scale, zero = search_scales(weight, grid, stats.diagonal)
    assert torch.equal(found, grid.round(weight, scale, zero))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("pattern", "of"), [("2:4", 4), ("4:8", 8), ("unstructured", 256)])
def test_mask_and_grid_are_chosen_together(pattern: str, of: int, symmetric: bool) -> None:
    weight, stats = correlated()
    assert stats.gram is not None
    grid = IntGrid(4, 64, "float32", symmetric)
    found: Any = decode(Gptq, {"pattern": pattern}).quantize(weight, stats, grid)
    dense = found.dense()
    assert ((dense == 0).view(-1, of).sum(dim=1) >= of // 2).all()
    joint = layer_error(dense - weight, weight, stats.gram)
    # Rounding to the same grid what pruning alone left behind loses more.
    pruned = decode(find_card("criteria", "sparsegpt"), {"scope": "row"}).prune(
        weight, stats, [_asked(pattern)], [64]
    )
    after = grid.round(pruned, found.scale, found.zero)
    assert joint < layer_error(after - weight, weight, stats.gram)


def _asked(pattern: str) -> Any:
    from lcc.compression.sparsity import Pattern

    return Pattern(pattern, 0.5)


@pytest.mark.parametrize("options", [{"damping": 0.0}, {"block_size": 100}, {"pattern": "1:4"}])
def test_options_out_of_range_are_mistakes_in_the_recipe(options: dict[str, Any]) -> None:
    with pytest.raises(Mistakes):
        decode(Gptq, options)
