"""The column pass equals the papers' loops, column by column in float64, and its own reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lcc.compression.obs_solver import GramFactor, Levels, factorize, layer_error, quotas, solve_columns
from lcc.compression.quantization_grid import IntGrid, output_error, search_scales
from lcc.compression.sparsity import Pattern
from lcc.kernels import obs_columns

GRID = IntGrid(bits=4, group_size=8, dtype="float32", symmetric=False)


@dataclass
class Case:
    weight: Tensor  # (out, in)
    gram: Tensor

    def levels(self, grid: IntGrid = GRID) -> Levels:
        scale, zero = search_scales(self.weight, grid, self.gram.diagonal())
        middle = torch.zeros_like(scale) if zero is None else zero
        return Levels(scale, middle, grid.lowest, grid.highest)

    def error(self, new: Tensor) -> float:
        change = output_error(new - self.weight, self.gram).sum()
        return float(change / output_error(self.weight, self.gram).sum())


def case(num_outputs: int, num_inputs: int, *, num_tokens: int = 4096) -> Case:
    """Inputs of very different size that mix: a Gram of condition above 1e3."""
    torch.manual_seed(0)
    mixed = torch.randn(num_tokens, num_inputs) @ torch.randn(num_inputs, num_inputs)
    x = mixed * torch.logspace(0, 1.5, num_inputs)[torch.randperm(num_inputs)]
    gram = x.T @ x
    assert torch.linalg.cond(gram.double()) > 1e3
    return Case(torch.randn(num_outputs, num_inputs), gram)


Solve = Callable[[Tensor, int], Tensor]
"""The weights of one column (out,) and its index in the old layout → what is put in its place."""


def column_by_column(
    case: Case, order: Tensor, put: Callable[[Tensor, Tensor, int], Tensor], *, damping: float
) -> Tensor:
    """GPTQ's loop as it is published: the Cholesky factor of the inverse, no blocks.

    `put(weights, costs, i)` gives the i-th column's new values from what all columns are now.
    """
    gram = case.gram.double() + damping * case.gram.diagonal().double().mean() * torch.eye(
        len(case.gram), dtype=torch.float64
    )
    inverse = torch.linalg.inv(gram[order][:, order])
    upper = torch.linalg.cholesky(inverse, upper=True)
    weights = case.weight.double()[:, order]
    done = torch.empty_like(weights)
    for i in range(len(order)):
        done[:, i] = put(weights, (weights / upper.diagonal()).square(), i)
        error = (weights[:, i] - done[:, i]) / upper[i, i]
        weights[:, i:] -= error[:, None] * upper[i, i:]
    return done[:, order.argsort()]


def rounding(levels: Levels, order: Tensor, *, mask: Any = None) -> Any:
    size = len(order) // levels.scale.shape[1]

    def put(weights: Tensor, costs: Tensor, i: int) -> Tensor:
        group = int(order[i]) // size
        scale, zero = levels.scale[:, group].double(), levels.zero[:, group].double()
        code = ((weights[:, i] / scale).round() + zero).clamp(levels.lowest, levels.highest)
        value = (code - zero) * scale
        return value if mask is None else value * mask(weights, costs, i)

    return put


def two_of_four() -> Any:
    kept: dict[int, Tensor] = {}

    def mask(_weights: Tensor, costs: Tensor, i: int) -> Tensor:
        if i % 4 == 0:
            best = costs[:, i : i + 4].topk(2, dim=1).indices
            kept[i] = torch.zeros(len(costs), 4).scatter_(1, best, 1.0).double()
        return kept[i - i % 4][:, i % 4]

    return mask


def as_many_as_wanda(case: Case, order: Tensor, size: int) -> Any:
    """Half of all weights; each block of columns loses what Wanda would take of it in number."""
    wanda = (case.weight * case.gram.diagonal().sqrt()).abs()[:, order]
    taken = (wanda <= wanda.flatten().sort().values[wanda.numel() // 2 - 1]).long()
    kept: dict[int, Tensor] = {}

    def mask(_weights: Tensor, costs: Tensor, i: int) -> Tensor:
        if i % size == 0:
            block = costs[:, i : i + size].flatten()
            gone = block.argsort()[: int(taken[:, i : i + size].sum())]
            kept[i] = torch.ones_like(block).index_fill_(0, gone, 0.0).view(-1, size)
        return kept[i - i % size][:, i % size]

    return mask


def half(case: Case, factor: GramFactor, scope: Any, *, block_size: int) -> Any:
    """What stays of each block when half of a case's weights go."""
    patterns, sizes = [Pattern("unstructured", 0.5)], [len(case.weight)]
    diagonal = case.gram.diagonal()
    return quotas(
        case.weight,
        diagonal,
        factor.order,
        patterns=patterns,
        sizes=sizes,
        scope=scope,
        block_size=block_size,
    ).choose


def pruning(mask: Any) -> Any:
    return lambda weights, costs, i: weights[:, i] * mask(weights, costs, i)


def dense(codes: Tensor, levels: Levels) -> Tensor:
    groups = codes.view(*levels.scale.shape, -1).float() - levels.zero.float()[..., None]
    return (groups * levels.scale[..., None]).view(codes.shape)


@pytest.mark.parametrize("order", ["layout", "falling", "rising"])
def test_gptq_equals_the_published_loop(order: Any) -> None:
    small = case(6, 48)
    levels = small.levels()
    factor = factorize(small.gram, order=order)
    codes = solve_columns(small.weight, factor, levels=levels, block_size=16)
    put = rounding(levels, factor.order)
    expected = column_by_column(small, factor.order, put, damping=0.01)
    assert torch.allclose(dense(codes, levels).double(), expected, atol=1e-5)


@pytest.mark.parametrize("order", ["layout", "falling", "rising"])
def test_two_of_four_equals_the_published_loop(order: Any) -> None:
    small = case(6, 48)
    factor = factorize(small.gram, order=order, unit=4)
    found = solve_columns(small.weight, factor, pattern=(2, 4), block_size=16)
    expected = column_by_column(small, factor.order, pruning(two_of_four()), damping=0.01)
    assert torch.allclose(found.double(), expected, atol=1e-4)
    assert ((found.view(-1, 4) != 0).sum(dim=1) == 2).all()


@pytest.mark.parametrize("order", ["layout", "rising"])
def test_unstructured_equals_the_published_loop(order: Any) -> None:
    small = case(6, 48)
    factor = factorize(small.gram, order=order)
    choose = half(small, factor, "layer", block_size=16)
    found = solve_columns(small.weight, factor, choose=choose, block_size=16)
    put = pruning(as_many_as_wanda(small, factor.order, 16))
    expected = column_by_column(small, factor.order, put, damping=0.01)
    assert torch.allclose(found.double(), expected, atol=1e-4)
    assert int((found == 0).sum()) == 6 * 24


def test_mask_and_grid_in_one_pass_equal_the_published_loop() -> None:
    small = case(6, 48)
    levels = small.levels()
    factor = factorize(small.gram, order="falling", unit=4)
    codes = solve_columns(small.weight, factor, levels=levels, pattern=(2, 4), block_size=16)
    put = rounding(levels, factor.order, mask=two_of_four())
    expected = column_by_column(small, factor.order, put, damping=0.01)
    assert torch.allclose(dense(codes, levels).double(), expected, atol=1e-5)


PASSES: dict[str, dict[str, Any]] = {
    "grid": {"levels": True},
    "2:4": {"pattern": (2, 4)},
    "4:8": {"pattern": (4, 8)},
    "half": {"choose": True},
    "2:4 on a grid": {"levels": True, "pattern": (2, 4)},
    "half on a grid": {"levels": True, "choose": True},
}


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("num_outputs", [1, 150])  # less and more than the tile of a thread
def test_the_compiled_pass_equals_plain_torch(
    name: str, num_outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = case(num_outputs, 72)
    options = dict(PASSES[name])
    if options.pop("levels", False):
        options["levels"] = wide.levels()
    factor = factorize(wide.gram, order="falling", unit=8)
    if options.pop("choose", False):
        options["choose"] = half(wide, factor, "row", block_size=32)
    compiled = solve_columns(wide.weight, factor, block_size=32, **options)
    monkeypatch.setattr(obs_columns, "solve", obs_columns.solve_in_torch)
    plain = solve_columns(wide.weight, factor, block_size=32, **options)
    assert torch.allclose(compiled.float(), plain.float(), atol=1e-5)


def test_looking_ahead_rounds_the_same() -> None:
    small = case(6, 304)
    levels = small.levels()
    factor = factorize(small.gram)
    ahead, behind = (
        solve_columns(small.weight, factor, levels=levels, choose=choose)
        for choose in (lambda costs, _: torch.ones_like(costs), None)
    )
    assert float((ahead == behind).float().mean()) > 0.99  # Ties fall either way.


def test_the_block_size_changes_nothing() -> None:
    small = case(5, 64)
    levels, factor = small.levels(), factorize(small.gram, order="falling")
    codes = [solve_columns(small.weight, factor, levels=levels, block_size=b) for b in (8, 24, 64, 128)]
    assert all(torch.equal(codes[0], other) for other in codes[1:])


def test_rows_are_solved_alone_so_layers_may_be_stacked() -> None:
    wide = case(140, 32)
    levels, factor = wide.levels(), factorize(wide.gram)
    whole = solve_columns(wide.weight, factor, levels=levels)
    top = replace(levels, scale=levels.scale[:10], zero=levels.zero[:10])
    assert torch.equal(solve_columns(wide.weight[:10], factor, levels=top), whole[:10])


def test_damping_rises_until_the_gram_is_positive_definite() -> None:
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    gram = x.T @ x
    gram.diagonal().sub_(0.3)  # What rounding does to a Gram of too few tokens, and worse.
    factor = factorize(gram, damping=0.001)
    assert 0.001 < factor.damping <= 1.0
    assert bool(factor.feedback.isfinite().all())


def test_a_dead_input_is_rounded_alone_and_pruned_first() -> None:
    small = case(4, 16)
    small.gram[5], small.gram[:, 5] = 0.0, 0.0
    levels, factor = small.levels(), factorize(small.gram)
    found = dense(solve_columns(small.weight, factor, levels=levels), levels)
    nearest = GRID.round(small.weight, levels.scale, levels.zero.to(torch.int8))
    assert torch.equal(found[:, 5], nearest[:, 5])
    pruned = solve_columns(small.weight, factorize(small.gram), pattern=(2, 4))
    assert (pruned[:, 5] == 0).all()


def test_a_gram_that_is_not_finite_is_refused() -> None:
    small = case(4, 16)
    small.gram[3, 3] = torch.nan
    with pytest.raises(Exception, match="non-finite numbers"):
        factorize(small.gram)


def test_a_weight_of_bfloat16_is_solved_in_float32() -> None:
    small = case(4, 16)
    factor: GramFactor = factorize(small.gram)
    found = solve_columns(small.weight.bfloat16(), factor, pattern=(2, 4))
    assert found.dtype == torch.float32


def test_the_layer_error_of_few_rows_is_that_of_all() -> None:
    small = case(40, 16)
    change = torch.randn_like(small.weight)
    exact = small.error(small.weight + change)
    assert layer_error(change, small.weight, small.gram) == pytest.approx(exact, rel=1e-4)
    sampled = layer_error(change, small.weight, small.gram, num_rows=20)
    assert sampled == pytest.approx(exact, rel=0.5)
