"""Packed checkpoints as their own libraries read them: group grids, and the folder around them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch
from lcc.models.card import write_config
from lcc.models.checkpoint import write_streamed
from lcc.models.safetensors_io import TensorFolder

if TYPE_CHECKING:
    from torch import Tensor

    from lcc.compression.quantization_grid import IntGrid
    from lcc.models.bundle import Bundle

Replaced = Mapping[str, dict[str, "Tensor"]]  # layer name → what is stored instead of its weight
# One scale per token, found as it runs: compressed-tensors' W8A8.
TOKEN_INPUTS: dict[str, Any] = {
    "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
}  # fmt: skip


@dataclass(frozen=True)
class GroupGrid:
    """Integer codes with one scale per group of inputs, as compressed-tensors stores them."""

    codes: Tensor  # (out, in) int8
    scale: Tensor  # (out, groups) in the checkpoint's dtype
    bits: int
    zero: Tensor | None = None  # (out, groups) int8; None for a symmetric grid
    packs: bool = True  # several codes in one int32, or (for kernels of 8 bits) each its byte

    def dense(self) -> Tensor:
        groups = self.codes.view(*self.scale.shape, -1).to(self.scale.dtype)
        if self.zero is not None:
            groups = groups - self.zero[..., None].to(self.scale.dtype)
        return (groups * self.scale[..., None]).view(self.codes.shape)

    def tensors(self) -> dict[str, Tensor]:
        from compressed_tensors.compressors.pack_quantized import pack_to_int32

        if not self.packs:
            assert self.zero is None, "single bytes are stored of symmetric grids only"
            return {"weight": self.codes, "weight_scale": self.scale}
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
        return [replace(self, codes=code, scale=scale, zero=zero) for code, scale, zero in parts]

    def scaled(self, factors: Tensor) -> GroupGrid:
        """Every row times its factor (out,): the same codes, other scales."""
        scale = (self.scale.float() * factors.float()[:, None]).to(self.scale.dtype)
        return replace(self, scale=scale)


def integer_config(
    grids: Mapping[str, IntGrid], *, targets: list[str], skipped: list[str], rounds_inputs: bool = False
) -> dict[str, Any]:
    """compressed-tensors' `quantization_config` of layers by name: all of the types
    `targets` but the `skipped`.

    With one grid for all, transformers is told to unpack at load: it could not keep zero points,
    embeddings or T5 packed, and runs dense weights faster than packed ones. Several grids it reads
    only packed, and unpacks at the first forward.
    """
    kinds: dict[IntGrid, list[str]] = {}
    for name, grid in grids.items():
        kinds.setdefault(grid, []).append(name)
    groups = {
        f"group_{i}": {
            "targets": targets if len(kinds) == 1 else names,
            "weights": _weights(grid),
            **({"input_activations": TOKEN_INPUTS} if rounds_inputs else {}),
        }
        for i, (grid, names) in enumerate(kinds.items())
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if rounds_inputs else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": skipped,
        **({"dequantize": True} if len(kinds) == 1 and not rounds_inputs else {}),
    }


def input_rounding(config: dict[str, Any]) -> dict[str, Any] | None:
    """How a `quantization_config` has the inputs of its layers rounded; None: not at all."""
    groups = config.get("config_groups", {}).values()
    return next((group.get("input_activations") for group in groups), None)


def _weights(grid: IntGrid) -> dict[str, Any]:
    size = grid.group_size
    return {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": grid.symmetric,
        **({"strategy": "group", "group_size": size} if size else {"strategy": "channel"}),
    }


def write_packed(
    bundle: Bundle, folder: Path, *, replaced: Replaced, quantization_config: dict[str, Any]
) -> None:
    """Weights and config into `folder`; the module in memory stays as it is."""
    if bundle.streamed is not None:
        assert isinstance(replaced, TensorFolder), "a streamed model's layers live in files"
        entries = {name: replaced.entries(name) for name in replaced}
        write_streamed(bundle, folder, replaced=entries, quantization_config=quantization_config)
        return
    module = bundle.load(device=None, dtype=None)
    state = packed_state(module, replaced, dtype=bundle.card.dtype)
    module.save_pretrained(folder, state_dict=state)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"dtype": bundle.card.dtype, "quantization_config": quantization_config}
    write_config(file, config)


def packed_state(module: Any, replaced: Replaced, *, dtype: str) -> dict[str, Tensor]:
    """The state dict with packed layers; floats in `dtype`, shared storage kept shared."""
    done: dict[tuple[int, Any], Tensor] = {}
    state: dict[str, Tensor] = {}
    whole = module.state_dict()
    packed_weights = {whole[f"{layer}.weight"].data_ptr() for layer in replaced}
    for name, tensor in whole.items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight" and layer in replaced:
            packed = replaced[layer].items()
            state |= {f"{layer}.{key}": value.cpu().contiguous() for key, value in packed}
            continue
        if tensor.data_ptr() in packed_weights:
            continue  # Tied to a packed one: stored once.
        wanted = getattr(torch, dtype) if tensor.is_floating_point() else tensor.dtype
        state[name] = done.setdefault((tensor.data_ptr(), tensor.shape), tensor.to(wanted))
    return state


def part_table(model: Any, packed_bytes: Mapping[str, int], *, dtype: str) -> list[dict[str, Any]]:
    """Bytes of blocks' layers, embedding, head and the rest, stored dense and now."""
    width = torch.finfo(getattr(torch, dtype)).bits // 8
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows_of = getattr(embedding, "weight", None)  # a vision model's has patches, not rows
    tied = head is not None and head.weight is rows_of
    names = {rows_of: "embedding and tied head" if tied else "embedding"}
    if head is not None and not tied:
        names[head.weight] = "head"
    rows: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        packed = packed_bytes.get(name.removesuffix(".weight"), 0) if name[-6:] == "weight" else 0
        part = names.get(parameter, "quantized layers" if packed else "other")
        row = rows.setdefault(part, {"part": part, "before": 0, "after": 0})
        row["before"] += parameter.numel() * width
        row["after"] += packed or parameter.numel() * width
    return list(rows.values())
