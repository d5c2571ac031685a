"""Where a training stands, as numbers and named tensors that a state file can hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch
from lcc.engine.storing import placed

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

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
    row: dict[str, Any] | None = None  # the last step's numbers, while its evaluation is to come
    recent: list[float] = field(default_factory=list)  # finite losses, for who watches for spikes
    anchors: list[int] = field(default_factory=list)  # steps whose state a rollback may go back to
    spikes: int = 0
    rollbacks: int = 0

    def copy(self) -> Counters:
        """The same numbers, which later steps do not change."""
        return replace(self, recent=[*self.recent], anchors=[*self.anchors])


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
