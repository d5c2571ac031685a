"""Protocol of the HTTP API: bodies and replies in OpenAI's words; anything else is refused by name."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, StringConstraints
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from lcc.config.cards import Mistakes, card, decode
from lcc.core.errors import DataError, LccError

# What the endpoints answer, as types: checked where they are made, published in OpenAPI.

Finish = Literal["stop", "length"]


class TokenUsage(TypedDict):
    """How many tokens were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class LikelyToken(TypedDict):
    """A token, its natural log-probability and its bytes (null inside a character)."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobs(LikelyToken):
    """A token of an answer, with the likeliest ones in its place."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(TypedDict):
    """Every token of an answer."""

    content: list[TokenLogprobs]


class AssistantMessage(TypedDict):
    """An answer in a conversation."""

    role: Literal["assistant"]
    content: str


class ChatChoice(TypedDict):
    """One of `n` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatReply(TypedDict):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage


class TextLogprobs(TypedDict):
    """Every token of a completion, where it begins, and the likeliest ones in its place."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TextChoice(TypedDict):
    """One of `n` continuations of one of the prompts."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None


class TextReply(TypedDict):
    """Continuations of all prompts, those of the first prompt first."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: TokenUsage


class ReadUsage(TypedDict):
    """How many tokens were read."""

    prompt_tokens: int
    total_tokens: int


class Vector(TypedDict):
    """One text's vector: numbers, or their little-endian float32 bytes in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsReply(TypedDict):
    """One vector per text."""

    object: Literal["list"]
    data: list[Vector]
    model: str
    usage: ReadUsage


class Class(TypedDict):
    """One text's class, and the probability of each."""

    index: int
    label: str
    probabilities: dict[str, float]


class ClassifyReply(TypedDict):
    """One class per text."""

    object: Literal["list"]
    data: list[Class]
    model: str
    usage: ReadUsage


class Translation(TypedDict):
    """One text's answer."""

    index: int
    text: str
    finish_reason: Finish | None


class TranslateReply(TypedDict):
    """One answer per text."""

    object: Literal["list"]
    data: list[Translation]
    model: str
    usage: TokenUsage


class ServedModel(TypedDict):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsReply(TypedDict):
    """All models that are served: one."""

    object: Literal["list"]
    data: list[ServedModel]


class ErrorDetail(TypedDict):
    """What went wrong, in a sentence."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(TypedDict):
    """An error in OpenAI's form."""

    error: ErrorDetail


class Health(TypedDict):
    """Whether the engine answers."""

    status: Literal["ok", "failed"]


# Refusals as clients of OpenAI's API read them: a status, a sentence, a code.

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
        return {
            "error": {
                "message": self.sentence,
                "type": kind_of(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """The error as an HTTP response."""
        return JSONResponse(self.body, self.status, self.headers)


class ClientGone(Exception):
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
    sentence = {
        404: f"there is no {request.url.path[:100]} here; GET /openapi.json lists what is.",
        405: f"{request.method[:20]} is not for this address.",
    }
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
    headers = [
        (b"content-type", b"application/json"),
        (b"connection", b"close"),
        (b"content-length", str(len(body)).encode()),
        *((k.lower().encode(), v.encode()) for k, v in refusal.headers.items()),
    ]
    return headers, body


def phrase(status: int) -> bytes:
    """The reason of a status line."""
    return HTTPStatus(status).phrase.encode()


T = TypeVar("T")
SEEDS = 2**63

Text = Annotated[str, StringConstraints(min_length=1)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Id = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[tuple[Id, ...], Field(min_length=1)]
Zero = Annotated[float, Field(ge=0, le=0)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]
Rows = Annotated[tuple[Ids, ...], Field(min_length=1)]


@card
class TextPart:
    """A piece of a message."""

    type: Literal["text"]
    text: str


@card
class Message:
    """One turn of a conversation; pieces of text are put together."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[tuple[TextPart, ...], Field(min_length=1)]
    name: str | None = None

    @property
    def text(self) -> str:
        """The whole content."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


@card
class StreamOptions:
    """Whether a stream ends by telling how many tokens it took."""

    include_usage: bool | None = None


@card
class ResponseFormat:
    """Plain text is the only form."""

    type: Literal["text"] = "text"


@card
class Generating:
    """What chats and completions have in common; `user`, `metadata` and `store` change nothing."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: Stop | Annotated[tuple[Stop, ...], Field(max_length=8)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, none of them twice."""
        given = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        return tuple(dict.fromkeys(given))


@card
class ChatBody(Generating):
    """A conversation to go on with."""

    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None


@card
class CompletionBody(Generating):
    """Texts, or their tokens, to go on with."""

    prompt: Text | Texts | Ids | Rows
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None


@card
class EmbeddingsBody:
    """Texts, or their tokens, to make vectors of."""

    input: Text | Texts | Ids | Rows
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


Fields = Annotated[dict[str, str], Field(min_length=1)]


@card
class ClassifyBody:
    """Texts to name the class of; a mapping where the task reads several fields."""

    input: Text | Fields | Annotated[tuple[Text | Fields, ...], Field(min_length=1)]
    model: str | None = None


@card
class TranslateBody(ClassifyBody):
    """Texts to answer as the task says; a mapping where it reads several fields."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None


async def read(request: Request, kind: type[T], max_bytes: int) -> T:
    """The decoded body; raises Refusal for one that is too large, no JSON, or not a `kind`."""
    type_ = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if type_ != "application/json":
        raise Refusal(415, "send the body as content-type: application/json.")
    text = await _bytes(request, max_bytes)
    try:
        node = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}.") from None
    if not isinstance(node, dict):
        raise Refusal(400, "the body must be a JSON object.")
    return decoded(kind, node)


def decoded(kind: type[T], node: dict[str, Any]) -> T:
    """`node` as a `kind`; raises Refusal with every mistake."""
    try:
        return decode(kind, _whole(node))
    except Mistakes as mistakes:
        first = mistakes.mistakes[0]
        sentence = " ".join(f"{m.key}: {m.sentence}" for m in mistakes.mistakes[:5])
        raise Refusal(400, sentence[:2000], param=first.key.partition(".")[0][:100]) from None
    except ValueError as error:  # numbers that no text can hold
        raise Refusal(400, f"the body cannot be read: {error}.") from None


def _whole(node: Any) -> Any:
    """JSON has one kind of number: 8.0 is 8 where a whole number is wanted."""
    if isinstance(node, float) and node.is_integer():
        return int(node)
    if isinstance(node, list):
        return [_whole(item) for item in node]
    if isinstance(node, dict):
        return {key: _whole(value) for key, value in node.items()}
    return node


async def _bytes(request: Request, max_bytes: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdigit() and (len(length) > 15 or int(length) > max_bytes):
        raise _too_large(max_bytes)
    got = bytearray()
    try:
        async for piece in request.stream():
            got += piece
            if len(got) > max_bytes:
                raise _too_large(max_bytes)
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(got)


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(413, f"the body is larger than {max_bytes} bytes.", code="too_large")
