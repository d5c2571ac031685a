"""Importances find what was planted, ranking over all layers keeps floors, sizes are useful."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch

from lcc.compression.importance import globally_kept, nearest, rounded, sensitivities
from lcc.compression.prune_groups import streams
from lcc.config.cards import decode
from lcc.core.errors import RecipeError
from lcc.stages.width import Width

PLANTED = range(0, 64, 4)


def weak_readers(mlp: Any) -> None:
    mlp.down_proj.weight[:, ::4] *= 1e-3


def weak_writers(mlp: Any) -> None:
    mlp.up_proj.weight[::4] *= 1e-3


@pytest.mark.parametrize(
    ("criterion", "plant"),
    [
        ("magnitude", weak_readers),
        *[
            (criterion, plant)
            for criterion in ("activation", "wanda", "wanda_sp", "taylor")
            for plant in (weak_readers, weak_writers)
        ],
    ],
)
def test_a_criterion_drops_the_channels_that_do_not_matter(
    criterion: str, plant: Any, tmp_path: Path
) -> None:
    bundle = tiny.bundle(tiny.llama(num_hidden_layers=1))
    body = bundle.module.model
    with torch.no_grad():
        plant(body.layers[0].mlp)
    wanted = [i for i in range(64) if i not in PLANTED]
    expected = body.layers[0].mlp.up_proj.weight[wanted].clone()
    options = {"criterion": criterion, "repair": "none", "calibration": {"samples": 8}}
    decode(Width, {**options, "accept_damage": True}).run(bundle, tiny.context(tmp_path))
    assert torch.equal(bundle.module.model.layers[0].mlp.up_proj.weight, expected)


@pytest.mark.parametrize("criterion", ["flap", "wanda"])
def test_only_flap_drops_what_is_loud_and_constant(criterion: str, tmp_path: Path) -> None:
    """And the bias then says what the constant channels said."""
    model = tiny.bert(num_hidden_layers=1)
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.intermediate.dense.weight[::4] = 0
        layer.intermediate.dense.bias[::4] = 2.0
    expected = model(**tiny.inputs(model)).logits
    wanted = [i for i in range(64) if i not in PLANTED]
    kept = layer.intermediate.dense.weight[wanted].clone()
    bundle = tiny.bundle(model)
    context = tiny.context(tmp_path, task=tiny.TextTask(head="classify"))
    options = {"criterion": criterion, "repair": "bias", "calibration": {"samples": 8}}
    decode(Width, options).run(bundle, context)
    found = bundle.module.bert.encoder.layer[0].intermediate.dense.weight
    assert torch.equal(found, kept) == (criterion == "flap")
    if criterion == "flap":
        assert torch.allclose(bundle.module(**tiny.inputs(model)).logits, expected, atol=1e-5)


@pytest.mark.parametrize("criterion", ["magnitude", "activation", "wanda", "taylor"])
def test_a_dimension_of_the_stream_that_nobody_uses_goes_first(criterion: str, tmp_path: Path) -> None:
    model = tiny.llama()
    gone = set(range(0, 32, 8))
    with torch.no_grad():
        for member in streams(model)[0].members:
            for parameter, dim in member.parameters():
                parameter.data.index_fill_(dim, torch.tensor(sorted(gone)), 1e-4)
    rest = [i for i in range(32) if i not in gone]
    expected = model.model.embed_tokens.weight[:, rest].clone()
    bundle = tiny.bundle(model)
    options = {"dims": "hidden", "ratio": 0.125, "criterion": criterion, "repair": "none"}
    options["accept_damage"] = True
    decode(Width, {**options, "calibration": {"samples": 8}}).run(bundle, tiny.context(tmp_path))
    assert torch.equal(bundle.module.model.embed_tokens.weight, expected)


def test_a_head_that_writes_nothing_goes_and_others_keep_their_keys(tmp_path: Path) -> None:
    model = tiny.llama(num_hidden_layers=1)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        for head in (1, 2):  # One of each key-value head.
            attention.o_proj.weight[:, head * 8 : head * 8 + 8] = 0
    expected = model(**tiny.inputs(model)).logits
    bundle = tiny.bundle(model)
    options = {"dims": "heads", "ratio": 0.5, "repair": "none", "calibration": {"samples": 8}}
    decode(Width, options).run(bundle, tiny.context(tmp_path))
    config = bundle.module.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 2, 8)
    assert torch.allclose(bundle.module(**tiny.inputs(model)).logits, expected, atol=1e-6)


@pytest.mark.parametrize("make", [tiny.vit, tiny.whisper])
def test_sensitivity_reads_images_and_sound_as_well(make: Any) -> None:
    """Zero where nothing of a unit is used: its parts have no say in the loss."""
    model = make()
    units = streams(model)
    labels = torch.tensor([0, 1]) if make is tiny.vit else torch.arange(5, 17).view(2, 6)
    inputs = {k: v for k, v in tiny.inputs(model).items() if k != "decoder_input_ids"}
    losses = (model(**inputs, labels=labels).loss for _ in range(2))
    found = sensitivities(model, units, losses, lambda weight, grad: (weight * grad).abs())
    assert all(bool((found[unit.name] > 0).all()) for unit in units)
    assert all(p.grad is None for p in model.parameters())


def test_a_global_ranking_takes_where_little_is_lost_down_to_the_floor() -> None:
    torch.manual_seed(0)
    importance = {"quiet": torch.rand(40) * 0.1, "loud": torch.rand(40) + 1}
    kept = globally_kept(importance, ratio=0.5, floor=0.25, standardize=False)
    assert kept == {"quiet": 10, "loud": 30}
    fair = globally_kept(importance, ratio=0.5, floor=0.25, standardize=True)
    assert sum(fair.values()) == 40 and abs(fair["quiet"] - 20) < 8


def test_a_global_cut_says_what_each_layer_would_have_lost(tmp_path: Path) -> None:
    bundle = tiny.bundle(tiny.llama())
    with torch.no_grad():
        bundle.module.model.layers[1].mlp.up_proj.weight[:32] *= 1e-3
    options = {"allocation": "global", "criterion": "taylor", "calibration": {"samples": 8}}
    outcome = decode(Width, options).run(bundle, tiny.context(tmp_path))
    rows = outcome.tables["global_ranking"]
    assert rows[1]["ratio"] > rows[0]["ratio"] and sum(r["before"] - r["after"] for r in rows) == 32
    assert bundle.module.config.intermediate_size == 48, "made uniform"
    assert "layers.1.mlp.down_proj" in outcome.notes[0]


def test_where_a_config_states_two_widths_a_global_ranking_moves_between_them(tmp_path: Path) -> None:
    bundle = tiny.bundle(tiny.marian())
    with torch.no_grad():
        bundle.module.model.encoder.layers[0].fc1.weight[:32] *= 1e-3
        bundle.module.model.encoder.layers[0].fc1.bias[:32] *= 1e-3
    options = {"allocation": "global", "criterion": "taylor", "calibration": {"samples": 8}}
    decode(Width, options).run(bundle, tiny.context(tmp_path))
    config = bundle.module.config
    assert config.encoder_ffn_dim < config.decoder_ffn_dim <= 64


@pytest.mark.parametrize(
    ("num", "ratio", "round_to", "kept"),
    [(1536, 0.25, "auto", 1152), (64, 0.3, "auto", 44), (64, 0.3, 16, 48), (100, 0.02, 1, 98)],
)
def test_widths_are_multiples_that_kernels_like(num: int, ratio: float, round_to: Any, kept: int) -> None:
    assert rounded(num, ratio, round_to=round_to) == kept


def test_numbers_of_heads_are_the_nearest_that_the_config_takes() -> None:
    assert nearest(9, 0.25, allowed=[3, 6]) == 6
    assert nearest(576, 0.1, allowed=range(9, 576, 9)) == 522
    with pytest.raises(RecipeError, match="takes nothing from 4: what could stay is 1, 2"):
        nearest(4, 0.2, allowed=[1, 2])
