"""Stages in miniature that the tests of calibration run here, in a killed process, and in two."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import compressing as tiny
import torch

from lcc.calibration.calibrate import Calibration
from lcc.distributed.dist import SINGLE, Dist
from lcc.models.blocks import as_linear, block_linears
from lcc.models.bundle import open_bundle
from lcc.models.checkpoint import save
from lcc.models.safetensors_io import StoredTensors
from lcc.stages import calibrate
from lcc.stages._input_groups import input_groups, opened

BUILDS = {"llama": tiny.llama, "gpt2": tiny.gpt2, "t5": tiny.t5, "bert": tiny.bert}


def context_of(folder: Path, dist: Dist, **inputs: Path) -> Any:
    folder.mkdir(exist_ok=True)
    context = tiny.context(folder, task=tiny.TextTask())
    context.dist, context.inputs = dist, inputs
    return context


def shrink(
    dist: Dist, source: str, folder: str, whole: bool, mode: str, stats: str = "", die_at: str = ""
) -> dict[str, Any]:
    """Every weight times a number that its Gram gives, saved below `folder`; its facts."""
    bundle = open_bundle(Path(source))
    inputs = {"stats": Path(stats)} if stats else {}
    context = context_of(Path(folder), dist, **inputs)
    if whole:
        bundle.load()
    model = opened(bundle, context, needs="gram")
    card = Calibration(mode=mode, batch_tokens=64)
    with as_linear(model):
        groups = input_groups(bundle, context, block_linears(model), card, needs="gram")
        for group in groups:
            if die_at in group.layers:
                os.kill(os.getpid(), signal.SIGKILL)
            assert group.stats is not None and group.stats.gram is not None
            energy = float(group.stats.gram.diagonal().mean()) / group.stats.num_tokens
            for name, layer in group.layers.items():
                layer.weight.data.mul_(0.5 + 0.5 / (1 + energy))
                groups.facts[name] = {"energy": energy}
                groups.packed[name] = {"rows": layer.weight.detach()[:2].clone()}
    bundle.module = model
    if dist.is_main:
        save(bundle, Path(folder) / "model")
    dist.barrier()
    packed = {name: groups.packed[name]["rows"].tolist() for name in groups.facts}
    return {"facts": groups.facts, "packed": packed if dist.is_main else {}}


def look(dist: Dist, source: str, folder: str, die_after: int = 0) -> dict[str, Any]:
    """The step that stores statistics, killed after some blocks."""
    bundle, context = open_bundle(Path(source)), context_of(Path(folder), dist)
    write, done = calibrate.write_stats, []

    def write_and_die(*given: Any) -> None:
        write(*given)
        done.append(1)
        if len(done) == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    calibrate.write_stats = write_and_die
    try:
        stage = calibrate.Calibrate(gram=True, calibration=Calibration(batch_tokens=64))
        outcome = stage.run(bundle, context)
    finally:
        calibrate.write_stats = write
    return {"written": len(done), "tokens": outcome.measures["num_tokens"].value}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    stored = StoredTensors(folder)
    return {name: stored.read(name) for name in stored.entries}


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, *given = sys.argv[1:]
    if what == "look":
        look(SINGLE, given[0], given[1], int(given[2]))
    else:
        shrink(SINGLE, given[0], given[1], given[2] == "whole", given[3], die_at=given[4])
