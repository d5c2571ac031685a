"""Width removes what was asked, from config and weights alike, and repair is least squares."""

from __future__ import annotations

from typing import Any

import compressing as tiny
import pytest
import torch

from lcc.calibration.calibrate import Calibration
from lcc.compression.prune_groups import feed_forwards, streams
from lcc.config.cards import Mistakes, decode
from lcc.core.errors import RecipeError
from lcc.models.blocks import as_linear
from lcc.stages.width import Width

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


def task_for(model: Any) -> tiny.TextTask:
    return tiny.TextTask(head="classify" if "Classification" in type(model).__name__ else "causal")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_quarter_is_gone_and_the_reloaded_model_is_the_same(family: str, tmp_path: Any) -> None:
    model = FAMILIES[family]()
    bundle, before = tiny.bundle(model), sum(p.numel() for p in model.parameters())
    context = tiny.context(tmp_path, task=task_for(model))
    outcome = Width(ratio=0.25, round_to=8, calibration=Calibration(samples=16)).run(bundle, context)
    assert [(r["before"], r["after"]) for r in outcome.tables["width"]] == [(64, 48)] or (
        family == "gpt2" and outcome.tables["width"][0]["after"] == 96
    )
    assert outcome.measures["achieved_ratio"].value == 0.25
    assert sum(p.numel() for p in bundle.module.parameters()) < before
    widths = {getattr(bundle.module.config, f, None) for f in FIELDS} - {None}
    assert widths == {96 if family == "gpt2" else 48}
    bundle.module.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(tiny.logits(reloaded), tiny.logits(bundle.module))


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2", "gated t5"])
def test_removing_channels_that_carry_nothing_changes_nothing(family: str, tmp_path: Any) -> None:
    model = FAMILIES[family]()
    expected = None
    with as_linear(model), torch.no_grad():
        bundle = tiny.bundle(model)
        for unit in feed_forwards(model):
            unit.members[-1].layer.weight[:, ::4] = 0
    expected = tiny.logits(model)
    context = tiny.context(tmp_path, task=task_for(model))
    Width(ratio=0.25, round_to=1, calibration=Calibration(samples=8), repair="none").run(bundle, context)
    assert torch.allclose(tiny.logits(bundle.module), expected, atol=1e-5)


def test_every_feed_forward_is_found_once_and_no_attention() -> None:
    model = tiny.t5("gated-gelu")
    units = feed_forwards(model)
    assert [unit.name.split(".")[0] for unit in units] == ["encoder"] * 2 + ["decoder"] * 2
    assert all(len(unit.members) == 3 and unit.name.endswith("wo") for unit in units)


SOME = {"ffn": "intermediate_size", "heads": "num_attention_heads",
        "kv_groups": "num_key_value_heads", "hidden": "hidden_size"}  # fmt: skip
WORKING = [
    *[(dims, family) for dims in SOME for family in ("llama", "qwen3", "gemma3", "t5")],
    *[(dims, family) for dims in ("ffn", "hidden") for family in ("gpt2", "bert")],
    ("ffn", "marian"),
]


@pytest.mark.parametrize(("dims", "family"), WORKING)
def test_30_percent_are_gone_and_the_reloaded_model_works(dims: str, family: str, tmp_path: Any) -> None:
    model = FAMILIES[family]()
    before = sum(p.numel() for p in model.parameters())
    stage = decode(Width, {"dims": dims, "ratio": 0.3, "calibration": {"samples": 16}})
    bundle = tiny.bundle(model)
    outcome = stage.run(bundle, tiny.context(tmp_path, task=task_for(model)))
    model = bundle.module
    row = outcome.tables["width"][0]
    assert row["after"] < row["before"]
    assert outcome.measures["achieved_ratio"].value >= 0.25
    assert sum(p.numel() for p in model.parameters()) < before
    for field in row["dimension"].split(" and "):
        assert getattr(model.config, field) == row["after"]
    model.save_pretrained(tmp_path / "model")
    for attention in ("eager", "sdpa"):
        reloaded = type(model).from_pretrained(tmp_path / "model", attn_implementation=attention)
        assert torch.allclose(tiny.logits(reloaded.eval()), tiny.logits(model), atol=1e-5)
    if reloaded.can_generate():
        ids = torch.arange(5, 9).view(1, 4)
        cached = reloaded.generate(ids, max_new_tokens=4, do_sample=False)
        again = reloaded.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False)
        assert torch.equal(cached, again)
    tied = (model.get_input_embeddings(), model.get_output_embeddings())
    if family in ("llama", "gemma3", "gpt2", "t5", "marian"):
        assert tied[0].weight is tied[1].weight, "tied weights stay tied"


@pytest.mark.parametrize("dims", ["heads", "kv_groups"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "marian", "whisper"])
def test_heads_that_no_config_can_state_are_refused(model_type: str, dims: Any) -> None:
    with pytest.raises(RecipeError, match=r"width.dims: a config of .*use dims="):
        Width(dims=dims).check({"model_type": model_type})


def test_a_hidden_width_that_loads_as_another_model_is_refused() -> None:
    with pytest.raises(RecipeError, match="marian are sinusoids"):
        Width(dims="hidden").check({"model_type": "marian"})
    with pytest.raises(RecipeError, match="hidden width of mamba enters is not known"):
        Width(dims="hidden").check({"model_type": "mamba"})


def test_a_ratio_that_ruins_models_wants_to_be_accepted() -> None:
    with pytest.raises(RecipeError, match="accept_damage=true"):
        Width(ratio=0.6).check({"model_type": "llama"})
    with pytest.raises(RecipeError, match="by size alone usually ruins"):
        decode(Width, {"criterion": "magnitude", "repair": "none"}).check({"model_type": "llama"})
    five = {"model_type": "llama", "hidden_size": 640, "num_attention_heads": 5}
    with pytest.raises(RecipeError, match="this takes 60%"):  # 640 is no multiple of 3.
        Width(ratio=0.45, dims="heads").check(five)
    Width(ratio=0.6, accept_damage=True).check({"model_type": "llama"})


def test_a_cut_that_would_take_nothing_is_refused_before_any_work() -> None:
    one = {"model_type": "gemma3_text", "hidden_size": 640, "num_attention_heads": 4}
    with pytest.raises(RecipeError, match="takes nothing from 1: what could stay is nothing"):
        Width(dims="kv_groups").check({**one, "num_key_value_heads": 1})
    with pytest.raises(RecipeError, match="at multiples of 512"):
        Width(round_to=512).check({**one, "intermediate_size": 512})
    with pytest.raises(RecipeError, match="one number for all layers"):
        Width(dims="hidden", allocation="global").check(one)


def test_more_than_was_asked_is_a_warning(tmp_path: Any) -> None:
    stage = decode(Width, {"dims": "hidden", "ratio": 0.15, "calibration": {"samples": 40}})
    outcome = stage.run(tiny.bundle(tiny.gpt2()), tiny.context(tmp_path))
    assert "15% was asked, but hidden_size could only go from 32 to 24 (-25%)" in outcome.warnings[0]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2", "t5"])
def test_repair_makes_up_for_a_hidden_cut_where_the_stream_is_redundant(family: str, tmp_path: Any) -> None:
    divergence = {}
    for repair in ("ridge", "none"):
        model = redundant(FAMILIES[family]())
        before = tiny.logits(model).log_softmax(-1)
        options = {"dims": "hidden", "repair": repair, "calibration": {"samples": 40}}
        bundle = tiny.bundle(model)
        decode(Width, options).run(bundle, tiny.context(tmp_path))
        after = tiny.logits(bundle.module).log_softmax(-1)
        divergence[repair] = float((before.exp() * (before - after)).sum(-1).mean())
    assert divergence["ridge"] < 0.6 * divergence["none"]


def redundant(model: Any) -> Any:
    """The model with a stream of which 10 of 32 dimensions tell all."""
    torch.manual_seed(1)
    basis = torch.randn(32, 10)
    project, done = basis @ torch.linalg.pinv(basis), set()
    with torch.no_grad(), as_linear(model):
        for parameter in model.parameters():
            parameter *= 8 if parameter.dim() == 2 else 1
        for member in streams(model)[0].members:
            is_norm = "norm" in type(member.layer).__name__.lower()
            for parameter, dim in member.parameters():
                if member.axis == "out" and not is_norm and id(parameter) not in done:
                    done.add(id(parameter))
                    turned = parameter.data.movedim(dim, -1) @ project
                    parameter.data.copy_(turned.movedim(-1, dim))
    return model


@pytest.mark.parametrize("options", [{"dims": "hidden"}, {"allocation": "global"}, {"criterion": "taylor"}])
def test_what_ranks_over_all_layers_is_refused_in_sequence(options: dict[str, Any]) -> None:
    stage = decode(Width, {**options, "calibration": {"mode": "sequential"}})
    with pytest.raises(RecipeError, match="set mode=dense"):
        stage.check({"model_type": "llama"})


def test_in_sequence_a_killed_cut_goes_on_where_it_was(tmp_path: Any) -> None:
    options = {"calibration": {"samples": 16, "mode": "sequential"}, "dims": "kv_groups"}
    made = []
    for _ in range(2):  # The second run finds all blocks finished.
        bundle = tiny.bundle(tiny.llama(num_key_value_heads=4))
        outcome = decode(Width, options).run(bundle, tiny.context(tmp_path))
        made.append((tiny.logits(bundle.module), outcome.measures["layer_error"].value))
    assert torch.equal(made[0][0], made[1][0]) and made[0][1] == made[1][1]


def test_bias_repair_without_biases_is_refused() -> None:
    with pytest.raises(RecipeError, match="llama has no biases to repair"):
        Width(repair="bias").check({"model_type": "llama", "mlp_bias": False})


def test_bias_repair_runs_where_there_are_biases(tmp_path: Any) -> None:
    bundle = tiny.bundle(tiny.gpt2())
    bias = bundle.module.transformer.h[0].mlp.c_proj.bias.clone()
    Width(repair="bias", calibration=Calibration(samples=8)).run(bundle, tiny.context(tmp_path))
    assert not torch.equal(bundle.module.transformer.h[0].mlp.c_proj.bias, bias)


def test_a_ratio_that_rounding_swallows_is_an_error(tmp_path: Any) -> None:
    with pytest.raises(RecipeError, match="takes nothing from 64 at multiples of 32"):
        Width(ratio=0.05, round_to=32, calibration=Calibration(samples=4)).run(
            tiny.bundle(tiny.llama()), tiny.context(tmp_path)
        )


def test_few_calibration_tokens_are_a_warning_with_a_number(tmp_path: Any) -> None:
    outcome = Width(calibration=Calibration(samples=2)).run(tiny.bundle(tiny.llama()), tiny.context(tmp_path))
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
        stage = decode(Width, {"criterion": name, "repair": "none", "accept_damage": True})
        stage.run(bundle, tiny.context(tmp_path))
        kept[name] = bool((bundle.module.model.layers[0].mlp.up_proj.weight == row).all(1).any())
    assert kept == {"magnitude": False, "wanda": True}


def test_ranges_are_checked_with_the_full_key() -> None:
    with pytest.raises(Mistakes, match=r"plan.width.ratio: .*less than 1"):
        decode(Width, {"ratio": 1.5}, "plan.width")


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_hidden_cut_is_repaired_by_biases_where_readers_have_them(family: str, tmp_path: Any) -> None:
    model = FAMILIES[family]()
    options = {"dims": "hidden", "repair": "bias", "criterion": "flap"}
    stage = decode(Width, {**options, "calibration": {"samples": 16}})
    outcome = stage.run(tiny.bundle(model), tiny.context(tmp_path, task=task_for(model)))
    assert outcome.measures["achieved_ratio"].value == 0.25
