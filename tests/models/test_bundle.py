"""Bundles: loaded once, given heads reproducibly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from lcc.core.errors import DataError, RecipeError
from lcc.models.bundle import Bundle, open_bundle
from lcc.models.card import Card
from lcc.models.checkpoint import save
from lcc.models.reload_check import reload_gate


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    card = Card(name="m", auto_class="AutoModel", head="embed", dtype="float32")
    save(Bundle(card, None, transformers.AutoModel.from_config(config).eval()), tmp_path / "model")
    return tmp_path / "model"


def test_a_bundle_is_read_once_and_changed_in_place(encoder: Path) -> None:
    bundle = open_bundle(encoder)
    assert bundle.module is None
    assert bundle.load() is bundle.load()
    assert bundle.load(dtype="bfloat16").dtype == torch.bfloat16


def test_a_head_depends_on_its_seed_alone(encoder: Path) -> None:
    heads = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        bundle = open_bundle(encoder).with_head("classify", num_labels=3, seed=7)
        assert torch.equal(before, torch.get_rng_state())
        heads.append(bundle.load().classifier.weight)
    assert torch.equal(*heads)
    other = open_bundle(encoder).with_head("classify", num_labels=3, seed=8)
    assert not torch.equal(other.load().classifier.weight, heads[0])


def test_a_new_head_keeps_the_body_and_is_told_on_the_card(encoder: Path, tmp_path: Path) -> None:
    body = open_bundle(encoder).load().state_dict()
    bundle = open_bundle(encoder)
    assert bundle.lacks_head("classify")
    bundle.with_head("classify", num_labels=2, seed=0, labels=["bad", "good"])
    kept = bundle.load().base_model.state_dict()
    assert all(torch.equal(body[name], kept[name]) for name in body)
    assert bundle.card.headless and bundle.card.auto_class == "AutoModelForSequenceClassification"
    bundle.with_card(headless=False)
    save(bundle, tmp_path / "new")
    reload_gate(bundle, tmp_path / "new", parent=encoder)
    again = open_bundle(tmp_path / "new")
    assert not again.lacks_head("classify") and again.load().config.id2label == {0: "bad", 1: "good"}


def test_an_encoder_cannot_be_made_to_generate(encoder: Path) -> None:
    with pytest.raises(RecipeError, match="choose a model that generates"):
        open_bundle(encoder).with_head("causal")


def test_a_model_without_tokenizer_says_so(encoder: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer files"):
        _ = open_bundle(encoder).tokenizer
