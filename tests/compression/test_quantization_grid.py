"""Scales equal a slow search, and never err more than the widest ones; bits fit their budget."""

from __future__ import annotations

import itertools

import pytest
import torch

from lcc.compression.packed_format import GroupGrid
from lcc.compression.quantization_grid import (
    SHRINKS,
    IntGrid,
    _best_options,
    best_options_in_torch,
    output_error,
    search_scales,
    widest_scales,
)
from lcc.compression.quantize import cheapest
from lcc.core.errors import RecipeError


def correlated(num_inputs: int, num_tokens: int = 200) -> torch.Tensor:
    """A Gram of condition ≥ 1e3."""
    torch.manual_seed(1)
    mix = torch.randn(num_inputs, num_inputs) * torch.logspace(0, -2, num_inputs)
    x = torch.randn(num_tokens, num_inputs) @ mix.T
    gram = x.T @ x
    assert torch.linalg.cond(gram) > 1e3
    return gram


def slow_error(values: list[float], scale: float, zero: float, grid: IntGrid, weighing) -> float:
    total = 0.0
    for value, weigh in zip(values, weighing, strict=True):
        code = min(max(round(value / scale) + zero, grid.lowest), grid.highest)
        total += weigh * (value - (code - zero) * scale) ** 2
    return total


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_searched_scale_is_the_best_of_all_that_were_tried(bits: int, symmetric: bool) -> None:
    torch.manual_seed(0)
    weight, importance = torch.randn(3, 8), torch.rand(8)
    grid = IntGrid(bits, 4, "float32", symmetric)
    scale, zero = search_scales(weight, grid, importance)
    for row, group in itertools.product(range(3), range(2)):
        values = weight[row, 4 * group : 4 * group + 4].tolist()
        weighing = importance[4 * group : 4 * group + 4].tolist()
        tried = []
        for shrink in SHRINKS:
            low, high = shrink * min(0, *values), shrink * max(0, *values)
            steps = grid.highest - grid.lowest
            one = (2 * max(-low, high) if symmetric else high - low) / steps
            point = 0 if symmetric else max(grid.lowest, min(round(grid.lowest - low / one), grid.highest))
            tried.append(slow_error(values, one, point, grid, weighing))
        at = 0 if zero is None else int(zero[row, group])
        found = slow_error(values, float(scale[row, group]), at, grid, weighing)
        assert found == pytest.approx(min(tried), rel=1e-4)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [8, None])
def test_on_correlated_inputs_the_search_never_errs_more_than_nearest(
    symmetric: bool, group_size: int | None
) -> None:
    gram = correlated(32)
    weight = torch.randn(16, 32)
    for bits in (2, 3, 4, 8):
        grid = IntGrid(bits, group_size, "float32", symmetric)
        widest = output_error(grid.round(weight, *widest_scales(weight, grid)) - weight, gram)
        found = output_error(grid.round(weight, *search_scales(weight, grid, gram)) - weight, gram)
        assert bool((found <= widest * (1 + 1e-4)).all())
        assert bits > 4 or float(found.sum()) < 0.95 * float(widest.sum())


def test_a_gram_without_correlations_finds_what_its_diagonal_finds() -> None:
    torch.manual_seed(0)
    weight, importance, grid = torch.randn(5, 16), torch.rand(16), IntGrid(3, 4, "float32")
    by_gram, _ = search_scales(weight, grid, importance.diag())
    assert torch.equal(by_gram, search_scales(weight, grid, importance)[0])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_groups_of_zeros_and_single_signs_stay_what_they_are(symmetric: bool, dtype: str) -> None:
    weight = torch.stack([torch.zeros(8), torch.full((8,), 0.5), -torch.arange(8.0), torch.eye(8)[3]])
    for importance in (None, torch.zeros(8), torch.ones(8), torch.eye(8)):
        grid = IntGrid(8, 4, dtype, symmetric)
        rounded = grid.round(weight, *search_scales(weight, grid, importance))
        assert rounded.isfinite().all() and torch.equal(rounded[0], weight[0])
        assert torch.allclose(rounded, weight, atol=0.06)
        assert torch.equal(rounded[3] != 0, weight[3] != 0)


def test_zeros_are_points_of_a_grid_with_zero_points() -> None:
    torch.manual_seed(0)
    weight = torch.rand(4, 16) + 0.5
    weight[:, ::3] = 0
    grid = IntGrid(4, 8, "bfloat16", symmetric=False)
    assert bool((grid.round(weight, *widest_scales(weight, grid))[:, ::3] == 0).all())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(16, 32), (12, 24)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_codes_are_read_back_by_the_formats_own_code(
    bits: int, shape: tuple[int, int], symmetric: bool
) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    torch.manual_seed(0)
    weight, grid = torch.randn(shape), IntGrid(bits, 8, "bfloat16", symmetric)
    scale, zero = widest_scales(weight, grid)
    made = GroupGrid(grid.encode(weight, scale, zero), scale, bits, zero)
    arguments = QuantizationArgs(
        num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=8
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    reader = BaseCompressor.get_value_from_registry("pack-quantized")
    read = reader.decompress(made.tensors(), scheme)["weight"]
    assert torch.equal(read, made.dense())
    assert torch.equal(made.dense().float(), grid.round(weight, scale, zero).bfloat16().float())


def test_a_stacked_grid_splits_into_those_of_its_layers() -> None:
    weight, grid = torch.randn(10, 16), IntGrid(4, 8, "float32", symmetric=False)
    whole, zero = widest_scales(weight, grid)
    parts = GroupGrid(grid.encode(weight, whole, zero), whole, 4, zero).split([3, 7])
    for part, rows in zip(parts, weight.split([3, 7]), strict=True):
        scale, zero = widest_scales(rows, grid)
        assert torch.equal(part.dense(), GroupGrid(grid.encode(rows, scale, zero), scale, 4, zero).dense())


@pytest.mark.parametrize("average", [3.0, 3.3, 4.0, 4.5, 5.9, 8.0])
def test_no_mixture_within_the_budget_errs_less(average: float) -> None:
    torch.manual_seed(3)
    offered, sizes = (3, 4, 8), [6, 10, 4, 16, 2, 30]
    for _ in range(20):
        errors = (torch.rand(6, 3).cumsum(dim=1).flip(1)).tolist()
        found = cheapest(errors, sizes, offered, average=average)
        budget = average * sum(sizes)
        assert sum(n * b for n, b in zip(sizes, found, strict=True)) <= budget + 1e-9
        best = min(
            sum(errors[i][offered.index(b)] for i, b in enumerate(choice))
            for choice in itertools.product(offered, repeat=6)
            if sum(n * b for n, b in zip(sizes, choice, strict=True)) <= budget + 1e-9
        )
        total = sum(errors[i][offered.index(b)] for i, b in enumerate(found))
        assert total == pytest.approx(best)


def test_odd_sizes_still_keep_the_budget() -> None:
    torch.manual_seed(0)
    sizes = (torch.randint(10**6, 10**7, (40,)) * 2 + 1).tolist()
    errors = torch.rand(40, 3).cumsum(dim=1).flip(1).tolist()
    found = cheapest(errors, sizes, (3, 4, 8), average=4.5)
    spent = sum(n * b for n, b in zip(sizes, found, strict=True)) / sum(sizes)
    assert 4.4 < spent <= 4.5


def test_a_budget_below_the_least_bits_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"average_bits: 2\.5 is less than the layers"):
        cheapest([[1.0, 0.5]], [8], (3, 4), average=2.5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(64, 256), (7, 24), (1, 8)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_compiled_search_finds_what_plain_torch_finds(
    bits: int, shape: tuple[int, int], symmetric: bool
) -> None:
    torch.manual_seed(0)
    weight, grid = torch.randn(shape), IntGrid(bits, 8, "bfloat16", symmetric)
    groups, weighing = grid.groups(weight), torch.rand(shape[1]).view(-1, 8)
    options = [widest_scales(weight, grid, shrink=shrink) for shrink in SHRINKS]
    scales = torch.stack([scale for scale, _ in options], dim=-1)
    zeros = None if symmetric else torch.stack([z for _, z in options if z is not None], dim=-1)
    compiled = _best_options(groups, weighing, (scales, zeros), grid)
    plain = best_options_in_torch(groups, weighing, (scales, zeros), grid)
    assert float((compiled == plain).float().mean()) > 0.99  # sums in another order may tie

    def error(best: torch.Tensor) -> torch.Tensor:
        errors = [((grid._rounded(groups, s, z) - groups).square() * weighing).sum(-1) for s, z in options]
        return torch.stack(errors).gather(0, best[None])[0]

    assert torch.allclose(error(compiled), error(plain), rtol=1e-4)


def test_compiled_loops_leave_torchs_number_of_threads_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        search_scales(torch.randn(64, 64), IntGrid(4, 8, "float32"), None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
