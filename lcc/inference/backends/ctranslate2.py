"""CTranslate2 as an inference session: requests that wait are answered together, each whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ctranslate2
import numpy as np
import torch

from lcc.core.errors import DataError, GateError
from lcc.inference.backends.whisper import Heard
from lcc.inference.sampler import TextStream
from lcc.inference.session import Ability, AnswerStep, BaseSession, Finish, Opening, Request, Token
from lcc.inference.sidecar import Sidecar, read_sidecar, require_passed

if TYPE_CHECKING:
    from lcc.core.types import Array


# It has no min_p: its options for drawing are a temperature, top_k and top_p.
WRITES: frozenset[Ability] = frozenset({"beams", "sampling", "logprobs", "logits", "repetition_penalty"})
READS: frozenset[Ability] = frozenset({"embed"})


@dataclass(frozen=True)
class _Ct2Answer:
    """Tokens of one answer as the engine gives them, its end token perhaps among them."""

    ids: list[int]
    logits: list[Array]


class Ct2Session(BaseSession):
    """Requests that wait are answered together, each whole; see `inference.session.Session`."""

    with_beams = frozenset({"beams", "repetition_penalty"})

    def __init__(self, engine: Any, folder: Path, beside: Sidecar, opening: Opening) -> None:
        context = min(beside.context, opening.context or beside.context)
        super().__init__(beside.card, beside.tokenizer, context=context, slots=opening.slots)
        self.abilities = READS if self.card.head == "embed" else WRITES
        self._engine, self._beside, self._waiting = engine, beside, dict[int, Request]()
        self._pieces, self._numbers = list[str](), dict[str, int]()
        if self.card.head != "embed":
            self._pieces = _vocabulary(folder)
            self._numbers = {piece: i for i, piece in enumerate(self._pieces)}
        self._ends = [self._piece(i) for i in sorted(beside.ends)]

    def _num_admitted(self) -> int:
        return len(self._waiting)

    def start(self, request: Request) -> int:
        """Admit a request; raises DataError for one that cannot be taken."""
        self._require(request)
        if request.sampling.temperature > 0 and request.seed is not None:
            raise DataError(
                "CTranslate2 cannot draw the same answer twice; leave seed out, or use engine=transformers."
            )
        handle = next(self._handles)
        self._waiting[handle] = request
        return handle

    def step(self) -> list[AnswerStep]:
        """Answer all that wait; requests that ask for the same go in one batch."""
        groups: dict[Any, dict[int, Request]] = {}
        for handle, request in self._waiting.items():
            groups.setdefault(_kind(handle, request), {})[handle] = request
        self._waiting = {}
        return [step for group in groups.values() for step in self._answered(group)]

    def drop(self, handle: int) -> None:
        """Drop a request that was not answered yet."""
        self._waiting.pop(handle, None)

    def logits(self, rows: Sequence[Sequence[int]]) -> list[Array]:
        """Per row (num_tokens, vocabulary); of an encoder–decoder (1, vocabulary)."""
        if self.card.head == "seq2seq":
            asked = [Request(tuple(row), 1) for row in rows]
            return [rows_of_logits.logits[0][None] for rows_of_logits in self._translated(asked, logits=True)]
        rows_of_logits = []
        for row in rows:
            ids = np.asarray([row], np.int32)
            lengths = ctranslate2.StorageView.from_array(np.asarray([len(row)], np.int32))
            out = self._engine.forward_batch(ctranslate2.StorageView.from_array(ids), lengths)
            rows_of_logits.append(np.array(out, np.float32)[0])
        return rows_of_logits

    def embed(self, rows: Sequence[Sequence[int]]) -> list[Array]:
        """Per row the mean of its last hidden states."""
        if self.card.head != "embed":
            raise DataError("CTranslate2 gives vectors of encoders only; use engine=transformers.")
        vectors = []
        for row in rows:
            out = self._engine.forward_batch([list(row)])
            vectors.append(np.array(out.last_hidden_state, np.float32)[0].mean(0))
        return vectors

    def close(self) -> None:
        """Give memory back."""
        self._engine.unload_model()
        self._waiting = {}

    def _answered(self, group: dict[int, Request]) -> list[AnswerStep]:
        requests = list(group.values())
        wanted = requests[0].logprobs >= 0
        answer = self._translated if self.card.head == "seq2seq" else self._continued
        generated = answer(requests, logits=wanted)
        return [
            self._steps_of(handle, request, each)
            for (handle, request), each in zip(group.items(), generated, strict=True)
        ]

    def _steps_of(self, handle: int, request: Request, generated: _Ct2Answer) -> AnswerStep:
        text, finish, tokens = TextStream(self.tokenizer, request.stop), "length", list[Token]()
        shown, forced = "", self._beside.settings.forced_eos_token_id is not None
        for i, token in enumerate(generated.ids):
            if token in self._beside.ends:
                finish = "stop"
                break
            if self._is_cut(len(tokens), request):
                # Where an end is forced at the limit, it takes the place of the last token.
                finish = "stop" if forced else "length"
                break
            tokens.append(_token(token, generated.logits[i] if generated.logits else None, request))
            shown += text.push(token)
            if text.stopped:
                break
        shown += text.finish()
        ended: Finish = "stop" if text.stopped or finish == "stop" else "length"
        return AnswerStep(handle, shown, tuple(tokens), ended)

    def _is_cut(self, num: int, request: Request) -> bool:
        forced = self._beside.settings.forced_eos_token_id is not None
        return num >= self._limit(request) - forced

    def _limit(self, request: Request) -> int:
        before = 0 if self.card.head == "seq2seq" else len(request.ids)
        return min(request.max_new_tokens, self.context - before)

    def _continued(self, requests: list[Request], *, logits: bool) -> list[_Ct2Answer]:
        prompts = [[self._piece(i) for i in request.ids] for request in requests]
        longest = max(map(self._limit, requests))
        results = self._engine.generate_batch(
            prompts,
            max_length=longest,
            min_length=longest * requests[0].ignore_ends,
            include_prompt_in_result=False,
            end_token=self._ends,
            return_end_token=True,
            **self._options(requests[0], logits),
        )
        return [_Ct2Answer(list(r.sequences_ids[0]), _vectors(r)) for r in results]

    def _translated(self, requests: list[Request], *, logits: bool) -> list[_Ct2Answer]:
        sources = [[self._piece(i) for i in request.ids] for request in requests]
        forced = self._beside.settings.forced_bos_token_id
        prefix = None if forced is None else [[self._piece(forced)]] * len(sources)
        longest = max(map(self._limit, requests))
        results = self._engine.translate_batch(
            sources,
            target_prefix=prefix,
            max_decoding_length=longest,
            min_decoding_length=longest * requests[0].ignore_ends,
            max_input_length=0,
            end_token=self._ends,
            return_end_token=True,
            **self._options(requests[0], logits),
        )
        return [_Ct2Answer(self._ids(r.hypotheses[0]), _vectors(r)) for r in results]

    def _options(self, request: Request, logits: bool) -> dict[str, Any]:
        options = {
            "beam_size": request.num_beams,
            "return_logits_vocab": logits,
            "repetition_penalty": request.sampling.repetition_penalty,
        }
        if request.sampling.temperature > 0:
            options |= {
                "sampling_temperature": request.sampling.temperature,
                "sampling_topk": request.sampling.top_k,
                "sampling_topp": request.sampling.top_p,
            }
        return options

    def _piece(self, token: int) -> str:
        return self._pieces[token]

    def _ids(self, pieces: list[str]) -> list[int]:
        return [self._numbers[piece] for piece in pieces]


def _kind(handle: int, request: Request) -> Any:
    """What requests must share to be one batch; who draws does so alone."""
    if request.sampling.temperature > 0:
        return handle
    return (request.num_beams, request.sampling, request.logprobs >= 0, request.ignore_ends)


def _vectors(result: Any) -> list[Array]:
    steps = result.logits[0] if getattr(result, "logits", None) else []
    return [np.array(step, np.float32).reshape(-1) for step in steps]


def _token(token: int, logits: Array | None, request: Request) -> Token:
    if logits is None or request.logprobs < 0:
        return Token(token)
    logs = torch.from_numpy(logits).log_softmax(-1)
    values, ids = logs.topk(min(request.logprobs, len(logs)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Token(token, float(logs[token]), top)


def open_ct2(folder: Path, opening: Opening) -> Ct2Session:
    """The session of a CTranslate2 folder; raises GateError where the engine refuses it."""
    beside = read_sidecar(folder)
    kinds = {"causal": ctranslate2.Generator, "seq2seq": ctranslate2.Translator, "embed": ctranslate2.Encoder}
    try:
        engine = kinds[beside.card.head](
            str(folder), device="cpu", inter_threads=1, intra_threads=opening.threads
        )
    except (RuntimeError, ValueError) as error:
        raise GateError(f"{folder}: CTranslate2 does not load it ({error}).") from None
    return Ct2Session(engine, folder, beside, opening)


def _vocabulary(folder: Path) -> list[str]:
    """The engine's own names of tokens, by number."""
    files = ("shared_vocabulary.json", "vocabulary.json", "source_vocabulary.json")
    file = next(folder / name for name in files if (folder / name).is_file())
    names: list[str] = json.loads(file.read_text(encoding="utf-8"))
    return names


# CTranslate2's Whisper as a listener.

FORBIDDEN = -1e30  # what the engine sets to less may not be said


class Ct2Listener:
    """See `inference.backends.whisper.Listener`."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def states(self, features: Array) -> Array:
        """One sound at a time."""
        output = self._engine.encode(_stored(features), to_cpu=True)
        states: Array = np.array(output, np.float32)[0]
        return states

    def hear(self, features: Array, prompt: Sequence[int], new_tokens: int) -> Heard:
        """One sound at a time."""
        # The engine gives half of `max_length` to what is new.
        most = max(2 * new_tokens, new_tokens + len(prompt))
        result = self._engine.generate(
            _stored(features), [list(prompt)], beam_size=1, max_length=most, return_logits_vocab=True
        )[0]
        scores = [np.array(step, np.float32).reshape(-1) for step in result.logits[0]]
        for step in scores:
            step[step < FORBIDDEN] = -np.inf
        ids = list(result.sequences_ids[0])[:new_tokens]
        return Heard(ids, scores[:new_tokens])

    def close(self) -> None:
        """Give memory back."""
        self._engine.unload_model()


def _stored(features: Array) -> Any:
    return ctranslate2.StorageView.from_array(np.ascontiguousarray(features[None], np.float32))


def open_ct2_listener(folder: Path, opening: Opening) -> Ct2Listener:
    """The listener of a CTranslate2 folder; raises GateError where the engine refuses it."""
    require_passed(folder)
    try:
        engine = ctranslate2.models.Whisper(
            str(folder), device="cpu", inter_threads=1, intra_threads=opening.threads
        )
    except (RuntimeError, ValueError) as error:
        raise GateError(f"{folder}: CTranslate2 does not load it ({error}).") from None
    return Ct2Listener(engine)
