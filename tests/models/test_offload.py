"""A model changed block by block from its files is the one that was changed in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch

from lcc.calibration.calibrate import Calibration
from lcc.models import offload
from lcc.models.blocks import as_linear, block_linears
from lcc.models.bundle import Bundle, open_bundle
from lcc.models.checkpoint import save
from lcc.models.reload_check import reload_gate
from lcc.models.safetensors_io import StoredTensors
from lcc.stages._input_groups import input_groups, opened

FAMILIES = [tiny.llama, tiny.qwen3, tiny.gemma3, tiny.gpt2, tiny.bert, tiny.t5, tiny.marian]


def stored(model: Any, folder: Path, *, dtype: str = "bfloat16") -> Path:
    save(tiny.bundle(model, dtype=dtype), folder)
    return folder


def halved(bundle: Bundle, folder: Path, **calibration: Any) -> dict[str, Any]:
    """Every weight times a number that its statistics give: a stage of four lines."""
    folder.mkdir(exist_ok=True)
    context = tiny.context(folder)
    model = opened(bundle, context, needs="gram")
    with as_linear(model):
        layers = block_linears(model)
        card = Calibration(mode="sequential", **calibration)
        groups = input_groups(bundle, context, layers, card, needs="gram")
        for group in groups:
            assert group.stats is not None and group.stats.gram is not None
            for name, layer in group.layers.items():
                factor = 0.5 + 0.5 / (1 + float(group.stats.gram.diagonal().mean()))
                layer.weight.data.mul_(factor)
                groups.facts[name] = {"factor": factor}
    bundle.module = model
    return groups.facts


@pytest.mark.parametrize("build", FAMILIES)
@pytest.mark.parametrize("large", [1, 1 << 24])
def test_streamed_and_whole_models_become_the_same(
    build: Any, large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "LARGE_BYTES", large)
    source = stored(build(), tmp_path / "source")
    whole, streamed = open_bundle(source), open_bundle(source)
    whole.load()
    facts = halved(whole, tmp_path / "whole")
    assert halved(streamed, tmp_path / "streamed") == facts
    assert streamed.streamed is not None and whole.streamed is None
    for bundle, name in ((whole, "a"), (streamed, "b")):
        save(bundle, tmp_path / name)
    a, b = StoredTensors(tmp_path / "a"), StoredTensors(tmp_path / "b")
    assert set(a.entries) == set(b.entries)
    for name in a.entries:
        assert torch.equal(a.read(name), b.read(name)), name
    found = reload_gate(streamed, tmp_path / "b", parent=source)
    assert found["reload_max_logit_difference"].value < 1e-5
    assert (tmp_path / "b" / "tokenizer.json").is_file()
