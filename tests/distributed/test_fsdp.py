"""Any number of processes, whole or in pieces: one process's losses, norms, weights and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_cases import (
    NUM_EXAMPLES,
    STEPS,
    STOP,
    WHOLE,
    Together,
    killed_once,
    rows_of,
    seen,
    short_of_memory,
)
from safetensors import safe_open
from training_cases import model

from lcc.core.errors import RecipeError
from lcc.distributed.dist import Distributed
from lcc.distributed.fsdp import require_shardable
from lcc.distributed.launch import launch
from lcc.distributed.state import open_tensors
from lcc.methods.adapters.lora import Lora
from lcc.methods.adapters.qlora import Qlora
from lcc.methods.optimizers.adam import AdamW
from lcc.methods.optimizers.adamw8bit import AdamW8bit
from lcc.training.checkpoint import generations

FSDP = Distributed(strategy="fsdp", world_size=2)


@pytest.mark.parametrize("strategy, method", WHOLE)
def test_two_processes_give_the_losses_norms_and_weights_of_one(
    together: Together, strategy: str, method: str
) -> None:
    root, found = together
    alone, together = rows_of(root / f"one-{method}"), rows_of(root / f"{strategy}-{method}")
    assert len(alone) == len(together) > STOP
    for name in ("loss", "grad_norm"):
        expected = [row[name] for row in alone]
        assert [row[name] for row in together] == pytest.approx(expected, abs=1e-5), name
    losses = [[r["validation_loss"] for r in rows if "validation_loss" in r] for rows in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for name, expected in found[f"one-{method}"].items():
        torch.testing.assert_close(found[f"{strategy}-{method}"][name], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["fsdp-ema", "ema-to-one"])
def test_averaged_weights_are_the_same_in_pieces_and_after_a_stop(together: Together, name: str) -> None:
    root, found = together
    losses = [[row["loss"] for row in rows_of(root / case)] for case in (name, "one-ema")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for key, expected in found["one-ema"].items():
        torch.testing.assert_close(found[name][key], expected, atol=1e-4, rtol=0)
        assert not torch.equal(expected, found["one-full"][key]), key


def test_what_was_pruned_stays_zero_in_every_piece(together: Together) -> None:
    _, found = together
    for name, value in found["fsdp-sparse"].items():
        zeros = value == 0
        assert torch.equal(zeros, found["one-sparse"][name] == 0), name
        if "proj" in name:
            assert zeros[:, ::2].all() and not zeros.all(), name


@pytest.mark.parametrize("name", ["ddp-to-one", "fsdp-to-one", "one-to-ddp", "one-to-fsdp"])
def test_a_run_goes_on_with_another_number_of_processes(together: Together, name: str) -> None:
    root, found = together
    losses, expected = ([row["loss"] for row in rows_of(root / f)] for f in (name, "one-full"))
    assert losses == pytest.approx(expected, abs=1e-5)
    for key, value in found["one-full"].items():
        torch.testing.assert_close(found[name][key], value, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["ddp-to-one", "fsdp-to-one", "one-to-ddp", "one-to-fsdp"])
def test_every_sample_is_seen_once_an_epoch_whoever_goes_on(together: Together, name: str) -> None:
    root, _ = together
    rows = seen(root / name)
    first, second = ([e for s, e in rows if (s < STEPS) is (epoch == 0)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(NUM_EXAMPLES))
    writers = {path.name for path in (root / name).glob("ledger-*")}
    assert writers == {"ledger-1-0.jsonl", "ledger-2-0.jsonl", "ledger-2-1.jsonl"}


def test_each_process_saves_its_rows_and_nothing_is_pickled(together: Together) -> None:
    root, _ = together
    (state,) = generations(root / "fsdp-to-one" / "state")
    assert {path.suffix for path in state.iterdir()} == {".safetensors", ".json"}
    rows = {}
    for group, name in [("trainable", "lm_head.weight"), ("optimizer", "0/exp_avg")]:
        for rank in (0, 1):
            with safe_open(state / f"{group}.{rank:04d}-of-0002.safetensors", "pt") as file:
                rows[group, rank] = file.get_slice(name).get_shape()[0]
    assert set(rows.values()) == {20}  # of 40 rows in the vocabulary


def test_a_sharded_run_can_save_its_state_whole(together: Together) -> None:
    root, _ = together
    (state,) = generations(root / "saved-whole" / "state")
    assert not list(state.glob("*-of-*"))
    whole = open_tensors(state)["trainable"]["lm_head.weight"]
    pieces = open_tensors(generations(root / "fsdp-to-one" / "state")[0])["trainable"]
    assert torch.equal(whole, pieces["lm_head.weight"])


def test_bfloat16_weights_stay_near(together: Together) -> None:
    root, _ = together
    losses = [[row["loss"] for row in rows_of(root / f)] for f in ("bf16-weights", "one-full")]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


class Packed(torch.nn.Module):
    """A matrix in 4 bits, two to a byte."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8, dtype=torch.uint8), requires_grad=False)


def packed() -> Any:
    trained = model()
    trained.model.layers[0].mlp = Packed()
    return trained


def shared() -> Any:
    trained = model()
    trained.model.layers[1].mlp = trained.model.layers[0].mlp
    return trained


OFFLOADED = Distributed(strategy="fsdp", world_size=2, cpu_offload=True)


@pytest.mark.parametrize(
    "make, chosen, card, device, sentence",
    [
        (model, FSDP, AdamW(), "mps", "fsdp cannot run on mps; use distributed=single."),
        (
            packed,
            FSDP,
            AdamW(),
            "cpu",
            "fsdp cannot cut packed weights such as "
            "model.layers.0.mlp.weight; use distributed=ddp, or method=lora in place of qlora.",
        ),
        (
            model,
            FSDP,
            AdamW8bit(),
            "cpu",
            "fsdp cannot cut what adamw8bit keeps; choose another one or distributed=ddp.",
        ),
        (
            model,
            FSDP,
            Qlora(),
            "cpu",
            "fsdp cannot cut what qlora keeps; choose another one or distributed=ddp.",
        ),
        (
            shared,
            FSDP,
            AdamW(),
            "cpu",
            "fsdp cannot cut weights that model.layers.0 and model.layers.1 share; use distributed=ddp.",
        ),
        (
            model,
            OFFLOADED,
            AdamW(),
            "cpu",
            "fsdp has nothing to offload: the weights are in main memory already; leave cpu_offload out.",
        ),
        (
            lambda: torch.nn.Linear(2, 2),
            FSDP,
            AdamW(),
            "cpu",
            "fsdp finds no repeated blocks in Linear; use distributed=ddp.",
        ),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_a_sentence(
    make: Any, chosen: Distributed, card: Any, device: str, sentence: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        require_shardable(make(), chosen, [card], device)
    assert str(caught.value) == f"distributed.strategy: {sentence}"
    require_shardable(model(), FSDP, [AdamW(), Lora()], "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_process_costs_time_and_no_bit(tmp_path: Path, strategy: str) -> None:
    chosen = Distributed(world_size=2, max_restarts=1)
    found = launch(killed_once, chosen, str(tmp_path), strategy)
    assert len(found["restarts"]) == 1 and "killed by SIGKILL" in found["restarts"][0]
    for name, expected in found["whole"].items():
        assert torch.equal(found["killed"][name], expected), name
    losses = [[row["loss"] for row in rows_of(tmp_path / f)] for f in ("killed", "whole")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_too_little_memory_in_one_process_starts_the_group_with_less(tmp_path: Path) -> None:
    restarts = launch(short_of_memory, Distributed(world_size=2, max_restarts=2), str(tmp_path))
    assert restarts and all("out of memory" in why for why in restarts)
    losses = [[row["loss"] for row in rows_of(tmp_path / f)] for f in ("hungry", "plain")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
