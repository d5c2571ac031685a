"""How much error a format explains: what its own rounding, done in PyTorch, costs the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.exporting.differences import Errors, alike
from lcc.exporting.hearing import compare_heard
from lcc.exporting.parity import TOGETHER
from lcc.inference.answers import greedy
from lcc.inference.listening import InProcessListener
from lcc.parts.model import open_bundle

if TYPE_CHECKING:
    import numpy as np

    from lcc.exporting.parity import Parity
    from lcc.inference.listening import Listener
    from lcc.inference.sessions import Session

# Engine and rehearsal add in another order, so that some numbers round to another side: measured
# errors were 0.97 to 1.01 of the rehearsed ones on random models of seven families and on SmolLM2.
FACTOR = 1.25
LEAST = 0.01  # below this, sums in another order may be most of it
EVERY, ENOUGH = 4, 100  # of so many prompts, so many apart are rehearsed
NUM_SOUNDS = 6


def tolerance(exporter: Any, rehearsed: float | None) -> float:
    """What the gate allows: by the format, or by what its rounding was found to cost."""
    most = float(exporter.tolerance)
    return most if rehearsed is None else min(most, max(LEAST, FACTOR * rehearsed))


def rehearsed_error(
    exporter: Any, folder: Path, source: Session, prompts: Sequence[Sequence[int]], new_tokens: int
) -> float | None:
    """What the source is off once it is rounded as the format rounds; None where that says nothing.

    It reads what the gate has both read: the source's own answers, or the texts alone.
    """
    from lcc.inference import reading

    module = _rounded(exporter, folder)
    if module is None:
        return None
    rows = list(prompts[::EVERY] if len(prompts) >= ENOUGH else prompts)
    starts, head = [0] * len(rows), source.card.head
    if head == "causal":
        answers = greedy(source, rows, new_tokens)
        starts = [len(row) - 1 for row in rows]
        rows = [[*row, *answer.ids] for row, answer in zip(rows, answers, strict=True)]
    errors, known = Errors(), source.tokenizer
    for first in range(0, len(rows), TOGETHER):
        part = rows[first : first + TOGETHER]
        if head == "embed":
            mine, other = source.embed(part), reading.vectors(module, known, part)
        else:
            mine, other = source.logits(part), reading.logits(module, known, part, head)
        pairs = zip(mine, other, strict=True)
        for start, (expected, got) in zip(starts[first:], pairs, strict=False):
            errors.add(*alike(*(_rows(values)[start:] for values in (expected, got))))
    return errors.share


def rehearsed_hearing(
    exporter: Any, folder: Path, source: Listener, sounds: Sequence[Any], prompt: Sequence[int],
    *, new_tokens: int, tokenizer: Any,
) -> float | None:  # fmt: skip
    """The same of a model that hears: the larger error of its scores and its encoder's states."""
    module = _rounded(exporter, folder)
    if module is None:
        return None
    found: Parity = compare_heard(
        source, InProcessListener(module), sounds[:NUM_SOUNDS], prompt, tolerance=1.0,
        new_tokens=new_tokens, tokenizer=tokenizer,
    )  # fmt: skip
    return max(found.logit_error, found.encoder_error or 0.0)


def _rounded(exporter: Any, folder: Path) -> Any:
    if not getattr(exporter, "rehearses", False):
        return None
    return exporter.rounded(open_bundle(folder).load(dtype="float32"))


def _rows(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values if values.ndim > 1 else values[None]
