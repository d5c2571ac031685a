"""Calibration sees each distinct input once, without padding."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import calibration_cases as cases
import compressing as tiny
import pytest
import torch

from lcc.calibration.block_walker import Batch, walk
from lcc.calibration.calibrate import calibrated, encoded_batches
from lcc.calibration.calibrate import collect as collect_by_block
from lcc.calibration.statistics import LayerStats, StoredStats, Sums, write_stats
from lcc.core.errors import DataError
from lcc.distributed.dist import SINGLE, Distributed
from lcc.distributed.launch import launch
from lcc.models.blocks import block_linears, blocks
from lcc.models.checkpoint import save

LAYER = "model.layers.1.mlp.down_proj"


def batches_for(model: Any, num: int = 6, batch_tokens: int = 2048) -> list[Batch]:
    tokenizer, rows = tiny.byte_level_tokenizer(), tiny.rows(num, 0)
    return encoded_batches(rows, tiny.TextTask(), tokenizer, model=model, batch_tokens=batch_tokens)


def collect(model: Any, batches: list[Batch], layers: Any, **how: Any) -> dict[str, LayerStats]:
    found: dict[str, LayerStats] = {}
    for some in collect_by_block(model, batches, layers, **how):
        found |= some
    return found


@pytest.mark.parametrize("build", [tiny.llama, tiny.t5, tiny.marian, tiny.bert])
def test_padding_never_enters(build: Any) -> None:
    """One padded batch and many single texts give the same statistics."""
    model = build()
    layers = block_linears(model)
    together = collect(model, batches_for(model), layers, gram=True)
    alone = collect(model, batches_for(model, batch_tokens=1), layers, gram=True)
    assert len(batches_for(model)) == 1 and len(batches_for(model, batch_tokens=1)) == 6
    for name in layers:
        assert together[name].num_tokens == alone[name].num_tokens, name
        assert together[name].gram is not None and alone[name].gram is not None
        assert torch.allclose(together[name].gram, alone[name].gram, rtol=1e-3, atol=1e-3), name
        assert torch.allclose(together[name].max_abs, alone[name].max_abs, atol=1e-4), name


def test_statistics_are_those_of_the_inputs() -> None:
    model = tiny.llama()
    batches, layer = batches_for(model, batch_tokens=1), model.model.layers[1].mlp.down_proj
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    x = torch.cat(seen)
    stats = collect(model, batches, {LAYER: layer}, gram=True)[LAYER]
    assert stats.num_tokens == len(x)
    assert stats.gram is not None and torch.allclose(stats.gram, x.T @ x, atol=1e-4)
    assert torch.allclose(stats.diagonal, (x * x).sum(0), atol=1e-4)
    assert torch.allclose(stats.mean, x.mean(0), atol=1e-6)
    assert torch.allclose(stats.mean_abs, x.abs().mean(0), atol=1e-6)
    assert torch.equal(stats.max_abs, x.abs().amax(0))
    assert torch.allclose(stats.input_norm, x.norm(dim=0), atol=1e-4)


def test_layers_that_read_one_tensor_share_one_object() -> None:
    model = tiny.llama()
    stats = collect(model, batches_for(model), block_linears(model))
    first = "model.layers.0"
    assert stats[f"{first}.self_attn.q_proj"] is stats[f"{first}.self_attn.v_proj"]
    assert stats[f"{first}.mlp.gate_proj"] is stats[f"{first}.mlp.up_proj"]
    assert len({id(s) for s in stats.values()}) == 2 * 4
    assert stats[f"{first}.mlp.up_proj"].gram is None


def test_all_cross_attention_keys_share_the_encoders_output() -> None:
    model = tiny.t5()
    stats = collect(model, batches_for(model), block_linears(model))
    keys = [s for name, s in stats.items() if "EncDecAttention.k" in name]
    assert len(keys) == 2 and keys[0] is keys[1]


def test_no_hook_stays_behind() -> None:
    model = tiny.marian()
    collect(model, batches_for(model), block_linears(model))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_blocks_are_found_encoder_first() -> None:
    assert [name.split(".")[0] for name in blocks(tiny.t5())] == ["encoder"] * 2 + ["decoder"] * 2
    assert list(blocks(tiny.bert())) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]


def test_without_text_calibration_says_so() -> None:
    model = tiny.llama()
    with pytest.raises(DataError, match="calibration has no text"):
        collect(model, [], block_linears(model))


def test_statistics_come_back_from_disk(tmp_path: Path) -> None:
    model = tiny.t5()
    layers = block_linears(model)
    found = {}
    for some in collect_by_block(model, batches_for(model), layers, gram=True):
        write_stats(some, tmp_path)
        found |= some
    stored = StoredStats(tmp_path)
    assert set(stored) == set(layers)
    for name, stats in found.items():
        again = stored[name]
        assert again.gram is not None and stats.gram is not None
        assert torch.equal(again.gram, stats.gram) and torch.equal(again.mean, stats.mean)
        assert again.num_tokens == stats.num_tokens and stored.width(name) == len(stats.mean)
    keys = [name for name in layers if "EncDecAttention.k" in name]
    assert stored.source(keys[0]) == stored.source(keys[1])


def test_a_wide_gram_is_summed_in_strips_and_is_whole() -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(50, 1030, generator=draws)
    sums = Sums(gram=True)
    sums.add(x[:20])
    sums.add(x[20:])
    gram = sums.stats().gram
    assert gram is not None and torch.allclose(gram, x.T @ x, atol=1e-3)
    assert torch.equal(gram, gram.T)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_in_sequence_a_block_sees_what_was_changed_before_it(one_by_one: bool) -> None:
    model, reference = tiny.llama(), tiny.llama()
    layers = block_linears(model)
    batches = batches_for(model)
    for group in calibrated(model, batches, layers, gram=True, one_by_one=one_by_one):
        names = list(group.layers)
        expected = collect(reference, batches, block_linears(reference), gram=True)[names[0]]
        assert group.stats is not None and group.stats.gram is not None
        if one_by_one or names[0].endswith("q_proj"):
            assert torch.allclose(group.stats.gram, expected.gram, rtol=1e-4, atol=1e-4), names
        for name, layer in group.layers.items():
            layer.weight.data.mul_(0.5)
            reference.get_submodule(name).weight.data.mul_(0.5)


def test_walking_leaves_the_model_as_it_was() -> None:
    model = tiny.gemma3()
    batches = batches_for(model)
    with torch.no_grad():
        before = model(**batches[0]).logits
    assert [visit.name for visit in walk(model, model, batches)] == list(blocks(model))
    visits = walk(model, model, batches)
    next(visits)
    visits.close()
    with torch.no_grad():
        assert torch.equal(model(**batches[0]).logits, before)
    assert torch.is_grad_enabled()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    for name, build in cases.BUILDS.items():
        save(tiny.bundle(build(), dtype="bfloat16"), folder / name)
        save(tiny.bundle(build(), dtype="float32"), folder / f"{name} exact")
    return {path.name: str(path) for path in folder.iterdir()}


def killed(*words: str) -> None:
    done = subprocess.run([sys.executable, cases.__file__, *words], stderr=subprocess.PIPE)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.parametrize(
    ("name", "mode", "die_at", "place"),
    [
        ("llama", "sequential", "model.layers.1.mlp.down_proj", "streamed"),
        ("t5", "true_sequential", "decoder.block.1.layer.2.DenseReluDense.wi", "whole"),
        ("gpt2", "sequential", "transformer.h.1.attn.c_attn", "streamed"),
    ],
)
def test_a_killed_calibration_goes_on_at_its_last_finished_block(
    name: str, mode: str, die_at: str, place: str, source: dict[str, str], tmp_path: Path
) -> None:
    again, once = tmp_path / "again", tmp_path / "once"
    killed("shrink", source[name], str(again), place, mode, die_at)
    finished = {file.name for file in (again / "state" / "blocks").iterdir()}
    assert len(finished) == (3 if name == "t5" else 1)
    found = [
        cases.shrink(SINGLE, source[name], str(folder), place == "whole", mode) for folder in (again, once)
    ]
    assert found[0] == found[1]
    one, other = cases.tensors(again / "model"), cases.tensors(once / "model")
    assert set(one) == set(other) and all(torch.equal(one[n], other[n]) for n in one)


def test_killed_statistics_are_looked_at_again_from_the_last_finished_block(
    source: dict[str, str], tmp_path: Path
) -> None:
    again, once = tmp_path / "again", tmp_path / "once"
    killed("look", source["t5"], str(again), "3")
    assert cases.look(SINGLE, source["t5"], str(again))["written"] == 1
    cases.look(SINGLE, source["t5"], str(once))
    one, other = StoredStats(again / "stats"), StoredStats(once / "stats")
    assert list(one) == list(other)
    for name in one:
        a, b = one[name], other[name]
        assert torch.equal(a.gram, b.gram) and torch.equal(a.max_abs, b.max_abs)


@pytest.mark.parametrize(
    ("name", "mode", "place"),
    [("llama exact", "sequential", "streamed"), ("t5 exact", "true_sequential", "whole")],
)
def test_two_processes_equal_one(
    name: str, mode: str, place: str, source: dict[str, str], tmp_path: Path
) -> None:
    given = (source[name], str(tmp_path / "two"), place == "whole", mode)
    two = launch(cases.shrink, Distributed(world_size=2), *given)
    one = cases.shrink(SINGLE, source[name], str(tmp_path / "one"), place == "whole", mode)
    assert set(two["facts"]) == set(one["facts"]) and set(two["packed"]) == set(one["packed"])
    for layer, fact in one["facts"].items():
        assert two["facts"][layer]["energy"] == pytest.approx(fact["energy"], rel=1e-4)
    a, b = cases.tensors(tmp_path / "one" / "model"), cases.tensors(tmp_path / "two" / "model")
    assert set(a) == set(b)
    assert all(torch.allclose(a[n].float(), b[n].float(), rtol=1e-4, atol=1e-6) for n in a)


def test_two_processes_store_the_statistics_of_one(source: dict[str, str], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    cases.look(SINGLE, source["t5"], str(one))
    launch(cases.look, Distributed(world_size=2), source["t5"], str(two))
    a, b = StoredStats(one / "stats"), StoredStats(two / "stats")
    assert list(a) == list(b)
    for name in a:
        assert a[name].num_tokens == b[name].num_tokens
        scale = float(a[name].gram.abs().max())
        assert float((a[name].gram - b[name].gram).abs().max()) < 1e-5 * scale, name
        assert torch.allclose(a[name].mean, b[name].mean, atol=1e-5), name
        assert torch.equal(a[name].max_abs, b[name].max_abs), name
    given = [source["t5"], str(tmp_path / "dealt"), True, "dense", str(two)]
    dealt = launch(cases.shrink, Distributed(world_size=2), *given)
    given[1] = str(tmp_path / "alone")
    alone = cases.shrink(SINGLE, *given)
    assert dealt["facts"] == alone["facts"]
    c, d = cases.tensors(tmp_path / "dealt" / "model"), cases.tensors(tmp_path / "alone" / "model")
    assert all(torch.equal(c[name], d[name]) for name in d)
