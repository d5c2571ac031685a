"""Sparsify makes exactly the zeros that were asked, where they matter least."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch
import transformers

from lcc.calibration.statistics import LayerStats
from lcc.compression.sparsity import groups_mask, rows_mask
from lcc.config.cards import Mistakes, decode
from lcc.core.errors import RecipeError
from lcc.methods.criteria.magnitude import Magnitude
from lcc.methods.criteria.wanda import Wanda
from lcc.models.blocks import as_linear, block_linears
from lcc.models.checkpoint import save
from lcc.stages.calibrate import Calibrate
from lcc.stages.sparsify import Sparsify

FAMILIES = [tiny.llama, tiny.qwen3, tiny.gemma3, tiny.gpt2, tiny.t5, tiny.marian, tiny.bert]


def sparsified(model: Any, folder: Path, **options: Any) -> Any:
    bundle = tiny.bundle(model)
    head = "classify" if bundle.card.head == "classify" else "causal"
    context = tiny.context(folder, task=tiny.TextTask(head=head))
    return bundle, decode(Sparsify, {"calibration": {"samples": 8}, **options}).run(bundle, context)


@pytest.mark.parametrize("build", FAMILIES)
def test_thirty_percent_of_every_row_is_zero_and_reloads_so(build: Any, tmp_path: Path) -> None:
    bundle, outcome = sparsified(build(), tmp_path, sparsity=0.3)
    assert outcome.measures["sparsity"].value == pytest.approx(0.3, abs=0.02)
    assert bundle.card.sparse == "30% unstructured"
    save(bundle, tmp_path / "model")
    reloaded = type(bundle.module).from_pretrained(tmp_path / "model")
    with as_linear(reloaded):
        for layer in block_linears(reloaded).values():
            zeros = (layer.weight == 0).sum(dim=1)
            assert (zeros == round(0.3 * layer.in_features)).all()


@pytest.mark.parametrize("criterion", ["ria", "sparsegpt"])
@pytest.mark.parametrize("build", FAMILIES)
def test_every_layer_of_every_family_has_the_zeros_asked(build: Any, criterion: str, tmp_path: Path) -> None:
    bundle, outcome = sparsified(build(), tmp_path, criterion=criterion, sparsity=0.4)
    with as_linear(bundle.module):
        layers = block_linears(bundle.module)
        for layer in layers.values():
            asked = round(0.4 * layer.in_features) * layer.out_features
            assert int((layer.weight == 0).sum()) == asked
    table = outcome.tables["layers"]
    assert [row["layer"] for row in table] == list(layers)
    error = "layer_error" if criterion == "sparsegpt" else "diagonal_error"
    assert all(0 < row[error] < 1 for row in table)


@pytest.mark.parametrize("build", [tiny.whisper, tiny.vit])
def test_models_of_sound_and_images_are_pruned_too(build: Any, tmp_path: Path) -> None:
    options = {"criterion": "magnitude", "pattern": "2:4"}  # There is no text to calibrate on.
    bundle, outcome = sparsified(build(), tmp_path, **options)
    assert outcome.measures["sparsity"].value == pytest.approx(0.5, abs=0.01)
    for layer in block_linears(bundle.module).values():
        assert ((layer.weight.detach().view(-1, 4) != 0).sum(dim=1) == 2).all()


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
@pytest.mark.parametrize(("pattern", "keep", "of"), [("2:4", 2, 4), ("4:8", 4, 8)])
def test_patterns_hold_in_every_group(
    pattern: str, keep: int, of: int, criterion: str, tmp_path: Path
) -> None:
    bundle, _ = sparsified(tiny.llama(), tmp_path, pattern=pattern, criterion=criterion)
    assert bundle.card.sparse == pattern
    for layer in block_linears(bundle.module).values():
        groups = layer.weight.detach().view(-1, of)
        assert ((groups != 0).sum(dim=1) == keep).all()


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_blocks_of_inputs_go_or_stay_together(criterion: str, tmp_path: Path) -> None:
    options = {"pattern": "block8", "sparsity": 0.25, "criterion": criterion}
    bundle, _ = sparsified(tiny.llama(), tmp_path, accept_damage=True, **options)
    assert bundle.card.sparse == "25% block8"
    for layer in block_linears(bundle.module).values():
        zeros = (layer.weight.detach() == 0).view(-1, 8).sum(dim=1)
        assert set(zeros.tolist()) == {0, 8}
        assert float((zeros == 8).float().mean()) == pytest.approx(0.25)


@pytest.mark.parametrize("allocation", ["owl", "atp"])
@pytest.mark.parametrize("build", [tiny.llama, tiny.t5])
def test_blocks_differ_and_the_total_is_as_asked(build: Any, allocation: str, tmp_path: Path) -> None:
    bundle, context = tiny.bundle(build()), tiny.context(tmp_path)
    decode(Calibrate, {}).run(bundle, context)
    context.inputs["stats"] = tmp_path
    options = {"allocation": allocation, "owl_bound": 0.1, "atp_beta": 0.1, "owl_factor": 3.0}
    outcome = decode(Sparsify, options).run(bundle, context)
    assert outcome.measures["sparsity"].value == pytest.approx(0.5, abs=0.015)
    asked = [row["asked"] for row in outcome.tables["layers"]]
    found = [row["sparsity"] for row in outcome.tables["layers"]]
    assert found == pytest.approx(asked, abs=0.02)  # Whole weights of rows of 32.
    assert max(asked) - min(asked) == pytest.approx(0.2 if allocation == "owl" else 0.1, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.7}, "0.7 by wanda in one shot usually ruins a model"),
        ({"sparsity": 0.6, "criterion": "magnitude"}, "0.6 by magnitude in one shot usually ruins"),
        ({"sparsity": 0.3, "pattern": "block16"}, "0.3 by wanda in block16 in one shot usually"),
        ({"allocation": "owl", "calibration": {"mode": "sequential"}}, "calibration.mode=dense"),
        ({"criterion": "taylor"}, "taylor reads gradients, which only width takes"),
    ],
)
def test_what_cannot_go_well_is_refused_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        decode(Sparsify, options).check({"model_type": "llama"})
    if "sparsity" in options:
        decode(Sparsify, {**options, "accept_damage": True}).check({"model_type": "llama"})


def test_embeddings_and_head_are_left_alone(tmp_path: Path) -> None:
    model = tiny.llama(tie_word_embeddings=False)
    embedding, head = model.model.embed_tokens.weight.clone(), model.lm_head.weight.clone()
    bundle, _ = sparsified(model, tmp_path)
    assert torch.equal(bundle.module.model.embed_tokens.weight, embedding)
    assert torch.equal(bundle.module.lm_head.weight, head)


def test_magnitude_needs_no_data_and_wanda_does(tmp_path: Path) -> None:
    assert decode(Sparsify, {"criterion": "magnitude"}).reads == ()
    sequential = {"criterion": "wanda", "calibration": {"mode": "sequential"}}
    assert decode(Sparsify, sequential).reads == ("task", "data", "seed")
    bundle = tiny.bundle(tiny.llama())
    context = tiny.context(tmp_path)
    context.data = None
    decode(Sparsify, {"criterion": "magnitude"}).run(bundle, context)


def test_wanda_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, 0.5]])
    zeros = torch.zeros(4)
    stats = LayerStats(1, zeros, zeros, zeros, diagonal=torch.tensor([100.0, 1.0, 0.01, 400.0]))
    scores = decode(Wanda, {}).score(weight, stats)
    assert torch.allclose(scores, torch.tensor([[10.0, 2.0, 0.3, 10.0]]))
    assert rows_mask(scores, 0.5).tolist() == [[True, False, False, True]]
    plain = decode(Magnitude, {}).score(weight, None)
    assert rows_mask(plain, 0.5).tolist() == [[False, True, True, False]]


def test_equal_scores_neither_keep_nor_drop_more_than_asked() -> None:
    assert rows_mask(torch.ones(3, 10), 0.4).sum(dim=1).tolist() == [6, 6, 6]
    assert groups_mask(torch.ones(2, 8), keep=2, of=4).view(-1, 4).sum(1).tolist() == [2] * 4


def test_wanda_changes_outputs_less_than_magnitude(tmp_path: Path) -> None:
    """With inputs of very different size, which is what Wanda is for."""
    model = tiny.llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[::3] = 20
    ids = torch.arange(5, 25)[None]
    expected = model.model.layers[0].self_attn
    errors = {}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        before = model(input_ids=ids).logits
        for name in ("wanda", "magnitude"):
            fresh = tiny.llama()
            fresh.load_state_dict(state)
            bundle, _ = sparsified(fresh, tmp_path, criterion=name)
            errors[name] = float((bundle.module(input_ids=ids).logits - before).square().mean())
    assert expected is not None and errors["wanda"] < errors["magnitude"]


def test_the_report_says_that_nothing_is_saved(tmp_path: Path) -> None:
    _, outcome = sparsified(tiny.llama(), tmp_path)
    assert outcome.notes[0].startswith("0 bytes saved, no speed")
    assert outcome.measures["bytes_saved"].value == 0


def test_inputs_that_a_pattern_does_not_divide_are_refused(tmp_path: Path) -> None:
    model = tiny._seeded(
        transformers.LlamaForCausalLM, transformers.LlamaConfig(**{**tiny.DECODER, "intermediate_size": 60})
    )
    with pytest.raises(RecipeError, match="has 60 inputs, not a multiple of 8"):
        sparsified(model, tmp_path, pattern="4:8")


def test_a_pattern_with_another_sparsity_is_a_mistake_in_the_recipe() -> None:
    with pytest.raises(Mistakes, match=r"pattern 2:4 is a sparsity of 0.5, got 0.7"):
        decode(Sparsify, {"pattern": "2:4", "sparsity": 0.7}, "plan.sparsify")
