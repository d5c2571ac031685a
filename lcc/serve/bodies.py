"""What may stand in a request's body, in OpenAI's words; anything else is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, StringConstraints
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from lcc.core.decode import Mistakes, card, decode
from lcc.serve.refusals import Gone, Refusal

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
        raise Gone from None
    return bytes(got)


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(413, f"the body is larger than {max_bytes} bytes.", code="too_large")
