"""Several optimizers as one: their steps in turn, their groups and states saved together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.optim import Optimizer


class Joined(Optimizer):
    """`parts` over different parameters, each with its own arithmetic.

    Group dicts and the state are one object each, shared with the parts: a schedule that sets a
    group's rate, and a restored moment, reach them.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every part; a `closure` is not taken."""
        assert closure is None
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore every part; torch replaces the shared objects, so they are shared anew."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        self.state: defaultdict[Any, Any]
        ends = accumulate((len(part.param_groups) for part in self.parts), initial=0)
        for part, (start, end) in zip(self.parts, pairwise(ends), strict=True):
            part.param_groups = self.param_groups[start:end]
            part.state = self.state
