"""Optimizer groups, learning-rate schedules, gradient clipping and rank allocation of a training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lcc.core.errors import RecipeError
from lcc.core.lazy import torch, transformers
from lcc.distributed.state import is_sharded, local

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

ScheduleName = Literal["cosine", "linear", "constant"]
# What an optimizer keeps of each parameter, Adam's two moments, unless its card has `state_bytes`.
OPTIMIZER_BYTES = 8
# Where families keep a probability that they hand to a function, not to a module.
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "dropout_prob", "dropout_rate")


@dataclass(frozen=True)
class ClipResult:
    """What clipping found in one step and what it did.

    `norm_before` is the 2-norm over all gradients, `threshold` the bound in force at this step, and
    `clipped_share` the share that exceeded it of what the card `clips`.
    """

    norm_before: float
    threshold: float | None
    clipped_share: float


class Clip(Protocol):
    """A card of the shelf `clipping`."""

    @property
    def clips(self) -> str:
        """What its share counts: steps, layers, units or elements."""
        ...

    @property
    def window(self) -> int:
        """How many earlier norms it reads; the loop keeps them, and resuming restores them."""
        ...

    def apply(self, parameters: Mapping[str, Parameter], past_norms: Sequence[float]) -> ClipResult:
        """Clip the gradients of the trainable parameters in place; norms are the newest last."""
        ...


class OptimizerCard(Protocol):
    """A card of the shelf `optimizers`.

    Where a recipe sets no `lr`, `default_lr` counts before the method's, which is meant for AdamW.
    """

    @property
    def default_lr(self) -> float | None: ...

    def build(self, groups: list[dict[str, Any]], lr: float) -> Optimizer: ...


def is_fusible(groups: list[dict[str, Any]]) -> bool:
    """Whether torch has one kernel for a whole step on the devices of `groups`."""
    return {p.device.type for group in groups for p in group["params"]} <= {"cpu", "cuda"}


def parameter_groups(model: Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters; norms, biases and other vectors are not decayed.

    `is_hidden` marks the matrices between embeddings and head.
    """
    outer = _outer_parameters(model)
    kinds: dict[tuple[float, bool], list[Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_hidden = parameter.ndim == 2 and id(parameter) not in outer
            decay = weight_decay if parameter.ndim >= 2 else 0.0
            kinds.setdefault((decay, is_hidden), []).append(parameter)
    return [
        {"params": params, "weight_decay": decay, "is_hidden": is_hidden}
        for (decay, is_hidden), params in kinds.items()
    ]


def _outer_parameters(model: Any) -> set[int]:
    """The identities of what belongs to embeddings (of tokens, positions, biases) or to a head."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = getattr(inner, "base_model", inner)
    outer = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    if body is not inner:
        outer += [child for child in inner.children() if child is not body]
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    outer += [head] if head is not None else []
    return {id(parameter) for module in outer for parameter in module.parameters()}


def with_own_rates(
    groups: list[dict[str, Any]], model: Module, *, lr: float, ratios: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The groups, cut where parameters learn at another share of `lr` (LoRA+; Hayou et al., 2024).

    `ratios` gives the share by a part of the parameter's name.
    """
    own = {
        id(p): ratio
        for n, p in model.named_parameters()
        for part, ratio in ratios.items()
        if part in n and ratio != 1
    }
    if not own:
        return groups
    cut = []
    for group in groups:
        for ratio in sorted({own.get(id(p), 1.0) for p in group["params"]}):
            chosen = [p for p in group["params"] if own.get(id(p), 1.0) == ratio]
            cut.append({**group, "params": chosen, "lr": lr * ratio})
    return cut


def schedule_of(
    name: ScheduleName, optimizer: Optimizer, *, num_steps: int, warmup_ratio: float
) -> LRScheduler:
    """Linear warm-up over a share of the steps, then towards zero (or level).

    Step 1 of w has the rate lr / w, step w the whole one, and no step has none: transformers'
    schedules begin and end with a step at zero, so theirs is entered one step late and is one
    step longer.
    """
    warmup = max(1, math.ceil(num_steps * warmup_ratio))
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    made: LRScheduler
    if name == "constant":
        made = transformers.get_constant_schedule_with_warmup(optimizer, warmup, last_epoch=0)
    else:
        schedule = (
            transformers.get_cosine_schedule_with_warmup
            if name == "cosine"
            else transformers.get_linear_schedule_with_warmup
        )
        made = schedule(optimizer, warmup, num_steps + 1, last_epoch=0)
    return made


def set_dropout(model: Module, probability: float) -> None:
    """Every dropout of `model`, attention's included, to `probability`, in place."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)


def checkpoint_blocks(model: Any) -> None:
    """Have `model` compute what its blocks keep for the backward anew, in place."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # transformers makes embeddings want a gradient, for re-entrant checkpoints; with these it
    # would only send the backward of an adapter through the frozen blocks below it.
    model.disable_input_require_grads()


# Ranks that move between layers in training (AdaLoRA; Zhang et al., 2023), by peft's scores.

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
            raise RecipeError(
                f"method: adalora moves ranks over {LEAST_STEPS} steps at least and "
                f"this training has {num_steps}; use lora."
            )
        config = self._config
        settle = max(1, round(self.settle_ratio * num_steps))
        config.total_step, config.tfinal = num_steps, settle
        config.tinit = min(round(self.warmup_ratio * num_steps), num_steps - settle - 1)
        self.settled_at = num_steps - settle
        self._factors = [p for n, p in self.model.named_parameters() if "lora_A" in n or "lora_B" in n]

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
        return {
            name.rpartition(".lora_E")[0]: int((value != 0).sum())
            for name, value in self.model.named_parameters()
            if "lora_E" in name
        }

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, list[bool]] | None]:
        """Averages by name, and which values are kept, as decided last."""
        known = {kind: getattr(self._allocator, kind) for kind in AVERAGES}
        tensors = {f"{kind}/{n}": t for kind, named in known.items() for n, t in named.items()}
        return tensors, self._config.rank_pattern

    def load_state_dict(self, tensors: Mapping[str, Tensor], pattern: dict[str, list[bool]] | None) -> None:
        """Continue from what `state_dict` returned."""
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
    allocation: RankAllocation | None = make(model) if make is not None else None
    return allocation


# Norms of gradients and bounds on them, for whole tensors and for the shards of FSDP2 alike.


def gradients_of(parameters: Iterable[Parameter]) -> list[Tensor]:
    """The gradients that are there: a parameter that the loss does not reach has none."""
    return [p.grad for p in parameters if p.grad is not None]


def gradient_norm(parameters: Iterable[Parameter]) -> float:
    """The 2-norm over all gradients, infinite or NaN where one of them is."""
    gradients = gradients_of(parameters)
    return joint_norm(norms(gradients)) if gradients else 0.0


def joint_norm(each: Tensor) -> float:
    """The 2-norm over tensors whose own norms are `found`."""
    return float(torch.linalg.vector_norm(each))


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """(num_tensors,) 2-norms of whole tensors, of which this rank may hold a shard each."""
    held = [precise(local(tensor)) for tensor in tensors]
    each = torch.stack(torch._foreach_norm(held))
    if not any(map(is_sharded, tensors)):
        return each
    # In float32 the square of a norm of 1e20 would be infinite.
    return over_shards(each.double().square(), tensors).sqrt().to(each.dtype)


def bound_norm(parameters: Mapping[str, Parameter], norm: float, *, threshold: float) -> ClipResult:
    """Scale all gradients, whose joint norm is `norm`, in place so that it is at most `threshold`.

    A norm that is not finite is told and changes nothing.
    """
    is_above = threshold < norm < float("inf")
    if is_above:
        held = [local(gradient) for gradient in gradients_of(parameters.values())]
        torch._foreach_mul_(held, threshold / norm)
    return ClipResult(norm, threshold, float(is_above))


def precise(tensor: Tensor) -> Tensor:
    """Half precision in float32: sums of its squares would lose all but three digits."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def over_shards(values: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """values[i], found on this rank's part of tensors[i], summed over the parts of that tensor.

    One message for all tensors that are sharded alike; replicas are not counted twice.
    """
    spread: dict[tuple[Any, int], list[int]] = {}
    for index, tensor in enumerate(tensors):
        sharded: Any = tensor
        for axis, placement in enumerate(sharded.placements if is_sharded(tensor) else ()):
            if placement.is_shard():
                spread.setdefault((sharded.device_mesh, axis), []).append(index)
    summed = values.clone()
    for (mesh, axis), indices in spread.items():
        part = summed[indices]
        torch.distributed.all_reduce(part, group=mesh.get_group(axis))
        summed[indices] = part
    return summed
