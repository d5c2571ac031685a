"""A number with its unit: what stages report and views show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """`unit` is one of `bytes`, `seconds`, `tokens/s`, `nats`, `share`, `count`, `BLEU` …"""

    value: float | int | str | None
    unit: str = ""
