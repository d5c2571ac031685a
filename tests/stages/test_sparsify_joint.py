"""One pass prunes and quantizes: the file on disk holds both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch

from lcc.config.cards import decode
from lcc.models.blocks import block_linears
from lcc.models.bundle import open_bundle
from lcc.models.checkpoint import save
from lcc.stages.quantize import Quantize


@pytest.mark.parametrize("build", [tiny.llama, tiny.qwen3, tiny.gemma3, tiny.marian, tiny.bert])
def test_a_reloaded_model_is_sparse_and_on_its_grid(build: Any, tmp_path: Path) -> None:
    bundle = tiny.bundle(build())
    head = "classify" if bundle.card.head == "classify" else "causal"
    context = tiny.context(tmp_path, task=tiny.TextTask(head=head))
    joint = {"name": "gptq", "pattern": "2:4"}
    decode(Quantize, {"quantizer": joint, "bits": 4, "group_size": 32}).run(bundle, context)
    save(bundle, tmp_path / "model")
    reloaded = open_bundle(tmp_path / "model").load()
    expected = dict(block_linears(bundle.module))
    for name, layer in block_linears(reloaded).items():
        weight = layer.weight.detach()
        assert ((weight == 0).view(-1, 4).sum(dim=1) >= 2).all()
        assert torch.allclose(weight, expected[name].weight.detach(), atol=1e-6)
