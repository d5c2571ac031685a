"""Ranks that move between layers in training (AdaLoRA; Zhang et al., 2023), by peft's scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lcc.core.errors import RecipeError
from lcc.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

LEAST_STEPS = 3  # one to look, one to move, one to settle
AVERAGES = ("exp_avg_ipt", "exp_avg_unc")  # what peft remembers: influence, and its uncertainty


@dataclass
class RankAllocation:
    """Called by the training loop: `regularise` before a step is clipped, `allocate` after it."""

    model: Any
    warmup_ratio: float
    settle_ratio: float
    orthogonality: float
    _factors: list[Tensor] = field(default_factory=list)

    def plan(self, num_steps: int) -> None:
        """Fix when ranks begin to move and when they have settled."""
        if num_steps < LEAST_STEPS:
            raise RecipeError(f"method: adalora moves ranks over {LEAST_STEPS} steps at least and "
                              f"this training has {num_steps}; use lora.")  # fmt: skip
        config = self._config
        settle = max(1, round(self.settle_ratio * num_steps))
        config.total_step, config.tfinal = num_steps, settle
        config.tinit = min(round(self.warmup_ratio * num_steps), num_steps - settle - 1)
        self.settled_at = num_steps - settle
        self._factors = [p for n, p in self.model.named_parameters()
                         if "lora_A" in n or "lora_B" in n]  # fmt: skip

    def regularise(self) -> None:
        """Add the gradient of the mean ‖PᵀP − I‖ over all A and B, in place."""
        if not self.orthogonality:
            return
        distances = []
        for factor in self._factors:
            square = factor @ factor.T if factor.shape[0] < factor.shape[1] else factor.T @ factor
            distances.append(torch.linalg.norm(square - torch.eye(len(square)).to(square)))
        penalty = self.orthogonality * torch.stack(distances).mean()
        penalty.backward()  # type: ignore[no-untyped-call]

    def allocate(self, step: int) -> None:
        """Weigh the gradients of step `step` (the first is 1) and zero what weighs too little."""
        self.model.base_model.update_and_allocate(step)

    def is_settled(self, step: int) -> bool:
        """Whether the ranks after this step are those of the result."""
        return step >= self.settled_at

    def ranks(self) -> dict[str, int]:
        """How many values each adapted layer kept."""
        return {name.rpartition(".lora_E")[0]: int((value != 0).sum())
                for name, value in self.model.named_parameters() if "lora_E" in name}  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed training needs, by name; with `pattern`, all of it."""
        known = {kind: getattr(self._allocator, kind) for kind in AVERAGES}
        return {f"{kind}/{n}": t for kind, named in known.items() for n, t in named.items()}

    @property
    def pattern(self) -> dict[str, list[bool]] | None:
        """Which values are kept, as decided last."""
        found: dict[str, list[bool]] | None = self._config.rank_pattern
        return found

    def restore(self, tensors: Mapping[str, Tensor], pattern: dict[str, list[bool]] | None) -> None:
        """Go on from what `tensors` and `pattern` said."""
        self._config.rank_pattern = pattern
        self._allocator.reset_ipt()
        for path, tensor in tensors.items():
            kind, _, name = path.partition("/")
            getattr(self._allocator, kind)[name] = tensor
            self._allocator.ipt[name] = torch.zeros_like(tensor)

    @property
    def _allocator(self) -> Any:
        return self.model.base_model.rankallocator

    @property
    def _config(self) -> Any:
        return self.model.peft_config["default"]


def allocation_of(method: Any, model: Module) -> RankAllocation | None:
    """What moves the ranks of a method that has such; None for all others."""
    make = getattr(method, "allocator", None)
    found: RankAllocation | None = make(model) if make is not None else None
    return found
