"""Adapters over compressed parents: grids are untouched, and what cannot be is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch
from quantizing import WIDE, calibrated, quantized

from lcc.config.cards import Mistakes, decode
from lcc.core.errors import RecipeError
from lcc.methods.trackers.none import NoneTracker
from lcc.models.bundle import open_bundle
from lcc.models.checkpoint import save
from lcc.models.reload_check import adapter_gate, probe_logits, reload_gate
from lcc.models.safetensors_io import StoredTensors
from lcc.pipeline.planner import pipeline_of
from lcc.stages.attach import Attach
from lcc.stages.finetune import Finetune
from lcc.stages.merge import Merge
from lcc.stages.width import Width


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tracked(work: Path, **inputs: Path) -> Any:
    context = tiny.context(work)
    context.tracker = NoneTracker()
    context.inputs = {**context.inputs, **inputs}
    return context


def trained(parent: Path, work: Path, method: Any) -> tuple[Any, torch.Tensor]:
    """The adapter's step, saved and gated; its measures, and the logits it was trained to."""
    options = {"method": method, "lr": 1e-2, "max_steps": 6, "batch_tokens": 128, "max_length": 32}
    bundle = open_bundle(parent / "model")
    outcome = decode(Finetune, options).run(bundle, tracked(work))
    logits = probe_logits(bundle.module)
    save(bundle, work / "model")
    adapter_gate(bundle, work / "adapter", parent=parent / "model")
    return outcome.measures, logits


AROUND = [{"name": "lora", "rank": 4}, {"name": "prefix_tuning"}]
MORE = [{"name": "adalora", "rank": 2, "initial_rank": 4}, {"name": "vera", "rank": 16},
        {"name": "oft", "block_size": 8}, {"name": "layernorm"},
        {"name": "prompt_tuning"}, {"name": "p_tuning"},
        {"name": "houlsby", "width": 8, "allow_lcc_loader": True}]  # fmt: skip


@pytest.mark.parametrize(
    "method", [*AROUND, *(pytest.param(method, marks=pytest.mark.slow) for method in MORE)]
)
@pytest.mark.parametrize("options", [{"bits": 4, "group_size": 32}, {"quantizer": "nf4", "bits": 4}])
def test_over_packed_weights_the_adapter_stays_and_the_grid_with_it(
    tmp_path: Path, options: dict[str, Any], method: dict[str, Any]
) -> None:
    parent = tmp_path / "parent"
    quantized(tiny.llama(**WIDE), parent, **options)
    measures, logits = trained(parent, tmp_path / "work", method)
    assert measures["validation_loss_after"].value < measures["validation_loss_before"].value
    bundle = open_bundle(parent / "model")
    outcome = Attach().run(bundle, tracked(tmp_path / "whole", adapter=tmp_path / "work"))
    assert outcome.notes[0] == (
        "The adapter stays beside its base: merging would take the packed weights off their grid."
    )
    whole = tmp_path / "whole" / "model"
    save(bundle, whole)
    gate = reload_gate(bundle, whole, parent=parent / "model")
    native = method["name"] != "houlsby"  # which plain peft does not know
    assert ("native_max_logit_difference" in gate) == native
    before, after = StoredTensors(parent / "model"), StoredTensors(whole)
    assert before.entries.keys() == after.entries.keys()
    assert all(torch.equal(before.read(n), after.read(n)) for n in before.entries)
    again = open_bundle(whole)
    assert again.card.form == "packed" and again.card.adapter
    torch.testing.assert_close(probe_logits(again.load()), logits, atol=1e-4, rtol=1e-4)


def test_a_narrowed_parent_takes_an_adapter_in(tmp_path: Path) -> None:
    bundle = tiny.bundle(tiny.llama())
    Width(ratio=0.25, round_to=8).run(bundle, tiny.context(tmp_path / "width"))
    save(bundle, tmp_path / "parent" / "model")
    _, logits = trained(tmp_path / "parent", tmp_path / "work", {"name": "lora", "rank": 4})
    context = tracked(tmp_path / "merged", adapter=tmp_path / "work")
    merged = Merge().run(open_bundle(tmp_path / "parent" / "model"), context)
    assert merged.bundle is not None and merged.bundle.module.config.intermediate_size == 48
    torch.testing.assert_close(probe_logits(merged.bundle.module), logits, atol=1e-4, rtol=1e-4)


def test_layers_that_round_their_inputs_cannot_be_trained_through(tmp_path: Path) -> None:
    model = tiny.llama(**WIDE)
    stats = calibrated(model, tmp_path)
    quantized(model, tmp_path / "parent", {"stats": stats}, quantizer="smoothquant")
    bundle = open_bundle(tmp_path / "parent" / "model")
    with pytest.raises(RecipeError, match="no gradient passes through rounding"):
        decode(Finetune, {"method": "lora"}).run(bundle, tracked(tmp_path / "work"))


PLANS = {
    "full over packed weights": (
        ["plan=w8", "+plan.again.kind=finetune", "+plan.again.method.name=full"],
        "plan.again.method: full needs the weights that 'quantize' has packed; use lora,",
    ),
    "pruning after a prefix": (
        ["method=prefix_tuning", "plan=sparse50_wanda"],
        "plan.sparsify: the adapter of 'finetune' stays beside its weights, so nothing can change "
        "them after it; place 'sparsify' before it,",
    ),
    "training again over an adapter": (
        ["plan=w8", "+plan.again.kind=finetune", "+plan.more.kind=finetune"],
        "plan.more: the adapter of 'again' stays beside its weights",
    ),
}


@pytest.mark.parametrize("words, message", PLANS.values(), ids=PLANS)
def test_what_cannot_follow_is_refused_before_any_work(words: list[str], message: str) -> None:
    with pytest.raises((RecipeError, Mistakes)) as caught:
        pipeline_of(["+recipe=tiny", *words], "run")
    assert message in str(caught.value)


def test_an_adapter_that_stays_is_a_step_of_its_own() -> None:
    steps = pipeline_of(["+recipe=tiny", "method=prefix_tuning", "~stages.compress"], "run").steps
    made = next(step for step in steps if step.name == "finetune.attached")
    assert made.kind == "attach" and made.checkpoint == "finetune"
    assert "eval.finetune" in [step.name for step in steps]
