"""Whether the fields of a task go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcc.parts import cloze
from lcc.parts.filling import places

if TYPE_CHECKING:
    from lcc.parts.task import Task


def require_sound(task: Task) -> None:
    """Raise ValueError with the first thing that does not fit."""
    if task.head == "transcribe":
        raise ValueError("no task hears sounds; models with head transcribe are only exported")
    for where in ("template", "answer", "system"):
        for name in places(getattr(task, where)):
            if name not in task.fields and not (task.is_cloze and name == cloze.PLACE):
                known = ", ".join(task.fields)
                raise ValueError(f"{where} names {{{name}}}, which is not a field ({known})")
    if (task.head == "extract") != bool(task.passage) or task.passage not in ("", *task.fields):
        raise ValueError("head extract needs passage, the field that holds its answers")
    if task.turns and (task.turns not in task.fields or task.head != "causal"):
        raise ValueError(f"turns names {task.turns!r}: it must be a field, and head causal")
    if (task.turns or task.system or task.grounding) and not task.chat:
        raise ValueError("turns, system and grounding need chat: true")
    if not task.template and not task.answer and not task.turns:
        raise ValueError("template and answer are both empty; a task needs one of them")
