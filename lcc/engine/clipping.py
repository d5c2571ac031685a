"""Norms of gradients and bounds on them, for whole tensors and for the shards of FSDP2 alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch
from lcc.engine.optimization import ClipResult
from lcc.engine.storing import is_sharded, local

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


def gradients_of(parameters: Iterable[Parameter]) -> list[Tensor]:
    """The gradients that are there: a parameter that the loss does not reach has none."""
    return [p.grad for p in parameters if p.grad is not None]


def gradient_norm(parameters: Iterable[Parameter]) -> float:
    """The 2-norm over all gradients, infinite or NaN where one of them is."""
    gradients = gradients_of(parameters)
    return joint_norm(norms(gradients)) if gradients else 0.0


def joint_norm(found: Tensor) -> float:
    """The 2-norm over tensors whose own norms are `found`."""
    return float(torch.linalg.vector_norm(found))


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """(num_tensors,) 2-norms of whole tensors, of which this rank may hold a shard each."""
    held = [precise(local(tensor)) for tensor in tensors]
    found = torch.stack(torch._foreach_norm(held))
    if not any(map(is_sharded, tensors)):
        return found
    # In float32 the square of a norm of 1e20 would be infinite.
    return over_shards(found.double().square(), tensors).sqrt().to(found.dtype)


def bound_norm(parameters: Mapping[str, Parameter], norm: float, *, threshold: float) -> ClipResult:
    """Scale all gradients, whose joint norm is `norm`, in place so that it is at most `threshold`.

    A norm that is not finite is told and changes nothing.
    """
    is_above = threshold < norm < float("inf")
    if is_above:
        held = [local(gradient) for gradient in gradients_of(parameters.values())]
        torch._foreach_mul_(held, threshold / norm)
    return ClipResult(norm, threshold, float(is_above))


def precise(tensor: Tensor) -> Tensor:
    """Half precision in float32: sums of its squares would lose all but three digits."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def over_shards(values: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """values[i], found on this rank's part of tensors[i], summed over the parts of that tensor.

    One message for all tensors that are sharded alike; replicas are not counted twice.
    """
    spread: dict[tuple[Any, int], list[int]] = {}
    for index, tensor in enumerate(tensors):
        sharded: Any = tensor
        for axis, placement in enumerate(sharded.placements if is_sharded(tensor) else ()):
            if placement.is_shard():
                spread.setdefault((sharded.device_mesh, axis), []).append(index)
    summed = values.clone()
    for (mesh, axis), indices in spread.items():
        part = summed[indices]
        torch.distributed.all_reduce(part, group=mesh.get_group(axis))
        summed[indices] = part
    return summed
