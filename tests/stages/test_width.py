"""Width removes what was asked, from config and weights alike, and repair is least squares."""

from __future__ import annotations

from typing import Any

import compressing as tiny
import pytest
import torch
import transformers

from lcc.core.decode import Mistakes, decode
from lcc.core.errors import GateError, RecipeError
from lcc.engine.blocks import as_linear
from lcc.engine.calibration import Calibration
from lcc.engine.pruning import feed_forwards
from lcc.engine.repairing import bias_repair, relative_error, ridge_repair
from lcc.stages.width import Width


def vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=8, patch_size=4,
    )  # fmt: skip
    return tiny._seeded(transformers.ViTForImageClassification, config)


FAMILIES = {
    "llama": tiny.llama,
    "qwen3": tiny.qwen3,
    "gemma3": tiny.gemma3,
    "bert": tiny.bert,
    "t5": tiny.t5,
    "gated t5": lambda: tiny.t5("gated-gelu"),
    "gpt2": tiny.gpt2,
    "marian": tiny.marian,
}
FIELDS = ("intermediate_size", "d_ff", "n_inner", "encoder_ffn_dim")


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 17).view(2, 6)
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, **extra).logits
    return found


def task_for(model: Any) -> tiny.TextTask:
    return tiny.TextTask(head="classify" if "Classification" in type(model).__name__ else "causal")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_quarter_is_gone_and_the_reloaded_model_is_the_same(family: str, tmp_path: Any) -> None:
    model = FAMILIES[family]()
    bundle, before = tiny.bundle(model), sum(p.numel() for p in model.parameters())
    context = tiny.context(tmp_path, task=task_for(model))
    outcome = Width(ratio=0.25, round_to=8, calibration=Calibration(samples=16)).run(
        bundle, context
    )
    assert [(r["before"], r["after"]) for r in outcome.tables["width"]] == [(64, 48)] or (
        family == "gpt2" and outcome.tables["width"][0]["after"] == 96
    )
    assert outcome.measures["achieved_ratio"].value == 0.25
    assert sum(p.numel() for p in bundle.module.parameters()) < before
    widths = {getattr(bundle.module.config, f, None) for f in FIELDS} - {None}
    assert widths == {96 if family == "gpt2" else 48}
    bundle.module.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(reloaded), logits(bundle.module))


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "gated t5"])
def test_removing_channels_that_carry_nothing_changes_nothing(family: str, tmp_path: Any) -> None:
    model = FAMILIES[family]()
    expected = None
    with as_linear(model), torch.no_grad():
        bundle = tiny.bundle(model)
        for unit in feed_forwards(model):
            unit.consumer.weight[:, ::4] = 0
    expected = logits(model)
    context = tiny.context(tmp_path, task=task_for(model))
    Width(ratio=0.25, round_to=1, calibration=Calibration(samples=8), repair="none").run(
        bundle, context
    )
    assert torch.allclose(logits(bundle.module), expected, atol=1e-5)


def test_every_feed_forward_is_found_once_and_no_attention() -> None:
    model = tiny.t5("gated-gelu")
    units = feed_forwards(model)
    assert [unit.name.split(".")[0] for unit in units] == ["encoder"] * 2 + ["decoder"] * 2
    assert all(len(unit.producers) == 2 and unit.name.endswith("wo") for unit in units)


def test_head_groups_go_together_and_keep_their_width(tmp_path: Any) -> None:
    bundle = tiny.bundle(tiny.llama(num_key_value_heads=2))
    outcome = Width(ratio=0.5, dims="heads", calibration=Calibration(samples=16)).run(
        bundle, tiny.context(tmp_path)
    )
    config = bundle.module.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)
    assert outcome.tables["width"][0]["dimension"] == "num_key_value_heads"
    bundle.module.save_pretrained(tmp_path)
    for attention in ("sdpa", "eager"):
        reloaded = transformers.LlamaForCausalLM.from_pretrained(
            tmp_path, attn_implementation=attention
        )
        assert torch.allclose(logits(reloaded.eval()), logits(bundle.module), atol=1e-6)


@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen3", "bert", "t5", "gpt2"])
def test_heads_are_refused_with_a_sentence_before_any_work(model_type: str) -> None:
    with pytest.raises(RecipeError, match=r"width.dims: .*; use dims=ffn"):
        Width(dims="heads").check({"model_type": model_type})


def test_ridge_repair_equals_least_squares() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    weight, kept = torch.randn(5, 12, dtype=torch.float64), torch.tensor([0, 2, 3, 7, 8, 11])
    repaired = ridge_repair(weight, x.T @ x, kept, damping=1e-12)
    expected = torch.linalg.lstsq(x[:, kept], x @ weight.T).solution.T
    assert torch.allclose(repaired, expected, atol=1e-6)


def test_repair_lowers_the_error_and_leaves_a_whole_layer_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 8) @ torch.randn(8, 8)
    weight, gram, kept = torch.randn(4, 8), x.T @ x, torch.tensor([0, 1, 2, 4, 6])
    repaired = ridge_repair(weight, gram, kept, damping=0.01)
    plain = relative_error(weight, weight[:, kept], kept, gram)
    assert relative_error(weight, repaired, kept, gram) < 0.7 * plain
    assert torch.allclose(ridge_repair(weight, gram, torch.arange(8), damping=0.5), weight)


def test_relative_error_is_that_of_the_outputs() -> None:
    torch.manual_seed(0)
    x, weight, kept = torch.randn(50, 6), torch.randn(3, 6), torch.tensor([1, 4])
    lost = ((x @ weight.T - x[:, kept] @ weight[:, kept].T) ** 2).sum() / (
        (x @ weight.T) ** 2
    ).sum()
    found = relative_error(weight, weight[:, kept], kept, x.T @ x)
    assert found == pytest.approx(float(lost), rel=1e-4)


def test_bias_repair_keeps_the_mean_output() -> None:
    torch.manual_seed(0)
    x, weight, kept = torch.randn(50, 6) + 1, torch.randn(3, 6), torch.tensor([1, 4, 5])
    bias = bias_repair(weight, x.mean(0), kept)
    after = (x[:, kept] @ weight[:, kept].T + bias).mean(0)
    assert torch.allclose(after, (x @ weight.T).mean(0), atol=1e-5)


def test_bias_repair_without_biases_is_refused(tmp_path: Any) -> None:
    with pytest.raises(RecipeError, match="has no biases to repair"):
        Width(repair="bias", calibration=Calibration(samples=4)).run(
            tiny.bundle(tiny.llama()), tiny.context(tmp_path)
        )


def test_bias_repair_runs_where_there_are_biases(tmp_path: Any) -> None:
    bundle = tiny.bundle(tiny.gpt2())
    bias = bundle.module.transformer.h[0].mlp.c_proj.bias.clone()
    Width(repair="bias", calibration=Calibration(samples=8)).run(bundle, tiny.context(tmp_path))
    assert not torch.equal(bundle.module.transformer.h[0].mlp.c_proj.bias, bias)


def test_a_ratio_that_rounding_swallows_is_an_error(tmp_path: Any) -> None:
    with pytest.raises(GateError, match="takes nothing from 64 at multiples of 32"):
        Width(ratio=0.05, round_to=32, calibration=Calibration(samples=4)).run(
            tiny.bundle(tiny.llama()), tiny.context(tmp_path)
        )


def test_few_calibration_tokens_are_a_warning_with_a_number(tmp_path: Any) -> None:
    outcome = Width(calibration=Calibration(samples=2)).run(
        tiny.bundle(tiny.llama()), tiny.context(tmp_path)
    )
    assert "raise calibration.samples to at least" in outcome.warnings[0]


def test_a_sparse_parent_that_ridge_repair_fills_is_no_longer_called_sparse(tmp_path: Any) -> None:
    bundle = tiny.bundle(tiny.llama())
    bundle.with_card(sparse="50% unstructured")
    outcome = Width(calibration=Calibration(samples=16)).run(bundle, tiny.context(tmp_path))
    assert bundle.card.sparse is None and "sparsify after width" in outcome.warnings[-1]


def test_the_criterion_decides_what_goes(tmp_path: Any) -> None:
    """Wanda keeps the channel that is small in weight but loud in input; magnitude drops it."""
    kept = {}
    for name in ("magnitude", "wanda"):
        bundle = tiny.bundle(tiny.llama(num_hidden_layers=1))
        mlp = bundle.module.model.layers[0].mlp
        with torch.no_grad():
            mlp.down_proj.weight[:, 0] *= 1e-2
            mlp.up_proj.weight[0] *= 1e4
        row = mlp.up_proj.weight[0].clone()
        stage = decode(Width, {"criterion": name, "calibration": {"samples": 8}, "repair": "none"})
        stage.run(bundle, tiny.context(tmp_path))
        kept[name] = bool((bundle.module.model.layers[0].mlp.up_proj.weight == row).all(1).any())
    assert kept == {"magnitude": False, "wanda": True}


def test_ranges_are_checked_with_the_full_key() -> None:
    with pytest.raises(Mistakes, match=r"plan.width.ratio: .*less than 1"):
        decode(Width, {"ratio": 1.5}, "plan.width")
