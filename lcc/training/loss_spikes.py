"""Loss spikes in training: noticed against the recent median, answered by rolling the weights back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Annotated

from pydantic import Field

from lcc.config.cards import card
from lcc.core.errors import DivergedError
from lcc.training.checkpoint import CheckpointManager, Counters, TrainingState


@card
class Spike:
    """A loss above `factor` times the median of the last `window` finite ones is a spike.

    With `rollback`, training goes back to its state of at least that many steps before and on with
    the batches that follow the spike (as PaLM's authors did by hand; Chowdhery et al., 2022),
    `max_rollbacks` times at most; without it spikes are only counted.
    """

    factor: Annotated[float, Field(gt=1)] = 2.0
    window: Annotated[int, Field(ge=2)] = 50
    rollback: Annotated[int, Field(ge=1)] | None = None
    max_rollbacks: Annotated[int, Field(ge=1)] = 5

    def sees(self, recent: Sequence[float], loss: float) -> bool:
        """Whether `loss` is one, after the `recent` finite losses, the newest last."""
        known = recent[-self.window :]
        is_judged = len(known) == self.window and math.isfinite(loss)
        return is_judged and loss > self.factor * median(known)

    def is_anchor(self, step: int) -> bool:
        """Whether the state after `step` is one to go back to."""
        return self.rollback is not None and step % self.rollback == 0

    def before(self, anchors: Sequence[int], step: int) -> list[int]:
        """The steps that may be gone back to from a spike at `step`; at least the first is one."""
        assert self.rollback is not None
        early = [anchor for anchor in anchors if anchor <= step - self.rollback]
        return early or list(anchors[:1])

    def needed(self, anchors: Sequence[int], oldest: int) -> set[int]:
        """Steps whose state a training that goes on after step `oldest` or later may go back to."""
        if self.rollback is None or not anchors:
            return set()
        first = self.before(anchors, oldest + 1)[-1]
        return {anchor for anchor in anchors if anchor >= first}


def state_before(
    spike: Spike, loss: float, counters: Counters, checkpoints: CheckpointManager
) -> TrainingState:
    """The state to go back to from a spike in the step after `counters`, which note it in place.

    The data go on behind the spike. Raises DivergedError when that was done too often.
    """
    what = f"{checkpoints.stage}: a loss of {loss:.3g} in step {counters.step + 1} is a spike"
    if counters.rollbacks == spike.max_rollbacks:
        raise DivergedError(
            f"{what} and {counters.rollbacks} rollbacks were enough; lower lr, "
            "clip harder or raise spike.factor."
        )
    early = spike.before(counters.anchors, counters.step + 1)
    saved = checkpoints.newest(among=early)
    if saved is None:
        raise DivergedError(f"{what}, and no sound state is left to go back to; run again.")
    then = Counters(**saved.facts["counters"])
    counters.recent, counters.anchors = then.recent, early
    counters.rollbacks += 1
    checkpoints.warn(f"{what}: the weights are those after step {then.step} again.")
    return saved
