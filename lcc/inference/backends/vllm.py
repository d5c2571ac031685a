"""vLLM as an inference session: its own engine schedules and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.sampling_params import RequestOutputKind

from lcc.inference.session import Ability, AnswerStep, BaseSession, Opening, Request, Token
from lcc.models.bundle import open_bundle


class VllmSession(BaseSession):
    """vLLM schedules by itself, a turn a step; see `inference.session.Session` for the contract."""

    abilities: frozenset[Ability] = frozenset(
        {"sampling", "min_p", "repetition_penalty", "logprobs", "continuous"}
    )

    def __init__(self, folder: Path, opening: Opening) -> None:
        bundle = open_bundle(folder)
        self._engine: Any = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(folder),
                dtype=opening.dtype,
                max_num_seqs=opening.slots,
                max_model_len=opening.context,
                disable_log_stats=True,
            )
        )
        context = int(self._engine.model_config.max_model_len)
        super().__init__(bundle.card, bundle.tokenizer, context=context, slots=opening.slots)
        self._running = set[int]()

    def _num_admitted(self) -> int:
        return len(self._running)

    def start(self, request: Request) -> int:
        """Admit a request; raises DataError for one that cannot be taken."""
        self._require(request)
        handle, sampling = next(self._handles), request.sampling
        params = SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=request.seed,
            max_tokens=min(request.max_new_tokens, self.context - len(request.ids)),
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
        """Drop a request."""
        self._running.discard(handle)
        self._engine.abort_request([str(handle)])

    def close(self) -> None:
        """Give the GPU back."""
        self._engine = None
