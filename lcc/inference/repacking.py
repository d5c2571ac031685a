"""A dense module's weights as its folder stores them, where that is faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lcc.core.lazy import compressed_tensors
from lcc.inference.packed_layers import (
    BITS,
    GridWeights,
    HalfWeights,
    PackedEmbedding,
    PackedLinear,
    Weights,
    linear_weight,
)
from lcc.parts.folder import read_json
from lcc.parts.tensor_files import StoredTensors

if TYPE_CHECKING:
    from torch import Tensor

FEW_WEIGHTS = 1 << 23  # below this the caches hold everything
ROUNDS, SECONDS = 3, 1.0  # of each of the two sweeps that are compared


def repacked(module: Any, folder: Path, *, measure: bool = True) -> str:
    """Put packed layers into a float32 module on a CPU, in place; what was done, as a sentence.

    With `measure` only where one token's products are faster so on this machine.
    """
    layers = {name: layer for name, layer in module.named_modules()
              if linear_weight(layer) is not None}  # fmt: skip
    total = sum(layer.weight.numel() for layer in layers.values())
    if measure and total < FEW_WEIGHTS:
        return ""
    stored = StoredTensors(folder)
    config = read_json(folder / "config.json").get("quantization_config") or {}
    found = {name: weights for name, layer in layers.items()
             if (weights := _weights(name, layer, stored, config)) is not None}  # fmt: skip
    if not found:
        return ""
    told = ""
    if measure:
        dense, packed = _seconds(layers, found)
        told = (f"one token's products take {1000 * packed:.1f} ms from stored weights, "
                f"{1000 * dense:.1f} ms in float32")  # fmt: skip
        if packed >= dense:
            return f"weights: float32, as {told}."
    _put(module, layers, found)
    kinds = {type(weights).__name__ for weights in found.values()}
    words = " and ".join(sorted({"GridWeights": "codes of its grid", "HalfWeights": "bfloat16"}[k]
                                for k in kinds))  # fmt: skip
    size = sum(weights.bytes for weights in found.values()) / 1e6
    grid = (
        "; the grid's own numbers, without the rounding of a dense load" if len(words) > 8 else ""
    )
    return f"weights: {words}, as stored ({size:,.0f} MB){grid}{told and '; ' + told}."


def _weights(name: str, layer: Any, stored: StoredTensors, config: Any) -> Weights | None:
    """The layer's weights in the smallest form that means just them."""
    weight = linear_weight(layer)
    assert weight is not None
    grid = _grid(name, weight, stored, config)
    if grid is not None:
        return grid
    if hasattr(layer, "quantization_scheme"):
        return None  # It rounds its inputs, in a forward of its own.
    return HalfWeights(weight) if HalfWeights.fits(weight) else None


def _grid(name: str, weight: Tensor, stored: StoredTensors, config: Any) -> GridWeights | None:
    # A tied head is stored under the embedding's name.
    aliases = [name, "model.embed_tokens", "shared", "transformer.wte", "model.shared"]
    for alias in aliases if "head" in name else aliases[:1]:
        if f"{alias}.weight_packed" in stored.entries:
            break
    else:
        return None
    unpack: Any = compressed_tensors.compressors.pack_quantized.helpers.unpack_from_int32
    read = {leaf: stored.read(f"{alias}.weight_{leaf}") for leaf in ("packed", "scale", "shape")}
    scale, shape = read["scale"], torch.Size(read["shape"].tolist())
    bits = read["packed"].shape[1] * 32 // shape[1]
    codes = unpack(read["packed"], bits, shape)
    zero = None
    if f"{alias}.weight_zero_point" in stored.entries:
        zero = unpack(stored.read(f"{alias}.weight_zero_point"), bits, scale.shape, packed_dim=0)
    if shape != weight.shape or shape[1] % (scale.shape[1] * (2 if bits <= BITS else 1)):
        return None
    return GridWeights(codes, scale, zero, bits) if GridWeights.fits(
        weight, codes, scale, zero) else None  # fmt: skip


def _put(module: Any, layers: dict[str, Any], found: dict[str, Weights]) -> None:
    """Packed layers in place of dense ones; an embedding tied to one of them shares its memory."""
    embedding = module.get_input_embeddings()
    shared = {id(layers[name].weight): weights for name, weights in found.items()}
    tied = shared.get(id(embedding.weight)) if type(embedding) is torch.nn.Embedding else None
    for name, weights in found.items():
        parent, _, leaf = name.rpartition(".")
        bias = getattr(layers[name], "bias", None)
        packed = PackedLinear(weights, None if bias is None else bias.detach())
        setattr(module.get_submodule(parent), leaf, packed)
    if tied is not None:
        lookup = PackedEmbedding(tied, embedding.padding_idx)
        for owner in list(module.modules()):
            for leaf, child in list(owner.named_children()):
                if type(child) is type(embedding) and child.weight is embedding.weight:
                    setattr(owner, leaf, lookup)


def _seconds(layers: dict[str, Any], found: dict[str, Weights]) -> tuple[float, float]:
    """Of all products that a token needs, one after another as in the model: dense, and stored."""
    inputs = {size: torch.ones(1, size) for size in {w.shape[1] for w in found.values()}}
    weights = [linear_weight(layers[name]) for name in found]

    def dense() -> None:
        for weight in weights:
            assert weight is not None
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    def packed() -> None:
        for each in found.values():
            each.product(inputs[each.shape[1]])

    with torch.inference_mode():
        return _best(dense), _best(packed)


def _best(work: Callable[[], None]) -> float:
    work()
    times: list[float] = []
    while len(times) < ROUNDS or (sum(times) < SECONDS and len(times) < 10 * ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
