"""A session over vLLM's own engine, which schedules and batches by itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.sampling_params import RequestOutputKind

from lcc.core.errors import DataError
from lcc.inference.session import Ability, AnswerStep, Opening, Request, Token
from lcc.models.bundle import open_bundle

if TYPE_CHECKING:
    import numpy as np

    Vectors = list[np.ndarray[Any, Any]]


class VllmSession:
    """See `inference.sessions.Session` for the contract."""

    abilities: frozenset[Ability] = frozenset({"sampling", "logprobs", "continuous", "repetition_penalty"})

    def __init__(self, folder: Path, opening: Opening) -> None:
        bundle = open_bundle(folder)
        self.card, self.tokenizer = bundle.card, bundle.tokenizer
        self._engine: Any = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(folder),
                dtype=opening.dtype,
                max_num_seqs=opening.slots,
                max_model_len=opening.context,
                disable_log_stats=True,
            )
        )
        self.context = int(self._engine.model_config.max_model_len)
        self._slots, self._running, self._handles = opening.slots, set[int](), count()

    @property
    def free_slots(self) -> int:
        """How many more requests may be started now."""
        return self._slots - len(self._running)

    def start(self, request: Request) -> int:
        """Admit a request; raises DataError for one that cannot be taken."""
        room = self.context - len(request.ids)
        if request.num_beams > 1 or room < 1 or not request.ids:
            raise DataError("vLLM takes a prompt with room for an answer, and no beams.")
        handle = next(self._handles)
        params = SamplingParams(
            temperature=request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            repetition_penalty=request.repetition_penalty,
            seed=request.seed,
            max_tokens=min(request.max_new_tokens, room),
            stop=list(request.stop) or None,
            logprobs=request.logprobs if request.logprobs >= 0 else None,
            ignore_eos=request.ignore_ends,
            output_kind=RequestOutputKind.DELTA,
        )
        self._engine.add_request(str(handle), {"prompt_token_ids": list(request.ids)}, params)
        self._running.add(handle)
        return handle

    def step(self) -> list[AnswerStep]:
        """One turn of vLLM's scheduler."""
        return [self._steps_of(output) for output in self._engine.step()]

    def _steps_of(self, output: Any) -> AnswerStep:
        handle, said = int(output.request_id), output.outputs[0]
        tokens = [self._token(i, said) for i in range(len(said.token_ids))]
        finish = said.finish_reason
        if finish is None:
            return AnswerStep(handle, said.text, tuple(tokens))
        self._running.discard(handle)
        if finish == "stop" and tokens and said.stop_reason is None:
            tokens.pop()  # the end token
        return AnswerStep(handle, said.text, tuple(tokens), "length" if finish == "length" else "stop")

    def _token(self, place: int, said: Any) -> Token:
        token = int(said.token_ids[place])
        if not said.logprobs:
            return Token(token)
        each = said.logprobs[place]
        top = sorted(((int(i), float(one.logprob)) for i, one in each.items()), key=lambda pair: -pair[1])
        return Token(token, float(each[token].logprob), tuple(top))

    def drop(self, handle: int) -> None:
        """Forget a request."""
        self._running.discard(handle)
        self._engine.abort_request([str(handle)])

    def logits(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """vLLM gives none."""
        raise DataError("vLLM gives no logits; use engine=transformers.")

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """vLLM's generating engine gives none."""
        raise DataError("vLLM gives no vectors of a causal model; use engine=transformers.")

    def close(self) -> None:
        """Give the GPU back."""
        self._engine = None
