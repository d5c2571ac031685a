"""Quantized checkpoints load by transformers alone and hold what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch
import transformers
from safetensors import safe_open

from lcc.core.decode import decode
from lcc.core.errors import GateError, RecipeError
from lcc.engine.blocks import block_linears
from lcc.engine.packing import GroupGrid
from lcc.methods.quantizers import Grid
from lcc.methods.quantizers.nearest import Nearest
from lcc.parts.checkpoint import save
from lcc.parts.gate import reload_gate
from lcc.parts.model import open_bundle
from lcc.stages.calibrate import Calibrate
from lcc.stages.quantize import Quantize

# bitsandbytes' CPU kernel takes inputs that are multiples of 64.
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
FAMILIES = {
    "llama": lambda: tiny.llama(**WIDE),
    "gemma3": lambda: tiny.gemma3(**WIDE),
    "bert": lambda: tiny.bert(hidden_size=64, intermediate_size=128),
    "marian": lambda: tiny.marian(64),
}
AUTO = {
    "causal": transformers.AutoModelForCausalLM,
    "classify": transformers.AutoModelForSequenceClassification,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
}


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 17).view(2, 6)
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, **extra).logits.float()
    return found


def calibrated(model: Any, folder: Path) -> Path:
    bundle = tiny.bundle(model, dtype="bfloat16")
    decode(Calibrate, {"gram": True}).run(bundle, tiny.context(folder / "stats"))
    return folder / "stats"


def quantized(model: Any, folder: Path, inputs: Any = None, **options: Any) -> Any:
    bundle = tiny.bundle(model, dtype="bfloat16")
    context = tiny.context(folder)
    context.inputs |= inputs or {}
    outcome = decode(Quantize, options).run(bundle, context)
    save(bundle, folder / "model")
    return bundle, outcome


@pytest.mark.parametrize(
    "options",
    [{"bits": 8}, {"bits": 4}, {"quantizer": "nf4", "bits": 4}, {"quantizer": "bnb_int8"}],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_stranger_loads_is_what_was_in_memory(
    family: str, options: Any, tmp_path: Path
) -> None:
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


def test_tied_weights_are_stored_once_and_load_tied(tmp_path: Path) -> None:
    quantized(tiny.gemma3(), tmp_path, bits=8)
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    model = open_bundle(tmp_path / "model").load()
    assert model.lm_head.weight is model.model.embed_tokens.weight


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


EVERY_FAMILY = {
    **FAMILIES,
    "qwen3": lambda: tiny.qwen3(**WIDE),
    "t5": lambda: tiny.t5(d_model=64, d_ff=128, d_kv=16),
}
SETTINGS = {
    "zero points": {"bits": 4, "symmetric": False},
    "embeddings": {"bits": 8, "include_embeddings": True},
    "3 bits": {"quantizer": "scale_search", "bits": 3, "group_size": 32},
    "2 bits by channel": {"bits": 2, "accept_damage": True, "group_size": "channel"},
    "zero points, 3 bits": {"bits": 3, "symmetric": False, "accept_damage": True},
    "several bits": {"bits": 4, "bits_for": {"*.0.*": 8}},
    "int8 by bitsandbytes": {"quantizer": "bnb_int8"},
}


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
    grid = Nearest().quantize(weight, None, Grid(bits=4, group_size=4, dtype="float32"))
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
    dense = Nearest().quantize(weight, None, Grid(bits=8, group_size=8, dtype="bfloat16")).dense()
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


def test_the_report_says_what_a_dense_embedding_costs(tmp_path: Path) -> None:
    _, outcome = quantized(tiny.llama(), tmp_path, bits=4)
    assert any("include_embeddings=true would store it in about 25%" in n for n in outcome.notes)


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    model = tiny.llama()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(GateError, match=r"layer 'model\.layers\.1\.mlp\.up_proj' holds numbers"):
        quantized(model, tmp_path)


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
