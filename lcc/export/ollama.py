"""Ollama's Modelfile: a chat template in its language, read off the tokenizer's and proved equal.

Most templates put something before and after what each role says. Those two strings are read off a
rendered conversation; what they make of other conversations must be what the template makes, byte
for byte, or there is no Modelfile.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcc.core.lazy import transformers
from lcc.export.parity import CONVERSATION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]
MARK = "\u2402said\u2403"
SYSTEM = [{"role": "system", "content": "Be brief."}]
TRIALS = (SYSTEM + CONVERSATION[:1], SYSTEM + CONVERSATION, CONVERSATION[:1], CONVERSATION)
GO = "{{{{- range .Messages }}}}{turns}{{{{- end }}}}{answer}"


@dataclass(frozen=True)
class Frames:
    """What a template writes before and after each role's text, at the beginning and for an answer.

    `default` is the system text of a template that brings its own.
    """

    start: str
    around: dict[str, tuple[str, str]]
    answer: str
    default: str = ""

    def rendered(self, messages: Messages) -> str:
        """A conversation that is to be answered."""
        text = self.start
        if self.default and messages[0]["role"] != "system":
            text += self.default.join(self.around["system"])
        for message in messages:
            text += str(message["content"]).join(self.around[message["role"]])
        return text + self.answer


def refusal(folder: Path) -> str | None:
    """Why the model in `folder` gets no Modelfile, as a sentence; models without a template do."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template or frames_of(tokenizer) is not None:
        return None
    return (
        "its chat template does more than put text around what each role says; take "
        "format=gguf, which holds it whole."
    )


def frames_of(tokenizer: PreTrainedTokenizerBase) -> Frames | None:
    """The frames that say what the tokenizer's template says of every trial; None if none do."""
    import jinja2

    try:
        frames = _read(tokenizer)
        return frames if all(frames.rendered(t) == _render(tokenizer, t) for t in TRIALS) else None
    except (jinja2.TemplateError, ValueError):
        return None


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, prompted: bool = True) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted))


def _read(tokenizer: PreTrainedTokenizerBase) -> Frames:
    """Frames by where marked texts stand; raises ValueError where they stand twice or nowhere."""
    roles = ("system", "user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": f"{MARK}{i}"} for i, role in enumerate(roles)]
    whole = _render(tokenizer, messages, prompted=False)
    pieces = []
    for i in range(len(roles)):
        before, mark, whole = whole.partition(f"{MARK}{i}")
        if not mark:
            raise ValueError(f"{MARK}{i} is not in the text")
        pieces.append(before)
    after = {"assistant": whole}
    # Between two texts stand the end of one frame and the beginning of the next; the assistant's
    # end is known, so what follows it is the user's beginning.
    if not pieces[3].startswith(whole):
        raise ValueError("the last answer ends in another way")
    user = pieces[3][len(whole) :]
    middle = pieces[2]  # user's end and assistant's beginning
    answer = _render(tokenizer, messages[:2])[len(_render(tokenizer, messages[:2], prompted=False)) :]
    if not middle.endswith(answer):
        raise ValueError("an answer is begun in another way")
    after["user"] = middle[: len(middle) - len(answer)]
    if not pieces[1].endswith(user):
        raise ValueError("the first turn begins in another way")
    after["system"] = pieces[1][: len(pieces[1]) - len(user)]
    start, system = _split_start(tokenizer, pieces[0])
    around = {
        "user": (user, after["user"]),
        "assistant": (answer, after["assistant"]),
        "system": (system, after["system"]),
    }
    return Frames(start, around, answer, _default(tokenizer, start, system, after["system"], user))


def _split_start(tokenizer: PreTrainedTokenizerBase, before: str) -> tuple[str, str]:
    """The start token, where one opens every conversation, and the system's beginning."""
    start = str(tokenizer.bos_token or "")
    return (start, before[len(start) :]) if start and before.startswith(start) else ("", before)


def _default(tokenizer: PreTrainedTokenizerBase, start: str, before: str, after: str, user: str) -> str:
    plain = _render(tokenizer, [{"role": "user", "content": MARK}], prompted=False)
    head = plain.partition(MARK)[0].removesuffix(user).removeprefix(start)
    if head.startswith(before) and head.endswith(after) and len(head) > len(before) + len(after):
        return head[len(before) : len(head) - len(after)]
    return ""


def write_modelfile(source: Path, target: Path) -> None:
    """`Modelfile` beside the GGUF file; without a template, texts go to the model as they are."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    lines = ["FROM ./model.gguf"]
    frames = frames_of(tokenizer) if tokenizer.chat_template else None
    if frames is None:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    else:
        lines.append(f'TEMPLATE """{go_template(frames)}"""')
        if frames.default:
            lines.append(f'SYSTEM """{frames.default}"""')
        for stop in sorted({end.strip() for _, end in frames.around.values() if end.strip()}):
            lines.append(f"PARAMETER stop {_quoted(stop)}")
    (target / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")


def go_template(frames: Frames) -> str:
    """In ollama's language. The start token is left out: llama.cpp writes it before the text."""
    turns = ""
    for i, role in enumerate(("system", "user", "assistant")):
        before, after = frames.around[role]
        word = "if" if i == 0 else "else if"
        turns += f'{{{{- {word} eq .Role "{role}" }}}}{_text(before)}{{{{ .Content }}}}{_text(after)}'
    return GO.format(turns=turns + "{{- end }}", answer=_text(frames.answer))


def _text(text: str) -> str:
    """A literal that no trimming changes."""
    return f"{{{{ {_quoted(text)} }}}}" if text else ""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
