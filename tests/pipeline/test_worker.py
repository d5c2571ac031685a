"""Whole steps over a model that stays on disk: reloaded, compared, and shared by two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compressing as tiny
import pytest
import torch

from lcc.config.cards import STAGES, decode, find_card
from lcc.core.errors import GateError
from lcc.distributed.dist import SINGLE, Distributed
from lcc.distributed.launch import launch
from lcc.models import offload, reload_check
from lcc.models.bundle import Bundle, open_bundle
from lcc.models.checkpoint import save
from lcc.models.safetensors_io import StoredTensors
from lcc.pipeline.worker import Job, work_step
from lcc.tasks.task import Task

STEPS = {
    "sparsegpt": ("sparsify", {"criterion": "sparsegpt"}),
    "wanda": ("sparsify", {"criterion": "wanda", "pattern": "2:4"}),
    "gptq": ("quantize", {"quantizer": "gptq", "bits": 4, "group_size": 16}),
}


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    folder = tmp_path / "parent"
    save(tiny.bundle(tiny.llama(num_hidden_layers=3), dtype="float32"), folder / "model")
    (folder / "data").mkdir()
    rows = "".join(json.dumps(row) + "\n" for row in tiny.rows(40, 0))
    for split in ("train", "validation", "test"):
        (folder / "data" / f"{split}.jsonl").write_text(rows, encoding="utf-8")
    counts: dict[str, Any] = {"read": 40, "removed": {}, "left_out": {}, "rows": {}}
    counts["documents"] = {}
    (folder / "data" / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
    return folder


def job(step: str, parent: Path, folder: Path, **options: Any) -> Job:
    kind, chosen = STEPS[step]
    calibration = {"mode": "sequential", "batch_tokens": 64, "max_tokens": 512}
    stage = decode(find_card(STAGES, kind), {**chosen, "calibration": calibration, **options}, kind)
    words = {"name": "generation", "head": "causal", "fields": ["text"], "answer": "{text}"}
    folder.mkdir()
    return Job(
        kind,
        stage,
        folder,
        {"model": parent, "data": parent},
        task=decode(Task, words),
        seed=0,
        device="cpu",
        dtype="float32",
        threads=1,
        tracker=None,
        run="test",
        checkpoint=kind,
    )


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    stored = StoredTensors(folder / "model")
    return {name: stored.read(name) for name in stored.entries}


@pytest.mark.parametrize("step", STEPS)
def test_a_streamed_step_gives_what_one_in_memory_gives(
    step: str, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "LARGE_BYTES", 1)
    streamed = work_step(SINGLE, job(step, parent, tmp_path / "streamed"))
    monkeypatch.setattr(Bundle, "stream", lambda *_, **__: None)
    whole = work_step(SINGLE, job(step, parent, tmp_path / "whole"))
    for name, measure in whole["measures"].items():
        if "difference" not in name:
            assert streamed["measures"][name] == measure, name
    assert streamed["measures"]["reload_max_logit_difference"]["value"] < 1e-4
    one, other = tensors(tmp_path / "streamed"), tensors(tmp_path / "whole")
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("step", ["wanda", "gptq"])
def test_a_large_result_is_reread_without_holding_it(
    step: str, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload_check, "WHOLE_BYTES", 0)
    facts = work_step(SINGLE, job(step, parent, tmp_path / "large"))
    assert facts["measures"]["reload_max_logit_difference"]["value"] < 1e-4
    assert facts["measures"]["parameters"]["value"] > 0
    assert open_bundle(tmp_path / "large" / "model").load().config.num_hidden_layers == 3


@pytest.mark.parametrize("step", ["sparsegpt", "gptq"])
def test_two_processes_share_the_layers_of_a_block(step: str, parent: Path, tmp_path: Path) -> None:
    one = work_step(SINGLE, job(step, parent, tmp_path / "one"))
    given = job(step, parent, tmp_path / "two", distributed={"world_size": 2})
    two = launch(work_step, Distributed(world_size=2), given)
    assert set(two["measures"]) == set(one["measures"])
    for name in ("layer_error", "output_error"):
        if name in one["measures"]:
            found = two["measures"][name]["value"]
            assert found == pytest.approx(one["measures"][name]["value"], rel=1e-3)
    a, b = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert set(a) == set(b) and all(a[name].shape == b[name].shape for name in a)


def test_a_damaged_streamed_result_is_not_published(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = offload.write_model

    def damaged(entries: Any, folder: Path) -> None:
        write(entries, folder)
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-64] + b"\x11" * 64)

    monkeypatch.setattr(offload, "write_model", damaged)
    with pytest.raises(GateError, match="differ"):
        work_step(SINGLE, job("wanda", parent, tmp_path / "damaged"))
