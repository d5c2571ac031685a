"""/v1/chat/completions: conversations, by the model's own template."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from lcc.serve.bodies import ChatBody, read
from lcc.serve.caps import caps_of
from lcc.serve.grounded import Handed, grounded
from lcc.serve.replies import ChatChoice, ChatLogprobs, ChatReply
from lcc.serve.served import Served
from lcc.serve.streams import unless_gone
from lcc.serve.writing import Spelling, Told, Writing, begin, chunk, new_id, request_of, respond

KIND = "chat.completion.chunk"


@dataclass(frozen=True)
class Chat:
    """The endpoint over what is served."""

    served: Served

    async def respond(self, http: HttpRequest) -> Response:
        body = await read(http, ChatBody, self.served.options.max_body_bytes)
        caps_of(self.served).check(body, self.served)
        return await unless_gone(http, self._answer(http, body))

    async def _answer(self, http: HttpRequest, body: ChatBody) -> Response:
        messages = [_plain(message.role, message.text, message.name) for message in body.messages]
        messages, handover = await grounded(self.served, messages)
        if handover is not None:
            num = body.n or 1
            return await self._told(Writing(self.served, http, 0, Handed(handover, num), num), body)
        ids = await self.served.prompter.ids(messages)
        self.served.check_prompt(len(ids), "messages")
        limit = body.max_completion_tokens or body.max_tokens or self.served.options.max_tokens
        logprobs = (body.top_logprobs or 0) if body.logprobs else -1
        requests = [request_of(body, ids, self.served, limit=limit, number=i, logprobs=logprobs)
                    for i in range(body.n or 1)]  # fmt: skip
        return await self._told(begin(self.served, http, requests, len(ids)), body)

    async def _told(self, writing: Writing, body: ChatBody) -> Response:
        return await respond(writing, body, events=lambda steps: self._events(writing, steps, body),
                             reply=lambda told: self._reply(writing, told, body))  # fmt: skip

    def _reply(self, writing: Writing, told: list[Told], body: ChatBody) -> ChatReply:
        choices: list[ChatChoice] = [
            {"index": i, "message": {"role": "assistant", "content": one.text},
             "logprobs": self._logprobs(one.tokens, body), "finish_reason": one.finish}
            for i, one in enumerate(told)
        ]  # fmt: skip
        return {"id": new_id("chatcmpl"), "object": "chat.completion", "created": int(time.time()),
                "model": self.served.name, "choices": choices, "usage": writing.usage}  # fmt: skip

    async def _events(self, writing: Writing, steps: Any, body: ChatBody) -> AsyncIterator[Any]:
        head = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": self.served.name}
        wants_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        usage = {"usage": None} if wants_usage else {}
        for index in range(writing.num_answers):
            yield chunk(KIND, head, [_delta(index, {"role": "assistant", "content": ""})], **usage)
        async for index, step in steps:
            logprobs = self._logprobs(step.tokens, body)
            if step.text or (logprobs and logprobs["content"]):
                delta = _delta(index, {"content": step.text}, logprobs=logprobs)
                yield chunk(KIND, head, [delta], **usage)
            if step.finish is not None:
                yield chunk(KIND, head, [_delta(index, {}, finish=step.finish)], **usage)
        if wants_usage:
            yield chunk(KIND, head, [], usage=writing.usage)

    def _logprobs(self, tokens: Any, body: ChatBody) -> ChatLogprobs | None:
        if not body.logprobs:
            return None
        spelling = Spelling(self.served.session.tokenizer)
        return {"content": [spelling.chosen(token) for token in tokens]}


def _plain(role: str, text: str, name: str | None) -> dict[str, str]:
    """A message as templates know them: OpenAI's `developer` is what they call `system`."""
    named = {} if name is None else {"name": name}
    return {"role": "system" if role == "developer" else role, "content": text, **named}


def _delta(
    index: int, delta: dict[str, Any], *, logprobs: Any = None, finish: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
