"""Blocks are found and run one after another, whatever kind of model has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch
import transformers

from lcc.calibration.block_walker import Aside, Memory, runs_in_order, walk
from lcc.calibration.calibrate import calibrated, collect
from lcc.core.errors import DataError, RecipeError
from lcc.models.blocks import as_linear, block_linears, blocks
from lcc.stages._input_groups import opened

SIZES = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
         "num_attention_heads": 4, "pad_token_id": 0}  # fmt: skip
EXPERTS = {**SIZES, "num_key_value_heads": 2, "num_local_experts": 4}


def text(model: Any, num_tokens: int = 6) -> dict[str, Any]:
    return tiny.inputs(model) if num_tokens == 6 else long_text(num_tokens)


def long_text(num_tokens: int) -> dict[str, Any]:
    ids = torch.arange(2 * num_tokens).view(2, -1) % 90 + 3
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("build", [tiny.whisper, tiny.vit, tiny.gpt2, tiny.gemma3])
def test_sounds_and_images_are_walked_like_text(build: Any) -> None:
    model = build()
    batches = [tiny.inputs(model)] * 2
    with as_linear(model):
        layers = block_linears(model)
        found: dict[str, Any] = {}
        for some in collect(model, batches, layers, gram=True):
            found |= some
        seen = [name for group in calibrated(model, batches, layers) for name in group.layers]
    assert set(found) == set(layers) == set(seen)
    width = next(name for name in layers if name.endswith(("q_proj", "c_attn", "query")))
    assert found[width].num_tokens % 2 == 0


def test_an_encoder_comes_before_its_decoder() -> None:
    names = [name.split(".")[1] for name in blocks(tiny.whisper())]
    assert names == ["encoder", "decoder"]


@pytest.mark.parametrize("num_groups", [1, 2])
def test_blocks_that_run_again_and_again_are_seen_every_time(num_groups: int) -> None:
    config = transformers.AlbertConfig(
        **SIZES, embedding_size=16, num_hidden_groups=num_groups, max_position_embeddings=32
    )
    model = transformers.AlbertModel(config).eval()
    batch = text(model)
    assert not runs_in_order(model, model, batch)
    layers = block_linears(model)
    (found,) = collect(model, [batch], layers)
    assert found[next(iter(layers))].num_tokens == 12 * 4 // num_groups
    with pytest.raises(RecipeError, match=r"not run once each, in order, so set calibration.mode"):
        list(calibrated(model, [batch], layers))


def test_a_layer_that_no_token_reaches_is_named() -> None:
    model = tiny.llama()
    layers = {**block_linears(model), "idle": torch.nn.Linear(4, 4)}
    with pytest.raises(DataError, match="'idle' is never run on this text"):
        list(collect(model, [text(model)], layers))


def test_stacks_of_experts_are_refused_rather_than_passed_over(tmp_path: Path) -> None:
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**EXPERTS)).eval()
    bundle = tiny.bundle(model, tokenizer=object())
    with pytest.raises(RecipeError, match="keeps its experts as stacks of matrices"):
        opened(bundle, tiny.context(tmp_path), needs="gram")
    found: set[str] = set()
    for some in collect(model, [text(model)], block_linears(model)):
        found |= set(some)
    assert len(found) == 4 * 4


def test_waiting_batches_on_disk_change_nothing(tmp_path: Path) -> None:
    wide = {"hidden_size": 512, "head_dim": 128, "num_hidden_layers": 3}
    model = tiny.llama(**wide)
    batches = [long_text(96), long_text(64), long_text(128)]
    layers = block_linears(model)

    def energies(memory: Memory | None) -> tuple[dict[str, torch.Tensor], int]:
        sums: dict[str, torch.Tensor] = {}
        most = 0

        def see(name: str, x: torch.Tensor, _padding: Any) -> None:
            sums[name] = sums.get(name, torch.zeros(())) + x.double().square().sum()

        for visit in walk(model, model, batches, memory=memory):
            inside = {n: m for n, m in layers.items() if n.startswith(visit.name)}
            visit.watch(inside, see)
            most = max(most, len(list(tmp_path.rglob("waiting-*/*"))))
        return sums, most

    kept, none = energies(None)
    spilled, most = energies(Memory(limit=1 << 20, folder=tmp_path))
    assert none == 0 and most >= 2
    assert all(torch.equal(kept[name], spilled[name]) for name in layers)
    assert not list(tmp_path.iterdir())


def test_one_more_batch_runs_along_unseen() -> None:
    model = tiny.llama()
    aside = Aside(model, long_text(8))
    seen: list[int] = []
    for visit in walk(model, model.model, [long_text(5)], aside=aside):
        visit.watch({"mlp": visit.module.mlp}, lambda _, x, __: seen.append(x.shape[1]))
    with torch.no_grad():
        assert torch.equal(aside.output.logits, model(**aside.batch).logits)
    assert set(seen) == {5}


def test_a_watched_block_runs_no_further_than_to_its_last_input() -> None:
    model, batches = tiny.llama(), [long_text(5), long_text(6), long_text(7)]
    seen: list[str] = []
    for visit in walk(model, model.model, batches):
        ends: list[Any] = []
        mlp = visit.module.mlp
        handle = mlp.down_proj.register_forward_hook(lambda *_, ends=ends: ends.append(0))
        visit.watch({"gate": mlp.gate_proj, "down": mlp.down_proj}, lambda n, *_: seen.append(n))
        assert len(ends) == 1  # Only the first batch tells which input is the last.
        handle.remove()
    assert seen == ["gate", "down"] * len(batches) * len(blocks(model))
