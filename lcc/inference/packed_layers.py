"""Layers whose weights stay as they are stored: half a float32, or codes of a grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from lcc.core.lazy import transformers

if TYPE_CHECKING:
    from torch import Tensor

FEW = 12  # rows up to which codes are multiplied as they are; more are worth widening them
CHUNK = 1 << 20  # weights widened at once: in float32 no more than a cache holds
PARALLEL = 1 << 22  # weights from which on a product is worth waking other threads
BITS = 4  # codes of at most so many are stored two in a byte


class Weights(ABC):
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


class HalfWeights(Weights):
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


class GridWeights(Weights):
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
        found = out[: len(part) * self.shape[1]].view(len(part), self.shape[1])
        _kernels().widen_grid(part, self._scales[rows], self._zeros[rows], found.numpy())
        return found

    def looked_up(self, ids: Tensor) -> Tensor:
        rows, where = torch.unique(ids.flatten(), return_inverse=True)
        picked = rows.numpy()
        found = torch.empty(len(picked), self.shape[1])
        _kernels().widen_grid(self._codes[picked], self._scales[picked], self._zeros[picked],
                              found.numpy())  # fmt: skip
        return found[where].view(*ids.shape, self.shape[1])

    @property
    def bytes(self) -> int:
        return int(self._codes.nbytes + self._scales.nbytes + self._zeros.nbytes)


@cache
def _kernels() -> Any:
    """Imported when one runs, and asked for at every product: an import statement costs 1 µs."""
    from lcc.inference import row_kernels

    return row_kernels


def _is_parallel(shape: tuple[int, int]) -> bool:
    return torch.get_num_threads() > 1 and shape[0] * shape[1] >= PARALLEL


def _parallel(run: Any) -> Any:
    from lcc.compression.compiled_threads import follow_torch

    follow_torch()
    return run


_scratch: dict[str, Tensor] = {}


class PackedLinear(torch.nn.Module):
    """A linear layer over stored weights; `weight` has their shape, and no numbers."""

    def __init__(self, weights: Weights, bias: Tensor | None) -> None:
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

    def __init__(self, weights: Weights, padding: int | None) -> None:
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
    stored = {id(layer.weights): layer.weights for layer in module.modules()
              if isinstance(layer, PackedLinear | PackedEmbedding)}  # fmt: skip
    biases = sum(layer.bias.numel() for layer in module.modules()
                 if isinstance(layer, PackedLinear) and layer.bias is not None)  # fmt: skip
    weights = sum(each.shape[0] * each.shape[1] for each in stored.values())
    others: int = sum(p.numel() for p in module.parameters())
    return weights + biases + others
