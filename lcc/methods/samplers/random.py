"""Independent draws from every range (Bergstra and Bengio, 2012)."""

from __future__ import annotations

import math
import random
from typing import Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card
from lcc.config.search_space import Interval, Range, Search, SearchTrial, require_ranges, typed


@card
class Random:
    """`trials` points; the n-th is the same whatever ran before it."""

    word: ClassVar[str] = "random"
    revision: ClassVar[int] = 1
    adaptive: ClassVar[bool] = False

    trials: Annotated[int, Field(ge=1)] = 16
    seed: Annotated[int, Field(ge=0)] = 0

    def check(self, search: Search) -> None:
        require_ranges(search, "random")

    def total(self, search: Search) -> int:
        return self.trials

    def ask(self, search: Search) -> SearchTrial | None:
        if len(search.trials) >= self.trials:
            return None
        draw = random.Random(f"{self.seed}/{len(search.trials)}")
        return SearchTrial({r.head: _drawn(r, draw) for r in search.ranges})


def _drawn(range_: Range, draw: random.Random) -> str:
    if not isinstance(range_, Interval):
        return draw.choice(range_.values)
    low, high = range_.low, range_.high
    if range_.whole and not range_.log:
        return str(draw.randint(round(low), round(high)))
    value = math.exp(draw.uniform(math.log(low), math.log(high))) if range_.log else draw.uniform(low, high)
    return typed(min(max(value, low), high), whole=range_.whole)
