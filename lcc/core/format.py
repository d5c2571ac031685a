"""Numbers, sizes and durations as people read them; the only place where a number becomes text."""

from __future__ import annotations

import unicodedata

MISSING = "–"
MINUS = "−"
FINE = ("bits", "bits/byte", "bits/character", "nats")  # the third decimal matters
HUNDREDS = ("BLEU", "chrF", "METEOR")  # figures on a scale of 100: one decimal, as in papers
TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # turn text around


def count(number: float | None) -> str:
    """268,098,176 as `268.1 M`."""
    if number is None:
        return MISSING
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{_three(number / size)} {letter}"
    return f"{number:,.0f}"


def size(number: float | None) -> str:
    """Bytes in decimal units: `536 MB`, `1.2 GB`."""
    if number is None:
        return MISSING
    for unit_size, letter in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(number) >= unit_size:
            return f"{_three(number / unit_size)} {letter}"
    return f"{number:,.0f} B"


def duration(seconds: float | None) -> str:
    """From microseconds to hours: `840 µs`, `12.3 ms`, `1.2 s`, `3 min 20 s`."""
    if seconds is None:
        return MISSING
    if seconds < 1e-3:
        return f"{_three(seconds * 1e6)} µs"
    if seconds < 1:
        return f"{_three(seconds * 1e3)} ms"
    if seconds < 60:
        return f"{_three(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def share(number: float | None) -> str:
    """0.2431 as `24.3 %`."""
    return MISSING if number is None else f"{_three(100 * number)} %"


def rate(number: float | None) -> str:
    """A speed without its unit: `1,280`, `46.2`."""
    if number is None:
        return MISSING
    return f"{number:,.0f}" if number >= 100 else _three(number)


def quantity(value: float | int | str | None, unit: str) -> str:
    """A measure in the words of its unit."""
    if value is None or isinstance(value, str):
        return value or MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    formats = {"bytes": size, "seconds": duration, "share": share, "ratio": share, "count": count}
    if unit in formats:
        return formats[unit](value)
    if unit.endswith("/s"):
        known = {"bytes/s": lambda v: f"{size(v)}/s", "FLOP/s": lambda v: f"{_three(v / 1e9)} GFLOP/s"}
        return known[unit](value) if unit in known else f"{rate(value)} {unit}"
    return f"{_plain(value)} {unit}".strip()


def score(value: float | None, unit: str = "", *, signed: bool = False) -> str:
    """A quality figure: one decimal on scales of 100, three where the figure is small."""
    if value is None:
        return MISSING
    if unit in ("share", "ratio"):
        text = f"{100 * abs(value):.1f} %"
    elif unit in FINE or (abs(value) < 1 and unit not in HUNDREDS and not signed):
        text = f"{abs(value):.3f}"
    elif abs(value) < 0.05 and value:
        text = f"{abs(value):.1g}"  # a bound just beside zero must not read as zero
    else:
        text = f"{abs(value):,.1f}" if abs(value) < 1e4 else f"{abs(value):.3g}"
    if value < 0:
        return f"{MINUS}{text}"
    return f"+{text}" if signed else text


def interval(low: float | None, high: float | None, unit: str = "", *, signed: bool = False) -> str:
    """A 95 % interval: `34.1–40.2`, with signs `−0.5…+0.4`; empty where there is none."""
    if low is None or high is None:
        return ""
    bounds = [score(bound, unit, signed=signed).removesuffix(" %") for bound in (low, high)]
    return ("…" if signed else "–").join(bounds)


def clean(text: object) -> str:
    """`text` without what could steer a terminal or a page: control and direction characters."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _steers(c) else c for c in str(text))


def _steers(character: str) -> bool:
    if character in "\n\t":
        return False
    is_turn = unicodedata.bidirectional(character) in TURNS
    return is_turn or unicodedata.category(character) in ("Cc", "Cs")


def _three(number: float) -> str:
    """Three significant figures, never in exponent form."""
    digits = 2 if abs(number) < 10 else 1 if abs(number) < 100 else 0
    text = f"{number:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _plain(value: float) -> str:
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.4g}"
