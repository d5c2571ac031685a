"""Low-rank factors that do not begin at zero: PiSSA's principal directions, LoftQ's lost ones."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import bitsandbytes, safetensors_torch, torch
from lcc.parts.folder import read_json
from lcc.parts.tensor_files import StoredTensors

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from lcc.parts.model import Bundle

NUM_ITERATIONS = 16  # of the randomised SVD


def initial_factors(model: Module) -> dict[str, Tensor]:
    """A copy of every A and B by the name under which peft stores it."""
    return {name.replace(".default.", "."): parameter.detach().to("cpu", copy=True)
            for name, parameter in model.named_parameters()
            if "lora_A" in name or "lora_B" in name}  # fmt: skip


def subtract_at_writing(bundle: Bundle, initial: Mapping[str, Tensor]) -> None:
    """Let BA − B₀A₀ be stored, one adapter of twice the rank: the base is as it always was."""
    write = bundle.write
    assert write is not None

    def written(changed: Bundle, folder: Path) -> None:
        write(changed, folder)
        _subtract(folder, initial)

    bundle.write = written


def _subtract(folder: Path, initial: Mapping[str, Tensor]) -> None:
    file, told = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    stored, config = safetensors_torch.load_file(file), read_json(told)
    for name, start in initial.items():
        if "lora_A" in name:
            stored[name] = torch.cat([stored[name], start])  # (2 rank, in)
        else:
            stored[name] = torch.cat([stored[name], -start], dim=1)  # (out, 2 rank)
    rank = config["r"]
    scaling = config["lora_alpha"] / (math.sqrt(rank) if config["use_rslora"] else rank)
    config |= {"r": 2 * rank, "lora_alpha": scaling * 2 * rank, "use_rslora": False,
               "init_lora_weights": True}  # fmt: skip
    safetensors_torch.save_file(stored, file, metadata={"format": "pt"})
    told.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def make_up_for_nf4(model: Any, bundle: Bundle) -> None:
    """Let every adapter begin as the best change of its rank to what NF4 lost, in place.

    One turn of LoftQ: the quantized weights stay those that anybody quantizes from this base.
    """
    assert bundle.path is not None
    stored, prefix = StoredTensors(bundle.path), model.get_base_model().base_model_prefix
    for name, layer in model.get_base_model().named_modules():
        packed: Any = getattr(getattr(layer, "base_layer", None), "weight", None)
        if not hasattr(packed, "quant_state"):
            continue
        rough = bitsandbytes.functional.dequantize_4bit(packed.data, packed.quant_state)
        lost = _stored(stored, f"{name}.weight", prefix).to(rough).float() - rough.float()
        up, down = _factors(lost, layer.r["default"])
        layer.lora_B["default"].weight.data.copy_(up)
        layer.lora_A["default"].weight.data.copy_(down / layer.scaling["default"])


def _stored(stored: StoredTensors, name: str, prefix: str) -> Tensor:
    """The tensor under its own name, or as the bare body of the model calls it."""
    aliases = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
    return stored.read(next(alias for alias in aliases if alias in stored.entries))


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    left, values, right = torch.svd_lowrank(matrix, q=min(rank, *matrix.shape),
                                            niter=NUM_ITERATIONS)  # fmt: skip
    half = values.sqrt()
    return left * half, half[:, None] * right.T
