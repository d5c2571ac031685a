"""Distillation: train the whole model towards its teacher's outputs."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, ClassVar

from lcc.config.cards import Choice, card
from lcc.methods.adapters.full import Full
from lcc.stages.finetune import Finetune


@card
class Distill(Finetune):
    """Fine-tuning with a teacher: the plan's input unless another is named.

    A teacher is `plan_input`, an earlier step or a folder; its vocabulary is the model's own,
    or the one that the model's was cut from. How it teaches is set under `distill`.
    """

    word: ClassVar[str] = "distill"
    revision: ClassVar[int] = 3

    teacher: str = "plan_input"
    method: Annotated[Any, Choice("adapters")] = field(default_factory=Full)
