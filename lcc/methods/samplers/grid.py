"""Every combination of all listed values, the last word's values changing fastest."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

from lcc.config.cards import card
from lcc.config.search_space import Listed, Search, SearchTrial, require_listed


@card
class Grid:
    """The cartesian product; without any range it is one point."""

    word: ClassVar[str] = "grid"
    revision: ClassVar[int] = 1
    adaptive: ClassVar[bool] = False

    def check(self, search: Search) -> None:
        require_listed(search, "grid")

    def total(self, search: Search) -> int:
        return math.prod(len(r.values) for r in search.ranges if isinstance(r, Listed))

    def ask(self, search: Search) -> SearchTrial | None:
        listed = [r for r in search.ranges if isinstance(r, Listed)]
        combinations = itertools.product(*(r.values for r in listed))
        nth = next(itertools.islice(combinations, len(search.trials), None), None)
        heads = [r.head for r in listed]
        return None if nth is None else SearchTrial(dict(zip(heads, nth, strict=True)))
