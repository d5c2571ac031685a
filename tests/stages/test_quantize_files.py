"""Every grid that is stored reloads as it was in memory, also by transformers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch
import transformers
from quantizing import AUTO, EVERY_FAMILY, FAMILIES, WIDE, calibrated, logits, quantized
from safetensors import safe_open

from lcc.compression.quantize import Rounding
from lcc.config.cards import decode
from lcc.core.errors import RecipeError
from lcc.models.blocks import block_linears
from lcc.models.bundle import open_bundle
from lcc.models.checkpoint import save
from lcc.models.reload_check import reload_gate
from lcc.models.safetensors_io import StoredTensors
from lcc.stages.quantize import Quantize

SETTINGS = {
    "zero points": {"bits": 4, "symmetric": False},
    "embeddings": {"bits": 8, "include_embeddings": True},
    "3 bits": {"quantizer": "scale_search", "bits": 3, "group_size": 32},
    "2 bits by channel": {"bits": 2, "accept_damage": True, "group_size": "channel"},
    "zero points, 3 bits": {"bits": 3, "symmetric": False, "accept_damage": True},
    "several bits": {"bits": 4, "bits_for": {"*.0.*": 8}},
    "int8 by bitsandbytes": {"quantizer": "bnb_int8"},
}


@pytest.mark.parametrize(
    "options", [{"bits": 8}, {"bits": 4}, {"quantizer": "nf4", "bits": 4}, {"quantizer": "bnb_int8"}]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_stranger_loads_is_what_was_in_memory(family: str, options: Any, tmp_path: Path) -> None:
    bundle, outcome = quantized(FAMILIES[family](), tmp_path, **options)
    card = json.loads((tmp_path / "model" / "lcc_card.json").read_text())
    assert card["form"] == "packed" and card["requires"] == [card["format"]]
    expected = logits(bundle.module)
    ours = open_bundle(tmp_path / "model").load()
    assert torch.allclose(logits(ours), expected, atol=0.02 * float(expected.abs().max()))
    for name, layer in ours.named_modules():
        if name.endswith(("up_proj", "intermediate.dense", "wi", "fc1")):
            assert torch.equal(layer.weight, bundle.module.get_submodule(name).weight)
    native = AUTO[card["head"]].from_pretrained(tmp_path / "model")
    assert torch.allclose(logits(native), expected, atol=0.05 * float(expected.abs().max()))
    assert outcome.measures["bytes_after"].value < outcome.measures["bytes_before"].value


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_grid_reloads_as_it_was_in_memory_or_is_refused(
    family: str, setting: str, tmp_path: Path
) -> None:
    try:
        bundle, _ = quantized(EVERY_FAMILY[family](), tmp_path, **SETTINGS[setting])
    except RecipeError as error:
        assert family == "t5" and setting == "several bits"
        assert "transformers cannot keep a t5 packed" in str(error)
        return
    measures = reload_gate(bundle, tmp_path / "model", parent=None)
    assert measures["reload_max_logit_difference"].value < 1e-2
    disk = open_bundle(tmp_path / "model").load(dtype="bfloat16").state_dict()
    for name, tensor in bundle.module.state_dict().items():
        if name.removesuffix(".weight") in block_linears(bundle.module):
            assert torch.equal(disk[name], tensor.to(disk[name].dtype)), name


def test_tied_weights_are_stored_once_and_load_tied(tmp_path: Path) -> None:
    quantized(tiny.gemma3(), tmp_path, bits=8)
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    model = open_bundle(tmp_path / "model").load()
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tied_embedding_is_stored_packed_once_and_both_load_from_it(tmp_path: Path) -> None:
    _, outcome = quantized(tiny.llama(), tmp_path, include_embeddings=True)
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert "model.embed_tokens.weight_packed" in file.keys()  # noqa: SIM118
        assert not any("lm_head" in name for name in file.keys())  # noqa: SIM118
    parts = {row["part"]: row for row in outcome.tables["bytes"]}
    row = parts["embedding and tied head"]
    assert row["after"] < 0.6 * row["before"]
    assert any("no packed embeddings" in note for note in outcome.notes)
    native = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert native.lm_head.weight is native.model.embed_tokens.weight


@pytest.mark.parametrize("quantizer", ["awq", "smoothquant"])
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_smoothed_model_reloads_as_it_was_in_memory_or_is_refused(
    family: str, quantizer: str, tmp_path: Path
) -> None:
    options = {"quantizer": quantizer, "bits": 4 if quantizer == "awq" else 8}
    inputs = {"stats": calibrated(EVERY_FAMILY[family](), tmp_path)}
    try:
        bundle, outcome = quantized(EVERY_FAMILY[family](), tmp_path, inputs=inputs, **options)
    except RecipeError as error:
        assert family == "t5" and "transformers cannot keep a t5 packed" in str(error)
        return
    assert outcome.measures["num_smoothed_inputs"].value > 0
    measures = reload_gate(bundle, tmp_path / "model", parent=None)
    assert measures["reload_max_logit_difference"].value < 1e-3


def test_w8a8_rounds_its_inputs_in_memory_and_from_disk_alike(tmp_path: Path) -> None:
    inputs = {"stats": calibrated(tiny.llama(), tmp_path)}
    bundle, _ = quantized(tiny.llama(), tmp_path, inputs=inputs, quantizer="smoothquant")
    disk = open_bundle(tmp_path / "model").load()
    assert torch.allclose(logits(disk), logits(bundle.module), atol=1e-2)
    for model in (disk, bundle.module):
        layer = model.model.layers[0].mlp.up_proj
        x = torch.randn(1, 3, 32)
        with torch.no_grad():
            rounded, plain = layer(x), torch.nn.functional.linear(x, layer.weight)
        assert 0 < float((rounded - plain).abs().max()) < 0.05 * float(plain.abs().max())


class Killed(Exception):
    """Stands for the end of a process."""


def test_a_killed_walk_goes_on_at_its_last_block_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tiny.bundle(tiny.llama(**WIDE), dtype="bfloat16"), tmp_path / "source")
    options = {"quantizer": "scale_search", "bits": 4, "calibration": {"mode": "sequential"}}
    stage = decode(Quantize, options)

    def run(folder: Path) -> Any:
        bundle = open_bundle(tmp_path / "source")
        outcome = stage.run(bundle, tiny.context(folder))
        save(bundle, folder / "model")
        reload_gate(bundle, folder / "model", parent=tmp_path / "source")
        return outcome.measures["weight_error"].value

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    expected = run(tmp_path / "a")
    add = Rounding.add

    def dies(self: Rounding, group: Any) -> None:
        if any(name.startswith("model.layers.1.mlp") for name in group.layers):
            raise Killed
        add(self, group)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Rounding, "add", dies)
        run(tmp_path / "b")
    assert run(tmp_path / "b") == expected
    a, b = (StoredTensors(tmp_path / name / "model") for name in "ab")
    assert set(a.entries) == set(b.entries)
    assert all(torch.equal(a.read(name), b.read(name)) for name in a.entries)


@pytest.mark.parametrize("options", [{"quantizer": "nf4", "bits": 4}, {"quantizer": "bnb_int8"}])
def test_bitsandbytes_stores_gpt2s_conv1d_too(options: Any, tmp_path: Path) -> None:
    bundle, outcome = quantized(tiny.gpt2(n_embd=64), tmp_path, **options)
    assert outcome.measures["num_quantized_layers"].value == 2 * 4
    measures = reload_gate(bundle, tmp_path / "model", parent=None)
    assert measures["reload_max_logit_difference"].value < 1e-3
    assert type(bundle.module.transformer.h[0].mlp.c_fc).__name__ == "Conv1D"
