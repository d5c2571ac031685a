"""How tokens are drawn where a task's answers are to differ; evaluation never draws."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lcc.core.decode import card


@card
class Sampling:
    """What inference does beside `decode`; temperature 0 is greedy, `top_k` 0 is all.

    `repetition_penalty` divides what was said already (Keskar et al., 2019); 1 changes nothing.
    """

    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
