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

from lcc.core.lazy import safetensors, safetensors_torch, torch
from lcc.core.manifest import fsync

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

GENERATIONS = 2
STATE_FILE = "state.json"


@dataclass
class Counters:
    """Where training stands; everything here survives an interruption."""

    step: int = 0
    epoch: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0  # of this epoch's steps, weighted by their targets
    loss_targets: int = 0
    clipped_steps: int = 0
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
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def write_state(
    folder: Path, step: int, *, facts: Mapping[str, Any], tensors: Mapping[str, dict[str, Tensor]]
) -> None:
    """Write one generation: built beside, synced, put in place by one rename; two are kept."""
    building = folder / "building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    for group, values in tensors.items():
        file = building / f"{group}.safetensors"
        safetensors_torch.save_file({k: _plain(v) for k, v in values.items()}, file)
    (building / STATE_FILE).write_text(json.dumps(dict(facts)), encoding="utf-8")
    for file in building.iterdir():
        fsync(file)
    final = folder / f"step-{step:09d}"
    if final.exists():
        # The same step saved again holds the same state.
        shutil.rmtree(building)
        return
    building.rename(final)
    fsync(folder)
    for old in generations(folder)[GENERATIONS:]:
        shutil.rmtree(old)


def read_state(folder: Path) -> Saved | None:
    """The newest whole generation, or None."""
    for path in generations(folder):
        try:
            facts = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
            files = sorted(path.glob("*.safetensors"))
            return Saved(facts, {f.stem: safetensors_torch.load_file(f) for f in files})
        except (OSError, ValueError, safetensors.SafetensorError):
            # Renamed before its bytes reached the disk (a power cut): the one before is whole.
            shutil.rmtree(path)
    return None


def generations(folder: Path) -> list[Path]:
    """Saved generations, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


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
    """Give `optimizer` back what `optimizer_state` took."""
    state: dict[int, Any] = {}
    for path, value in [*tensors.items(), *facts["numbers"].items()]:
        index, *inner, name = path.split("/")
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


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
