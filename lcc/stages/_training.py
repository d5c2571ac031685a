"""What every training step reports of its training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lcc.core.progress import Measure

if TYPE_CHECKING:
    from torch.nn import Module

    from lcc.distributed.dist import Distributed
    from lcc.distributed.fsdp import Sharded
    from lcc.pipeline.stage import Context
    from lcc.training.trainer import Training


def training_measures(training: Training) -> dict[str, Measure]:
    """Losses, steps, speed and clipping of a training that has ended."""
    counters, clip = training.counters, training.clip
    trainable = sum(p.numel() for p in training.stepper.trainable)
    speed = counters.tokens / counters.seconds if counters.seconds else None
    loss = counters.loss_sum / counters.loss_targets if counters.loss_targets else None
    return {
        "train_loss": Measure(loss, "nats"),
        "validation_loss_before": Measure(counters.validation_before, "nats"),
        "validation_loss_after": Measure(counters.best_loss, "nats"),
        "best_step": Measure(counters.best_step, "count"),
        "steps": Measure(counters.step, "count"),
        "epochs": Measure(counters.epoch + 1, "count"),
        "tokens": Measure(counters.tokens, "count"),
        "tokens_per_second": Measure(speed, "tokens/s"),
        "training_seconds": Measure(counters.seconds, "seconds"),
        "trainable_parameters": Measure(trainable, "count"),
        "lr": Measure(training.lr),
        "clip_threshold": Measure(counters.clip_threshold),
        "clipped_share": Measure(counters.clipped_share_sum / max(1, counters.step), "share"),
        "clipped_share_counts": Measure(clip.clips),
        "clipped_steps_share": Measure(counters.clipped_steps / max(1, counters.step), "share"),
        "nonfinite_steps": Measure(counters.nonfinite_steps, "count"),
        "micro_tokens": Measure(training.stepper.micro_tokens, "count"),
        "processes": Measure(training.dist.world_size, "count"),
        "gradient_bytes_per_step": Measure(
            training.stepper.reduction.bytes_sent / max(1, counters.step), "bytes"
        ),
        **{
            name: Measure(getattr(counters, name), "count")
            for name in ("spikes", "rollbacks")
            if training.spike is not None
        },
    }


# What a training stage has to do for FSDP: cut its model into pieces, or refuse to.


def sharded_for(
    model: Module, distributed: Distributed, cards: Iterable[Any], context: Context
) -> Sharded | None:
    """The model to train in pieces, not yet cut; None where every process holds it whole.

    Raises RecipeError for what FSDP cannot train; `cards` are those of method and optimizer.
    """
    if distributed.strategy == "ddp":
        return None
    from lcc.distributed.fsdp import Sharded, require_shardable

    require_shardable(model, distributed, cards, context.device)
    return Sharded(model, distributed, context.dist, context.device)


def load_device(distributed: Distributed, device: str) -> str:
    """Where a model is read to: FSDP brings each block to the device by itself, in pieces."""
    return "cpu" if distributed.strategy == "fsdp" else device
