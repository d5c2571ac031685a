"""FSDP2: one model in pieces over a process group, weights, gradients and optimizer state sharded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.nn import Module, Parameter

from lcc.config.cards import name_of
from lcc.core.errors import RecipeError
from lcc.distributed.dist import Dist, Distributed
from lcc.distributed.state import placed
from lcc.models.blocks import blocks

R = TypeVar("R")


class Root(Module):
    """Runs any function of the model with the weights outside its blocks gathered.

    Our losses call a model's body and output layer by themselves, which FSDP's hooks on the whole
    model would not see.
    """

    def __init__(self, model: Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., R], *args: Any) -> R:
        return function(*args)


class Sharded:
    """`model` sharded over `dist` while it trains, and whole again in place afterwards.

    `working` is the model to train, sharded once `shard` was called. `model` itself keeps its
    modules (to which adapters and writers refer) but lends its weights.
    """

    def __init__(self, model: Module, distributed: Distributed, dist: Dist, device: str) -> None:
        self.whole, self.distributed, self.dist, self.device = model, distributed, dist, device
        self.working = _sharing_weights(model)
        self.root = Root(self.working)

    def shard(self) -> None:
        """Cut every block's weights, then the rest's, into one piece for each process."""
        self.dist.broadcast_([p.data for p in self.whole.parameters() if p.requires_grad])
        mesh = init_device_mesh(self.device.partition(":")[0], (self.dist.world_size,))
        low, own = torch.bfloat16, self.distributed
        # Embeddings and heads are outside the blocks and used at both ends: gathered once a pass.
        for module in [*blocks(self.working).values(), self.root]:
            fully_shard(
                module,
                mesh=mesh,
                reshard_after_forward=module is not self.root,
                mp_policy=MixedPrecisionPolicy(
                    param_dtype=low if own.bf16_weights else None,
                    reduce_dtype=torch.float32 if own.bf16_weights else None,
                    cast_forward_inputs=module is not self.root,
                ),
                offload_policy=CPUOffloadPolicy() if own.cpu_offload else OffloadPolicy(),
            )
        for module in self._parts():
            # Losses are divided by the whole batch's targets already: sum, do not average.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        _lend(self.whole)

    def call(self, function: Callable[..., R], *args: Any) -> R:
        """`function(*args)`, which may use every part of `working`."""
        result: R = self.root(function, *args)
        return result

    def rest(self) -> None:
        """Let go of gathered weights, after a forward that no backward follows."""
        for module in self._parts():
            module.reshard()

    def like(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`values` by parameter name, cut as the parameters are."""
        parameters = dict(self.working.named_parameters())
        return {name: placed(value, parameters[name]) for name, value in values.items()}

    def as_saved(self, groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """State tensors as `distributed.state` wants them: in pieces as they lie, or whole."""
        if self.distributed.state == "sharded":
            return {group: dict(values) for group, values in groups.items()}
        return {
            group: {name: self._on_main(value) for name, value in values.items()}
            for group, values in groups.items()
        }

    def _on_main(self, value: Tensor) -> Tensor:
        whole = full(value.detach())
        return whole.cpu() if self.dist.is_main else whole.new_empty(0)

    def gather(self) -> None:
        """Make `model` whole again, on rank 0; elsewhere it stays without weights."""
        self.rest()
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.working.named_parameters():
            value = full(parameter.detach())
            if self.dist.is_main:
                tensors[name] = value
        if self.dist.is_main:
            _give_back(self.whole, tensors)

    def _parts(self) -> Iterable[Any]:
        return (module for module in self.root.modules() if isinstance(module, FSDPModule))


def full(value: Tensor) -> Tensor:
    """The whole of a sharded tensor, asked for by every process at once."""
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole


def require_shardable(model: Module, distributed: Distributed, cards: Iterable[Any], device: str) -> None:
    """Refuse in a sentence what FSDP cannot train; nothing else is ever run in its place.

    A card (of a method, an optimizer) that keeps what cannot be cut says `shardable = False`.
    """
    _refuse_if(device.startswith("mps"), "cannot run on mps", "use distributed=single")
    in_memory = device.startswith("cpu") and distributed.cpu_offload
    _refuse_if(
        in_memory, "has nothing to offload: the weights are in main memory already", "leave cpu_offload out"
    )
    packed = [n for n, p in model.named_parameters() if not p.is_floating_point()]
    _refuse_if(
        bool(packed),
        f"cannot cut packed weights such as {'; '.join(packed[:1])}",
        "use distributed=ddp, or method=lora in place of qlora",
    )
    for card in cards:
        _refuse_if(
            not getattr(card, "shardable", True),
            f"cannot cut what {name_of(card)} keeps",
            "choose another one or distributed=ddp",
        )
    by_name = blocks(model)
    _refuse_if(not by_name, f"finds no repeated blocks in {type(model).__name__}", "use distributed=ddp")
    owners: dict[int, str] = {}
    for name, block in by_name.items():
        for parameter in block.parameters():
            other = owners.setdefault(id(parameter), name)
            _refuse_if(
                other != name, f"cannot cut weights that {other} and {name} share", "use distributed=ddp"
            )


def _refuse_if(condition: bool, why: str, way_out: str) -> None:
    if condition:
        raise RecipeError(f"distributed.strategy: fsdp {why}; {way_out}.")


def _sharing_weights(model: Module) -> Module:
    """A copy of the modules with the same parameters and buffers, not copies of them."""
    memo = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo)


def _lend(model: Module) -> None:
    """Leave shapes only where the weights were, ties kept, in place."""
    empty: dict[int, Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                blank = Parameter(
                    torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
                )
                module._parameters[name] = empty.setdefault(id(parameter), blank)


def _give_back(model: Module, values: Mapping[str, Tensor]) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    filled: dict[int, Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            value = Parameter(values[names[id(parameter)]], requires_grad=parameter.requires_grad)
            module._parameters[name] = filled.setdefault(id(parameter), value)
