"""Which tokens a masked language model must guess, and what it sees in their place."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from lcc.core.decode import card
from lcc.engine.corpus import STARTS_WORD
from lcc.parts.encoding import IGNORED

Share = Annotated[float, Field(ge=0, le=1)]


@card
class Masking:
    """BERT's masks (Devlin et al., 2019): of the chosen tokens most become the mask token.

    `random_share` of them become any other token and the rest stay; `whole_words` chooses all
    tokens of a word together.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mask_share: Share = 0.8
    random_share: Share = 0.1
    whole_words: bool = False

    def __post_init__(self) -> None:
        if self.mask_share + self.random_share > 1:
            raise ValueError("mask_share and random_share are more than 1 together")


@dataclass(frozen=True)
class Masked:
    """Tokens as the model sees them, and the true ones where it must guess."""

    ids: list[int]
    labels: list[int]


def masked(
    ids: Sequence[int], flags: Sequence[int], masking: Masking, *, mask: int,
    ordinary: Sequence[int], dice: random.Random,
) -> Masked:  # fmt: skip
    """`ids` with a share of them hidden, at least one; what else stands there is `ordinary`."""
    shown, labels = list(ids), [IGNORED] * len(ids)
    for place in _chosen(flags, masking, dice):
        labels[place] = ids[place]
        fate = dice.random()
        if fate < masking.mask_share:
            shown[place] = mask
        elif fate < masking.mask_share + masking.random_share:
            shown[place] = dice.choice(ordinary)
    return Masked(shown, labels)


def _chosen(flags: Sequence[int], masking: Masking, dice: random.Random) -> list[int]:
    """Places to hide: whole groups in random order, as many as fit into the share."""
    groups = _words(flags) if masking.whole_words else [[i] for i in range(len(flags))]
    room = max(1, round(masking.share * len(flags)))
    dice.shuffle(groups)
    found: list[int] = []
    for group in groups:
        if len(found) + len(group) <= room:
            found += group
        if len(found) == room:
            break
    if not found:  # a short text of long words may have none that fits
        found = min(groups, key=len)
    return sorted(found)


def _words(flags: Sequence[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    for place, bits in enumerate(flags):
        if bits & STARTS_WORD or not groups:
            groups.append([])
        groups[-1].append(place)
    return groups
