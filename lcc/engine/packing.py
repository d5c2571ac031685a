"""Packed checkpoints as their own libraries read them: group grids, and the folder around them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.parts.model import Bundle

Replaced = dict[str, dict[str, "Tensor"]]  # layer name → what is stored instead of its weight


@dataclass(frozen=True)
class GroupGrid:
    """Integer codes with one scale per group of inputs, as compressed-tensors stores them."""

    codes: Tensor  # (out, in) int8
    scale: Tensor  # (out, groups) in the checkpoint's dtype
    bits: int
    zero: Tensor | None = None  # (out, groups) int8; None for a symmetric grid

    def dense(self) -> Tensor:
        groups = self.codes.view(*self.scale.shape, -1).to(self.scale.dtype)
        if self.zero is not None:
            groups = groups - self.zero[..., None].to(self.scale.dtype)
        return (groups * self.scale[..., None]).view(self.codes.shape)

    def tensors(self) -> dict[str, Tensor]:
        from compressed_tensors.compressors.pack_quantized import pack_to_int32

        tensors = {
            "weight_packed": pack_to_int32(self.codes, self.bits),
            "weight_scale": self.scale,
            "weight_shape": torch.tensor(self.codes.shape),
        }
        if self.zero is not None:
            tensors["weight_zero_point"] = pack_to_int32(self.zero, self.bits, packed_dim=0)
        return tensors

    def split(self, sizes: Sequence[int]) -> list[GroupGrid]:
        """The grids of the layers whose rows stand one below the other."""
        codes, scales = torch.split(self.codes, list(sizes)), torch.split(self.scale, list(sizes))
        zeros = [None] * len(sizes) if self.zero is None else torch.split(self.zero, list(sizes))
        parts = zip(codes, scales, zeros, strict=True)
        return [GroupGrid(code, scale, self.bits, zero) for code, scale, zero in parts]


def compressed_tensors_config(
    bits: int, group_size: int | None, *, skipped: list[str]
) -> dict[str, Any]:
    """`quantization_config` for weight-only integers, all linear layers but the skipped."""
    weights: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": True}
    weights |= (
        {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    )
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": skipped,
    }


def write_packed(
    bundle: Bundle, folder: Path, *, replaced: Replaced, quantization_config: dict[str, Any]
) -> None:
    """Weights and config into `folder`; the module in memory stays dense."""
    module = bundle.load(device=None, dtype=None)
    state = packed_state(module, replaced, dtype=bundle.card.dtype)
    module.save_pretrained(folder, state_dict=state)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"dtype": bundle.card.dtype, "quantization_config": quantization_config}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def packed_state(module: Any, replaced: Replaced, *, dtype: str) -> dict[str, Tensor]:
    """The state dict with packed layers; floats in `dtype`, shared storage kept shared."""
    done: dict[tuple[int, Any], Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight" and layer in replaced:
            packed = replaced[layer].items()
            state |= {f"{layer}.{key}": value.cpu().contiguous() for key, value in packed}
            continue
        wanted = getattr(torch, dtype) if tensor.is_floating_point() else tensor.dtype
        state[name] = done.setdefault((tensor.data_ptr(), tensor.shape), tensor.to(wanted))
    return state
