"""CTranslate2's Whisper as a listener."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ctranslate2
import numpy as np

from lcc.core.errors import GateError
from lcc.inference.companions import require_passed
from lcc.inference.listening import Heard
from lcc.inference.sessions import Opening

if TYPE_CHECKING:
    from collections.abc import Sequence

    Matrix = np.ndarray[Any, Any]

FORBIDDEN = -1e30  # what the engine sets to less may not be said


class Ct2Listener:
    """See `inference.listening.Listener`."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def states(self, features: Matrix) -> Matrix:
        """One sound at a time."""
        output = self._engine.encode(_stored(features), to_cpu=True)
        found: Matrix = np.array(output, np.float32)[0]
        return found

    def hear(self, features: Matrix, prompt: Sequence[int], new_tokens: int) -> Heard:
        """One sound at a time."""
        # The engine gives half of `max_length` to what is new.
        most = max(2 * new_tokens, new_tokens + len(prompt))
        result = self._engine.generate(
            _stored(features), [list(prompt)], beam_size=1, max_length=most,
            return_logits_vocab=True,
        )[0]  # fmt: skip
        scores = [np.array(step, np.float32).reshape(-1) for step in result.logits[0]]
        for step in scores:
            step[step < FORBIDDEN] = -np.inf
        ids = list(result.sequences_ids[0])[:new_tokens]
        return Heard(ids, scores[:new_tokens])

    def close(self) -> None:
        """Give memory back."""
        self._engine.unload_model()


def _stored(features: Matrix) -> Any:
    return ctranslate2.StorageView.from_array(np.ascontiguousarray(features[None], np.float32))


def open_ct2_listener(folder: Path, opening: Opening) -> Ct2Listener:
    """The listener of a CTranslate2 folder; raises GateError where the engine refuses it."""
    require_passed(folder)
    try:
        engine = ctranslate2.models.Whisper(str(folder), device="cpu", inter_threads=1,
                                            intra_threads=opening.threads)  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise GateError(f"{folder}: CTranslate2 does not load it ({error}).") from None
    return Ct2Listener(engine)
