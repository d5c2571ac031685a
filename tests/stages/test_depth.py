"""Depth takes out the layers that matter least, and what is left loads as a plain model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch
import transformers

from lcc.compression.prune_depth import LayerAblation, Part, divergence, layer_stops, removable, remove_blocks
from lcc.config.cards import Mistakes, decode
from lcc.core.errors import GateError, RecipeError
from lcc.models.bundle import open_bundle
from lcc.models.checkpoint import save
from lcc.models.reload_check import reload_gate
from lcc.stages.depth import Depth

IMAGE = {"image_size": 8, "patch_size": 4}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}


def vit() -> Any:
    config = transformers.ViTConfig(num_hidden_layers=4, **SIZES, **IMAGE)
    return tiny._seeded(transformers.ViTForImageClassification, config)


def whisper() -> Any:
    config = transformers.WhisperConfig(
        vocab_size=400,
        d_model=32,
        encoder_layers=3,
        decoder_layers=3,
        num_mel_bins=8,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=12,
        max_target_positions=32,
        decoder_start_token_id=1,
        begin_suppress_tokens=None,
        **tiny.IDS,
    )
    return tiny._seeded(transformers.WhisperForConditionalGeneration, config)


def marian() -> Any:
    config = tiny.marian().config
    config.encoder_layers = config.decoder_layers = 3
    return tiny._seeded(transformers.MarianMTModel, config)


def gemma3() -> Any:
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
    return tiny.gemma3(num_hidden_layers=4, layer_types=kinds, sliding_window=4)


def gpt2() -> Any:
    config = tiny.gpt2().config
    config.n_layer = 4
    return tiny._seeded(transformers.GPT2LMHeadModel, config)


FAMILIES = {
    "llama": lambda: tiny.llama(num_hidden_layers=4),
    "qwen3": lambda: tiny.qwen3(num_hidden_layers=4),
    "gemma3": gemma3,
    "gpt2": gpt2,
    "bert": lambda: tiny.bert(num_hidden_layers=4),
    "t5": lambda: tiny.t5(num_layers=3),
    "marian": marian,
    "whisper": whisper,
    "vit": vit,
}
TEXT = [name for name in FAMILIES if name not in ("whisper", "vit")]


def inputs(model: Any) -> dict[str, torch.Tensor]:
    """Seven tokens (or an image, or sound) for each of two rows, the second padded."""
    if isinstance(model, transformers.ViTForImageClassification):
        return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8)}
    ids = torch.arange(5, 19).view(2, 7)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    if isinstance(model, transformers.WhisperForConditionalGeneration):
        return {
            "input_features": torch.linspace(-1, 1, 2 * 8 * 24).view(2, 8, 24),
            "decoder_input_ids": ids,
            "decoder_attention_mask": mask,
        }
    batch = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        batch |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    return batch


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**inputs(model)).logits
    return found


def rows(model: Any) -> tuple[torch.Tensor, bool]:
    batch, found = inputs(model), logits(model)
    mask = batch.get("decoder_attention_mask", batch.get("attention_mask"))
    if mask is None or mask.shape != found.shape[:-1]:
        return found.reshape(-1, found.shape[-1]), True
    return found[mask.bool()], True


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trial_tells_what_the_model_without_the_layer_would_say(family: str) -> None:
    model = FAMILIES[family]()
    search = LayerAblation(model, layer_stops(model))
    parts = removable(model, "layer")
    assert len(parts) == len(search.stops) - (2 if family == "t5" else 0)
    search.left_out = {parts[1]}
    candidates = [part for part in parts if part != parts[1]]
    found = search.divergences([inputs(model)], candidates)
    for part in candidates:
        smaller = copy.deepcopy(model)
        remove_blocks(smaller, {part.block, parts[1].block})
        whole, got = rows(model), rows(smaller)
        expected = divergence(whole, got) / len(got[0])
        assert found[part] == pytest.approx(expected, rel=1e-3, abs=1e-7), part


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_loads_as_a_plain_model_that_says_the_same(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    parts = removable(model, "layer")
    counts = remove_blocks(model, {parts[0].block, parts[-1].block})
    assert sum(b - a for b, a in counts.values()) == 2
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(reloaded), logits(model))
    assert {n: p.shape for n, p in reloaded.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    if hasattr(model, "generate"):
        given = {k: v for k, v in inputs(model).items() if not k.startswith("decoder")}
        written = (
            [m.generate(**given, max_new_tokens=4, do_sample=False) for m in (model, reloaded)]
            if model.can_generate()
            else [[], []]
        )
        assert torch.equal(*map(torch.as_tensor, written))


def test_a_trial_costs_the_blocks_from_its_part_on_and_no_more() -> None:
    model = FAMILIES["llama"]()
    search = LayerAblation(model, layer_stops(model))
    parts = removable(model, "layer")
    search.divergences([inputs(model)], parts)
    # The parent once, then for each of four layers itself (for the trials after) and what follows.
    assert search.num_block_runs == 4 + (4 + 3 + 2 + 1)
    search.num_block_runs, search.left_out = 0, {parts[1]}
    search.divergences([inputs(model)], [parts[0], parts[2], parts[3]])
    assert search.num_block_runs == 4 + (3 + 2 + 1)


def test_a_decoders_trial_does_not_run_the_encoder_again() -> None:
    model = FAMILIES["t5"]()
    search = LayerAblation(model, layer_stops(model))
    last = [part for part in removable(model, "layer") if part.block.startswith("decoder")][-1]
    search.divergences([inputs(model)], [last, Part("encoder.block.2")])
    assert search.num_block_runs == 6 + 6 + 3  # the parent, the encoder's last, the decoder


@pytest.mark.parametrize("family", TEXT)
def test_the_stage_removes_what_was_asked_and_says_in_which_order(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    task = tiny.TextTask(head="classify" if family == "bert" else "causal")
    bundle, num_before = tiny.bundle(model), len(layer_stops(model))
    outcome = Depth(ratio=0.3).run(bundle, tiny.context(tmp_path, task=task))
    num_removed = round(0.3 * num_before)
    assert len(layer_stops(bundle.module)) == num_before - num_removed
    assert outcome.measures["num_layers"].value == num_before - num_removed
    table = outcome.tables["removed"]
    assert [row["order"] for row in table] == list(range(1, num_removed + 1))
    assert all(row["kl"] >= 0 for row in table)


def test_a_layer_that_does_nothing_goes_first(tmp_path: Path) -> None:
    model = FAMILIES["llama"]()
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    expected = logits(model)
    outcome = Depth(num_layers=1).run(tiny.bundle(model), tiny.context(tmp_path))
    assert outcome.tables["removed"][0]["removed"] == "model.layers.2"
    assert outcome.measures["kl_to_parent"].value == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(logits(model), expected)


def test_layer_types_go_with_their_layers() -> None:
    model = gemma3()
    remove_blocks(model, {"model.layers.0", "model.layers.2"})
    assert model.config.layer_types == ["full_attention", "sliding_attention"]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
    assert [layer.self_attn.is_sliding for layer in model.model.layers] == [False, True]


def test_encoder_and_decoder_are_counted_apart() -> None:
    model = FAMILIES["t5"]()
    counts = remove_blocks(model, {"decoder.block.1", "decoder.block.2", "encoder.block.1"})
    assert counts == {"encoder.block": (3, 2), "decoder.block": (3, 1)}
    assert (model.config.num_layers, model.config.num_decoder_layers) == (2, 1)
    assert (model.encoder.config.num_layers, model.decoder.config.num_layers) == (2, 1)


def test_t5_keeps_the_blocks_that_hold_its_relative_positions() -> None:
    parts = {part.block for part in removable(FAMILIES["t5"](), "layer")}
    assert parts == {f"{s}.block.{i}" for s in ("encoder", "decoder") for i in (1, 2)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_halves_have_one_output_each_and_never_the_cross_attention(family: str, kind: Any) -> None:
    model = FAMILIES[family]()
    parts = removable(model, kind)
    assert [part.block for part in parts] == list(layer_stops(model))
    last = {part.output.removeprefix(f"{part.block}.") for part in parts}
    assert len(last) <= 2 and not any("Enc" in n or "encoder_attn" in n for n in last), last
    widths = {model.get_submodule(part.output).weight.shape for part in parts}
    assert all(32 in width for width in widths)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bert"])
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_a_half_left_out_adds_nothing_and_saves_nothing(family: str, kind: Any, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    task = tiny.TextTask(head="classify" if family == "bert" else "causal")
    bundle, num = tiny.bundle(model), sum(p.numel() for p in model.parameters())
    parent = copy.deepcopy(model)
    outcome = Depth(num_layers=2, part=kind).run(bundle, tiny.context(tmp_path, task=task))
    assert sum(p.numel() for p in bundle.module.parameters()) == num
    silent = [row["removed"] for row in outcome.tables["removed"]]
    assert all(not bundle.module.get_submodule(name).weight.any() for name in silent)
    assert "0 bytes saved" in outcome.notes[0]
    search = LayerAblation(parent, layer_stops(parent))
    first, last = (next(p for p in removable(parent, kind) if p.output == n) for n in silent)
    search.left_out = {first}
    whole, got = rows(parent), rows(bundle.module)
    found = search.divergences([inputs(parent)], [last])[last]
    assert found == pytest.approx(divergence(whole, got) / len(got[0]), rel=1e-3, abs=1e-7)


def test_a_killed_search_goes_on_where_it_stood(tmp_path: Path) -> None:
    whole = Depth(num_layers=2, accept_damage=True)
    first = whole.run(tiny.bundle(FAMILIES["llama"]()), tiny.context(tmp_path / "a"))
    half = tiny.context(tmp_path / "b")
    Depth(num_layers=1).run(tiny.bundle(FAMILIES["llama"]()), half)
    again = whole.run(tiny.bundle(FAMILIES["llama"]()), half)
    assert again.tables == first.tables


def test_a_ratio_that_ruins_is_refused_unless_it_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(Mistakes, match="accept_damage: true"):
        decode(Depth, {"ratio": 0.5}, "plan.depth")
    assert decode(Depth, {"ratio": 0.5, "accept_damage": True}, "plan.depth").ratio == 0.5
    with pytest.raises(RecipeError, match=r"num_layers 2 of 4 is more than 40%"):
        Depth(num_layers=2).check({"num_hidden_layers": 4})
    Depth(num_layers=2, accept_damage=True).check({"num_hidden_layers": 4})


def test_one_layer_at_least_goes_with_a_warning_and_too_many_are_refused(tmp_path: Path) -> None:
    outcome = Depth(ratio=0.1).run(tiny.bundle(tiny.llama()), tiny.context(tmp_path))
    assert outcome.measures["num_layers"].value == 1
    assert "1 of 2 where a share of 10% was asked" in outcome.warnings[0]
    with pytest.raises(RecipeError, match="only 4 may go"):
        Depth(num_layers=5).run(tiny.bundle(FAMILIES["llama"]()), tiny.context(tmp_path / "b"))


def test_layers_tied_to_their_numbers_are_refused() -> None:
    model = gpt2()
    model.config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(RecipeError, match="ties layers to their numbers"):
        removable(model, "layer")


def test_the_gate_lets_silent_halves_through_and_only_those(tmp_path: Path) -> None:
    parent = tiny.bundle(FAMILIES["llama"]())
    save(parent, tmp_path / "parent" / "model")
    bundle = open_bundle(tmp_path / "parent" / "model")
    Depth(num_layers=1, part="mlp").run(bundle, tiny.context(tmp_path))
    save(bundle, tmp_path / "child" / "model")
    found = reload_gate(bundle, tmp_path / "child" / "model", parent=tmp_path / "parent" / "model")
    assert found["reload_max_logit_difference"].value < 1e-5
    bundle.emptied = frozenset()
    with pytest.raises(GateError, match="has become constant"):
        reload_gate(bundle, tmp_path / "child" / "model", parent=tmp_path / "parent" / "model")
