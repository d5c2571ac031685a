"""HTTP endpoints that a model answers: chat, completions, embeddings, classify, translate."""

from __future__ import annotations

import base64
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from lcc.inference.session import Request
from lcc.serving.chat_template import elsewhere, text_ids
from lcc.serving.engine_thread import computed
from lcc.serving.generation import (
    AnswerText,
    Generation,
    HandoverAnswers,
    TokenText,
    begin,
    chunk,
    grounded,
    new_id,
    request_of,
    respond,
    room,
)
from lcc.serving.http import unless_gone
from lcc.serving.model import Served
from lcc.serving.openapi import caps_of
from lcc.serving.protocol import (
    ChatBody,
    ChatChoice,
    ChatLogprobs,
    Class,
    ClassifyBody,
    CompletionBody,
    EmbeddingsBody,
    Refusal,
    TextChoice,
    TextLogprobs,
    TranslateBody,
    TranslateReply,
    Translation,
    Vector,
    read,
)

if TYPE_CHECKING:
    from lcc.core.types import Array


@dataclass(frozen=True)
class Endpoint(ABC):
    """A POST endpoint over what is served: a body is read and checked, then answered."""

    body: ClassVar[type[Any]]
    served: Served

    async def respond(self, http: HttpRequest) -> Response:
        body = await read(http, self.body, self.served.options.max_body_bytes)
        caps_of(self.served).check(body, self.served)
        return await unless_gone(http, self._answer(http, body))

    @abstractmethod
    async def _answer(self, http: HttpRequest, body: Any) -> Response:
        """The response to a body that is within its bounds."""

    def _list(self, http: HttpRequest, data: list[Any], num_read: int) -> Response:
        """One entry per text that was only read."""
        self.served.meters.prompt_tokens.inc(num_read)
        http.scope["usage"].update(prompt_tokens=num_read)
        usage = {"prompt_tokens": num_read, "total_tokens": num_read}
        return JSONResponse({"object": "list", "data": data, "model": self.served.name, "usage": usage})


class GeneratingEndpoint(Endpoint):
    """An endpoint whose answers the model generates: one reply, or a stream of events."""

    prefix: ClassVar[str]  # of a reply's id
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    async def _generated(self, generation: Generation, body: Any) -> Response:
        return await respond(
            generation,
            body,
            events=lambda steps: self._events(generation, steps, body),
            reply=lambda answers: self._reply(generation, answers, body),
        )

    def _reply(self, generation: Generation, answers: Sequence[AnswerText], body: Any) -> Any:
        return {
            **self._head(),
            "object": self.kind,
            "choices": [self._choice(i, one, body) for i, one in enumerate(answers)],
            "usage": generation.usage,
        }

    async def _events(self, generation: Generation, steps: Any, body: Any) -> AsyncIterator[Any]:
        head = self._head()
        wants_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        usage = {"usage": None} if wants_usage else {}
        async for choice in self._choices(generation, steps, body):
            yield chunk(self.chunk_kind, head, [choice], **usage)
        if wants_usage:
            yield chunk(self.chunk_kind, head, [], usage=generation.usage)

    def _head(self) -> dict[str, Any]:
        return {"id": new_id(self.prefix), "created": int(time.time()), "model": self.served.name}

    def _choice(self, index: int, answer: AnswerText, body: Any) -> Any:
        """An answer of a reply."""
        raise NotImplementedError

    def _choices(self, generation: Generation, steps: Any, body: Any) -> AsyncIterator[Any]:
        """What each event of a stream adds to an answer."""
        raise NotImplementedError


# /v1/chat/completions: conversations, by the model's own template.


class ChatEndpoint(GeneratingEndpoint):
    """The endpoint over what is served."""

    body = ChatBody
    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    async def _answer(self, http: HttpRequest, body: ChatBody) -> Response:
        messages = [_plain(message.role, message.text, message.name) for message in body.messages]
        messages, handover = await grounded(self.served, messages)
        if handover is not None:
            num = body.n or 1
            return await self._generated(
                Generation(self.served, http, 0, HandoverAnswers(handover, num), num), body
            )
        ids = await self.served.template_process.ids(messages)
        self.served.check_prompt(len(ids), "messages")
        limit = body.max_completion_tokens or body.max_tokens or self.served.options.max_tokens
        logprobs = (body.top_logprobs or 0) if body.logprobs else -1
        requests = [
            request_of(body, ids, self.served, limit=limit, number=i, logprobs=logprobs)
            for i in range(body.n or 1)
        ]
        return await self._generated(begin(self.served, http, requests, len(ids)), body)

    def _choice(self, index: int, answer: AnswerText, body: ChatBody) -> ChatChoice:
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.text},
            "logprobs": self._logprobs(answer.tokens, body),
            "finish_reason": answer.finish,
        }

    async def _choices(self, generation: Generation, steps: Any, body: ChatBody) -> AsyncIterator[Any]:
        for index in range(generation.num_answers):
            yield _delta(index, {"role": "assistant", "content": ""})
        async for index, step in steps:
            logprobs = self._logprobs(step.tokens, body)
            if step.text or (logprobs and logprobs["content"]):
                yield _delta(index, {"content": step.text}, logprobs=logprobs)
            if step.finish is not None:
                yield _delta(index, {}, finish=step.finish)

    def _logprobs(self, tokens: Any, body: ChatBody) -> ChatLogprobs | None:
        if not body.logprobs:
            return None
        token_text = TokenText(self.served.session.tokenizer)
        return {"content": [token_text.token_logprobs(token) for token in tokens]}


def _plain(role: str, text: str, name: str | None) -> dict[str, str]:
    """A message as templates know them: OpenAI's `developer` is what they call `system`."""
    named = {} if name is None else {"name": name}
    return {"role": "system" if role == "developer" else role, "content": text, **named}


def _delta(
    index: int, delta: dict[str, Any], *, logprobs: Any = None, finish: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


# /v1/completions: texts gone on with as they are.

USUAL_TOKENS = 16  # OpenAI's, where a request names no limit


class CompletionsEndpoint(GeneratingEndpoint):
    """The endpoint over what is served."""

    body = CompletionBody
    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    async def _answer(self, http: HttpRequest, body: CompletionBody) -> Response:
        prompts = await prompts_of(body.prompt, self.served, "prompt")
        limit, logprobs = body.max_tokens or USUAL_TOKENS, -1
        if body.logprobs is not None:
            logprobs = body.logprobs
        requests = [
            request_of(body, ids, self.served, limit=limit, number=i, logprobs=logprobs)
            for ids in prompts
            for i in range(body.n or 1)
        ]
        return await self._generated(begin(self.served, http, requests, sum(map(len, prompts))), body)

    def _choice(self, index: int, answer: AnswerText, body: CompletionBody) -> TextChoice:
        logprobs = self._logprobs(answer.tokens, 0, body)
        return {"index": index, "text": answer.text, "logprobs": logprobs, "finish_reason": answer.finish}

    async def _choices(self, generation: Generation, steps: Any, body: CompletionBody) -> AsyncIterator[Any]:
        offsets = [0] * generation.num_answers
        async for index, step in steps:
            logprobs = self._logprobs(step.tokens, offsets[index], body)
            offsets[index] += sum(map(len, logprobs["tokens"])) if logprobs else 0
            if step.text or step.finish or (logprobs and logprobs["tokens"]):
                yield {"index": index, "text": step.text, "logprobs": logprobs, "finish_reason": step.finish}

    def _logprobs(self, tokens: Any, offset: int, body: CompletionBody) -> TextLogprobs | None:
        if body.logprobs is None:
            return None
        token_text = TokenText(self.served.session.tokenizer)
        return token_text.completion(tokens, offset, body.logprobs)


async def prompts_of(given: Any, served: Served, param: str) -> list[list[int]]:
    """Texts or tokens, one or several, as tokens; raises Refusal for any that is none."""
    several = given if isinstance(given, tuple) and not isinstance(given[0], int) else (given,)
    prompts = []
    for one in several:
        if isinstance(one, str):
            ids = await text_ids(one, served.session.tokenizer)
        else:
            served.check_ids(one, param)
            ids = list(one)
        served.check_prompt(len(ids), param)
        prompts.append(ids)
    return prompts


# /v1/embeddings: one vector per text.


class EmbeddingsEndpoint(Endpoint):
    """The endpoint over what is served."""

    body = EmbeddingsBody

    async def _answer(self, http: HttpRequest, body: EmbeddingsBody) -> Response:
        rows = await self._rows(body)
        vectors = await computed(self.served.engine_thread, "embed", rows)
        data: list[Vector] = [
            {"object": "embedding", "index": i, "embedding": _encoded_vector(vector, body.encoding_format)}
            for i, vector in enumerate(vectors)
        ]
        return self._list(http, data, sum(map(len, rows)))

    async def _rows(self, body: EmbeddingsBody) -> list[list[int]]:
        """Tokens with the specials that an encoder was trained with."""
        given: Any = body.input
        if self.served.session.card.head in ("causal", "seq2seq"):
            return await prompts_of(given, self.served, "input")
        texts = (given,) if isinstance(given, str) else given
        if not isinstance(texts[0], str):
            return await prompts_of(given, self.served, "input")
        rows = []
        for text in texts:
            rows.append(await encoder_ids(text, self.served))
            self.served.check_prompt(len(rows[-1]), "input")
        return rows


async def encoder_ids(text: str, served: Served) -> list[int]:
    """A text's tokens between the tokenizer's own special ones."""
    return list((await elsewhere(len(text), served.session.tokenizer, text))["input_ids"])


def _encoded_vector(vector: Array, form: str | None) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]


class ClassifyEndpoint(Endpoint):
    """A class per text: the classifier's, or the likeliest of a task's label words."""

    body = ClassifyBody

    async def _answer(self, http: HttpRequest, body: ClassifyBody) -> Response:
        rows = [await task_ids(row, self.served) for row in rows_of(body, self.served)]
        if self.served.session.card.head == "classify":
            scores = await computed(self.served.engine_thread, "logits", rows)
        else:
            scores = await self._ranked(rows)
        names = self.served.labels
        data = [_class(i, row, names) for i, row in enumerate(scores)]
        return self._list(http, data, sum(map(len, rows)))

    async def _ranked(self, rows: Sequence[list[int]]) -> list[Array]:
        """Per row the log-probability of every label word after it."""
        import numpy as np

        task, tokenizer = self.served.task, self.served.session.tokenizer
        assert task is not None
        labels = [task.label_ids(name, tokenizer) for name in task.label_names]
        whole = [[*row, *label] for row in rows for label in labels]
        for one in whole:
            self.served.check_prompt(len(one), "input")
        logits_of_rows = await computed(self.served.engine_thread, "logits", whole)
        said = [
            _likelihood(logits, label)
            for logits, label in zip(logits_of_rows, labels * len(rows), strict=True)
        ]
        return list(np.array(said).reshape(len(rows), len(labels)))


def _likelihood(logits: Array, label: Sequence[int]) -> float:
    """Log-probability of the last tokens of a text; logits (num_tokens, vocabulary)."""
    import numpy as np

    before = logits[-len(label) - 1 : -1].astype("float64")
    before = before - before.max(axis=-1, keepdims=True)
    logs = before - np.log(np.exp(before).sum(axis=-1, keepdims=True))
    return float(logs[np.arange(len(label)), list(label)].sum())


def _class(index: int, scores: Array, names: Sequence[str]) -> Class:
    import numpy as np

    shares = np.exp(scores.astype("float64") - scores.max())
    shares = shares / shares.sum()
    by_label = {name: float(share) for name, share in zip(names, shares, strict=True)}
    return {"index": index, "label": max(by_label, key=by_label.__getitem__), "probabilities": by_label}


class TranslateEndpoint(GeneratingEndpoint):
    """An answer per text, decoded as the task's card says."""

    body = TranslateBody

    async def _answer(self, http: HttpRequest, body: TranslateBody) -> Response:
        rows = [await task_ids(row, self.served) for row in rows_of(body, self.served)]
        requests = [self._request(ids, body) for ids in rows]
        return await self._generated(begin(self.served, http, requests, sum(map(len, rows))), body)

    def _reply(self, generation: Generation, answers: Sequence[AnswerText], body: Any) -> TranslateReply:
        data: list[Translation] = [
            {"index": i, "text": one.text.strip(), "finish_reason": one.finish}
            for i, one in enumerate(answers)
        ]
        return {"object": "list", "data": data, "model": self.served.name, "usage": generation.usage}

    def _request(self, ids: list[int], body: TranslateBody) -> Request:
        task, abilities = self.served.task, self.served.session.abilities
        most = body.max_tokens or self.served.options.max_tokens
        if task is None:
            return Request(tuple(ids), room(self.served, len(ids), most))
        limit = room(self.served, len(ids), min(most, task.decode.limit(len(ids))))
        beams = task.decode.num_beams if "beams" in abilities else 1
        return Request.of(task.decode, task.sampling, ids, limit=limit, num_beams=beams)

    async def _events(self, generation: Generation, steps: Any, body: Any) -> AsyncIterator[Any]:
        async for index, step in steps:
            if step.text or step.finish:
                yield {"index": index, "text": step.text, "finish_reason": step.finish}
        yield {"usage": generation.usage}


def rows_of(body: ClassifyBody, served: Served) -> list[dict[str, str]]:
    """The inputs as rows of the task; raises Refusal where its fields are not those."""
    given = body.input if isinstance(body.input, tuple) else (body.input,)
    wanted = served.fields
    rows = []
    for one in given:
        if isinstance(one, str) and len(wanted) == 1:
            rows.append({wanted[0]: one})
        elif isinstance(one, dict) and set(one) == set(wanted):
            rows.append(dict(one))
        else:
            fields = ", ".join(wanted)
            raise Refusal(422, f"input: expected a mapping with {fields}.", param="input")
    return rows


async def task_ids(row: dict[str, str], served: Served) -> list[int]:
    """A row's prompt by the task, or the bare text where there is none."""
    size = sum(map(len, row.values()))
    if served.task is None:
        ids = await encoder_ids(row["text"], served)
    elif served.task.chat and "chat" in served.offers:
        turn = {"role": "user", "content": served.task.prompt(row)}
        ids = await served.template_process.ids([turn])
    else:
        blank = dict.fromkeys(served.task.fields, "")
        prompt = served.task.prompt_ids
        ids = await elsewhere(size, prompt, {"id": "0", **blank, **row}, served.session.tokenizer)
    served.check_prompt(len(ids), "input")
    return ids
