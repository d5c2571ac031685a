"""/v1/completions: texts gone on with as they are."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from lcc.serve.bodies import CompletionBody, read
from lcc.serve.caps import caps_of
from lcc.serve.prompting import text_ids
from lcc.serve.replies import TextChoice, TextLogprobs, TextReply
from lcc.serve.served import Served
from lcc.serve.streams import unless_gone
from lcc.serve.writing import Spelling, Told, Writing, begin, chunk, new_id, request_of, respond

KIND = "text_completion"
USUAL_TOKENS = 16  # OpenAI's, where a request names no limit


@dataclass(frozen=True)
class Completions:
    """The endpoint over what is served."""

    served: Served

    async def respond(self, http: HttpRequest) -> Response:
        body = await read(http, CompletionBody, self.served.options.max_body_bytes)
        caps_of(self.served).check(body, self.served)
        return await unless_gone(http, self._answer(http, body))

    async def _answer(self, http: HttpRequest, body: CompletionBody) -> Response:
        prompts = await prompts_of(body.prompt, self.served, "prompt")
        limit, logprobs = body.max_tokens or USUAL_TOKENS, -1
        if body.logprobs is not None:
            logprobs = body.logprobs
        requests = [request_of(body, ids, self.served, limit=limit, number=i, logprobs=logprobs)
                    for ids in prompts for i in range(body.n or 1)]  # fmt: skip
        writing = begin(self.served, http, requests, sum(map(len, prompts)))
        return await respond(writing, body, events=lambda steps: self._events(writing, steps, body),
                             reply=lambda told: self._reply(writing, told, body))  # fmt: skip

    def _reply(self, writing: Writing, told: list[Told], body: CompletionBody) -> TextReply:
        choices: list[TextChoice] = [
            {"index": i, "text": one.text, "logprobs": self._logprobs(one.tokens, 0, body),
             "finish_reason": one.finish}
            for i, one in enumerate(told)
        ]  # fmt: skip
        return {"id": new_id("cmpl"), "object": "text_completion", "created": int(time.time()),
                "model": self.served.name, "choices": choices, "usage": writing.usage}  # fmt: skip

    async def _events(
        self, writing: Writing, steps: Any, body: CompletionBody
    ) -> AsyncIterator[Any]:
        head = {"id": new_id("cmpl"), "created": int(time.time()), "model": self.served.name}
        wants_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        usage = {"usage": None} if wants_usage else {}
        offsets = [0] * writing.num_answers
        async for index, step in steps:
            logprobs = self._logprobs(step.tokens, offsets[index], body)
            offsets[index] += sum(map(len, logprobs["tokens"])) if logprobs else 0
            if step.text or step.finish or (logprobs and logprobs["tokens"]):
                choice = {"index": index, "text": step.text, "logprobs": logprobs,
                          "finish_reason": step.finish}  # fmt: skip
                yield chunk(KIND, head, [choice], **usage)
        if wants_usage:
            yield chunk(KIND, head, [], usage=writing.usage)

    def _logprobs(self, tokens: Any, offset: int, body: CompletionBody) -> TextLogprobs | None:
        if body.logprobs is None:
            return None
        spelling = Spelling(self.served.session.tokenizer)
        return spelling.completion(tokens, offset, body.logprobs)


async def prompts_of(given: Any, served: Served, param: str) -> list[list[int]]:
    """Texts or tokens, one or several, as tokens; raises Refusal for any that is none."""
    several = given if isinstance(given, tuple) and not isinstance(given[0], int) else (given,)
    found = []
    for one in several:
        if isinstance(one, str):
            ids = await text_ids(one, served.session.tokenizer)
        else:
            served.check_ids(one, param)
            ids = list(one)
        served.check_prompt(len(ids), param)
        found.append(ids)
    return found
