"""What prompt, prefix and P-tuning share: virtual tokens before the text, no weight changed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lcc.core.decode import card


@card
class Virtual:
    """`num_tokens` trained vectors stand before every text and take that much of its window."""

    num_tokens: Annotated[int, Field(ge=1)] = 20
