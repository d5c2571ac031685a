"""What became of a layer that was made sparse, and where in the model it stands."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lcc.compression.columns import layer_error
from lcc.compression.patterns import Pattern
from lcc.core.errors import GateError
from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

    from lcc.engine.statistics import LayerStats

SAMPLE_BYTES = 1 << 22  # enough to measure how well zeros compress


def facts(
    dense: Tensor, layer: Linear, stats: LayerStats | None, pattern: Pattern
) -> dict[str, Any]:
    """What became of one layer; GateError when it missed what was asked."""
    weight = layer.weight.detach()
    zeros, asked = int((weight == 0).sum()), pattern.num_zeros(layer.in_features)
    if zeros < asked * layer.out_features:
        raise GateError(f"sparsify: a layer has {zeros} zeros, {asked} in every row were asked.")
    found: dict[str, Any] = {"zeros": zeros, "size": weight.numel(), "asked": pattern.sparsity}
    change = weight - dense
    if stats is not None and stats.gram is not None:
        found["layer_error"] = layer_error(change, dense, stats.gram)
    elif stats is not None:
        lost, whole = ((w.float().square() @ stats.diagonal).sum() for w in (change, dense))
        found["diagonal_error"] = float(lost / whole.clamp(min=torch.finfo(torch.float32).tiny))
    return found


def block_of(name: str) -> str:
    """`model.layers.3` of `model.layers.3.mlp.up_proj`: up to the first number."""
    parts = name.split(".")
    number = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: number + 1])


def stacks(blocks: Mapping[str, int]) -> list[list[str]]:
    """Blocks of one list of modules belong together."""
    stacks: dict[str, list[str]] = {}
    for block in blocks:
        stacks.setdefault(block.rpartition(".")[0], []).append(block)
    return list(stacks.values())


def zipped(dense: Tensor, layer: Linear, *, dtype: str) -> dict[str, float]:
    """Bytes after zlib over bytes before, of a layer as it is stored now and as it was."""
    return {"zipped": _zipped(layer.weight, dtype), "zipped_dense": _zipped(dense, dtype)}


def _zipped(weight: Tensor, dtype: str) -> float:
    stored = weight.detach().to("cpu", getattr(torch, dtype)).contiguous()
    raw = stored.view(torch.uint8).numpy().tobytes()[:SAMPLE_BYTES]
    return len(zlib.compress(raw, 6)) / len(raw)
