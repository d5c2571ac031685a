"""How far an export that hears is from its source: transcripts, their scores, and what is heard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lcc.exporting.differences import Errors
from lcc.exporting.parity import NUM_SHOWN, Parity, count_differences

if TYPE_CHECKING:
    from lcc.inference.listening import Heard, Listener

    Matrix = np.ndarray[Any, Any]


def compare_heard(
    source: Listener, export: Listener, sounds: Iterable[Matrix], prompt: Sequence[int], *,
    tolerance: float, new_tokens: int, tokenizer: Any,
) -> Parity:  # fmt: skip
    """Both transcribe the same sounds; compared up to the first token that differs."""
    found, errors, states = Parity("tokens", tolerance), Errors(), Errors()
    margins, shown = list[float](), list[tuple[float, dict[str, Any]]]()
    for number, features in enumerate(sounds):
        states.add(source.states(features), export.states(features))
        mine, other = (each.hear(features, prompt, new_tokens) for each in (source, export))
        own = Errors()
        num, margin = _compared(mine, other, (errors, own))
        found.num_prompts += 1
        found.num_tokens += num
        margins += [] if margin is None else [margin]
        shown.append((own.share, {"prompt": f"sound {number}",
                                  "source": tokenizer.decode(mine.ids),
                                  "export": tokenizer.decode(other.ids)}))  # fmt: skip
    found.logit_error, found.encoder_error = errors.share, states.share
    count_differences(found, margins, errors.deviation)
    shown.sort(key=lambda item: -item[0])
    found.shown = [facts for _, facts in shown[:NUM_SHOWN]]
    return found


def _compared(mine: Heard, other: Heard, errors: Sequence[Errors]) -> tuple[int, float | None]:
    """Tokens compared, and by how much the source preferred its own where they part."""
    num = 0
    for expected, got in zip(mine.scores, other.scores, strict=False):
        num += 1
        width = min(len(expected), len(got))
        both = np.isfinite(expected[:width]) & np.isfinite(got[:width])
        for each in errors:
            each.add(expected[:width][both][None], got[:width][both][None])
        chosen, instead = int(expected.argmax()), int(got.argmax())
        if chosen != instead:
            return num, float(expected[chosen] - expected[instead])
    return num, None if len(mine.scores) == len(other.scores) else np.inf
