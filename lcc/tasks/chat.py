"""Chat tasks: a task's rows as turns of a chat, written by the model's own template.

Only what the assistant says is learned and judged: pieces of a conversation are tokenized one by
one, so that the model sees at inference the tokens it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lcc.core.errors import DataError
from lcc.tasks.encode import IGNORED, Example, cut, plain_ids
from lcc.tasks.template import PromptSource, Row, fill

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
ROLES = ("user", "assistant")


def opening(
    task: PromptSource, row: Row, tokenizer: PreTrainedTokenizerBase, demos: Sequence[Row] = ()
) -> str:
    """The conversation as text up to where the model speaks; its template writes BOS itself."""
    shown = [turn for demo in demos for turn in _turns(task, demo)]
    own = _unanswered(_turns(task, row))
    return rendered(task, [*_system(task, row), *shown, *own], tokenizer, open_ended=True)


def answer_ids(task: PromptSource, row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of the answer with what the template ends it by."""
    start = opening(task, row, tokenizer)
    turns = [*_system(task, row), *_turns(task, row)]
    whole = rendered(task, turns, tokenizer, open_ended=False)
    return plain_ids(after(task, start, whole).rstrip("\n"), tokenizer)


def handed_over(task: PromptSource, row: Row) -> str | None:
    """The hand-over text in the model's place where a person takes over; else None."""
    if task.grounding is None:
        return None
    return task.grounding.ground(_unanswered(_turns(task, row))).handover


def history(task: PromptSource, row: Row) -> list[str]:
    """The turns before the answer, the user's last."""
    return [turn["content"] for turn in _unanswered(_turns(task, row))]


def assistant_turns(task: PromptSource, row: Row) -> list[str]:
    """What the assistant says, turn by turn."""
    return [turn["content"] for turn in _turns(task, row) if turn["role"] == "assistant"]


def history_ids(
    task: PromptSource, row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> list[int]:
    """The prompt's tokens; of a conversation too long the oldest turns go first."""
    turns = _unanswered(_turns(task, row))
    while True:
        shown = [*_system(task, row), *turns]
        ids = plain_ids(rendered(task, shown, tokenizer, open_ended=True), tokenizer)
        if max_length is None or len(ids) <= max_length or len(turns) < 3:
            return cut(ids, max_length, task.truncate)
        turns = turns[2:]


def exchanges(
    task: PromptSource, row: Row, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], list[int]]]:
    """The tokens before each of the assistant's turns, and the turn's own without its end."""
    turns = _turns(task, row)
    system = _system(task, row)
    for i in range(1, len(turns), 2):
        before = rendered(task, [*system, *turns[:i]], tokenizer, open_ended=True)
        yield plain_ids(before, tokenizer), plain_ids(turns[i]["content"], tokenizer)


def encode(task: PromptSource, row: Row, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Example:
    """A whole conversation for training: every turn of the assistant is a target."""
    turns = _turns(task, row)
    turns = turns[: len(turns) // 2 * 2]
    num_whole = 0
    while True:
        ids, labels = _labelled(task, [*_system(task, row)], turns, tokenizer)
        num_whole = num_whole or len(ids)
        if len(ids) <= max_length or len(turns) <= 2:
            break
        turns = turns[2:]
    first = next((i for i, label in enumerate(labels) if label != IGNORED), len(ids))
    num_over = len(ids) - max_length
    if num_over > 0:  # one exchange that is too long: of the question first, as elsewhere
        start = min(num_over, first - 1) if task.truncate == "left" else 0
        ids, labels = ids[:1] + ids[1 + start :], labels[:1] + labels[1 + start :]
        ids, labels = ids[:max_length], labels[:max_length]
    return Example(ids, labels, min(first, len(ids)), num_whole - len(ids))


def _labelled(
    task: PromptSource, system: list[Message], turns: list[Message], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """Tokens, and the same with IGNORED wherever the assistant does not speak."""
    ids: list[int] = []
    labels: list[int] = []
    done = ""
    for i in range(1, len(turns), 2):
        start = rendered(task, [*system, *turns[:i]], tokenizer, open_ended=True)
        closed = rendered(task, [*system, *turns[: i + 1]], tokenizer, open_ended=False)
        asked = plain_ids(after(task, done, start), tokenizer)
        said = plain_ids(after(task, start, closed).rstrip("\n"), tokenizer)
        ids += asked + said
        labels += [IGNORED] * len(asked) + said
        done = closed.rstrip("\n")
    return ids, labels


def rendered(
    task: PromptSource, turns: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, open_ended: bool
) -> str:
    """Turns as the tokenizer's template writes them; `open_ended`: the model speaks next."""
    if not tokenizer.chat_template:
        raise DataError(
            f"task {task.name!r}: chat is on, but this tokenizer has no chat template; set chat: false."
        )
    shown: Any = list(turns)
    return str(tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=open_ended))


def after(task: PromptSource, start: str, whole: str) -> str:
    """What `whole` says after `start`."""
    if not whole.startswith(start):
        raise DataError(
            f"task {task.name!r}: the chat template changes the prompt once it is answered; set chat: false."
        )
    return whole[len(start) :]


def _system(task: PromptSource, row: Row) -> list[Message]:
    system = [{"role": "system", "content": fill(task.system, row)}] if task.system else []
    if task.grounding is None:
        return system
    # By the last question for the whole conversation: a template's beginning must not change.
    turns = _unanswered(_turns(task, row))
    return task.grounding.ground([*system, *turns]).messages[:1]


def _turns(task: PromptSource, row: Row) -> list[Message]:
    """User and assistant in turn; the last is the assistant's where the row is answered."""
    if not task.turns:
        texts = [fill(task.template, row), task.completion(row).strip()]
        return [{"role": r, "content": t} for r, t in zip(ROLES, texts, strict=True)]
    texts = row.get(task.turns) or []
    if isinstance(texts, str):
        texts = [texts]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"row {row.get('id')}: {task.turns} is no list of texts, the user's first.")
    return [{"role": ROLES[i % 2], "content": text.strip()} for i, text in enumerate(texts)]


def _unanswered(turns: list[Message]) -> list[Message]:
    return turns if turns[-1]["role"] == "user" else turns[:-1]
