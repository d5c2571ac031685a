"""Every method on every family takes away what was asked of it, or says in a sentence why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch

from lcc.calibration.calibrate import collect
from lcc.calibration.statistics import write_stats
from lcc.config.cards import Mistakes, decode
from lcc.core.errors import LccError
from lcc.models.blocks import as_linear, block_linears, blocks
from lcc.models.bundle import open_bundle
from lcc.models.checkpoint import save
from lcc.models.safetensors_io import StoredTensors
from lcc.stages.depth import Depth
from lcc.stages.quantize import Quantize
from lcc.stages.sparsify import Sparsify
from lcc.stages.width import Width

FAMILIES = ["llama", "qwen3", "gemma3", "gpt2", "bert", "t5", "marian", "whisper", "vit"]
CLASSES = {"whisper": "AutoModelForSpeechSeq2Seq", "vit": "AutoModelForImageClassification"}
SPARSE = ["magnitude", "wanda", "ria", "sparsegpt"]
NARROW = [("ffn", "wanda"), ("ffn", "wanda_sp"), ("ffn", "flap"), ("ffn", "magnitude"),
          ("heads", "wanda"), ("kv_groups", "wanda"), ("hidden", "wanda")]  # fmt: skip
MUST_NARROW = [(family, "ffn") for family in FAMILIES] + [
    (family, dims) for family in ("llama", "qwen3", "gemma3") for dims in ("kv_groups", "hidden")
]
ROUNDED = [("nearest", 8), ("nearest", 4), ("scale_search", 4), ("gptq", 4), ("gptq", 3),
           ("awq", 4), ("smoothquant", 8)]  # fmt: skip


def built(family: str) -> Any:
    return getattr(tiny, family)()


def context_with_statistics(model: Any, folder: Path) -> Any:
    """A step's context whose statistics come from the model's own kind of input."""
    with as_linear(model):
        for found in collect(model, [tiny.inputs(model)] * 2, block_linears(model), gram=True):
            write_stats(found, folder / "statistics" / "stats")
    context = tiny.context(folder / "step")
    context.inputs["stats"] = folder / "statistics"
    return context


def answer(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output = model(**tiny.inputs(model))
    return output.logits if "logits" in output else output.last_hidden_state


def require_sentence(refusal: Exception) -> None:
    text = str(refusal)
    assert text and "\n" not in text.strip() and text.rstrip().endswith((".", "?")), text


def changed(family: str, stage: Any, options: dict[str, Any], folder: Path) -> Any:
    """The model after the step, reloaded from disk; None where the step refused in a sentence."""
    model = built(family)
    bundle = tiny.bundle(model)
    if family in CLASSES:
        bundle.with_card(auto_class=CLASSES[family])
    try:
        step = decode(stage, options)
        step.run(bundle, context_with_statistics(model, folder))
    except (LccError, Mistakes) as refusal:
        require_sentence(refusal)
        return None
    save(bundle, folder / "model")
    reloaded = open_bundle(folder / "model").load()
    assert torch.allclose(answer(reloaded), answer(bundle.module), atol=2e-2), options
    return reloaded


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("criterion", SPARSE)
def test_three_in_ten_weights_are_zero(family: str, criterion: str, tmp_path: Path) -> None:
    model = changed(family, Sparsify, {"criterion": criterion, "sparsity": 0.3}, tmp_path)
    assert model is not None, "sparsity applies to every family"
    with as_linear(model):
        for name, layer in block_linears(model).items():
            share = float((layer.weight == 0).float().mean())
            assert abs(share - 0.3) < 0.03, (name, share)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_half_of_every_small_group_is_zero(family: str, pattern: str, tmp_path: Path) -> None:
    options = {"criterion": "sparsegpt", "pattern": pattern}
    model = changed(family, Sparsify, options, tmp_path)
    assert model is not None, "sparsity applies to every family"
    kept, of = map(int, pattern.split(":"))
    with as_linear(model):
        for name, layer in block_linears(model).items():
            counts = (layer.weight.reshape(-1, of) != 0).sum(dim=1)
            assert int(counts.max()) <= kept, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dims, criterion", NARROW)
def test_the_model_is_narrower(family: str, dims: str, criterion: str, tmp_path: Path) -> None:
    repair = "ridge" if dims != "hidden" else "none"
    options = {"dims": dims, "criterion": criterion, "ratio": 0.3, "repair": repair}
    model = changed(family, Width, options, tmp_path)
    if model is None:
        assert (family, dims) not in MUST_NARROW, (family, dims)
        return
    before, after = num_block_weights(built(family)), num_block_weights(model)
    assert after < 0.9 * before, (before, after)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantizer, bits", ROUNDED)
def test_the_weights_take_fewer_bytes(family: str, quantizer: str, bits: int, tmp_path: Path) -> None:
    options = {"quantizer": quantizer, "bits": bits, "group_size": 16}
    if quantizer == "smoothquant":
        options["group_size"] = "channel"
    model = changed(family, Quantize, options, tmp_path)
    if model is None:
        return
    whole, inside = num_weights(built(family)), num_block_weights(built(family))
    packed = sum(entry.bytes for entry in StoredTensors(tmp_path / "model").entries.values())
    assert packed < 4 * whole - 0.5 * 4 * inside, (packed, whole, inside)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_shallower(family: str, tmp_path: Path) -> None:
    """Engine level: the stage looks at text, which images and sounds are not."""
    model = getattr(tiny, family)()
    bundle = tiny.bundle(model)
    if family in CLASSES:
        pytest.skip("depth judges by text; its engine is tested on images and sounds")
    before = num_blocks(model)
    try:
        decode(Depth, {"num_layers": 1, "accept_damage": True}).run(bundle, tiny.context(tmp_path))
    except LccError as refusal:
        require_sentence(refusal)
        return
    assert num_blocks(bundle.module) == before - 1


def num_blocks(model: Any) -> int:
    with as_linear(model):
        return len(blocks(model))


def num_block_weights(model: Any) -> int:
    with as_linear(model):
        return sum(layer.weight.numel() for layer in block_linears(model).values())


def num_weights(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())
