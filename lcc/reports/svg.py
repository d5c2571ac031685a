"""SVG shapes and axes as text; every word that goes in is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from lcc.core.format import clean

LEFT, RIGHT, TOP, BOTTOM = 46, 12, 26, 40  # room for the axes' words, in SVG units
LETTER = 7.4  # mean width of a letter at the charts' font size


@dataclass(frozen=True)
class AxisScale:
    """Maps numbers of [low, high] onto [start, end] of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        spread = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / spread * (self.end - self.start)


@dataclass(frozen=True)
class Box:
    """The room that one label takes, to keep others out of it."""

    left: float
    top: float
    width: float
    height: float

    def meets(self, other: Box) -> bool:
        return not (
            self.left + self.width < other.left
            or other.left + other.width < self.left
            or self.top + self.height < other.top
            or other.top + other.height < self.top
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the box that is nearest to (x, y)."""
        right, bottom = self.left + self.width, self.top + self.height
        return min(max(x, self.left), right), min(max(y, self.top), bottom)

    def distance(self, x: float, y: float) -> float:
        """From (x, y) to the box."""
        return math.dist((x, y), self.nearest(x, y))


@dataclass
class Drawing:
    """An SVG picture under construction."""

    width: float
    height: float
    title: str
    description: str
    parts: list[str] = field(default_factory=list)

    def line(self, points: Iterable[tuple[float, float]], style: str, *, title: str = "") -> None:
        """A line through `points`; `title` shows when a pointer rests on it."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        end = f"><title>{_text(title)}</title></polyline>" if title else "/>"
        self.parts.append(f'<polyline class="{style}" points="{path}"{end}')

    def dot(self, x: float, y: float, *, radius: float, style: str, title: str = "") -> None:
        """A filled circle; `title` shows when a pointer rests on it."""
        hint = f"<title>{_text(title)}</title>" if title else ""
        self.parts.append(
            f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{hint}</circle>'
        )

    def bar(self, box: Box, style: str) -> None:
        """A filled rectangle."""
        self.parts.append(
            f'<rect class="{style}" x="{box.left:.1f}" y="{box.top:.1f}" '
            f'width="{box.width:.1f}" height="{max(box.height, 0):.1f}"/>'
        )

    def label(
        self, x: float, y: float, words: str, *, soft: str = "", anchor: str = "start", style: str = ""
    ) -> None:
        """A line of text, `soft` words after it; `anchor` is start, middle or end."""
        rest = f"<tspan> {_text(soft)}</tspan>" if soft else ""
        self.parts.append(
            f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" '
            f'text-anchor="{anchor}">{_text(words)}{rest}</text>'
        )

    def across(self, scale: AxisScale, words: str, *, whole: bool = False) -> None:
        """The horizontal axis: ticks, their numbers (`whole` ones only), and what they count."""
        bottom = self.height - BOTTOM
        self.line([(scale.start, bottom), (scale.end, bottom)], "axis")
        for tick in ticks(scale.low, scale.high, 5):
            if whole and tick != int(tick):
                continue
            self.line([(scale(tick), bottom), (scale(tick), bottom + 4)], "axis")
            self.label(scale(tick), bottom + 17, number(tick), anchor="middle")
        middle = (scale.start + scale.end) / 2
        self.label(middle, bottom + 33, words, anchor="middle", style="name")

    def upward(self, scale: AxisScale, words: str, *, num: int = 5) -> None:
        """The vertical axis: grid lines, their numbers, and what they count."""
        for tick in ticks(scale.low, scale.high, num):
            self.line([(LEFT, scale(tick)), (self.width - RIGHT, scale(tick))], "grid")
            self.label(LEFT - 6, scale(tick) + 4, number(tick), anchor="end")
        self.label(2, scale.end - 12, words, style="name")

    def render(self) -> str:
        """The picture as one SVG element."""
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" '
            f'aria-label="{_text(self.title)}"><title>{_text(self.title)}</title>'
            f"<desc>{_text(self.description)}</desc>{''.join(self.parts)}</svg>"
        )


def ticks(low: float, high: float, num: int) -> list[float]:
    """About `num` round numbers within [low, high]."""
    spread = (high - low) or 1.0
    rough = spread / num
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def padded(values: Sequence[float], *, floor: float | None = None) -> tuple[float, float]:
    """A range around `values` with air above and below, not below `floor`."""
    low, high = min(values), max(values)
    air = 0.08 * ((high - low) or abs(high) or 1.0)
    return (low - air if floor is None else max(low - air, floor)), high + air


def number(value: float) -> str:
    """A tick's number, as short as it can be."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:,.10g}".replace("-", "−")


def _text(words: str) -> str:
    return escape(clean(words), quote=True)
