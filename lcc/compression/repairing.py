"""Closed-form repair of a layer that lost some of its inputs, from the Gram of its old inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def ridge_repair(weight: Tensor, gram: Tensor, kept: Tensor, *, damping: float) -> Tensor:
    """The weight on the kept inputs that reproduces the old output best, in least squares.

    W' = W G[:, K] (G[K, K] + λI)⁻¹ with λ = damping · mean(diag G[K, K]), plus what pulls W' to
    the old W[:, K] instead of to zero: damping must not shrink a layer that lost nothing.
    weight (out, in), gram (in, in), kept (num_kept,) → (out, num_kept), solved in float64.
    """
    w, g = weight.double(), gram.double()
    inner = g[kept][:, kept]
    strength = damping * inner.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    regular = inner + strength * torch.eye(len(kept), dtype=g.dtype, device=g.device)
    target = w @ g[:, kept] + strength * w[:, kept]
    return torch.cholesky_solve(target.T, torch.linalg.cholesky(regular)).T.to(weight.dtype)


def bias_repair(weight: Tensor, mean: Tensor, kept: Tensor) -> Tensor:
    """What the lost inputs gave on average: (out,) to add to the bias."""
    lost = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    lost[kept] = False
    return weight[:, lost] @ mean[lost].to(weight.dtype)


def relative_error(weight: Tensor, new: Tensor, kept: Tensor, gram: Tensor) -> float:
    """Mean squared change of the layer's output over its mean square: tr(ΔW G ΔWᵀ) / tr(W G Wᵀ)."""
    change = weight.float().clone()
    change[:, kept] -= new.float()
    lost = ((change @ gram) * change).sum()
    whole = ((weight.float() @ gram) * weight.float()).sum()
    return float(lost / whole.clamp(min=torch.finfo(torch.float32).tiny))
