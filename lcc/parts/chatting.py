"""A task's prompt and answer as turns of a chat, written by the model's own template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lcc.core.errors import DataError
from lcc.parts.encoding import plain_ids
from lcc.parts.filling import Row, fill

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lcc.parts.task import Task

Message = dict[str, str]


def opening(
    task: Task, row: Row, tokenizer: PreTrainedTokenizerBase, demos: Sequence[Row] = ()
) -> str:
    """The conversation as text up to where the model speaks; its template writes BOS itself."""
    turns = [turn for demo in demos for turn in _turns(task, demo)]
    return rendered(task, [*turns, _turns(task, row)[0]], tokenizer, open_ended=True)


def answer_ids(task: Task, row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of the answer with what the template ends it by."""
    start = opening(task, row, tokenizer)
    whole = rendered(task, _turns(task, row), tokenizer, open_ended=False)
    return plain_ids(after(task, start, whole).rstrip("\n"), tokenizer)


def rendered(
    task: Task, turns: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, open_ended: bool
) -> str:
    """Turns as the tokenizer's template writes them; `open_ended`: the model speaks next."""
    if not tokenizer.chat_template:
        raise DataError(f"task {task.name!r}: chat is on, but this tokenizer has no chat "
                        "template; set chat: false.")  # fmt: skip
    shown: Any = list(turns)
    return str(
        tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=open_ended)
    )


def after(task: Task, start: str, whole: str) -> str:
    """What `whole` says after `start`."""
    if not whole.startswith(start):
        raise DataError(f"task {task.name!r}: the chat template changes the prompt once it "
                        "is answered; set chat: false.")  # fmt: skip
    return whole[len(start) :]


def _turns(task: Task, row: Row) -> list[Message]:
    return [
        {"role": "user", "content": fill(task.template, row)},
        {"role": "assistant", "content": task.completion(row).strip()},
    ]
