"""What was pruned stays zero: masks for full training, and adapters that respect them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Masks = Mapping[str, "Tensor"]
"""By parameter name: True where a linear weight is kept."""


def zero_masks(model: Module) -> dict[str, Tensor]:
    """The zero pattern of every linear weight that has zeros."""
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            kept = module.weight.detach() != 0
            if not bool(kept.all()):
                masks[f"{name}.weight"] = kept
    return masks


def mask_gradients(model: Module, masks: Masks) -> None:
    """Zero the gradients of pruned weights, in place, so that clipping does not count them."""
    for name, kept in masks.items():
        gradient = model.get_parameter(name).grad
        if gradient is not None:
            gradient.mul_(kept)


def mask_weights(model: Module, masks: Masks) -> None:
    """Put pruned weights back to zero, in place."""
    with torch.no_grad():
        for name, kept in masks.items():
            model.get_parameter(name).mul_(kept)


def mask_adapters(model: Module) -> None:
    """Make every LoRA or VeRA layer over a sparse weight compute with W + mask ⊙ BA, in place."""
    for layer in model.modules():
        base = getattr(layer, "base_layer", None)
        if not hasattr(layer, "get_delta_weight") or not isinstance(base, torch.nn.Linear):
            continue
        kept = base.weight.detach() != 0
        if not bool(kept.all()):
            layer.forward = partial(_masked_forward, layer, kept)


def _masked_forward(layer: Any, kept: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    unchanged: Tensor = layer.base_layer(x)
    if layer.merged or layer.disable_adapters:
        return unchanged
    (name,) = layer.active_adapters
    change = layer.get_delta_weight(name) * kept  # (out, in)
    dropout = layer.vera_dropout if hasattr(layer, "vera_dropout") else layer.lora_dropout
    dropped = dropout[name](x).to(change.dtype)
    return unchanged + torch.nn.functional.linear(dropped, change).to(unchanged.dtype)
