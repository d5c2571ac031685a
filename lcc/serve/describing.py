"""/openapi.json: drawn from the very types and bounds that requests are checked by."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from lcc.core.decode import card_schema
from lcc.core.machine import version_of
from lcc.serve import bodies, replies
from lcc.serve.caps import caps_of
from lcc.serve.served import Served

REFUSALS = {"400": "The body is not what it should be.", "401": "The API key is missing or wrong.",
            "403": "Called by a name that is not this server's.", "404": "No such model.",
            "408": "The request arrived too slowly.", "413": "The body is too large.",
            "415": "The body is not application/json.", "422": "More is asked than is allowed.",
            "429": "Too many answers wait; Retry-After says when to come back.",
            "431": "The headers are too large.", "503": "The server is going down."}  # fmt: skip
WRITES: dict[str, tuple[str, str, type[Any], type[Any]]] = {
    "chat": ("/v1/chat/completions", "Go on with a conversation.",
             bodies.ChatBody, replies.ChatReply),
    "completions": ("/v1/completions", "Go on with a text.",
                    bodies.CompletionBody, replies.TextReply),
    "embeddings": ("/v1/embeddings", "Make a vector of a text.",
                   bodies.EmbeddingsBody, replies.EmbeddingsReply),
    "classify": ("/v1/classify", "Name the class of a text.",
                 bodies.ClassifyBody, replies.ClassifyReply),
    "translate": ("/v1/translate", "Answer a text as the task says.",
                  bodies.TranslateBody, replies.TranslateReply),
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
    paths["/v1/models"] = {"get": _get("The models served here.", replies.ModelsReply)}
    paths["/healthz"] = {"get": _get("Whether the engine answers.", replies.Health)}
    paths["/healthz"]["get"]["security"] = []
    paths["/healthz"]["get"]["responses"]["503"] = _answer("The engine failed.", replies.Health)
    text = {"schema": {"type": "string"}}
    paths["/metrics"] = {"get": {"summary": "Counters for Prometheus.", "responses": {
        "200": {"description": "Prometheus' text format.", "content": {"text/plain": text}},
        **_refusals("401", "403", "431")}}}  # fmt: skip
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"lcc serve: {served.name}", "version": version_of("lcc") or "unknown"},
        "paths": paths,
        "components": {"schemas": {"Error": _schema(replies.ErrorReply)}},
    }
    if has_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _post(
    served: Served, offer: str, summary: str, body: type[Any], reply: type[Any]
) -> dict[str, Any]:
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
        schema |= {"properties": {name: {"type": "string"} for name in names},
                   "required": list(names), "additionalProperties": False}  # fmt: skip
        schema.pop("minProperties", None)
    if len(served.fields) > 1 and "anyOf" in schema:
        schema["anyOf"] = [arm for arm in schema["anyOf"] if arm.get("type") != "string"]


def _get(summary: str, reply: type[Any]) -> dict[str, Any]:
    responses = {"200": _answer("The answer.", reply), **_refusals("401", "403", "431")}
    return {"summary": summary, "responses": responses}


def _answer(description: str, reply: type[Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _schema(reply)}}}


def _refusals(*statuses: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    told = {"application/json": {"schema": schema}}
    return {status: {"description": REFUSALS[status], "content": told} for status in statuses}


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

    found: dict[str, Any] = resolved(schema)
    return found
