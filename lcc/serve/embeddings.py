"""/v1/embeddings: one vector per text."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from lcc.serve.bodies import EmbeddingsBody, read
from lcc.serve.caps import caps_of
from lcc.serve.completions import prompts_of
from lcc.serve.prompting import elsewhere
from lcc.serve.replies import EmbeddingsReply, Vector
from lcc.serve.served import Served
from lcc.serve.streams import unless_gone
from lcc.serve.waiting import computed

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Embeddings:
    """The endpoint over what is served."""

    served: Served

    async def respond(self, http: HttpRequest) -> Response:
        body = await read(http, EmbeddingsBody, self.served.options.max_body_bytes)
        caps_of(self.served).check(body, self.served)
        return await unless_gone(http, self._answer(http, body))

    async def _answer(self, http: HttpRequest, body: EmbeddingsBody) -> Response:
        rows = await self._rows(body)
        vectors = await computed(self.served.turner, "embed", rows)
        data: list[Vector] = [
            {"object": "embedding", "index": i, "embedding": _told(vector, body.encoding_format)}
            for i, vector in enumerate(vectors)
        ]
        return JSONResponse(self._reply(http, data, sum(map(len, rows))))

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

    def _reply(self, http: HttpRequest, data: list[Vector], num_read: int) -> EmbeddingsReply:
        self.served.meters.prompt_tokens.inc(num_read)
        http.scope["usage"].update(prompt_tokens=num_read)
        return {"object": "list", "data": data, "model": self.served.name,
                "usage": {"prompt_tokens": num_read, "total_tokens": num_read}}  # fmt: skip


async def encoder_ids(text: str, served: Served) -> list[int]:
    """A text's tokens between the tokenizer's own special ones."""
    return list((await elsewhere(len(text), served.session.tokenizer, text))["input_ids"])


def _told(vector: np.ndarray[Any, Any], form: str | None) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]
