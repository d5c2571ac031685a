"""An encoder–decoder's two graphs: a text is read once, its answer goes on from its own past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lcc.inference.graph_files import DECODER, ENCODER, empty_past


@dataclass
class _Row:
    encoded: Tensor  # (1, num_tokens, hidden_size)
    past: Any


class GraphAnswerPasses:
    """See `inference.turning.Passes`; rows share nothing, so that they come and go."""

    joins = True

    def __init__(self, graph: Any, start: int) -> None:
        self._encoder, self._decoder = graph.runners[ENCODER], graph.runners[DECODER]
        self._config, self._start, self._rows = graph.config, start, list[_Row]()

    def take(self, prompts: Sequence[Sequence[int]], plain: Sequence[bool]) -> list[Tensor | int]:
        """One prompt after the other."""
        begun = [self._begun(prompt) for prompt in prompts]
        self._rows += begun
        return [self._next(row, self._start) for row in begun]

    def advance(self, tokens: Sequence[int], plain: Sequence[bool]) -> list[Tensor | int]:
        """One token of every row."""
        both = zip(self._rows, tokens, strict=True)
        return [self._next(row, token) for row, token in both]

    def remove(self, row: int) -> None:
        """Forget a past."""
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def read(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """Logits (1, vocabulary) of what an answer begins with."""
        found: np.ndarray[Any, Any] = self._next(self._begun(ids), self._start)[None].numpy()
        return found

    def close(self) -> None:
        """Forget graphs and pasts."""
        self._encoder = self._decoder = None
        self._rows = []

    def _begun(self, prompt: Sequence[int]) -> _Row:
        ids = torch.tensor([list(prompt)])
        output = self._encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
        return _Row(output.last_hidden_state, empty_past(self._config))

    def _next(self, row: _Row, token: int) -> Tensor:
        mask = torch.ones(row.encoded.shape[:2], dtype=torch.long)
        output = self._decoder(
            decoder_input_ids=torch.tensor([[token]]), attention_mask=mask,
            encoder_hidden_states=row.encoded, past_key_values=row.past,
        )  # fmt: skip
        row.past = output.past_key_values
        logits: Tensor = output.logits[0, -1].float()
        return logits
