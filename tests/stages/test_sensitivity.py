"""Sensitivity: one part changed at a time, judged through the model's own code, nothing kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch

from lcc.compression.prune_depth import LayerProbe, divergence
from lcc.config.cards import STAGES, decode, find_card
from lcc.models.blocks import as_linear, block_linears, blocks

FAMILIES = {"llama": tiny.llama, "qwen3": tiny.qwen3, "gemma3": tiny.gemma3, "gpt2": tiny.gpt2,
            "bert": tiny.bert, "t5": tiny.t5, "marian": tiny.marian}  # fmt: skip


def loud(family: str) -> Any:
    """A model whose blocks say so much that rounding cannot drown it."""
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model


def found(model: Any, folder: Path, **options: Any) -> Any:
    """The outcome of the stage on `model`, calibrated first as the pipeline would."""
    stage = decode(find_card(STAGES, "sensitivity"), options, "stages.sensitivity")
    bundle = tiny.bundle(model)
    task = tiny.TextTask(head=bundle.card.head)
    inputs = {}
    if stage.needs:
        calibrate = find_card(STAGES, "calibrate")(calibration=stage.calibration, gram=stage.needs == "gram")
        stats = folder / "calibrate"
        calibrate.run(bundle, tiny.context(stats, task=task))
        inputs = {"stats": stats}
    context = tiny.context(folder, task=task)
    context.inputs = inputs
    return stage.run(bundle, context)


def batches(model: Any) -> list[dict[str, Any]]:
    ids = torch.arange(5, 17).view(2, 6)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    batch = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        batch |= {"decoder_input_ids": ids[:, :4], "decoder_attention_mask": mask[:, :4]}
    return [batch]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trial_says_what_the_whole_changed_model_says(family: str) -> None:
    model = loud(family)
    with as_linear(model):
        stops, given = blocks(model), batches(model)
        probing = LayerProbe(model, stops, given)
        whole = probing._outputs(given[0])
        for block in stops:
            name, layer = next((n, m) for n, m in block_linears(model).items() if n.startswith(f"{block}."))
            before = layer.weight.data
            got = probing.divergence(block, {layer: before.roll(1, 0)})
            assert layer.weight.data_ptr() == before.data_ptr(), name
            layer.weight.data = before.roll(1, 0)
            expected = divergence(whole, probing._outputs(given[0])) / len(whole[0])
            layer.weight.data = before
            assert got == pytest.approx(expected, rel=1e-4, abs=1e-9) and got > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_action_does_something_to_every_block(family: str, tmp_path: Path) -> None:
    model = loud(family)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    actions = ["w8", "w4", "w4_gptq", "sparse50", "sparse24", "width25"]
    outcome = found(model, tmp_path, actions=actions, samples=4)
    rows = outcome.tables["sensitivity"]
    with as_linear(model):
        assert len(rows) == len(blocks(model)) * len(actions)
    for row in rows:
        assert row["kl"] > 0, row
        assert (row["bytes"] == 0) == row["action"].startswith("sparse"), row
        assert row["bytes"] <= 0
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, before[name]), name
    assert outcome.bundle is None


def test_fewer_bits_hurt_more_and_save_more(tmp_path: Path) -> None:
    rows = found(tiny.llama(), tmp_path, actions=["w8", "w4", "w3"], samples=4)
    by_action = {r["action"]: r for r in rows.tables["sensitivity"] if r["part"].endswith("0")}
    kls = [by_action[a]["kl"] for a in ("w8", "w4", "w3")]
    sizes = [by_action[a]["bytes"] for a in ("w8", "w4", "w3")]
    assert kls == sorted(kls) and sizes == sorted(sizes, reverse=True)


def test_layers_may_be_tried_one_by_one(tmp_path: Path) -> None:
    model = tiny.llama()
    rows = found(model, tmp_path, actions=["w8", "width25"], samples=4, per="layer")
    narrowed = {
        r["part"].rpartition(".")[2]
        for r in rows.tables["sensitivity"]
        if r["action"] == "width25" and r["kl"] is not None
    }
    assert len(rows.tables["sensitivity"]) == 2 * len(block_linears(model))
    assert narrowed == {"down_proj"}


def test_a_killed_run_goes_on_after_its_last_trial(tmp_path: Path) -> None:
    whole = found(tiny.llama(), tmp_path / "whole", actions=["w8", "w4"], samples=4)
    rows = whole.tables["sensitivity"]
    state = tmp_path / "killed" / "state"
    state.mkdir(parents=True)
    marked = [{**rows[0], "kl": 7.0}, *rows[1:2]]
    (state / "rows.json").write_text(json.dumps(marked))
    again = found(tiny.llama(), tmp_path / "killed", actions=["w8", "w4"], samples=4)
    assert again.tables["sensitivity"] == [marked[0], *rows[1:]]


def test_a_sequential_look_is_refused() -> None:
    from lcc.config.cards import Mistakes

    with pytest.raises(Mistakes):
        decode(find_card(STAGES, "sensitivity"), {"calibration": {"mode": "sequential"}}, "x")


def test_only_what_the_actions_read_is_calibrated() -> None:
    def needs(*actions: str) -> Any:
        return decode(find_card(STAGES, "sensitivity"), {"actions": list(actions)}, "x").needs

    assert needs("w8", "w4") is None
    assert needs("w8", "sparse50") == "diagonal"
    assert needs("sparse50", "width25") == "gram"
