"""Muon: orthogonalised momentum for hidden matrices, AdamW for the rest (Jordan et al., 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.core.lazy import torch
from lcc.training.optim import is_fusible

if TYPE_CHECKING:
    from torch.optim import Optimizer


@card
class Muon:
    """torch's Muon, its steps as large as AdamW's (Liu et al., 2025), so that one `lr` serves both.

    Embeddings, heads and vectors are AdamW's. For pretraining and whole models; each step costs
    `iterations` products of every matrix with itself.
    """

    word: ClassVar[str] = "muon"
    revision: ClassVar[int] = 1
    shardable: ClassVar[bool] = False  # its step needs whole matrices
    default_lr: ClassVar[float | None] = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    nesterov: bool = True
    iterations: Annotated[int, Field(ge=1, le=20)] = 5
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Field(gt=0)] = 1e-8

    def build(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        from lcc.methods.optimizers._joined import Joined

        parts: list[Optimizer] = []
        hidden = [group for group in groups if group["is_hidden"]]
        rest = [group for group in groups if not group["is_hidden"]]
        if hidden:
            parts.append(
                torch.optim.Muon(
                    hidden,
                    lr=lr,
                    momentum=self.momentum,
                    nesterov=self.nesterov,
                    ns_steps=self.iterations,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if rest:
            parts.append(
                torch.optim.AdamW(
                    rest, lr=lr, betas=(self.beta1, self.beta2), eps=self.epsilon, fused=is_fusible(rest)
                )
            )
        return Joined(parts)
