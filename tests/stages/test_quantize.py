"""What is asked of a quantized model is what it holds, or is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch
from quantizing import calibrated, logits, quantized

from lcc.compression.packed_format import GroupGrid
from lcc.compression.quantization_grid import IntGrid
from lcc.config.cards import decode
from lcc.core.errors import GateError, RecipeError
from lcc.methods.quantizers.nearest import Nearest
from lcc.models.bundle import open_bundle
from lcc.stages.quantize import Quantize


def test_an_untied_head_is_quantized_only_when_asked(tmp_path: Path) -> None:
    model = tiny.llama(tie_word_embeddings=False)
    bundle, outcome = quantized(model, tmp_path, include_head=True)
    assert logits(open_bundle(tmp_path / "model").load()).shape == logits(bundle.module).shape
    parts = {row["part"]: row for row in outcome.tables["bytes"]}
    assert parts["head"]["after"] < 0.6 * parts["head"]["before"]
    assert parts["embedding"]["after"] == parts["embedding"]["before"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bits": 2}, "2 bits with nearest usually ruin a model"),
        ({"bits": 3}, "3 bits with nearest usually ruin a model"),
        ({"bits_for": {"*.down_proj": 2}}, r"quantize.bits_for.\*.down_proj: 2 bits"),
        ({"bits_for": {"*.dwn_proj": 4}}, r"no layer matches .* Did you mean 'down_proj'"),
        ({"average_bits": 3.5}, "nearest mixes 4 to 8 bits, got 3.5"),
        ({"average_bits": 5, "calibration": {"mode": "sequential"}}, "calibration.mode=dense"),
        ({"average_bits": 5, "symmetric": False}, "cannot keep zero points so"),
        ({"bits_for": {"*.0.*": 4}, "include_embeddings": True}, "cannot keep embeddings so"),
        ({"include_head": True}, "quantize.include_head: the head is tied"),
        ({"quantizer": "nf4"}, "quantize.bits: nf4 stores 4 bits, not 8"),
        ({"quantizer": "nf4", "bits": 4, "group_size": 64}, "nf4 has blocks of its own"),
        ({"quantizer": "nf4", "bits": 4}, "nf4 takes inputs that are multiples of 64, not 32"),
        ({"group_size": 64}, r"64 does not divide all inputs \(one has 32\); what does: 32, 16, 8"),
    ],
)
def test_what_cannot_be_stored_is_refused_in_one_sentence(
    options: Any, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        decode(Quantize, options).run(tiny.bundle(tiny.llama()), tiny.context(tmp_path))


def test_gpt2s_conv1d_is_refused_not_skipped(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="GPT2LMHeadModel holds no linear layers"):
        Quantize().run(tiny.bundle(tiny.gpt2()), tiny.context(tmp_path))


def test_auto_takes_the_largest_group_that_divides_every_input(tmp_path: Path) -> None:
    quantized(tiny.llama(hidden_size=48, head_dim=12, intermediate_size=96), tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    assert weights["group_size"] == 16


def test_nearest_is_the_nearest_point_of_a_symmetric_grid() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 8)
    grid = Nearest().quantize(weight, None, IntGrid(bits=4, group_size=4, dtype="float32"))
    assert isinstance(grid, GroupGrid)
    for row in range(4):
        for group in range(2):
            values = weight[row, group * 4 : group * 4 + 4]
            points = torch.arange(-8, 8) * grid.scale[row, group]
            best = points[(values[:, None] - points).abs().argmin(dim=1)]
            assert torch.allclose(grid.dense()[row, group * 4 : group * 4 + 4], best)
            assert grid.scale[row, group] == pytest.approx(float(values.abs().max()) / 7.5)


def test_a_row_of_zeros_stays_zero() -> None:
    weight = torch.cat([torch.zeros(1, 8), torch.ones(1, 8)])
    dense = Nearest().quantize(weight, None, IntGrid(bits=8, group_size=8, dtype="bfloat16")).dense()
    assert torch.equal(dense[0].float(), weight[0]) and dense.isfinite().all()


def test_eight_bits_err_less_than_four_and_small_groups_less_than_channels(tmp_path: Path) -> None:
    def error(**options: Any) -> float:
        return float(quantized(tiny.llama(), tmp_path, **options)[1].measures["weight_error"].value)

    assert error(bits=8) < 0.01 * error(bits=4)
    assert error(bits=4, group_size=8) < error(bits=4, group_size="channel")


def test_bits_under_a_budget_go_where_the_error_is(tmp_path: Path) -> None:
    stats = calibrated(tiny.llama(), tmp_path)
    options = {"average_bits": 4.5, "quantizer": "scale_search"}
    _, outcome = quantized(tiny.llama(), tmp_path, inputs={"stats": stats}, **options)
    table = {row["layer"]: row["bits"] for row in outcome.tables["bits"]}
    model = tiny.llama()
    sizes = {name: model.get_submodule(name).weight.numel() for name in table}
    spent = sum(sizes[name] * bits for name, bits in table.items()) / sum(sizes.values())
    assert 4 < spent <= 4.5 and set(table.values()) <= {3, 4, 8}
    assert table["model.layers.0.self_attn.q_proj"] == table["model.layers.0.self_attn.v_proj"]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"].values()
    assert {g["weights"]["num_bits"] for g in groups} == set(table.values())


def test_a_pattern_gives_its_layers_their_own_bits(tmp_path: Path) -> None:
    _, outcome = quantized(tiny.llama(), tmp_path, bits=4, bits_for={"*.down_proj": 8})
    table = {row["layer"]: row["bits"] for row in outcome.tables["bits"]}
    assert all((bits == 8) == name.endswith("down_proj") for name, bits in table.items())


def test_the_report_says_what_a_dense_embedding_costs(tmp_path: Path) -> None:
    _, outcome = quantized(tiny.llama(), tmp_path, bits=4)
    assert any("include_embeddings=true would store it in about 25%" in n for n in outcome.notes)


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    model = tiny.llama()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(GateError, match=r"layer 'model\.layers\.1\.mlp\.up_proj' holds numbers"):
        quantized(model, tmp_path)


def test_scales_are_moved_only_where_statistics_lie_on_disk(tmp_path: Path) -> None:
    for mode, sentence in (("sequential", "set calibration.mode=dense"), ("auto", "on disk; set")):
        with pytest.raises(RecipeError, match=sentence):
            quantized(tiny.llama(), tmp_path, quantizer="awq", bits=4, calibration={"mode": mode})


def test_a_pattern_without_a_layer_is_refused_before_any_work() -> None:
    config = {**tiny.llama().config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    decode(Quantize, {"bits_for": {"*.down_proj": 8}, "bits": 4}).check(config)
    stage = decode(Quantize, {"bits_for": {"*.fc2": 8}, "bits": 4})
    with pytest.raises(RecipeError, match=r"no layer matches '\*\.fc2'"):
        stage.check(config)


def test_a_group_that_divides_no_layer_is_refused_by_the_config_alone() -> None:
    stage = decode(Quantize, {"group_size": 128})
    with pytest.raises(RecipeError, match=r"one has 576\); what does: 64, 32, 16, 8, channel"):
        stage.check({"model_type": "llama", "hidden_size": 576})
    stage.check({"model_type": "gemma3_text", "hidden_size": 640})
