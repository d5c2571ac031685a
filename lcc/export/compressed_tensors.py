"""Export to compressed-tensors: packed as the checkpoint lies, or rounded to nearest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lcc.compression.packed_format import GroupGrid, integer_config, write_packed
from lcc.compression.quantization_grid import IntGrid, widest_scales
from lcc.core.lazy import torch, transformers
from lcc.inference.sidecar import write_sidecar
from lcc.models.blocks import block_linears
from lcc.models.bundle import open_bundle
from lcc.models.card import auto_class, hush, read_card

TYPES = ["Linear"]


def refusal(folder: Path, format: str) -> str | None:
    """Why a checkpoint is not packed so, as a sentence."""
    card = read_card(folder)
    if card.form == "packed" and card.format != format:
        return (
            f"it is packed as {card.format} already; export the dense model before it, so that "
            "it is rounded once."
        )
    if card.adapter or card.loads_with == "lcc":
        return "its layers are more than weights; merge the adapter first."
    return None


def copied(source: Path, target: Path, format: str) -> bool:
    """Copy a checkpoint that is in the format already; whether it was."""
    if read_card(source).format != format:
        return False
    shutil.copytree(source, target, dirs_exist_ok=True)
    return True


def pack_integers(
    source: Path, target: Path, *, bits: int, group_size: int, symmetric: bool
) -> dict[str, Any]:
    """The blocks' linear layers on grids of compressed-tensors, rounded to the nearest."""
    bundle = open_bundle(source)
    model = bundle.load(dtype="float32")
    dtype = "bfloat16" if bundle.card.dtype == "float32" else bundle.card.dtype
    bundle.with_card(form="packed", format="compressed-tensors", dtype=dtype)
    layers = block_linears(model)
    grids, replaced, dense = {}, {}, []
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        if name not in layers or module.in_features % group_size:
            dense.append(name)
            continue
        grid = IntGrid(bits, group_size, dtype, symmetric)
        scale, zero = widest_scales(module.weight.detach(), grid)
        codes = grid.encode(module.weight.detach(), scale, zero)
        grids[name] = grid
        replaced[name] = GroupGrid(codes, scale, bits, zero=zero).tensors()
    config = integer_config(grids, targets=TYPES, skipped=sorted(dense))
    write_packed(bundle, target, replaced=replaced, quantization_config=config)
    write_sidecar(
        source,
        target,
        form="packed",
        format="compressed-tensors",
        dtype=dtype,
        requires=("compressed-tensors",),
    )
    return {"bytes_of_type": {f"int{bits}": _weight_bytes(target)}, "kept_dense": sorted(dense)}


def pack_bitsandbytes(source: Path, target: Path, *, bits: int) -> dict[str, Any]:
    """By transformers' own loading with bitsandbytes: int8 rows, or NF4 with double scales."""
    hush()
    card = read_card(source)
    if bits == 8:
        options: dict[str, Any] = {"load_in_8bit": True}
    else:
        # Without double scales a forward before saving ruins what is saved.
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    kind: Any = transformers.BitsAndBytesConfig
    wanted = kind(**options)
    module = auto_class(card).from_pretrained(
        source, quantization_config=wanted, dtype=torch.bfloat16, use_safetensors=True
    )
    module.save_pretrained(target)
    write_sidecar(
        source, target, form="packed", format="bitsandbytes", dtype="bfloat16", requires=("bitsandbytes",)
    )
    return {"bytes_of_type": {f"bnb{bits}": _weight_bytes(target)}}


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
