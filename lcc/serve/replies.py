"""What the endpoints answer, as types: checked where they are made, published in OpenAPI."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

Finish = Literal["stop", "length"]


class Usage(TypedDict):
    """How many tokens were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Likely(TypedDict):
    """A token, its natural log-probability and its bytes (null inside a character)."""

    token: str
    logprob: float
    bytes: list[int] | None


class Chosen(Likely):
    """A token of an answer, with the likeliest ones in its place."""

    top_logprobs: list[Likely]


class ChatLogprobs(TypedDict):
    """Every token of an answer."""

    content: list[Chosen]


class Said(TypedDict):
    """An answer in a conversation."""

    role: Literal["assistant"]
    content: str


class ChatChoice(TypedDict):
    """One of `n` answers."""

    index: int
    message: Said
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatReply(TypedDict):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


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
    usage: Usage


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
    usage: Usage


class Model(TypedDict):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsReply(TypedDict):
    """All models that are served: one."""

    object: Literal["list"]
    data: list[Model]


class Fault(TypedDict):
    """What went wrong, in a sentence."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(TypedDict):
    """An error in OpenAI's form."""

    error: Fault


class Health(TypedDict):
    """Whether the engine answers."""

    status: Literal["ok", "failed"]
