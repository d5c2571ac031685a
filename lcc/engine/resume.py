"""Interrupted anywhere, continued bit for bit: training state in safetensors and JSON."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch
from lcc.core.manifest import fsync
from lcc.engine.storing import open_tensors, placed, write_tensors
from lcc.parts.dist import SINGLE, Dist

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

GENERATIONS = 2
STATE_FILE = "state.json"
MICRO_TOKENS = "micro_tokens.json"


@dataclass
class Counters:
    """Where training stands; everything here survives an interruption."""

    step: int = 0
    epoch: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0  # of this epoch's steps, weighted by their targets
    loss_targets: int = 0
    clipped_steps: int = 0  # in which anything was clipped
    clipped_share_sum: float = 0.0
    clip_threshold: float | None = None  # of the last step
    past_norms: list[float] = field(default_factory=list)  # newest last, as many as clipping reads
    nonfinite_steps: int = 0
    nonfinite_in_row: int = 0
    micro_tokens: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    validation_before: float | None = None
    evaluations_without_gain: int = 0
    finished: bool = False


@dataclass
class Saved:
    """One generation of training state read back: tensors by group, and everything else."""

    facts: dict[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def write_state(
    folder: Path, step: int, *, facts: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]], dist: Dist = SINGLE,
) -> None:  # fmt: skip
    """Write one generation: built beside, synced, put in place by one rename; two are kept.

    Called by every process of `dist`, which share the folder: each writes its rows of what is
    sharded, rank 0 everything else.
    """
    building, final = folder / "building", folder / f"step-{step:09d}"
    if dist.is_main:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
    dist.barrier()
    for group, values in tensors.items():
        write_tensors(building, group, values, dist)
    dist.barrier()  # Everybody's pieces are on the disk.
    if dist.is_main:
        (building / STATE_FILE).write_text(json.dumps(dict(facts)), encoding="utf-8")
        fsync(building / STATE_FILE)
        _put_in_place(building, final)
        for old in generations(folder)[GENERATIONS:]:
            shutil.rmtree(old)
    dist.barrier()


def _put_in_place(building: Path, final: Path) -> None:
    if final.exists():
        # The same step saved again holds the same state.
        shutil.rmtree(building)
        return
    building.rename(final)
    fsync(final.parent)


def read_state(folder: Path, dist: Dist = SINGLE) -> Saved | None:
    """The newest whole generation, or None; tensors come whole, however many processes wrote them.

    Called by every process of `dist`.
    """
    if dist.is_main:
        for path in generations(folder):
            if _opened(path) is not None:
                break
            # Renamed before its bytes reached the disk (a power cut): the one before is whole.
            shutil.rmtree(path)
    dist.barrier()  # Rank 0 has removed what is not whole.
    newest = generations(folder)[:1]
    return _opened(newest[0]) if newest else None


def _opened(path: Path) -> Saved | None:
    try:
        facts = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        return Saved(facts, open_tensors(path))
    except (OSError, ValueError):
        return None


def generations(folder: Path) -> list[Path]:
    """Saved generations, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def note_micro_tokens(folder: Path, micro_tokens: int, *, rank: int) -> None:
    """Leave word for the group that goes on: so many tokens at once, or fewer, fit in memory."""
    draft = folder / f"{MICRO_TOKENS}.{rank}"
    draft.write_text(json.dumps(micro_tokens), encoding="utf-8")
    draft.replace(folder / MICRO_TOKENS)


def noted_micro_tokens(folder: Path) -> int | None:
    """What `note_micro_tokens` left."""
    file = folder / MICRO_TOKENS
    return int(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for path, value in _leaves(state["state"]):
        if isinstance(value, torch.Tensor):
            tensors[path] = value
        else:
            numbers[path] = value
    return tensors, {"numbers": numbers, "groups": state["param_groups"]}


def restore_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Give `optimizer` back what `optimizer_state` took, sharded as its parameters are now."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, Any] = {}
    for path, value in [*tensors.items(), *facts["numbers"].items()]:
        index, *inner, name = path.split("/")
        like = parameters[int(index)]
        if isinstance(value, torch.Tensor) and value.shape == like.shape:
            value = placed(value, like)
        node = state.setdefault(int(index), {})
        for key in inner:
            node = node.setdefault(key, {})
        node[name] = value
    groups = [{**group, "betas": tuple(group["betas"])} if "betas" in group else group
              for group in facts["groups"]]  # fmt: skip
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _leaves(node: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):  # bitsandbytes keeps its 8-bit moments one level down
            yield from _leaves(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


class Interruption:
    """Whether someone asked this process to stop (SIGTERM, Ctrl-C) since `watched` began."""

    def __init__(self) -> None:
        self.requested = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt  # whoever asks twice does not want to wait for the state
        self.requested = True


@contextmanager
def watched() -> Iterator[Interruption]:
    """Turn SIGTERM and Ctrl-C into a request that the loop honours between two steps."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption  # only the main thread may handle signals
        return
    asking = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, interruption._note) for number in asking}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
