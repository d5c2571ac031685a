"""How much a body may ask for: one table that requests are checked by and OpenAPI is drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lcc.serve.refusals import Refusal
from lcc.serve.served import Served

MAX_MESSAGES = 1000
NEUTRAL: dict[str, tuple[Any, ...]] = {  # what asks for nothing, where an engine cannot do it
    "logprobs": (False,), "top_logprobs": (), "repetition_penalty": (1.0,),
}  # fmt: skip


@dataclass(frozen=True)
class Caps:
    """Upper bounds by field of a body: numbers, lengths of lists; and fields that are not taken."""

    most: dict[str, float]
    longest: dict[str, int]
    absent: frozenset[str]

    def check(self, body: Any, served: Served) -> None:
        """Raise Refusal for what is too much, or asked of a model that is not here."""
        if body.model is not None and body.model != served.name:
            raise Refusal(404, f"no model is named {body.model[:100]!r}; this is {served.name!r}.",
                          code="model_not_found", param="model")  # fmt: skip
        for name, bound in self.most.items():
            value = getattr(body, name, None)
            if value is not None and value > bound:
                raise Refusal(422, f"{name}: {value} is more than {bound}.", param=name)
        for name, num in self.longest.items():
            value = getattr(body, name, None)
            if isinstance(value, tuple) and not _is_row(value) and len(value) > num:
                raise Refusal(422, f"{name}: {len(value)} items, where {num} are the most.",
                              param=name)  # fmt: skip
        for name in self.absent:
            if getattr(body, name, None) not in (None, *NEUTRAL.get(name, ())):
                raise Refusal(422, f"{name}: the engine {served.engine!r} cannot do that.",
                              param=name)  # fmt: skip

    def drawn(self, properties: dict[str, Any], served: Served) -> dict[str, Any]:
        """JSON Schema properties of a body with these bounds in them."""
        found = {name: _bounded(name, schema, self) for name, schema in properties.items()
                 if name not in self.absent}  # fmt: skip
        if "model" in found:
            found["model"] = {"anyOf": [{"const": served.name}, {"type": "null"}], "default": None}
        return found


def caps_of(served: Served) -> Caps:
    """The bounds of what is served."""
    options, abilities = served.options, served.session.abilities
    most: dict[str, float] = {"n": options.max_choices, "max_tokens": options.max_tokens,
                              "max_completion_tokens": options.max_tokens}  # fmt: skip
    if "sampling" not in abilities:
        most["temperature"] = 0
    absent = set()
    if "logprobs" not in abilities:
        absent |= {"logprobs", "top_logprobs"}
    if "repetition_penalty" not in abilities:
        absent.add("repetition_penalty")
    longest = {"messages": MAX_MESSAGES, "prompt": options.max_choices,
               "input": options.max_inputs}  # fmt: skip
    return Caps(most, longest, frozenset(absent))


def _is_row(value: tuple[Any, ...]) -> bool:
    """Tokens of one text are bounded as its tokens are."""
    return bool(value) and isinstance(value[0], int)


def _bounded(name: str, schema: dict[str, Any], caps: Caps) -> dict[str, Any]:
    arms = [_bounded(name, arm, caps) for arm in schema.get("anyOf", ())]
    found = {**schema, "anyOf": arms} if arms else dict(schema)
    if name in caps.most and found.get("type") in ("integer", "number"):
        found["maximum"] = min(caps.most[name], found.get("maximum", caps.most[name]))
    is_ids = found.get("items", {}).get("type") == "integer"
    if name in caps.longest and found.get("type") == "array" and not is_ids:
        found["maxItems"] = caps.longest[name]
    return found
