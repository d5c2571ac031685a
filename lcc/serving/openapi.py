"""OpenAPI document, drawn from the types and bounds that requests are checked by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from lcc.config.cards import card_schema
from lcc.core.machine import version_of
from lcc.inference.session import SAMPLING_ABILITIES
from lcc.serving import protocol
from lcc.serving.model import Served
from lcc.serving.protocol import Refusal
from lcc.tasks.task import Sampling

# How much a body may ask for: one table that requests are checked by and OpenAPI is drawn from.

MAX_MESSAGES = 1000
NEUTRAL: dict[str, tuple[Any, ...]] = {  # what asks for nothing, where an engine cannot do it
    "logprobs": (False,),
    "top_logprobs": (),
    **{name: (getattr(Sampling(), name),) for name in SAMPLING_ABILITIES},
}


@dataclass(frozen=True)
class Caps:
    """Upper bounds by field of a body: numbers, lengths of lists; and fields that are not taken."""

    most: dict[str, float]
    longest: dict[str, int]
    absent: frozenset[str]

    def check(self, body: Any, served: Served) -> None:
        """Raise Refusal for what is too much, or asked of a model that is not here."""
        if body.model is not None and body.model != served.name:
            raise Refusal(
                404,
                f"no model is named {body.model[:100]!r}; this is {served.name!r}.",
                code="model_not_found",
                param="model",
            )
        for name, bound in self.most.items():
            value = getattr(body, name, None)
            if value is not None and value > bound:
                raise Refusal(422, f"{name}: {value} is more than {bound}.", param=name)
        for name, num in self.longest.items():
            value = getattr(body, name, None)
            if isinstance(value, tuple) and not _is_row(value) and len(value) > num:
                raise Refusal(422, f"{name}: {len(value)} items, where {num} are the most.", param=name)
        for name in self.absent:
            if getattr(body, name, None) not in (None, *NEUTRAL.get(name, ())):
                raise Refusal(422, f"{name}: the engine {served.engine!r} cannot do that.", param=name)

    def drawn(self, properties: dict[str, Any], served: Served) -> dict[str, Any]:
        """JSON Schema properties of a body with these bounds in them."""
        properties = {
            name: _bounded(name, schema, self)
            for name, schema in properties.items()
            if name not in self.absent
        }
        if "model" in properties:
            properties["model"] = {"anyOf": [{"const": served.name}, {"type": "null"}], "default": None}
        return properties


def caps_of(served: Served) -> Caps:
    """The bounds of what is served."""
    options, abilities = served.options, served.session.abilities
    most: dict[str, float] = {
        "n": options.max_choices,
        "max_tokens": options.max_tokens,
        "max_completion_tokens": options.max_tokens,
    }
    if "sampling" not in abilities:
        most["temperature"] = 0
    absent = {name for name, ability in SAMPLING_ABILITIES.items() if ability not in abilities}
    absent -= {"temperature"}  # clients always send one: it is bounded
    if "logprobs" not in abilities:
        absent |= {"logprobs", "top_logprobs"}
    longest = {"messages": MAX_MESSAGES, "prompt": options.max_choices, "input": options.max_inputs}
    return Caps(most, longest, frozenset(absent))


def _is_row(value: tuple[Any, ...]) -> bool:
    """Tokens of one text are bounded as its tokens are."""
    return bool(value) and isinstance(value[0], int)


def _bounded(name: str, schema: dict[str, Any], caps: Caps) -> dict[str, Any]:
    arms = [_bounded(name, arm, caps) for arm in schema.get("anyOf", ())]
    bounded = {**schema, "anyOf": arms} if arms else dict(schema)
    if name in caps.most and bounded.get("type") in ("integer", "number"):
        bounded["maximum"] = min(caps.most[name], bounded.get("maximum", caps.most[name]))
    is_ids = bounded.get("items", {}).get("type") == "integer"
    if name in caps.longest and bounded.get("type") == "array" and not is_ids:
        bounded["maxItems"] = caps.longest[name]
    return bounded


REFUSALS = {"400": "The body is not what it should be.", "401": "The API key is missing or wrong.",
            "403": "Called by a name that is not this server's.", "404": "No such model.",
            "408": "The request arrived too slowly.", "413": "The body is too large.",
            "415": "The body is not application/json.", "422": "More is asked than is allowed.",
            "429": "Too many answers wait; Retry-After says when to come back.",
            "431": "The headers are too large.", "503": "The server is going down."}  # fmt: skip
WRITES: dict[str, tuple[str, str, type[Any], type[Any]]] = {
    "chat": ("/v1/chat/completions", "Go on with a conversation.",
             protocol.ChatBody, protocol.ChatReply),
    "completions": ("/v1/completions", "Go on with a text.",
                    protocol.CompletionBody, protocol.TextReply),
    "embeddings": ("/v1/embeddings", "Make a vector of a text.",
                   protocol.EmbeddingsBody, protocol.EmbeddingsReply),
    "classify": ("/v1/classify", "Name the class of a text.",
                 protocol.ClassifyBody, protocol.ClassifyReply),
    "translate": ("/v1/translate", "Answer a text as the task says.",
                  protocol.TranslateBody, protocol.TranslateReply),
}  # fmt: skip
# What a stream is made of: server-sent events, whose data are JSON, or [DONE] at the end.
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
STREAMS = ("chat", "completions", "translate")


def openapi(served: Served, *, has_key: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document of this server, for what its model offers."""
    paths: dict[str, Any] = {}
    for offer, (path, summary, body, reply) in WRITES.items():
        if offer in served.offers:
            paths[path] = {"post": _post(served, offer, summary, body, reply)}
    paths["/v1/models"] = {"get": _get_path("The models served here.", protocol.ModelsReply)}
    paths["/healthz"] = {"get": _get_path("Whether the engine answers.", protocol.Health)}
    paths["/healthz"]["get"]["security"] = []
    paths["/healthz"]["get"]["responses"]["503"] = _answer("The engine failed.", protocol.Health)
    text = {"schema": {"type": "string"}}
    paths["/metrics"] = {
        "get": {
            "summary": "Counters for Prometheus.",
            "responses": {
                "200": {"description": "Prometheus' text format.", "content": {"text/plain": text}},
                **_refusals("401", "403", "431"),
            },
        }
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"lcc serve: {served.name}", "version": version_of("lcc") or "unknown"},
        "paths": paths,
        "components": {"schemas": {"Error": _schema(protocol.ErrorReply)}},
    }
    if has_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _post(served: Served, offer: str, summary: str, body: type[Any], reply: type[Any]) -> dict[str, Any]:
    schema = _inlined(card_schema(body))
    schema["properties"] = caps_of(served).drawn(schema["properties"], served)
    for name in ("input", "prompt"):
        if name in schema["properties"]:
            _fit(schema["properties"][name], served)
    answer = _answer("The answer.", reply)
    if offer in STREAMS:
        answer["content"]["text/event-stream"] = {"schema": EVENT}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": answer, **_refusals(*REFUSALS)},
    }


def _fit(schema: dict[str, Any], served: Served) -> None:
    """What of a text or its tokens depends on the model, in place."""
    for arm in (*schema.get("anyOf", ()), schema.get("items", {})):
        if arm:
            _fit(arm, served)
    if schema.get("type") == "integer":
        schema["maximum"] = served.num_tokens - 1
    if schema.get("type") == "array" and schema.get("items", {}).get("type") == "integer":
        schema["maxItems"] = served.prompt_room
    if schema.get("type") == "object":
        names = served.fields
        schema |= {
            "properties": {name: {"type": "string"} for name in names},
            "required": list(names),
            "additionalProperties": False,
        }
        schema.pop("minProperties", None)
    if len(served.fields) > 1 and "anyOf" in schema:
        schema["anyOf"] = [arm for arm in schema["anyOf"] if arm.get("type") != "string"]


def _get_path(summary: str, reply: type[Any]) -> dict[str, Any]:
    responses = {"200": _answer("The answer.", reply), **_refusals("401", "403", "431")}
    return {"summary": summary, "responses": responses}


def _answer(description: str, reply: type[Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _schema(reply)}}}


def _refusals(*statuses: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    content = {"application/json": {"schema": schema}}
    return {status: {"description": REFUSALS[status], "content": content} for status in statuses}


def _schema(reply: type[Any]) -> dict[str, Any]:
    return _inlined(TypeAdapter(reply).json_schema())


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without `$defs`: in this document they would stand in the wrong place."""
    definitions = schema.pop("$defs", {})

    def resolved(node: Any) -> Any:
        if isinstance(node, list):
            return [resolved(item) for item in node]
        if not isinstance(node, dict):
            return node
        name = str(node.get("$ref", "")).rpartition("/")[2]
        if name in definitions:
            rest = {key: value for key, value in node.items() if key != "$ref"}
            return resolved({**definitions[name], **rest})
        return {key: resolved(value) for key, value in node.items()}

    inlined: dict[str, Any] = resolved(schema)
    return inlined
