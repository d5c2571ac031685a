"""What eight-bit products by row do to a model, computed in PyTorch: CTranslate2's int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MOST = 127
# Tables that are read as weights are stored; tables of positions stay as they are.
TABLES = ("embed_tokens", "shared", "wte", "word_embeddings", "token_type_embeddings")


def by_row(values: Tensor) -> Tensor:
    """The nearest of 255 numbers between minus and plus the largest of each row (..., columns)."""
    scale = values.abs().amax(-1, keepdim=True) / MOST
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (values / scale).round() * scale


class EightBitLinear(torch.nn.Linear):
    """Weights rounded by row once, inputs by token each time."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        self.weight = torch.nn.Parameter(by_row(weight), requires_grad=False)
        if bias is not None:
            self.bias = torch.nn.Parameter(bias, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """As its parent, of rounded inputs."""
        return functional.linear(by_row(input), self.weight, self.bias)


class EightBitConv1d(torch.nn.Module):
    """A convolution over time as a product of windows with rows, both rounded."""

    def __init__(self, conv: torch.nn.Conv1d) -> None:
        super().__init__()
        # Named as a convolution's own, which a model may look at.
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding
        self.inner = EightBitLinear(conv.weight.detach().flatten(1), conv.bias)
        self.weight = self.inner.weight

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, frames) in and out."""
        room = int(self.padding[0])
        # (batch, channels, frames, width)
        windows = functional.pad(input, (room, room)).unfold(2, self.kernel_size[0], self.stride[0])
        found: Tensor = self.inner(windows.permute(0, 2, 1, 3).flatten(2))
        return found.transpose(1, 2)


def round_to_eight_bits(module: Any) -> Any:
    """Every product's weights and inputs, and the tables of tokens; in place."""
    for name, part in list(module.named_modules()):
        weight: Any = getattr(part, "weight", None)
        if isinstance(part, torch.nn.Linear):
            module.set_submodule(name, EightBitLinear(weight.detach(), part.bias))
        elif type(part).__name__ == "Conv1D":  # GPT-2's, which lies the other way round
            module.set_submodule(name, EightBitLinear(weight.detach().T, part.bias))
        elif isinstance(part, torch.nn.Conv1d):
            module.set_submodule(name, EightBitConv1d(part))
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.Embedding) and name.rpartition(".")[2] in TABLES:
            part.weight.data = by_row(part.weight.detach())
    return module
