"""A worker group gives rank 0's result, and a worker's sentence comes back as it was said."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from lcc.config.cards import decode, identify
from lcc.core import signals
from lcc.core.errors import DataError, PreemptedError, RecipeError, ResourceError
from lcc.distributed.dist import SINGLE, Dist, Distributed
from lcc.distributed.launch import launch

TWO = Distributed(world_size=2)


def collect(dist: Dist, offset: int) -> dict[str, float]:
    tensors = [torch.full((2, 2), float(dist.rank)), torch.ones(3)]
    dist.sum_(tensors)
    shared = torch.tensor([float(dist.rank + 5)])
    dist.broadcast_([shared])
    dist.barrier()
    return {
        "sum": dist.sum([dist.rank + offset])[0],
        "mean": dist.mean([dist.rank])[0],
        "corner": float(tensors[0][1, 1]),
        "ones": float(tensors[1][0]),
        "shared": float(shared),
        "world_size": dist.world_size,
        "main": dist.is_main,
    }


def one_fails(dist: Dist) -> None:
    if dist.rank == 1:
        raise DataError("row 7 has no text.")
    dist.barrier()


def parent_is_stopped(dist: Dist) -> None:
    if dist.is_main:
        os.kill(os.getppid(), signal.SIGTERM)
    while True:
        dist.barrier()
        signals.check("wait")


def one_fails_and_takes_the_other_down(dist: Dist) -> None:
    if dist.rank == 1:
        raise DataError("row 7 has no text.")
    # What the agent then does to the others.
    signal.raise_signal(signal.SIGTERM)
    dist.barrier()


def test_one_process_is_the_identity() -> None:
    assert launch(collect, Distributed(), 10) == {
        "sum": 10,
        "mean": 0,
        "corner": 0,
        "ones": 1,
        "shared": 5,
        "world_size": 1,
        "main": True,
    }
    assert SINGLE.is_main


def test_two_processes_sum_and_share() -> None:
    assert launch(collect, TWO, 10) == {
        "sum": 21,
        "mean": 0.5,
        "corner": 1,
        "ones": 2,
        "shared": 5,
        "world_size": 2,
        "main": True,
    }


def test_the_error_of_any_rank_comes_back_as_itself() -> None:
    with pytest.raises(DataError, match="row 7 has no text"):
        launch(one_fails, TWO)


@pytest.mark.slow
def test_the_error_that_took_the_others_down_is_the_one_told() -> None:
    with pytest.raises(DataError, match="row 7 has no text"):
        launch(one_fails_and_takes_the_other_down, TWO)


@pytest.mark.slow
def test_a_stopped_group_says_that_it_can_go_on() -> None:
    with pytest.raises(PreemptedError, match="asked to stop"):
        launch(parent_is_stopped, TWO)


def test_more_processes_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lcc.distributed.launch.cores", lambda: 2)
    sentence = (
        "distributed.world_size: asked for 4 processes, this machine has 2 cores; use distributed=single."
    )
    with pytest.raises(ResourceError) as caught:
        launch(collect, Distributed(world_size=4), 0)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "node, sentence",
    [
        (
            {"strategy": "fsdp"},
            "fsdp shards a model over several processes and world_size is 1; raise "
            "it or use distributed=single.",
        ),
        (
            {"world_size": 3, "nodes": 2, "rendezvous": "a:1"},
            "3 processes cannot be dealt evenly to 2 nodes; make world_size a multiple of nodes.",
        ),
        (
            {"world_size": 2, "nodes": 2},
            "2 nodes must know where to meet; set rendezvous to HOST:PORT of the first one.",
        ),
        (
            {"world_size": 2, "strategy": "fsdp", "gradients": "bf16"},
            "gradients=bf16 is for ddp; fsdp sends less with bf16_weights=true.",
        ),
        ({"world_size": 2, "cpu_offload": True}, "cpu_offload is fsdp's; add strategy=fsdp or leave it out."),
    ],
)
def test_a_group_that_cannot_be_is_refused(node: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        decode(Distributed, node, "distributed")
    assert str(caught.value) == f"distributed: {sentence}"


def test_a_key_says_what_is_sent_and_not_by_how_many() -> None:
    alone = identify(Distributed())
    many = Distributed(world_size=4, nodes=2, rendezvous="a:1", strategy="fsdp", state="full")
    assert identify(many) == alone
    assert identify(Distributed(world_size=2, gradients="bf16")) != alone
    assert identify(Distributed(world_size=2, strategy="fsdp", bf16_weights=True)) != alone
