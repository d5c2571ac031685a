"""Moving scales into weights leaves the float model as it was, wherever it is done at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch

from lcc.calibration.calibrate import InputGroup, stored_groups
from lcc.calibration.statistics import StoredStats, Sums
from lcc.compression.quantization_grid import IntGrid, output_error
from lcc.compression.smoothquant import Folds, smooth, smoothed
from lcc.methods.quantizers.awq import Awq
from lcc.methods.quantizers.nearest import Nearest
from lcc.methods.quantizers.smoothquant import SmoothQuant
from lcc.models.blocks import block_linears
from lcc.models.reload_check import probe_logits
from lcc.stages.calibrate import Calibrate

MHA = {"num_key_value_heads": 4}
# Inputs whose scale can move: of 4 in a Llama block, 3 with shared key–value heads (not v to o).
FAMILIES: dict[str, tuple[Any, int]] = {
    "llama": (tiny.llama, 2 * 3),
    "llama without shared heads": (lambda: tiny.llama(**MHA), 2 * 4),
    "qwen3": (tiny.qwen3, 2 * 3),
    "gemma3": (tiny.gemma3, 2 * 3),
    "bert": (tiny.bert, 2 * 1),  # its norms feed the residual stream: v to o only
    "t5": (tiny.t5, 2 * 4 + 2 * 6),  # ReLU lets scales through; the encoder's output does not
    "gated t5": (lambda: tiny.t5("gated-gelu"), 2 * 4 + 2 * 6),
    "marian": (tiny.marian, 1 * 1 + 1 * 2),
}


def groups_of(model: Any, folder: Path) -> list[InputGroup]:
    bundle = tiny.bundle(model)
    Calibrate(gram=True).run(bundle, tiny.context(folder))
    return list(stored_groups(StoredStats(folder / "stats"), block_linears(model)))


def shaken(model: Any) -> Any:
    """Norms with weights of their own: fresh ones are constant."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("quantizer", [Awq(), SmoothQuant()])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_float_model_says_the_same_after_smoothing(family: str, quantizer: Any, tmp_path: Path) -> None:
    make, expected = FAMILIES[family]
    model = shaken(make())
    tied = model.get_output_embeddings() is not None and (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    before = probe_logits(model)
    weights = {name: layer.weight.clone() for name, layer in block_linears(model).items()}

    def choose(group: InputGroup) -> torch.Tensor:
        return quantizer.smoothing(group.weight(), group.stats, IntGrid(4, None, "bfloat16"))

    moved = smooth(model, groups_of(model, tmp_path), choose, dtype="bfloat16")
    after = probe_logits(model)
    assert torch.allclose(after, before, atol=1e-5 * float(before.abs().max()))
    assert len(moved) == expected
    assert any(not torch.equal(layer.weight, weights[name]) for name, layer in block_linears(model).items())
    assert not tied or (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


def test_a_norm_is_rounded_as_it_will_be_stored_and_its_readers_make_up_for_it(tmp_path: Path) -> None:
    model = shaken(tiny.gemma3())
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    groups = groups_of(model, tmp_path)
    smooth(model, groups, lambda g: 1 + g.stats.mean_abs, dtype="bfloat16")
    for name, parameter in model.named_parameters():
        if name.endswith("layernorm.weight"):
            assert torch.equal(parameter, parameter.bfloat16().float())


def test_what_feeds_the_residual_stream_too_is_left_alone() -> None:
    model = shaken(tiny.bert())
    query = model.bert.encoder.layer[0].attention.self.query
    group = InputGroup({"bert.encoder.layer.0.attention.self.query": query}, None)
    assert Folds(model).of(group) is None


def test_a_part_of_a_norms_readers_cannot_be_scaled_alone() -> None:
    model = shaken(tiny.llama())
    name = "model.layers.0.self_attn.q_proj"
    assert Folds(model).of(InputGroup({name: model.get_submodule(name)}, None)) is None


def test_smoothed_statistics_are_those_of_the_smoothed_input() -> None:
    torch.manual_seed(0)
    x, scale = torch.randn(50, 6), torch.rand(6) + 0.5
    before, after = Sums(gram=True), Sums(gram=True)
    before.add(x)
    after.add(x / scale)
    found, expected = smoothed(before.stats(), scale), after.stats()
    for name in ("mean", "mean_abs", "max_abs", "diagonal", "gram"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-5), name


def test_awq_errs_less_than_nearest_where_some_inputs_are_large() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 32) * torch.where(torch.arange(32) % 8 == 0, 20.0, 1.0)
    sums = Sums(gram=True)
    sums.add(x)
    stats, weight, grid = sums.stats(), torch.randn(16, 32), IntGrid(3, 8, "float32")
    scale = Awq().smoothing(weight, stats, grid)
    assert float(scale[8] / scale[9]) > 1.3
    made = Awq().quantize(weight * scale, smoothed(stats, scale), grid).dense() / scale
    plain = Nearest().quantize(weight, None, grid).dense()
    assert stats.gram is not None
    lost = output_error(made - weight, stats.gram).sum()
    assert float(lost) < 0.7 * float(output_error(plain - weight, stats.gram).sum())


def test_smoothquant_halves_the_outliers_between_inputs_and_weights() -> None:
    weight, sums = torch.ones(3, 4), Sums(gram=False)
    sums.add(torch.tensor([[16.0, 1.0, 0.0, 4.0]]))
    scale = SmoothQuant(strength=0.5).smoothing(weight, sums.stats(), IntGrid(8, None, "float32"))
    assert scale.tolist() == [4.0, 1.0, 1.0, 2.0]  # an input that is never there stays
