"""Served model: the session with its thread, the task around it, options and metrics."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import stat
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import Field

from lcc.config.cards import card
from lcc.core.errors import DataError, RecipeError, SafetyError
from lcc.core.machine import free_cores
from lcc.export.select_engine import select
from lcc.inference.session import Opening
from lcc.models.card import class_names, examine, read_card, read_json
from lcc.serving.chat_template import ChatTemplateProcess
from lcc.serving.engine_thread import EngineThread
from lcc.serving.protocol import Refusal
from lcc.store.store import ROOT, Store
from lcc.tasks.template import places

if TYPE_CHECKING:
    from lcc.inference.session import Session
    from lcc.pipeline.recipe import Recipe
    from lcc.tasks.task import Task

# What `serve.key=value` may say: where to listen, and how much a client may ask for.

KEY_VARIABLE = "LCC_API_KEY"
MIN_KEY = 16  # characters
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


@card
class ServeOptions:
    """Where to listen and what is too much.

    `port` 0 takes a free one. The key comes from the environment variable LCC_API_KEY or from
    `key_file`, never from the command line, which other users of a machine can read. `origins` are
    those of other sites whose pages may ask (CORS); `hosts` names by which this server may be
    called beside its own address. At most `slots` answers are written at once and `queue` wait.
    A request must have arrived within `read_seconds`; a client must take what is written within
    `write_seconds`; an answer waits at most `queue_seconds` for a slot; after SIGTERM open answers
    have `drain_seconds`. `context` is the most tokens of prompt and answer (null: the model's).
    `prefix_mb` megabytes of what was read are kept for prompts that begin so (0: nothing).
    `temperature` is that of requests that name none (null: OpenAI's 1, if the engine samples).
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    name: str | None = None
    key_file: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    page: bool = True
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    slots: Annotated[int, Field(ge=1, le=1024)] = 16
    queue: Annotated[int, Field(ge=0)] = 64
    context: Count | None = None
    prefix_mb: Annotated[int, Field(ge=0)] = 256
    max_prompt_tokens: Count | None = None
    max_tokens: Count = 2048
    max_choices: Annotated[int, Field(ge=1, le=128)] = 8
    max_inputs: Annotated[int, Field(ge=1, le=2048)] = 64
    max_body_bytes: Annotated[int, Field(ge=1024)] = 2**20
    max_header_bytes: Annotated[int, Field(ge=1024)] = 16 * 2**10
    max_connections: Count = 1024
    read_seconds: Seconds = 15.0
    write_seconds: Seconds = 30.0
    queue_seconds: Seconds = 30.0
    keep_alive_seconds: Count = 15
    drain_seconds: Count = 30

    def key(self) -> str | None:
        """The key that clients must show; raises SafetyError where one is needed and absent."""
        key = self._given_key()
        if key is not None and len(key) < MIN_KEY:
            raise SafetyError(
                f"the API key has fewer than {MIN_KEY} characters; make one with "
                "python -c 'import secrets; print(secrets.token_hex(32))'."
            )
        if key is None and not self.is_loopback:
            raise SafetyError(
                f"serve.host={self.host} can be reached by other machines, and no "
                f"key is set; set {KEY_VARIABLE} or serve.key_file, or listen on "
                "127.0.0.1."
            )
        return key

    def _given_key(self) -> str | None:
        if self.key_file is None:
            return os.environ.get(KEY_VARIABLE) or None
        path = Path(self.key_file)
        try:
            mode, text = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"serve.key_file: cannot read {path}: {error}.") from None
        # A group may read it: so do systemd's credentials and secrets shared with one service.
        if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
            raise SafetyError(f"serve.key_file: others can read or change {path}; say chmod 600 {path}.")
        return text

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach `host`."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # a name may mean any address

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """Names in a Host header that are this server: another's page may rebind its own name."""
        return frozenset({*LOOPBACK_NAMES, self.host, *self.hosts})


# Counters and times for Prometheus, in a registry of their own.

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ServerMetrics:
    """Counters of /metrics; no label holds anything that a client chose."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("lcc_requests", "Requests answered.", ("route", "status"), registry=registry)
        self.seconds = Histogram(
            "lcc_request_seconds",
            "From the headers to the last byte.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "lcc_first_token_seconds", "Until an answer's first token.", buckets=SECONDS, registry=registry
        )
        self.prompt_tokens = Counter("lcc_prompt_tokens", "Tokens read.", registry=registry)
        self.new_tokens = Counter("lcc_completion_tokens", "Tokens written.", registry=registry)

    def watch(self, engine_thread: EngineThread) -> None:
        """Ask `engine_thread` how it is doing whenever somebody asks for the metrics."""
        gauges = {
            "lcc_answers_running": ("Answers in a slot.", lambda: len(engine_thread.active)),
            "lcc_answers_waiting": ("Answers that wait for one.", lambda: len(engine_thread.waiting)),
            "lcc_engine_turns": ("Turns of the engine so far.", lambda: engine_thread.num_turns),
        }
        for name, (sentence, value) in gauges.items():
            Gauge(name, sentence, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)


Offer = Literal["chat", "completions", "embeddings", "classify", "translate"]


@dataclass
class Served:
    """One model as clients see it; its thread and its template process run once the server has begun."""

    folder: Path
    session: Session
    options: ServeOptions
    task: Task | None = None
    engine: str = ""
    meters: ServerMetrics = field(default_factory=ServerMetrics)
    created: int = field(default_factory=lambda: int(time.time()))
    is_well: bool = True
    _turner: EngineThread | None = None
    _template_process: ChatTemplateProcess | None = None

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.options.name or self.session.card.name

    @property
    def offers(self) -> frozenset[Offer]:
        """Which endpoints the model has the head, the template or the task for."""
        head, abilities, task = self.session.card.head, self.session.abilities, self.task
        offers: set[Offer] = set()
        if head == "causal":
            offers.add("completions")
            if getattr(self.session.tokenizer, "chat_template", None):
                offers.add("chat")
        if "embed" in abilities:
            offers.add("embeddings")
        if head == "classify" and "classify" in abilities:
            offers.add("classify")
        if head == "causal" and task is not None and task.is_ranked and "logits" in abilities:
            offers.add("classify")
        writes = task is not None and bool(task.template) and task.labels is None
        if (head == "seq2seq" and task is None) or (head in ("causal", "seq2seq") and writes):
            offers.add("translate")
        return frozenset(offers)

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
            return class_names(read_json(self.folder / "config.json"))
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
    def engine_thread(self) -> EngineThread:
        """The thread that turns the session."""
        assert self._turner is not None, "the server has not begun"
        return self._turner

    @property
    def template_process(self) -> ChatTemplateProcess:
        """The process that renders chat templates."""
        assert self._template_process is not None, "the server has not begun"
        return self._template_process

    async def open(self, engine_thread: EngineThread) -> None:
        """Begin: the engine's thread and, for a model that chats, the template's process."""
        self._turner = engine_thread
        self._template_process = ChatTemplateProcess(self.folder)
        if "chat" in self.offers:
            await self._template_process.open()
        engine_thread.open()
        self.meters.watch(engine_thread)

    async def close(self) -> None:
        """Stop both."""
        self.engine_thread.close()
        await self.template_process.close()

    def check_prompt(self, num_tokens: int, param: str) -> None:
        """Raise Refusal for a prompt that is empty or too long."""
        if num_tokens == 0:
            raise Refusal(422, f"{param}: it has no tokens.", param=param)
        if num_tokens > self.prompt_room:
            raise Refusal(
                422,
                f"{param}: {num_tokens} tokens, where {self.prompt_room} are the most.",
                code="context_length_exceeded",
                param=param,
            )

    def check_ids(self, ids: tuple[int, ...], param: str) -> None:
        """Raise Refusal for token numbers that the vocabulary does not have."""
        if max(ids) >= self.num_tokens:
            raise Refusal(422, f"{param}: tokens are numbered 0 to {self.num_tokens - 1}.", param=param)

    @property
    def num_tokens(self) -> int:
        """How many tokens the vocabulary has."""
        return len(self.session.tokenizer)

    def model_facts(self) -> dict[str, Any]:
        """The model as /v1/models describes it."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "lcc"}


# From a model folder and a recipe to what is served: engine, session, task with its labels.


def opened(folder: Path, recipe: Recipe, options: ServeOptions, engine: str) -> Served:
    """The model in memory; raises RecipeError where engine, head and task do not go together."""
    examine(folder)
    task = _fitting(recipe.task, folder)
    opening = Opening(
        threads=recipe.threads or free_cores(),
        slots=options.slots,
        context=options.context,
        device=recipe.device_type,
        dtype=recipe.dtype,
        prefix_mb=options.prefix_mb,
    )
    chosen = select(engine, folder, opening, store=Store(ROOT), info=_print, rows=options.slots)
    session = chosen.open(opening)
    served = Served(folder, session, options, task, chosen.engine)
    if not served.offers:
        raise RecipeError(
            f"model {session.card.name!r} ({session.card.head}) has nothing to "
            "serve; choose another, or add a task it was trained for."
        )
    return served


def _print(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _fitting(task: Task | None, folder: Path) -> Task | None:
    """The task with its labels known, if the model has the head for it."""
    if task is None:
        return None
    head = read_card(folder).head
    if task.head != head:
        raise RecipeError(
            f"task {task.name!r} needs a {task.head} head, which this model ({head}) "
            f"does not have; leave the task out."
        )
    if task.labels != "from_data":
        return task
    if head != "classify":
        raise RecipeError(
            f"task {task.name!r} takes its labels from data; name them: 'task.labels=[negative,positive]'."
        )
    return dataclasses.replace(task, labels=class_names(read_json(folder / "config.json")))
