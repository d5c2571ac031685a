"""Low-rank approximations reach the optimum that Eckart and Young proved, and spend ranks well."""

from __future__ import annotations

import itertools

import pytest
import torch

from lcc.compression.lowrank import (
    break_even,
    decompose,
    output_share,
    ranks_by_loss,
    uniform_ranks,
    whitening,
)


def correlated(num: int, width: int) -> torch.Tensor:
    """Inputs whose Gram has a condition number beyond a thousand."""
    torch.manual_seed(0)
    return torch.randn(num, width) * torch.logspace(0, -2, width) @ torch.randn(width, width)


@pytest.mark.parametrize("num", [400, 5])  # the second has fewer tokens than inputs
@pytest.mark.parametrize("shape", [(16, 10), (6, 10)])
def test_a_truncation_is_the_optimum_in_the_whitened_norm(num: int, shape: tuple[int, int]) -> None:
    x, weight = correlated(num, shape[1]).double(), torch.randn(*shape).double()
    found = decompose(weight, whitening(x.T @ x))
    outputs = weight @ x.T
    values = torch.linalg.svdvals(outputs)
    for rank in range(1, min(shape)):
        up, down = found.factors(rank)
        assert (up.shape, down.shape) == ((shape[0], rank), (rank, shape[1]))
        lost = (outputs - up @ down @ x.T).norm()
        optimum = values[rank:].norm()
        assert float(lost) == pytest.approx(float(optimum), rel=1e-4, abs=1e-4 * float(values[0]))


def test_it_beats_the_plain_svd_on_the_outputs() -> None:
    x, weight = correlated(300, 12), torch.randn(8, 12)
    gram = x.T @ x
    up, down = decompose(weight, whitening(gram)).factors(3)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    plain = (left[:, :3] * values[:3]) @ right[:3]
    ours = output_share(weight - (up @ down).float(), weight, gram)
    assert ours < 0.8 * output_share(weight - plain, weight, gram)


def test_the_whole_decomposition_is_the_matrix() -> None:
    x, weight = correlated(300, 6), torch.randn(4, 6)
    up, down = decompose(weight, whitening(x.T @ x, damping=0.01)).factors(4)
    assert torch.allclose((up @ down).float(), weight, atol=1e-4)


def test_output_share_is_that_of_the_outputs() -> None:
    x, weight, change = correlated(50, 6), torch.randn(3, 6), torch.randn(3, 6)
    expected = (x @ change.T).square().sum() / (x @ weight.T).square().sum()
    assert output_share(change, weight, x.T @ x) == pytest.approx(float(expected), rel=1e-3)


def test_ranks_by_loss_are_the_best_of_all_that_fit() -> None:
    torch.manual_seed(0)
    shapes = {"a": (8, 8), "b": (8, 8), "c": (12, 8)}
    energies = {
        n: torch.rand(8).sort(descending=True).values ** p for n, p in zip(shapes, (1, 6, 3), strict=True)
    }
    found = ranks_by_loss(energies, shapes, 0.4)
    budget = 0.6 * sum(o * i for o, i in shapes.values())

    def lost(ranks: dict[str, int]) -> float:
        return sum(float(energies[n][k:].sum() / energies[n].sum()) for n, k in ranks.items())

    def size(ranks: dict[str, int]) -> int:
        return sum(k * sum(shapes[n]) for n, k in ranks.items())

    assert size(found) <= budget
    every = (dict(zip(shapes, ks, strict=True)) for ks in itertools.product(range(1, 5), repeat=3))
    best = min((ranks for ranks in every if size(ranks) <= budget), key=lost)
    # Greedy is optimal but for what a last whole rank of another size would fill.
    assert lost(found) <= lost(best) + 0.03
    assert lost(found) < lost(uniform_ranks(shapes, 0.4))
    assert found["b"] < found["a"]


def test_uniform_ranks_take_the_same_share_of_every_layer() -> None:
    shapes = {"a": (100, 50), "b": (60, 300)}
    for name, rank in uniform_ranks(shapes, 0.3).items():
        outputs, inputs = shapes[name]
        assert rank * (outputs + inputs) / (outputs * inputs) == pytest.approx(0.7, abs=0.02)
    assert break_even(100, 50) == 34 and 34 * 150 >= 5000 > 33 * 150
