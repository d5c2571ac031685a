"""Checkpoints of compressed-tensors as dense modules, by the format's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lcc.parts.folder import read_json

STORED = ("weight_scale", "weight_zero_point", "weight_shape")


def is_one_scheme(folder: Path) -> bool:
    """Whether transformers' `dequantize=True` reads `folder` right.

    It takes the first group of the config for every layer, and forgets the rounding of inputs.
    """
    groups = read_json(folder / "config.json")["quantization_config"]["config_groups"]
    return len(groups) == 1 and not any(g.get("input_activations") for g in groups.values())


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
