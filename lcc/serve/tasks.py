"""/v1/classify and /v1/translate: the endpoints of tasks that are no conversation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from lcc.inference.requests import Request
from lcc.serve.bodies import ClassifyBody, TranslateBody, read
from lcc.serve.caps import caps_of
from lcc.serve.embeddings import encoder_ids
from lcc.serve.prompting import elsewhere
from lcc.serve.refusals import Refusal
from lcc.serve.replies import Class, ClassifyReply, TranslateReply, Translation
from lcc.serve.served import Served
from lcc.serve.streams import unless_gone
from lcc.serve.waiting import computed
from lcc.serve.writing import Told, Writing, begin, respond, room

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Classify:
    """A class per text: the classifier's, or the likeliest of a task's label words."""

    served: Served

    async def respond(self, http: HttpRequest) -> Response:
        body = await read(http, ClassifyBody, self.served.options.max_body_bytes)
        caps_of(self.served).check(body, self.served)
        return await unless_gone(http, self._answer(http, body))

    async def _answer(self, http: HttpRequest, body: ClassifyBody) -> Response:
        rows = [await task_ids(row, self.served) for row in rows_of(body, self.served)]
        if self.served.session.card.head == "classify":
            scores = await computed(self.served.turner, "logits", rows)
        else:
            scores = await self._ranked(rows)
        num_read = sum(map(len, rows))
        self.served.meters.prompt_tokens.inc(num_read)
        http.scope["usage"].update(prompt_tokens=num_read)
        names = self.served.labels
        data = [_class(i, row, names) for i, row in enumerate(scores)]
        reply: ClassifyReply = {
            "object": "list", "data": data, "model": self.served.name,
            "usage": {"prompt_tokens": num_read, "total_tokens": num_read},
        }  # fmt: skip
        return JSONResponse(reply)

    async def _ranked(self, rows: Sequence[list[int]]) -> list[np.ndarray[Any, Any]]:
        """Per row the log-probability of every label word after it."""
        import numpy as np

        task, tokenizer = self.served.task, self.served.session.tokenizer
        assert task is not None
        labels = [task.label_ids(name, tokenizer) for name in task.label_names]
        whole = [[*row, *label] for row in rows for label in labels]
        for one in whole:
            self.served.check_prompt(len(one), "input")
        found = await computed(self.served.turner, "logits", whole)
        said = [_likelihood(logits, label)
                for logits, label in zip(found, labels * len(rows), strict=True)]  # fmt: skip
        return list(np.array(said).reshape(len(rows), len(labels)))


def _likelihood(logits: np.ndarray[Any, Any], label: Sequence[int]) -> float:
    """Log-probability of the last tokens of a text; logits (num_tokens, vocabulary)."""
    import numpy as np

    before = logits[-len(label) - 1 : -1].astype("float64")
    before = before - before.max(axis=-1, keepdims=True)
    logs = before - np.log(np.exp(before).sum(axis=-1, keepdims=True))
    return float(logs[np.arange(len(label)), list(label)].sum())


def _class(index: int, scores: np.ndarray[Any, Any], names: Sequence[str]) -> Class:
    import numpy as np

    shares = np.exp(scores.astype("float64") - scores.max())
    shares = shares / shares.sum()
    told = {name: float(share) for name, share in zip(names, shares, strict=True)}
    return {"index": index, "label": max(told, key=told.__getitem__), "probabilities": told}


@dataclass(frozen=True)
class Translate:
    """An answer per text, decoded as the task's card says."""

    served: Served

    async def respond(self, http: HttpRequest) -> Response:
        body = await read(http, TranslateBody, self.served.options.max_body_bytes)
        caps_of(self.served).check(body, self.served)
        return await unless_gone(http, self._answer(http, body))

    async def _answer(self, http: HttpRequest, body: TranslateBody) -> Response:
        rows = [await task_ids(row, self.served) for row in rows_of(body, self.served)]
        requests = [self._request(ids, body) for ids in rows]
        writing = begin(self.served, http, requests, sum(map(len, rows)))
        return await respond(
            writing, body, events=lambda steps: self._events(writing, steps),
            reply=lambda told: self._reply(writing, told),
        )  # fmt: skip

    def _reply(self, writing: Writing, told: Sequence[Told]) -> TranslateReply:
        data: list[Translation] = [
            {"index": i, "text": one.text.strip(), "finish_reason": one.finish}
            for i, one in enumerate(told)
        ]
        return {"object": "list", "data": data, "model": self.served.name, "usage": writing.usage}

    def _request(self, ids: list[int], body: TranslateBody) -> Request:
        task, abilities = self.served.task, self.served.session.abilities
        most = body.max_tokens or self.served.options.max_tokens
        if task is None:
            return Request(tuple(ids), room(self.served, len(ids), most))
        limit = min(most, task.decode.limit(len(ids)))
        beams = task.decode.num_beams if "beams" in abilities else 1
        draw = task.sampling
        return Request(tuple(ids), room(self.served, len(ids), limit), num_beams=beams,
                       stop=task.decode.stop, temperature=draw.temperature, top_k=draw.top_k,
                       top_p=draw.top_p, repetition_penalty=draw.repetition_penalty)  # fmt: skip

    async def _events(self, writing: Writing, steps: Any) -> AsyncIterator[Any]:
        async for index, step in steps:
            if step.text or step.finish:
                yield {"index": index, "text": step.text, "finish_reason": step.finish}
        yield {"usage": writing.usage}


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
        ids = await served.prompter.ids([turn])
    else:
        blank = dict.fromkeys(served.task.fields, "")
        prompt = served.task.prompt_ids
        ids = await elsewhere(size, prompt, {"id": "0", **blank, **row}, served.session.tokenizer)
    served.check_prompt(len(ids), "input")
    return ids
