"""Clipping sees whole gradients: the same at one process and at two, whole or in shards."""

from __future__ import annotations

import json
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import examples, model, stepper, training

from lcc.distributed.dist import SINGLE, Dist, Distributed
from lcc.distributed.launch import launch
from lcc.methods.clipping.agc import AGC
from lcc.methods.clipping.none import NONE
from lcc.methods.clipping.norm import Norm
from lcc.methods.clipping.per_layer import PerLayer
from lcc.methods.clipping.quantile import Quantile
from lcc.methods.clipping.value import Value
from lcc.training.optim import ClipResult, gradient_norm

KINDS: dict[str, Any] = {
    "none": NONE(), "norm": Norm(max_norm=0.5), "value": Value(max_value=0.02),
    "per_layer": PerLayer(max_norm=0.5), "agc": AGC(), "quantile": Quantile(quantile=0.3),
}  # fmt: skip
LOGGED = ("loss", "grad_norm", "clip_threshold", "clipped_share")


def logged(dist: Dist, folder: str) -> dict[str, list[list[float | None]]]:
    """What every kind logs in four steps."""
    torch.set_num_threads(1)
    found = {}
    for kind, clip in KINDS.items():
        path = Path(folder) / f"{kind}-{dist.world_size}"
        training(path, model(), dist=dist, clip=clip, max_steps=4).run()
        lines = (path / "curves.jsonl").read_text().splitlines() if dist.is_main else []
        found[kind] = [[json.loads(line).get(name) for name in LOGGED] for line in lines]
    return found


def work(dist: Dist, folder: str) -> tuple[Any, Any]:
    return logged(dist, folder), sharded(dist)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """What two processes log, and what shards change: one group of processes for both."""
    return launch(work, Distributed(world_size=2), str(tmp_path_factory.mktemp("two")))


def test_two_processes_clip_as_one(tmp_path: Path, two_processes: tuple[Any, Any]) -> None:
    alone, together = logged(SINGLE, str(tmp_path)), two_processes[0]
    for kind, rows in alone.items():
        assert len(rows) == 4
        for one, two in zip(rows, together[kind], strict=True):
            assert two == pytest.approx(one, abs=1e-5), kind
    touched = {kind: sum(row[3] for row in rows if row[3]) for kind, rows in alone.items()}
    assert touched.pop("none") == 0 and all(touched.values()), touched


def with_gradients(trained: Any) -> dict[str, torch.nn.Parameter]:
    ids = torch.arange(3, 33).view(3, 10)
    trained(input_ids=ids, labels=ids).loss.backward()
    return dict(trained.named_parameters())


def sharded(dist: Dist) -> dict[str, list[float]]:
    """For every kind: the largest difference that shards make to its findings and gradients."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (dist.world_size,))
    differences = {}
    for kind, clip in KINDS.items():
        whole, parts = model(), model()
        for layer in parts.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(parts, mesh=mesh)
        expected, given = with_gradients(whole), with_gradients(parts)
        wanted, found = (clip.apply(params, (0.3, 0.4)) for params in (expected, given))
        assert found.clipped_share == wanted.clipped_share, kind
        assert (wanted.clipped_share > 0) == (kind != "none"), kind
        gaps = [float((given[n].grad.full_tensor() - p.grad).abs().max()) for n, p in expected.items()]
        differences[kind] = [
            abs(found.norm_before - wanted.norm_before),
            abs((found.threshold or 0) - (wanted.threshold or 0)),
            *gaps,
        ]
    return differences


def test_shards_are_clipped_as_the_whole(two_processes: tuple[Any, Any]) -> None:
    differences = two_processes[1]
    assert differences.keys() == KINDS.keys()
    for kind, found in differences.items():
        assert found == pytest.approx([0.0] * len(found), abs=1e-6), kind


def accumulated(clip: Any, **changes: Any) -> tuple[ClipResult, list[torch.Tensor]]:
    trained = model()
    made = replace(stepper(trained), **changes)
    made.accumulate(examples(16), range(16), step=0)
    found = clip.apply(dict(trained.named_parameters()), (0.3, 0.4))
    return found, [p.grad for p in trained.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_are_clipped_as_the_batch_they_make(kind: str) -> None:
    whole, split = (accumulated(KINDS[kind], micro_tokens=tokens) for tokens in (10_000, 20))
    assert astuple(split[0]) == pytest.approx(astuple(whole[0]), abs=1e-5)
    for got, wanted in zip(split[1], whole[1], strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


def test_gradients_of_a_bfloat16_forward_are_clipped_in_single_precision() -> None:
    found, left = accumulated(Norm(max_norm=0.25), dtype="bfloat16")
    assert {gradient.dtype for gradient in left} == {torch.float32}
    after = torch.cat([gradient.flatten() for gradient in left]).double().norm()
    assert float(after) == pytest.approx(0.25, rel=1e-6)
    exact = accumulated(NONE())[0].norm_before
    assert found.norm_before != exact and found.norm_before == pytest.approx(exact, rel=0.02)


def test_the_norm_is_torchs_own() -> None:
    given = with_gradients(model())
    expected = torch.nn.utils.get_total_norm([p.grad for p in given.values()])
    assert gradient_norm(given.values()) == float(expected)
