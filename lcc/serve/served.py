"""What is served: the session with its thread, the task around it, and what that can be asked."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lcc.parts.filling import places
from lcc.parts.folder import read_json
from lcc.serve.metering import Meters
from lcc.serve.options import ServeOptions
from lcc.serve.prompting import Prompter
from lcc.serve.refusals import Refusal
from lcc.serve.turning import Turner

if TYPE_CHECKING:
    from lcc.inference.sessions import Session
    from lcc.parts.task import Task

Offer = Literal["chat", "completions", "embeddings", "classify", "translate"]


@dataclass
class Served:
    """One model as clients see it; `prompter` and `turner` are there once the server has begun."""

    folder: Path
    session: Session
    options: ServeOptions
    task: Task | None = None
    engine: str = ""
    meters: Meters = field(default_factory=Meters)
    created: int = field(default_factory=lambda: int(time.time()))
    is_well: bool = True
    _turner: Turner | None = None
    _prompter: Prompter | None = None

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.options.name or self.session.card.name

    @property
    def offers(self) -> frozenset[Offer]:
        """Which endpoints the model has the head, the template or the task for."""
        head, abilities, task = self.session.card.head, self.session.abilities, self.task
        found: set[Offer] = set()
        if head == "causal":
            found.add("completions")
            if getattr(self.session.tokenizer, "chat_template", None):
                found.add("chat")
        if "embed" in abilities:
            found.add("embeddings")
        if head == "classify" and "classify" in abilities:
            found.add("classify")
        if head == "causal" and task is not None and task.is_ranked and "logits" in abilities:
            found.add("classify")
        writes = task is not None and bool(task.template) and task.labels is None
        if (head == "seq2seq" and task is None) or (head in ("causal", "seq2seq") and writes):
            found.add("translate")
        return frozenset(found)

    @property
    def fields(self) -> tuple[str, ...]:
        """What the task's template reads of a text to classify or translate."""
        if self.task is None:
            return ("text",)
        wanted = places(self.task.template)
        return tuple(name for name in self.task.fields if name in wanted)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes by number: the model's own, or the task's label words."""
        if self.session.card.head == "classify":
            named = read_json(self.folder / "config.json").get("id2label") or {}
            return tuple(str(named[i]) for i in sorted(named, key=int))
        assert self.task is not None
        return self.task.label_names

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its answer."""
        return min(self.session.context, self.options.context or self.session.context)

    @property
    def prompt_room(self) -> int:
        """Most tokens of a prompt; one is left for an answer where there is one."""
        is_writer = self.session.card.head in ("causal", "seq2seq")
        room = self.context - 1 if is_writer else self.context
        return max(1, min(room, self.options.max_prompt_tokens or room))

    @property
    def turner(self) -> Turner:
        """The thread that turns the session."""
        assert self._turner is not None, "the server has not begun"
        return self._turner

    @property
    def prompter(self) -> Prompter:
        """The process that renders chat templates."""
        assert self._prompter is not None, "the server has not begun"
        return self._prompter

    async def open(self, turner: Turner) -> None:
        """Begin: the engine's thread and, for a model that chats, the template's process."""
        self._turner = turner
        self._prompter = Prompter(self.folder)
        if "chat" in self.offers:
            await self._prompter.open()
        turner.open()
        self.meters.watch(turner)

    async def close(self) -> None:
        """Stop both."""
        self.turner.close()
        await self.prompter.close()

    def check_prompt(self, num_tokens: int, param: str) -> None:
        """Raise Refusal for a prompt that is empty or too long."""
        if num_tokens == 0:
            raise Refusal(422, f"{param}: it has no tokens.", param=param)
        if num_tokens > self.prompt_room:
            raise Refusal(422, f"{param}: {num_tokens} tokens, where {self.prompt_room} are the "
                          "most.", code="context_length_exceeded", param=param)  # fmt: skip

    def check_ids(self, ids: tuple[int, ...], param: str) -> None:
        """Raise Refusal for token numbers that the vocabulary does not have."""
        if max(ids) >= self.num_tokens:
            raise Refusal(422, f"{param}: tokens are numbered 0 to {self.num_tokens - 1}.",
                          param=param)  # fmt: skip

    @property
    def num_tokens(self) -> int:
        """How many tokens the vocabulary has."""
        return len(self.session.tokenizer)

    def model_facts(self) -> dict[str, Any]:
        """The model as /v1/models tells it."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "lcc"}
