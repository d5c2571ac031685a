"""Trainings that one process or a group runs: the same, stopped and gone on with, with a ledger."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from training_cases import Signalling, examples, model, stepper, training

from lcc.core import signals
from lcc.core.errors import PreemptedError
from lcc.distributed.dist import SINGLE, Dist, Distributed
from lcc.distributed.fsdp import Sharded
from lcc.distributed.launch import launch
from lcc.methods.optimizers.adam import AdamW
from lcc.models.adapter_io import zero_masks
from lcc.training.batches import Batch, epoch_batches
from lcc.training.ema import EMA

Together = tuple[Path, dict[str, Any]]
"""A folder of trainings by name, and the weights that each ended with."""

NUM_EXAMPLES = 40
STEPS = len(epoch_batches(examples(NUM_EXAMPLES).lengths, batch_tokens=64, seed=0, epoch=0))
STOP = 3  # inside the first epoch
AVERAGED = EMA(decay=0.8)
WHOLE = [("ddp", "full"), ("ddp", "lora"), ("fsdp", "full"), ("fsdp", "lora"), ("fsdp", "tied"),
         ("fsdp", "sparse")]  # fmt: skip


@dataclass
class Ledger:
    """Which examples this process computed in which step."""

    path: Path
    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def note(self, batch: Batch) -> None:
        if batch.counts:
            self.rows.append({"step": self.step, "examples": list(batch.examples)})

    def write(self) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)


def lora(trained: Any) -> Any:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights="gaussian")
    adapted = peft.get_peft_model(trained, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return adapted


def pruned(trained: Any) -> Any:
    """Every second input of every layer inside the blocks zero; the masks that keep it so."""
    for module in trained.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data[:, ::2] = 0
    return zero_masks(trained)


def run(
    dist: Dist,
    folder: Path,
    *,
    strategy: str = "ddp",
    method: str = "full",
    stop: int | None = None,
    kill: int | None = None,
    hungry: bool = False,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """Train, perhaps until a request to stop after step `stop`; rank 0's trained weights.

    Rank 1 is killed before step `kill`, once; when `hungry`, it cannot hold 24 tokens at once.
    """
    torch.set_num_threads(1)
    trained = lora(model()) if method == "lora" else model(tied=method == "tied")
    masks = pruned(trained) if method == "sparse" else {}
    if hungry:
        trained.model.layers[1].mlp = Hungry(trained.model.layers[1].mlp, 16 + 99 * dist.is_main)
    changes = {k: options.pop(k) for k in ("gradients", "bf16_weights", "state") if k in options}
    chosen = Distributed(strategy=strategy, world_size=dist.world_size, powersgd_start=2, **changes)
    sharded = Sharded(trained, chosen, dist, "cpu") if strategy == "fsdp" else None
    working = sharded.working if sharded else trained
    made = stepper(working, dist=dist, micro_tokens=24, sharded=sharded, distributed=chosen)
    if sharded is not None:
        sharded.shard()
        masks = sharded.like(masks)
    if method == "lora":
        # Adam divides by gradients: of mere rounding it would make steps.
        options |= {"lr": 1e-4, "optimizer": AdamW(epsilon=1e-3)}
    tracker = {} if stop is None else {"tracker": Signalling(stop, signal.SIGTERM)}
    loop = training(
        folder, working, stepper=made, train=examples(NUM_EXAMPLES), masks=masks, **tracker, **options
    )
    ledger = _kept_by(loop, folder / f"ledger-{dist.world_size}-{dist.rank}.jsonl")
    if kill is not None and dist.rank == 1 and not (folder / "died").exists():
        _kill_before(kill, made, folder / "died")
    try:
        loop.run()
    except PreemptedError:
        if stop is None:
            raise
        signals._request.number = None  # the process that goes on would be another one
    ledger.write()
    if sharded is not None:
        sharded.gather()
    (folder / "bytes.json").write_text(json.dumps(made.reduction.bytes_sent))
    return {n: p.detach().clone() for n, p in trained.named_parameters() if p.requires_grad}


def _kept_by(loop: Any, path: Path) -> Ledger:
    ledger, made = Ledger(path), loop.stepper
    accumulate, loss = made.accumulate, made._loss

    def noted_step(feed: Any, batch: Any, *, step: int) -> float:
        ledger.step, before = step, len(ledger.rows)
        try:
            return accumulate(feed, batch, step=step)  # type: ignore[no-any-return]
        except PreemptedError:
            del ledger.rows[before:]  # stopped inside the batch, which then changes nothing
            raise

    def noted_loss(batch: Batch) -> torch.Tensor:
        ledger.note(batch)
        return loss(batch)  # type: ignore[no-any-return]

    made.accumulate, made._loss = noted_step, noted_loss
    return ledger


def _kill_before(step: int, made: Any, note: Path) -> None:
    accumulate = made.accumulate

    def last_step(*args: Any, **kwargs: Any) -> float:
        if kwargs["step"] == step:
            note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return accumulate(*args, **kwargs)  # type: ignore[no-any-return]

    made.accumulate = last_step


class Hungry(torch.nn.Module):
    """Stands in for a layer: fails for want of memory on more than `limit` tokens at once."""

    def __init__(self, inner: torch.nn.Module, limit: int) -> None:
        super().__init__()
        self.inner, self.limit = inner, limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] * x.shape[1] > self.limit:
            raise torch.OutOfMemoryError("out of memory (injected)")
        return self.inner(x)  # type: ignore[no-any-return]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def seen(folder: Path) -> list[tuple[int, int]]:
    """(step, example) of everything any process computed."""
    found = []
    for path in sorted(folder.glob("ledger-*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            found += [(row["step"], example) for example in row["examples"]]
    return found


def train_all(dist: Dist, folder: str) -> dict[str, Any]:
    """Everything that two processes do in these tests, in one group."""
    root, found = Path(folder), dict[str, Any]()
    for strategy, method in WHOLE:
        name = f"{strategy}-{method}"
        found[name] = run(dist, root / name, strategy=strategy, method=method)
    for strategy in ("ddp", "fsdp"):
        run(dist, root / f"{strategy}-to-one", strategy=strategy, stop=STOP)
        found[f"one-to-{strategy}"] = run(dist, root / f"one-to-{strategy}", strategy=strategy)
    run(dist, root / "saved-whole", strategy="fsdp", stop=STOP, state="full")
    found["fsdp-ema"] = run(dist, root / "fsdp-ema", strategy="fsdp", ema=AVERAGED)
    run(dist, root / "ema-to-one", strategy="fsdp", stop=STOP, ema=AVERAGED)
    for gradients in ("bf16", "powersgd"):
        found[gradients] = run(dist, root / gradients, gradients=gradients)
        run(dist, root / f"{gradients}-again", gradients=gradients, stop=STOP)
        found[f"{gradients}-again"] = run(dist, root / f"{gradients}-again", gradients=gradients)
    run(dist, root / "powersgd-to-one", gradients="powersgd", stop=STOP + 1)
    found["bf16-weights"] = run(dist, root / "bf16-weights", strategy="fsdp", bf16_weights=True)
    return found if dist.is_main else {}


def killed_once(dist: Dist, folder: str, strategy: str) -> dict[str, Any]:
    """One training whole and one in which a process is killed between two saves."""
    root = Path(folder)
    killed = run(dist, root / "killed", strategy=strategy, kill=STOP + 2, save_every=2)
    whole = run(dist, root / "whole", strategy=strategy)
    return {"killed": killed, "whole": whole, "restarts": list(dist.restarts)}


def short_of_memory(dist: Dist, folder: str) -> list[str]:
    """One training whose second process cannot hold a micro-batch, and one that can."""
    run(dist, Path(folder) / "hungry", strategy="fsdp", hungry=True)
    run(dist, Path(folder) / "plain", strategy="fsdp")
    return list(dist.restarts)


def trainings(root: Path) -> dict[str, Any]:
    """Every training of the tests: alone, in one group, and from each to the other."""
    torch.set_num_threads(1)
    for strategy in ("ddp", "fsdp"):
        run(SINGLE, root / f"one-to-{strategy}", stop=STOP)
    found = launch(train_all, Distributed(world_size=2), str(root))
    for method in ("full", "lora", "tied", "sparse"):
        found[f"one-{method}"] = run(SINGLE, root / f"one-{method}", method=method)
    for strategy in ("ddp", "fsdp"):
        found[f"{strategy}-to-one"] = run(SINGLE, root / f"{strategy}-to-one")
    found["one-ema"] = run(SINGLE, root / "one-ema", ema=AVERAGED)
    found["ema-to-one"] = run(SINGLE, root / "ema-to-one", ema=AVERAGED)
    found["powersgd-to-one"] = run(SINGLE, root / "powersgd-to-one", gradients="powersgd")
    return found
