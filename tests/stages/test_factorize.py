"""Factors are smaller, reload as they were, and are marked as what lcc alone can load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch
import transformers
from test_depth import FAMILIES, TEXT
from test_depth import logits as everything

from lcc.calibration.calibrate import Calibration
from lcc.compression.lowrank import decompose, whitening
from lcc.config.cards import Mistakes, decode
from lcc.core.errors import IntegrityError, RecipeError
from lcc.models.blocks import as_linear, block_linears
from lcc.models.bundle import open_bundle
from lcc.models.card import read_card, read_json
from lcc.models.checkpoint import save
from lcc.models.formats import put_factors
from lcc.models.reload_check import reload_gate
from lcc.stages.factorize import Factorize

CALIBRATION = Calibration(samples=40)


def parent(family: str, folder: Path) -> Any:
    bundle = tiny.bundle(FAMILIES[family]())
    save(bundle, folder / "parent" / "model")
    return open_bundle(folder / "parent" / "model")


def run(bundle: Any, folder: Path, **options: Any) -> Any:
    task = tiny.TextTask(head="classify" if bundle.card.head == "classify" else "causal")
    stage = decode(Factorize, {"allow_lcc_loader": True, "ratio": 0.3, **options})
    return stage.run(bundle, tiny.context(folder, task=task))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("family", TEXT)
def test_factors_are_fewer_parameters_and_reload_as_they_were(family: str, tmp_path: Path) -> None:
    bundle = parent(family, tmp_path)
    num = sum(p.numel() for p in bundle.load().parameters())
    num_linear = None
    outcome = run(bundle, tmp_path)
    rows = outcome.tables["ranks"]
    num_linear = sum(row["before"] for row in rows)
    taken = num - sum(p.numel() for p in bundle.module.parameters())
    assert 0.25 * num_linear < taken < 0.4 * num_linear
    assert outcome.measures["achieved_ratio"].value == pytest.approx(taken / num_linear)
    save(bundle, tmp_path / "child" / "model")
    folder = tmp_path / "child" / "model"
    found = reload_gate(bundle, folder, parent=tmp_path / "parent" / "model")
    assert found["reload_max_logit_difference"].value < 1e-5
    again = open_bundle(folder).load()
    assert torch.equal(tiny.logits(again), tiny.logits(bundle.module))
    assert (folder / "model.safetensors").stat().st_size < (
        tmp_path / "parent" / "model" / "model.safetensors"
    ).stat().st_size
    tied = [
        m.get_output_embeddings() is not None
        and m.get_output_embeddings().weight is m.get_input_embeddings().weight
        for m in (bundle.module, again)
    ]
    assert tied[0] == tied[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_factors_of_whole_rank_change_no_family(family: str) -> None:
    model = FAMILIES[family]()
    expected = everything(model)
    with as_linear(model):
        pairs = {
            name: decompose(layer.weight.detach(), whitening(torch.eye(layer.in_features)))
            for name, layer in block_linears(model).items()
        }
    for name, found in pairs.items():
        up, down = found.factors(len(found.values))
        put_factors(model, name, up.float(), down.float())
    torch.testing.assert_close(everything(model), expected, atol=1e-4, rtol=1e-4)


def test_the_card_says_who_loads_it_and_strangers_refuse(tmp_path: Path) -> None:
    bundle = parent("llama", tmp_path)
    outcome = run(bundle, tmp_path)
    save(bundle, tmp_path / "model")
    card = read_card(tmp_path / "model")
    assert (card.loads_with, card.form) == ("lcc", "packed")
    assert "Loads with lcc only" in outcome.notes[0]
    assert read_json(tmp_path / "model" / "config.json")["low_rank"]["model_type"] == "llama"
    with pytest.raises((ValueError, KeyError)):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_a_factored_model_writes_on(tmp_path: Path) -> None:
    bundle = parent("llama", tmp_path)
    run(bundle, tmp_path)
    save(bundle, tmp_path / "model")
    module = open_bundle(tmp_path / "model").load()
    ids = torch.arange(5, 11).view(1, 6)
    assert module.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 9)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merged_loads_anywhere_and_says_the_same_as_the_factors(family: str, tmp_path: Path) -> None:
    bundles = {}
    for store in ("factors", "merged"):
        bundles[store] = parent(family, tmp_path / store)
        outcome = run(bundles[store], tmp_path / store, store=store)
    factored, merged = (tiny.logits(bundles[store].module) for store in ("factors", "merged"))
    torch.testing.assert_close(factored, merged, atol=1e-4, rtol=1e-4)
    assert "0 bytes saved" in outcome.notes[0]
    assert outcome.measures["achieved_ratio"].value == 0
    save(bundles["merged"], tmp_path / "model")
    plain = type(bundles["merged"].module).from_pretrained(tmp_path / "model").eval()
    assert torch.equal(tiny.logits(plain), tiny.logits(bundles["merged"].module))


def test_ranks_by_loss_lose_less_than_uniform_ones(tmp_path: Path) -> None:
    errors = {}
    for allocation in ("loss", "uniform"):
        bundle = parent("llama", tmp_path / allocation)
        outcome = run(bundle, tmp_path / allocation, allocation=allocation)
        errors[allocation] = outcome.measures["output_error"].value
    assert errors["loss"] <= errors["uniform"]


def test_a_missing_factor_is_an_error_and_not_drawn_at_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    bundle = parent("llama", tmp_path)
    run(bundle, tmp_path)
    save(bundle, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors[next(name for name in tensors if name.endswith(".0.weight"))]
    save_file(tensors, file)
    with pytest.raises(IntegrityError, match="does not fit its config"):
        open_bundle(tmp_path / "model").load()


def test_what_lcc_alone_loads_must_be_allowed_and_ruin_accepted() -> None:
    with pytest.raises(Mistakes, match="allow_lcc_loader: true"):
        decode(Factorize, {}, "plan.factorize")
    assert decode(Factorize, {"store": "merged"}).produces == "dense"
    with pytest.raises(Mistakes, match="accept_damage: true"):
        decode(Factorize, {"store": "merged", "ratio": 0.5}, "plan.factorize")
    stage = Factorize(store="merged", calibration=Calibration(mode="sequential"))
    with pytest.raises(RecipeError, match=r"use calibration.mode=dense"):
        stage.check({})
