"""A model in memory that answers, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from lcc.inference.requests import Request, Step
    from lcc.parts.checkpoint import Card

Ability = Literal["beams", "sampling", "logprobs", "logits", "embed", "classify", "continuous",
                  "repetition_penalty"]  # fmt: skip
"""What a session can be asked for beyond greedy answers; `continuous`: joins at any turn."""


@dataclass(frozen=True)
class Opening:
    """How a session is opened.

    `threads` of this process; at most `slots` answers at once, each of at most `context` tokens,
    prompt included (None: as many as the model takes). `prefix_mb` megabytes of what was read may
    be kept for prompts that begin so (0: nothing); llama.cpp keeps what fits into its slots.
    """

    threads: int
    slots: int = 8
    context: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    prefix_mb: int = 0


class Session(Protocol):
    """A model in memory that answers; used by one thread.

    A turn goes: `start` requests while `free_slots`, `step` until none is left, `drop` who left.
    """

    card: Card
    tokenizer: PreTrainedTokenizerBase
    abilities: frozenset[Ability]
    context: int  # most tokens of one answer, prompt included

    @property
    def free_slots(self) -> int:
        """How many more requests may be started now."""
        ...

    def start(self, request: Request) -> int:
        """Admit a request and give its handle; raises DataError for one that cannot be taken."""
        ...

    def step(self) -> list[Step]:
        """Advance every admitted request by at least a token; those that finished are forgotten."""
        ...

    def drop(self, handle: int) -> None:
        """Forget a request that nobody waits for any more."""
        ...

    def logits(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray[Any, Any]]:
        """Per row (num_tokens, vocabulary) for a decoder, (num_labels,) for a classifier."""
        ...

    def embed(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray[Any, Any]]:
        """Per row one vector (hidden_size,): the mean of its last hidden states."""
        ...

    def close(self) -> None:
        """Give memory and processes back."""
        ...
