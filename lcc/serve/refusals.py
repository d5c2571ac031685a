"""Refusals as clients of OpenAI's API read them: a status, a sentence, a code."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lcc.core.errors import DataError, LccError

RETRY_SECONDS = 1
GONE = 499  # what nobody reads any more is logged as


class Refusal(Exception):
    """A request that is answered with an error; `param` is the field of its body at fault."""

    def __init__(
        self,
        status: int,
        sentence: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
        self.code, self.param = code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's form of an error."""
        return {"error": {"message": self.sentence, "type": kind_of(self.status),
                          "param": self.param, "code": self.code}}  # fmt: skip

    def response(self) -> Response:
        """The error as an HTTP response."""
        return JSONResponse(self.body, self.status, self.headers)


class Gone(Exception):
    """The client closed its connection; nobody waits for the answer."""


def kind_of(status: int) -> str:
    """The `type` of an error, as OpenAI names it."""
    named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return named.get(status, "server_error" if status >= 500 else "invalid_request_error")


def busy(sentence: str) -> Refusal:
    """429, with when to come back."""
    return Refusal(429, sentence, code="busy", headers={"Retry-After": str(RETRY_SECONDS)})


def refusal_of(error: Exception) -> Refusal:
    """What an exception of the engine's side is to the client; our own fault says nothing more."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, DataError):
        return Refusal(422, str(error))
    if isinstance(error, LccError):
        return Refusal(503, str(error))
    return Refusal(500, "the server failed on this request; its log says why.")


async def on_refusal(request: Request, error: Exception) -> Response:
    """Starlette's handler for refusals."""
    assert isinstance(error, Refusal)
    return error.response()


async def on_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=GONE)


async def on_http(request: Request, error: Any) -> Response:
    """Starlette's own refusals (no such route, no such method) in our form."""
    sentence = {404: f"there is no {request.url.path[:100]} here; GET /openapi.json lists what is.",
                405: f"{request.method[:20]} is not for this address."}  # fmt: skip
    said = sentence.get(error.status_code, str(error.detail))
    code = "not_found" if error.status_code == 404 else None
    return Refusal(error.status_code, said, code=code, headers=error.headers).response()


async def on_fault(request: Request, error: Exception) -> Response:
    """Starlette's handler for what is our fault; the traceback goes to the log.

    Starlette raises it once more, at which uvicorn hangs up: the client must know that it will.
    """
    response = refusal_of(error).response()
    response.headers["Connection"] = "close"
    return response


def raw(refusal: Refusal) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body for where there is no application yet (the protocol)."""
    body = json.dumps(refusal.body).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close"),
               (b"content-length", str(len(body)).encode()),
               *((k.lower().encode(), v.encode()) for k, v in refusal.headers.items())]  # fmt: skip
    return headers, body


def phrase(status: int) -> bytes:
    """The reason of a status line."""
    return HTTPStatus(status).phrase.encode()
