"""Packed checkpoints of other libraries: written from dense ones, copied where they are so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import quantizing
import transformers
from exports import SIZES, exported, saved, told

from lcc.core.errors import RecipeError


@pytest.mark.parametrize(
    "format, options, most",
    [
        ("compressed_tensors", {"bits": 8}, 0.03),
        ("compressed_tensors", {"bits": 4, "symmetric": False}, 0.3),
        ("bitsandbytes", {"bits": 8}, 0.03),
        ("bitsandbytes", {"bits": 4}, 0.3),
    ],
)
def test_a_dense_model_is_rounded_and_loads_without_lcc(
    format: str, options: dict[str, Any], most: float, tmp_path: Path
) -> None:
    source = saved("llama", tmp_path / "model")
    made = exported(source, tmp_path / "out", format, num_prompts=8, **options)
    assert 0 < made.parity.logit_error < most, told(made.parity)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.quantization_config["quant_method"] == format.replace("_", "-")


def test_what_is_packed_so_already_is_copied(tmp_path: Path) -> None:
    quantizing.quantized(tiny.llama(**SIZES), tmp_path, bits=4, quantizer="nearest", group_size=32)
    made = exported(tmp_path / "model", tmp_path / "out", "compressed_tensors", num_prompts=8)
    assert made.facts == {"copied": True} and made.parity.logit_error == 0
    with pytest.raises(RecipeError, match="it is packed as compressed-tensors already"):
        exported(tmp_path / "model", tmp_path / "other", "bitsandbytes")
