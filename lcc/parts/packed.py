"""Checkpoints of compressed-tensors as dense modules, by the format's own code."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from lcc.parts.folder import read_json
from lcc.parts.tensor_files import Entry, StoredTensors

STORED = ("weight_scale", "weight_zero_point", "weight_shape")


def is_one_scheme(folder: Path) -> bool:
    """Whether transformers' `dequantize=True` reads `folder` right.

    It takes the first group of the config for every layer, and forgets the rounding of inputs.
    """
    groups = read_json(folder / "config.json")["quantization_config"]["config_groups"]
    return len(groups) == 1 and not any(g.get("input_activations") for g in groups.values())


def rounds_inputs(folder: Path) -> bool:
    """Whether layers of the packed model in `folder` round what they are given."""
    told = read_json(folder / "config.json").get("quantization_config") or {}
    groups = (told.get("config_groups") or {}).values()
    return any(group.get("input_activations") for group in groups)


def unpacked(module: Any) -> Any:
    """A natively loaded module with dense weights, in place; inputs are rounded as they were."""
    module.hf_quantizer.compressor.decompress_model(module)
    for layer in module.modules():
        scheme = getattr(layer, "quantization_scheme", None)
        if scheme is None:
            continue
        for name in STORED:
            if hasattr(layer, name):
                delattr(layer, name)
        if scheme.input_activations is None:
            del layer.quantization_scheme, layer.quantization_status, layer.forward
        else:
            layer.quantization_scheme = scheme.model_copy(update={"weights": None})
    del module.hf_quantizer, module.config.quantization_config
    module.is_quantized = False
    return module


def unpacked_tensors(folder: Path) -> StoredTensors:
    """The tensors of a folder; those that are packed stand there as the weights they mean."""
    stored = StoredTensors(folder)
    config = read_json(folder / "config.json").get("quantization_config", {})
    for name in [name for name in stored.entries if name.endswith(".weight_scale")]:
        layer = name.removesuffix(".weight_scale")
        found = {e.name.removeprefix(f"{layer}."): e for e in _of_layer(stored, layer)}
        shape = (
            [int(size) for size in found["weight_shape"].read()]
            if "weight_shape" in found
            else found["weight"].shape
        )
        stored.entries[f"{layer}.weight"] = Entry(
            f"{layer}.weight", found["weight_scale"].dtype, tuple(shape),
            partial(_unpacked, found, config, layer),
        )  # fmt: skip
    return stored


def _of_layer(stored: StoredTensors, layer: str) -> list[Entry]:
    names = (f"{layer}.{leaf}" for leaf in ("weight", "weight_packed", *STORED))
    return [stored.entries[name] for name in names if name in stored.entries]


def _unpacked(found: dict[str, Entry], config: dict[str, Any], layer: str) -> Any:
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    groups = config["config_groups"].values()
    group = next((g for g in groups if layer in g["targets"]), None) or next(iter(groups))
    scheme = QuantizationScheme(targets=group["targets"], weights=group["weights"])
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    tensors = {leaf: entry.read() for leaf, entry in found.items()}
    return compressor.decompress(tensors, scheme)["weight"]


def round_inputs(layer: Any, activations: dict[str, Any]) -> None:
    """From here on the layer rounds what it is given as the packed format does, in place."""
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationScheme,
        QuantizationStatus,
        set_forward_quantized,
    )

    arguments = QuantizationArgs(**activations)
    layer.quantization_scheme = QuantizationScheme(targets=["Linear"], input_activations=arguments)
    layer.quantization_status = QuantizationStatus.DECOMPRESSED
    set_forward_quantized(layer)
