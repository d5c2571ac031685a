"""Gradient communication: the sum of all processes' gradients, plain or compressed by torch's hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import torch
from lcc.distributed.dist import Dist, Distributed

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

ERROR = "error"


@dataclass
class Bucket:
    """All gradients as the one bucket that DDP's hooks read: flat, and by parameter."""

    flat: Tensor
    shapes: Sequence[tuple[int, ...]]

    def buffer(self) -> Tensor:
        return self.flat

    def gradients(self) -> list[Tensor]:
        parts = torch.split(self.flat, [torch.Size(shape).numel() for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def index(self) -> int:
        return 0

    def is_last(self) -> bool:
        return True


@dataclass
class Reduction:
    """Adds up gradients over the processes, in place, once an optimizer step.

    Not DistributedDataParallel's: ranks may hold different numbers of micro-batches, and all must
    retry when one runs out of memory. Its communication hooks ask for no more than a bucket, so
    they serve here as there. `bytes_sent` counts what this process gave to collectives.
    """

    dist: Dist
    distributed: Distributed = field(default_factory=Distributed)
    bytes_sent: int = 0
    _unsent: Tensor | None = None  # error feedback left by PowerSGD before this run went on

    def sum_(self, parameters: Sequence[Parameter], device: str = "cpu") -> None:
        """Leave the sum over all processes in every `.grad`; one without has zeros."""
        for parameter in parameters:
            if parameter.grad is None:  # this rank's share was empty
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        self._add_unsent(gradients)
        if self.dist.world_size == 1:
            return
        if self._hook is None or not self._all_finite(gradients, device):
            # What is not finite is thrown away by the caller; as error feedback it would stay.
            self.bytes_sent += sum(g.numel() * g.element_size() for g in gradients)
            self.dist.sum_(gradients)
            return
        self._compress(gradients)

    @cached_property
    def _hook(self) -> Callable[[Any, Any], Any] | None:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

        hooks: dict[str, Callable[[Any, Any], Any]] = {
            "bf16": default_hooks.bf16_compress_hook,
            "powersgd": powerSGD_hook.powerSGD_hook,
        }
        return hooks.get(self.distributed.gradients)

    @cached_property
    def _power(self) -> Any:
        from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

        own = self.distributed
        return PowerSGDState(
            None,
            matrix_approximation_rank=own.powersgd_rank,
            orthogonalization_epsilon=1e-8,
            start_powerSGD_iter=own.powersgd_start,
        )

    def _all_finite(self, gradients: Sequence[Tensor], device: str) -> bool:
        bad = any(not bool(g.isfinite().all()) for g in gradients)
        return not self.dist.sum([float(bad)], device)[0]

    def _compress(self, gradients: Sequence[Tensor]) -> None:
        assert len({g.dtype for g in gradients}) == 1, "one bucket holds one dtype"
        flat = torch.cat([g.reshape(-1) for g in gradients])
        bucket = Bucket(flat, [tuple(g.shape) or (1,) for g in gradients])
        is_power = self.distributed.gradients == "powersgd"
        before = self._power.total_numel_after_compression if is_power else 0
        assert self._hook is not None
        averaged = self._hook(self._power if is_power else None, bucket).wait()
        # A loss that is divided by the whole batch's targets wants the sum.
        summed = averaged * self.dist.world_size
        self.bytes_sent += self._sent(flat, before)
        parts = torch.split(summed, [g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def _sent(self, flat: Tensor, before: int) -> int:
        if self.distributed.gradients == "bf16":
            return 2 * flat.numel()
        counted = int(self._power.total_numel_after_compression) - before
        return (counted or flat.numel()) * flat.element_size()

    def _add_unsent(self, gradients: Sequence[Tensor]) -> None:
        if self._unsent is None:
            return
        parts = torch.split(self._unsent, [g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.add_(part.view_as(gradient))
        self._unsent = None

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the next sum depends on: tensors, of which each process has its own, and numbers."""
        facts: dict[str, Any] = {"bytes_sent": self.bytes_sent}
        if self._unsent is not None:
            return {ERROR: self._unsent.unsqueeze(0)}, facts
        if self.dist.world_size == 1 or self.distributed.gradients != "powersgd":
            return {}, facts
        power = self._power
        tensors = {
            f"{name}.0": memory[0] for name in ("p", "q") if (memory := getattr(power, f"{name}_memory_dict"))
        }
        if power.error_dict:
            tensors[ERROR] = self.dist.stacked(power.error_dict[0])
        return tensors, facts | {"iteration": power.iter}

    def load_state_dict(
        self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, device: str = "cpu"
    ) -> None:
        """Continue from `state_dict`; in a group of another size, what was never sent is dealt anew."""
        self.bytes_sent = int(facts["bytes_sent"])
        errors = tensors[ERROR].to(device) if ERROR in tensors else None  # (processes, elements)
        size = self.dist.world_size
        if size == 1 or self.distributed.gradients != "powersgd":
            self._unsent = errors.sum(0) if errors is not None and self.dist.is_main else None
            return
        power = self._power
        power.iter = int(facts.get("iteration", 0))
        for name in ("p", "q"):
            if f"{name}.0" in tensors:
                getattr(power, f"{name}_memory_dict")[0] = tensors[f"{name}.0"].to(device)
        if errors is not None:
            same = len(errors) == size
            power.error_dict[0] = errors[self.dist.rank] if same else errors.sum(0) / size
