"""Sampler: the next token of each answer, greedy or drawn by its own seed, with log-probabilities."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lcc.core.lazy import transformers
from lcc.inference.session import Request, Token

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass
class Sampler:
    """How one request's tokens are chosen; `seen` are the ids that its processors look at."""

    request: Request
    seen: list[int]
    processors: list[Any] = field(default_factory=list)
    generator: Any = None

    @property
    def is_plain(self) -> bool:
        """Whether only the likeliest token is wanted."""
        return not self.processors and self.generator is None and self.request.logprobs < 0


def sampler(request: Request, seen: Sequence[int], limit: int, settings: Any) -> Sampler:
    """What a request of `limit` new tokens asks for, and what the architecture demands.

    The order is that of transformers' `generate`, so that equal settings give equal tokens.
    """
    sampler = Sampler(request, list(seen))
    if request.sampling.repetition_penalty != 1.0:
        penalty = transformers.RepetitionPenaltyLogitsProcessor(request.sampling.repetition_penalty)
        sampler.processors.append(penalty)
    sampler.processors += _required_processors(settings, len(seen), limit)
    if request.sampling.temperature > 0:
        seed = int.from_bytes(os.urandom(7)) if request.seed is None else request.seed
        sampler.generator = torch.Generator().manual_seed(seed % (1 << 63))
    return sampler


def _required_processors(settings: Any, num_before: int, num_new: int) -> list[Any]:
    ends = settings.eos_token_id
    processors: list[Any] = []
    if settings.bad_words_ids is not None:
        processors.append(transformers.NoBadWordsLogitsProcessor(settings.bad_words_ids, ends))
    if settings.forced_bos_token_id is not None:
        processors.append(transformers.ForcedBOSTokenLogitsProcessor(settings.forced_bos_token_id))
    if settings.forced_eos_token_id is not None:
        last = num_before + num_new
        forced = settings.forced_eos_token_id
        processors.append(transformers.ForcedEOSTokenLogitsProcessor(last, forced, "cpu"))
    if settings.suppress_tokens:
        processors.append(transformers.SuppressTokensLogitsProcessor(settings.suppress_tokens))
    if settings.begin_suppress_tokens:
        begin = num_before + (num_before == 1 and settings.forced_bos_token_id is not None)
        processors.append(
            transformers.SuppressTokensAtBeginLogitsProcessor(settings.begin_suppress_tokens, begin)
        )
    return processors


def sample(logits: Tensor | Sequence[Tensor | int], rows: Sequence[Sampler]) -> list[Token]:
    """One token per row of `logits` (rows, vocabulary); a plain row may be its likeliest token."""
    if isinstance(logits, torch.Tensor):
        best = logits.argmax(-1).tolist()  # At once: on a device every number waits for it.
    else:
        best = [int(one.argmax()) if isinstance(one, torch.Tensor) else one for one in logits]
    return [Token(best[i]) if row.is_plain else _one(logits[i], row) for i, row in enumerate(rows)]


def _one(logits: Tensor | int, row: Sampler) -> Token:
    assert isinstance(logits, torch.Tensor), "a row that is not plain needs its logits"
    scores = logits.float().cpu()
    changed = scores[None]
    if row.processors:
        changed, seen = changed.clone(), torch.tensor([row.seen])
        for processor in row.processors:
            changed = processor(seen, changed)
    token = int(changed[0].argmax()) if row.generator is None else _draw(changed[0], row)
    if row.request.logprobs < 0:
        return Token(token)
    logs = scores.log_softmax(-1)
    values, ids = logs.topk(min(row.request.logprobs, len(logs)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Token(token, float(logs[token]), top)


def _draw(scores: Tensor, row: Sampler) -> int:
    """A token drawn after temperature, from the `top_k` likeliest, their `top_p` share, then `min_p`."""
    sampling = row.request.sampling
    scores = scores / sampling.temperature
    ids: Tensor | None = None
    if 0 < sampling.top_k < len(scores):
        scores, ids = scores.topk(sampling.top_k)
    shares = scores.softmax(-1)
    if sampling.top_p < 1.0:
        shares, order = _nucleus(shares, sampling.top_p)
        ids = order if ids is None else ids[order]
    shares = shares.where(shares >= sampling.min_p * shares.max(), 0.0)
    drawn = int(torch.multinomial(shares, 1, generator=row.generator))
    return drawn if ids is None else int(ids[drawn])


def _nucleus(shares: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The likeliest that reach `top_p` together (Holtzman et al., 2020), and which they are.

    Most often they are few: sorting a whole vocabulary would take as long as a forward.
    """
    for num in (256, 4096, len(shares)):
        values, ids = shares.topk(min(num, len(shares)))
        if float(values.sum()) >= top_p:
            break
    kept = values.cumsum(-1) - values < top_p
    kept[0] = True  # Also where `top_p` is zero in float32.
    return values[kept], ids[kept]


# Text as tokens come: never half a character, nor the beginning of a stop string.

HALF = "\ufffd"  # what bytes decode to that are no whole character yet


class TextStream:
    """The text of one answer; `stopped` once a stop string was met, which is not part of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer, self._stop = tokenizer, [word for word in stop if word]
        self._ids: list[int] = []
        self._known = ""  # the text so far, held text included
        self._begin = self._read = 0  # the tokens whose text was told last: a context to decode in
        self._held = ""

    def push(self, token: int) -> str:
        """Take one more token; returns what may be shown now."""
        self._ids.append(token)
        context = self._decode(self._ids[self._begin : self._read])
        text = self._decode(self._ids[self._begin :])
        if len(text) <= len(context) or text.endswith(HALF) or not text.startswith(context):
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return self._release(text[len(context) :])

    def finish(self) -> str:
        """What was still held back, once no token will come."""
        if self.stopped:
            return ""
        whole = self._decode(self._ids)
        rest = whole[len(self._known) :] if whole.startswith(self._known) else ""
        text = self._release(rest)
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""

    def _release(self, new: str) -> str:
        self._known += new
        if not self._stop:
            return new
        text, self._held = self._held + new, ""
        cuts = [text.index(word) for word in self._stop if word in text]
        if cuts:
            self.stopped = True
            return text[: min(cuts)]
        shown = len(text) - max(_overlap(text, word) for word in self._stop)
        self._held = text[shown:]
        return text[:shown]


def _overlap(text: str, word: str) -> int:
    """How many characters at the end of `text` are the beginning of `word`."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)
