"""Linear layers whose weights stay as they are stored: bfloat16, or codes of a grid."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lcc.core import format
from lcc.core.lazy import compressed_tensors, transformers
from lcc.core.machine import keep_large_blocks, return_large_blocks
from lcc.models.formats import FORMAT as FACTORED
from lcc.models.formats import rounds_inputs, unpacked_tensors
from lcc.models.offload import OffloadedModule, skeleton

if TYPE_CHECKING:
    from lcc.models.bundle import Bundle
    from lcc.models.safetensors_io import StoredTensors

FEW = 12  # rows up to which codes are multiplied as they are; more are worth widening them
CHUNK = 1 << 20  # weights widened at once: in float32 no more than a cache holds
PARALLEL = 1 << 22  # weights from which on a product is worth waking other threads
BITS = 4  # codes of at most so many are stored two in a byte


class StoredMatrix(ABC):
    """A matrix (N, K): `product` with a few rows, `widened` rows of it as float32."""

    shape: tuple[int, int]

    @abstractmethod
    def product(self, inputs: Tensor) -> Tensor:
        """(B, K) → (B, N)"""
        ...

    @abstractmethod
    def widened(self, rows: slice, out: Tensor) -> Tensor:
        """`out`'s beginning as (rows, K)."""
        ...

    @abstractmethod
    def looked_up(self, ids: Tensor) -> Tensor:
        """Rows by number, (..., K)."""
        ...

    @property
    @abstractmethod
    def bytes(self) -> int:
        """What it takes in memory."""
        ...


class HalfWeights(StoredMatrix):
    """bfloat16 numbers, multiplied as the float32 numbers that they are."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.to(torch.bfloat16).contiguous()
        self.shape = (weight.shape[0], weight.shape[1])
        self._bits = self.weight.view(torch.uint16).numpy()

    @staticmethod
    def fits(weight: Tensor) -> bool:
        """Whether no number changes."""
        return bool(torch.equal(weight.to(torch.bfloat16).to(weight.dtype), weight))

    def product(self, inputs: Tensor) -> Tensor:
        out = torch.empty(inputs.shape[0], self.shape[0])
        run = _kernels().bf16_product
        if _is_parallel(self.shape):
            run = _parallel(_kernels().bf16_product_parallel)
        run(self._bits, inputs.numpy(), out.numpy())
        return out

    def widened(self, rows: slice, out: Tensor) -> Tensor:
        part = self.weight[rows]
        return out[: part.numel()].view(part.shape).copy_(part)

    def looked_up(self, ids: Tensor) -> Tensor:
        return torch.nn.functional.embedding(ids, self.weight).float()

    @property
    def bytes(self) -> int:
        return self.weight.nbytes


class GridWeights(StoredMatrix):
    """Codes (N, K) less their group's zero, times its scale."""

    def __init__(self, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> None:
        self.shape = (codes.shape[0], codes.shape[1])
        groups = scale.shape[1]
        zeros = torch.zeros_like(scale, dtype=torch.float32) if zero is None else zero.float()
        if bits <= BITS:
            halves = (codes.to(torch.int16) + 8).to(torch.uint8).view(len(codes), groups, 2, -1)
            codes = (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(len(codes), -1)
            zeros = zeros + 8
        self._codes = codes.contiguous().numpy()
        self._scales, self._zeros = scale.float().contiguous().numpy(), zeros.contiguous().numpy()
        self._group_size = self.shape[1] // groups

    @staticmethod
    def fits(weight: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None) -> bool:
        """Whether the codes mean this weight, which a dense load may round to bfloat16."""
        groups = codes.float().view(*scale.shape, -1)
        if zero is not None:
            groups = groups - zero.float()[..., None]
        meant = (groups * scale.float()[..., None]).view(codes.shape)
        return bool(torch.allclose(meant, weight, rtol=2**-8, atol=1e-8))

    def product(self, inputs: Tensor) -> Tensor:
        out = torch.empty(inputs.shape[0], self.shape[0])
        parallel = _is_parallel(self.shape)
        run = _kernels().grid_product(self._group_size, parallel=parallel)
        run = _parallel(run) if parallel else run
        run(self._codes, self._scales, self._zeros, inputs.numpy(), out.numpy())
        return out

    def widened(self, rows: slice, out: Tensor) -> Tensor:
        part = self._codes[rows]
        dense = out[: len(part) * self.shape[1]].view(len(part), self.shape[1])
        _kernels().widen_grid(part, self._scales[rows], self._zeros[rows], dense.numpy())
        return dense

    def looked_up(self, ids: Tensor) -> Tensor:
        rows, where = torch.unique(ids.flatten(), return_inverse=True)
        picked = rows.numpy()
        dense = torch.empty(len(picked), self.shape[1])
        _kernels().widen_grid(self._codes[picked], self._scales[picked], self._zeros[picked], dense.numpy())
        return dense[where].view(*ids.shape, self.shape[1])

    @property
    def bytes(self) -> int:
        return int(self._codes.nbytes + self._scales.nbytes + self._zeros.nbytes)


@cache
def _kernels() -> Any:
    """Imported when one runs, and asked for at every product: an import statement costs 1 µs."""
    from lcc.kernels import matvec

    return matvec


def _is_parallel(shape: tuple[int, int]) -> bool:
    return torch.get_num_threads() > 1 and shape[0] * shape[1] >= PARALLEL


def _parallel(run: Any) -> Any:
    from lcc.kernels import follow_torch

    follow_torch()
    return run


_scratch: dict[str, Tensor] = {}


class PackedLinear(torch.nn.Module):
    """A linear layer over stored weights; `weight` has their shape, and no numbers."""

    def __init__(self, weights: StoredMatrix, bias: Tensor | None) -> None:
        super().__init__()
        self.weights, self.bias = weights, bias
        self.out_features, self.in_features = weights.shape
        self.weight = torch.zeros(1).expand(weights.shape)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, self.in_features)
        product = self.weights.product if rows.shape[0] <= FEW else self._widely
        out = product(rows.contiguous())
        if self.bias is not None:
            out += self.bias
        return out.view(*inputs.shape[:-1], self.out_features)

    def _widely(self, rows: Tensor) -> Tensor:
        """Widen a piece that stays in the cache, and multiply it by all rows."""
        step = max(1, CHUNK // self.in_features)
        size = min(step, self.out_features) * self.in_features
        if len(_scratch.get("", ())) < size:
            _scratch[""] = torch.empty(size)
        out = torch.empty(rows.shape[0], self.out_features)
        for start in range(0, self.out_features, step):
            piece = self.weights.widened(slice(start, start + step), _scratch[""])
            out[:, start : start + step] = rows @ piece.T
        return out


class PackedEmbedding(torch.nn.Module):
    """Rows of a stored matrix by number."""

    def __init__(self, weights: StoredMatrix, padding: int | None) -> None:
        super().__init__()
        self.weights, self.padding_idx = weights, padding
        self.num_embeddings, self.embedding_dim = weights.shape
        self.weight = torch.zeros(1).expand(weights.shape)

    def forward(self, ids: Tensor) -> Tensor:
        return self.weights.looked_up(ids)


def linear_weight(layer: Any) -> Tensor | None:
    """(N, K) of a linear layer, GPT-2's turned; None for any other module."""
    if type(layer) is torch.nn.Linear:
        return layer.weight
    if type(layer) is transformers.pytorch_utils.Conv1D:
        turned: Tensor = layer.weight.T
        return turned
    return None


def num_parameters(module: Any) -> int:
    """Of a module some of whose weights may be stored ones; what is tied counts once."""
    stored = {
        id(layer.weights): layer.weights
        for layer in module.modules()
        if isinstance(layer, PackedLinear | PackedEmbedding)
    }
    biases = sum(
        layer.bias.numel()
        for layer in module.modules()
        if isinstance(layer, PackedLinear) and layer.bias is not None
    )
    weights = sum(each.shape[0] * each.shape[1] for each in stored.values())
    others: int = sum(p.numel() for p in module.parameters())
    return weights + biases + others


# A module in memory with its weights as the folder stores them, where that is faster.

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
    streamed = OffloadedModule(skeleton(bundle.card, folder), unpacked_tensors(folder))
    if streamed.missing():
        return None, ""  # Stored under other names, which from_pretrained knows to convert.
    module = streamed.module
    layers = {name: layer for name, layer in module.named_modules() if linear_weight(layer) is not None}
    total = sum(layer.weight.numel() for layer in layers.values())
    if measure and total < FEW_WEIGHTS:
        return None, ""
    by_layer, sample, timing = dict[str, StoredMatrix](), list[tuple[Tensor, StoredMatrix]](), ""
    for name, weight, weights in _read(streamed, layers):
        if weights is None:
            continue
        by_layer[name] = weights
        if measure and sum(w.numel() for w, _ in sample) < min(SAMPLE, total // 2):
            sample.append((weight.float(), weights))
    if sample:
        share = sum(w.numel() for w, _ in sample) / total
        dense, packed = (1000 * seconds / share for seconds in _seconds(sample))
        timing = f"one token's products take {packed:.1f} ms from stored weights, {dense:.1f} ms in float32"
        if packed >= dense:
            return None, f"weights: float32, as {timing}."
        sample.clear()
    if not by_layer:
        return None, ""
    _put(module, layers, by_layer)
    _bring(streamed)
    if (folder / "generation_config.json").is_file():
        module.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return module, _sentence(by_layer, timing)


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
    streamed: OffloadedModule, layers: dict[str, Any]
) -> Iterator[tuple[str, Tensor, StoredMatrix | None]]:
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


def _bring(streamed: OffloadedModule) -> None:
    """Into memory what still stands as a parameter, in float32."""
    for first, names in streamed.sharing.items():
        source = streamed.source[first]
        owners = [
            (streamed.module.get_submodule(owner), leaf)
            for owner, _, leaf in (name.rpartition(".") for name in names)
        ]
        places = [(owner, leaf) for owner, leaf in owners if leaf in owner._parameters]
        if source is None or not places:
            continue
        values = streamed.stored.read(source, dtype=torch.float32)
        parameter = torch.nn.Parameter(values, requires_grad=False)
        for owner, leaf in places:
            owner._parameters[leaf] = parameter


def _sentence(by_layer: dict[str, StoredMatrix], timing: str) -> str:
    kinds = {type(weights).__name__ for weights in by_layer.values()}
    words = " and ".join(
        sorted({"GridWeights": "codes of its grid", "HalfWeights": "bfloat16"}[k] for k in kinds)
    )
    size = format.size(sum(weights.bytes for weights in by_layer.values()))
    grid = "; the grid's own numbers, without the rounding of a dense load" if len(words) > 8 else ""
    return f"weights: {words}, as stored ({size}){grid}{timing and '; ' + timing}."


def _weights(name: str, weight: Tensor, stored: StoredTensors) -> StoredMatrix | None:
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
    return GridWeights(codes, scale, zero, bits) if GridWeights.fits(weight, codes, scale, zero) else None


def _put(module: Any, layers: dict[str, Any], by_layer: dict[str, StoredMatrix]) -> None:
    """Packed layers in place of dense ones; an embedding tied to one of them shares its memory."""
    embedding = module.get_input_embeddings()
    shared = {id(layers[name].weight): weights for name, weights in by_layer.items()}
    tied = shared.get(id(embedding.weight)) if type(embedding) is torch.nn.Embedding else None
    for name, weights in by_layer.items():
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


def _seconds(sample: list[tuple[Tensor, StoredMatrix]]) -> tuple[float, float]:
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
