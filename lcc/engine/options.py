"""What a recipe may say about any training, beside its method."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lcc.core.decode import card
from lcc.engine.averaging import EMA
from lcc.engine.optimization import ScheduleName
from lcc.engine.spikes import Spike


@card
class TrainingOptions:
    """What a recipe may say about any training, beside its method.

    `batch_tokens` make one optimizer step, `micro_tokens` (padding included) go through the model
    at once. With `packing` texts stand one behind the other, none seeing another, in place of
    padded rows; logits of at most `loss_chunk` targets are held at once (null: of all); `compile`
    has torch compile the blocks. Without `eval_every` (steps) validation runs once an epoch;
    `patience` evaluations without a gain stop early. State for resuming is saved every
    `save_seconds`, and `save_every` steps if given. Steps that are not finite change nothing, and
    `max_nonfinite` in a row stop. With `ema` the average of the weights is evaluated and published.
    """

    epochs: Annotated[float, Field(gt=0)] = 1
    max_steps: Annotated[int, Field(ge=1)] | None = None
    lr: Annotated[float, Field(gt=0)] | None = None
    schedule: ScheduleName = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    ema: EMA | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    batch_tokens: Annotated[int, Field(ge=1)] = 2048
    micro_tokens: Annotated[int, Field(ge=1)] = 2048
    max_length: Annotated[int, Field(ge=2)] = 512
    packing: bool = False
    loss_chunk: Annotated[int, Field(ge=1)] | None = 256
    gradient_checkpointing: bool = False
    compile: bool = False
    eval_every: Annotated[int, Field(ge=1)] | None = None
    eval_samples: Annotated[int, Field(ge=0)] = 256
    patience: Annotated[int, Field(ge=1)] | None = None
    keep_best: bool = True
    save_every: Annotated[int, Field(ge=1)] | None = None
    save_seconds: Annotated[float, Field(gt=0)] = 120
    max_nonfinite: Annotated[int, Field(ge=1)] = 5
    spike: Spike | None = None
