"""Low-rank changes of a layer that keep its outputs, by what its inputs look like.

The error of a change Δ of the weight is tr(Δ H Δᵀ) with the Gram H = Σ x xᵀ = R Rᵀ, and that is the
squared Frobenius norm of Δ R: the best change of rank k is the truncated SVD of Δ R times R⁻¹
(Eckart–Young). SVD-LLM v2 (arXiv 2503.12340) and QERA (arXiv 2410.06040) both rest on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 1e-10  # of the largest eigenvalue: directions that no input ever took
LEAST_SHARE = 0.25  # of the uniform rank, for a layer that others outbid


@dataclass(frozen=True)
class Whitening:
    """R and R⁻¹ of a Gram, float64: inputs times R⁻ᵀ are uncorrelated."""

    root: Tensor  # (in, in)
    inverse: Tensor  # (in, in)


def whitening(gram: Tensor, *, damping: float = 0.0) -> Whitening:
    """From the eigenvalues, which a Gram without full rank has too; `damping` of their mean."""
    h = gram.double()
    h = h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype, device=h.device)
    values, vectors = torch.linalg.eigh(h)
    scale = values.clamp(min=LEAST * float(values[-1].clamp(min=1e-300))).sqrt()
    return Whitening(vectors * scale, (vectors / scale).T)


@dataclass(frozen=True)
class Decomposition:
    """A matrix as `left` (out, k) · diag(`values`) · `right` (k, in), the largest values first."""

    left: Tensor
    values: Tensor
    right: Tensor

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(up (out, rank), down (rank, in)), each carrying half of every value."""
        half = self.values[:rank].sqrt()
        return self.left[:, :rank] * half, half[:, None] * self.right[:rank]

    @property
    def energy(self) -> Tensor:
        """Squared error that each further rank takes away."""
        return self.values.square()


def decompose(matrix: Tensor, whitened: Whitening) -> Decomposition:
    """The matrix in order of what its parts give on the inputs: every truncation is optimal.

    From the eigenvectors of the smaller square, a few times faster than an SVD; each part is the
    matrix's own projection on one of them, so that squaring costs nothing but the order of parts
    below 1e-8 of the largest.
    """
    white = matrix.double() @ whitened.root
    is_tall = white.shape[0] >= white.shape[1]
    square = white.T @ white if is_tall else white @ white.T
    energies, vectors = torch.linalg.eigh(square)
    values, vectors = energies.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    divisor = values.clamp(min=1e-12 * float(values[0]) + 1e-300)
    if is_tall:
        return Decomposition(white @ vectors / divisor, values, vectors.T @ whitened.inverse)
    right = vectors.T @ white / divisor[:, None]
    return Decomposition(vectors, values, right @ whitened.inverse)


def break_even(num_outputs: int, num_inputs: int) -> int:
    """From this rank on the factors are no smaller than the matrix."""
    return -(-num_outputs * num_inputs // (num_outputs + num_inputs))


def uniform_ranks(shapes: Mapping[str, tuple[int, int]], ratio: float) -> dict[str, int]:
    """Each layer loses the same share of its parameters."""
    return {n: max(1, int((1 - ratio) * o * i / (o + i))) for n, (o, i) in shapes.items()}


def ranks_by_loss(
    energies: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], ratio: float
) -> dict[str, int]:
    """Ranks of the least summed relative output error for the parameters that are left.

    A further rank of any layer takes less away than the one before, so taking the ranks with the
    most error per parameter first is optimal. A layer that reaches the size of its matrix stays
    whole (rank = `break_even`); none falls below a quarter of its uniform rank.
    """
    uniform = uniform_ranks(shapes, ratio)
    ranks = {n: max(1, int(LEAST_SHARE * rank)) for n, rank in uniform.items()}
    left = (1 - ratio) * sum(o * i for o, i in shapes.values())
    left -= sum(rank * sum(shapes[n]) for n, rank in ranks.items())
    for _, name in sorted(_offers(energies, shapes, ranks), reverse=True):
        cost = sum(shapes[name])
        if cost <= left and ranks[name] < break_even(*shapes[name]):
            ranks[name] += 1
            left -= cost
    return ranks


def _offers(
    energies: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int]
) -> list[tuple[float, str]]:
    found = []
    for name, energy in energies.items():
        gains = energy / energy.sum().clamp(min=1e-300) / sum(shapes[name])
        found += [(float(gain), name) for gain in gains[ranks[name] :]]
    return found


def output_share(change: Tensor, weight: Tensor, gram: Tensor) -> float:
    """Mean squared output of `change` over that of `weight`."""
    h = gram.double()
    lost, whole = (((m.double() @ h) * m.double()).sum() for m in (change, weight))
    return float(lost / whole.clamp(min=1e-300))
