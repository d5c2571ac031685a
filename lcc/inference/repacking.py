"""A module in memory with its weights as the folder stores them, where that is faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lcc.core.lazy import compressed_tensors, transformers
from lcc.inference.packed_layers import (
    BITS,
    GridWeights,
    HalfWeights,
    PackedEmbedding,
    PackedLinear,
    Weights,
    linear_weight,
)
from lcc.parts.allocator import keep_large_blocks, return_large_blocks
from lcc.parts.factors import FORMAT as FACTORED
from lcc.parts.packed import rounds_inputs, unpacked_tensors
from lcc.parts.streaming import Streamed, skeleton

if TYPE_CHECKING:
    from lcc.parts.model import Bundle
    from lcc.parts.tensor_files import StoredTensors

FEW_WEIGHTS = 1 << 23  # below this the caches hold everything
SAMPLE = 1 << 26  # weights that are multiplied both ways to compare
ROUNDS, SECONDS = 3, 1.0  # of each of the two sweeps that are compared


def as_stored(bundle: Bundle, *, measure: bool = True) -> tuple[Any, str]:
    """The bundle's module on a CPU with its linear layers' weights as its folder stores them and
    everything else in float32; what was done, as a sentence. None where it is to be loaded dense.

    With `measure` only where one token's products are faster so on this machine. Weights are read
    one by one, so that memory never holds them in float32.
    """
    if bundle.path is None or not _is_plain(bundle):
        return None, ""
    return_large_blocks()  # what is read and widened in turns would leave holes
    try:
        return _read_as_stored(bundle, bundle.path, measure)
    finally:
        keep_large_blocks()


def _read_as_stored(bundle: Bundle, folder: Path, measure: bool) -> tuple[Any, str]:
    streamed = Streamed(skeleton(bundle), unpacked_tensors(folder))
    if streamed.missing():
        return None, ""  # Stored under other names, which from_pretrained knows to convert.
    module = streamed.module
    layers = {name: layer for name, layer in module.named_modules()
              if linear_weight(layer) is not None}  # fmt: skip
    total = sum(layer.weight.numel() for layer in layers.values())
    if measure and total < FEW_WEIGHTS:
        return None, ""
    found, sample, told = dict[str, Weights](), list[tuple[Tensor, Weights]](), ""
    for name, weight, weights in _read(streamed, layers):
        if weights is None:
            continue
        found[name] = weights
        if measure and sum(w.numel() for w, _ in sample) < min(SAMPLE, total // 2):
            sample.append((weight.float(), weights))
    if sample:
        share = sum(w.numel() for w, _ in sample) / total
        dense, packed = (1000 * seconds / share for seconds in _seconds(sample))
        told = (f"one token's products take {packed:.1f} ms from stored weights, {dense:.1f} ms in "
                "float32")  # fmt: skip
        if packed >= dense:
            return None, f"weights: float32, as {told}."
        sample.clear()
    if not found:
        return None, ""
    _put(module, layers, found)
    _bring(streamed)
    if (folder / "generation_config.json").is_file():
        module.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return module, _sentence(found, told)


def _is_plain(bundle: Bundle) -> bool:
    """Whether nothing but its weights is stored in another way than a plain module has it."""
    card = bundle.card
    if card.adapter or card.format == FACTORED:
        return False
    if card.form != "packed":
        return True
    assert bundle.path is not None
    return card.format == "compressed-tensors" and not rounds_inputs(bundle.path)


def _read(
    streamed: Streamed, layers: dict[str, Any]
) -> Iterator[tuple[str, Tensor, Weights | None]]:
    """Each layer's weight (N, K), and the smallest form that means just that, if there is one."""
    first = {alias: name for name, names in streamed.sharing.items() for alias in names}
    for name, layer in layers.items():
        source = streamed.source[first[f"{name}.weight"]]
        if source is None:
            continue
        weight = streamed.stored.read(source)
        if type(layer) is not torch.nn.Linear:
            weight = weight.T
        yield name, weight, _weights(source.removesuffix(".weight"), weight, streamed.stored)


def _bring(streamed: Streamed) -> None:
    """Into memory what still stands as a parameter, in float32."""
    for first, names in streamed.sharing.items():
        source = streamed.source[first]
        owners = [(streamed.module.get_submodule(owner), leaf)
                  for owner, _, leaf in (name.rpartition(".") for name in names)]  # fmt: skip
        places = [(owner, leaf) for owner, leaf in owners if leaf in owner._parameters]
        if source is None or not places:
            continue
        values = streamed.stored.read(source, dtype=torch.float32)
        parameter = torch.nn.Parameter(values, requires_grad=False)
        for owner, leaf in places:
            owner._parameters[leaf] = parameter


def _sentence(found: dict[str, Weights], told: str) -> str:
    kinds = {type(weights).__name__ for weights in found.values()}
    words = " and ".join(sorted({"GridWeights": "codes of its grid", "HalfWeights": "bfloat16"}[k]
                                for k in kinds))  # fmt: skip
    size = sum(weights.bytes for weights in found.values()) / 1e6
    grid = (
        "; the grid's own numbers, without the rounding of a dense load" if len(words) > 8 else ""
    )
    return f"weights: {words}, as stored ({size:,.0f} MB){grid}{told and '; ' + told}."


def _weights(name: str, weight: Tensor, stored: StoredTensors) -> Weights | None:
    """The weight that is stored under `name` in the smallest form that means just it."""
    if f"{name}.weight_packed" in stored.entries:
        return _grid(name, weight.float(), stored)
    return HalfWeights(weight) if HalfWeights.fits(weight) else None


def _grid(name: str, weight: Tensor, stored: StoredTensors) -> GridWeights | None:
    unpack: Any = compressed_tensors.compressors.pack_quantized.helpers.unpack_from_int32
    read = {leaf: stored.read(f"{name}.weight_{leaf}") for leaf in ("packed", "scale", "shape")}
    scale, shape = read["scale"], torch.Size(read["shape"].tolist())
    bits = read["packed"].shape[1] * 32 // shape[1]
    codes = unpack(read["packed"], bits, shape)
    zero = None
    if f"{name}.weight_zero_point" in stored.entries:
        zero = unpack(stored.read(f"{name}.weight_zero_point"), bits, scale.shape, packed_dim=0)
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


def _seconds(sample: list[tuple[Tensor, Weights]]) -> tuple[float, float]:
    """Of these products, one after another as in the model: dense, and stored."""
    inputs = {size: torch.ones(1, size) for size in {weight.shape[1] for weight, _ in sample}}

    def dense() -> None:
        for weight, _ in sample:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    def packed() -> None:
        for weight, each in sample:
            each.product(inputs[weight.shape[1]])

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
