"""A conversation on the terminal: a line, an answer as it is made, and the next line."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lcc.core.errors import DataError, RecipeError
from lcc.verbs._inferring import Asked, opening_of, say

if TYPE_CHECKING:
    from lcc.inference.chatting import Chat
    from lcc.recipe import Recipe

TOLD = "write to the model; /new forgets the conversation, Ctrl-D ends it"


def chat(recipe: Recipe, folder: Path, options: Asked) -> int:
    """Lines of stdin are turns; what the model says goes to stdout."""
    conversation = _opened(recipe, folder, options)
    is_typed = sys.stdin.isatty()
    if is_typed:
        say(TOLD)
    try:
        while True:
            if is_typed:
                print("> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line:
                return 0
            if line.strip() == "/new":
                conversation.forget()
            elif line.strip():
                for piece in conversation.reply(line.strip()):
                    print(piece, end="", flush=True)
                print(flush=True)
    finally:
        conversation.session.close()


def _opened(recipe: Recipe, folder: Path, options: Asked) -> Chat:
    from lcc.core.store import Store
    from lcc.exporting.selecting import select
    from lcc.inference.chatting import Chat
    from lcc.parts.checkpoint import read_card
    from lcc.parts.folder import examine
    from lcc.parts.sampling import Sampling
    from lcc.parts.task import Decode
    from lcc.runner import ROOT

    if options.output is not None:
        raise RecipeError("--chat writes to the terminal; leave output out.")
    examine(folder)
    found = read_card(folder)
    if found.head != "causal":
        raise DataError(f"model {found.name!r} is {found.head}; only causal models chat.")
    opening = dataclasses.replace(opening_of(recipe, options, say), slots=1)
    chosen = select(options.engine, folder, opening, store=Store(ROOT), say=say)
    task, session = recipe.task, chosen.open(opening)
    if getattr(session, "told", ""):
        say(str(session.told))  # type: ignore[attr-defined]
    return Chat(session, options.replaced(task.decode if task else Decode()),
                options.replaced(task.sampling if task else Sampling()), recipe.seed,
                options.system, task.grounding if task else None)  # fmt: skip
