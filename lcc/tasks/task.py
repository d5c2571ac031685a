"""Task: how a row becomes a prompt and its completion, how answers are generated and judged.

Training and inference must see the same prompt, so a prompt is always tokenized alone and the
completion's tokens are appended: `encode` and the decoder share `Task.prompt_ids`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lcc.config.cards import Choice, card
from lcc.core.errors import DataError
from lcc.core.types import Head
from lcc.data.local_files import in_turns
from lcc.tasks import chat as chatting
from lcc.tasks import cloze, extractive_qa
from lcc.tasks.encode import IGNORED, Example, cut, needs_bos, plain_ids
from lcc.tasks.faq import Grounding
from lcc.tasks.template import Row, fill, places
from lcc.tokenization.special_tokens import frame_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lcc.data.dataset import PreparedData

# Which rows of the training split are shown before a prompt.


def drawn(task: Task, rows: Iterable[Row], seed: int, num: int) -> list[Row]:
    """`num` shots by hash, from the shorter half: the same for every model.

    Where the task has labels, no label is shown twice more often than another.
    """
    if not num:
        return []
    short = sorted(rows, key=lambda row: len(task.text(row)))
    short = short[: max(num, len(short) // 2)]
    if len(short) < num:
        raise DataError(f"{num} shots asked, the training split has {len(short)} rows")
    ranked = sorted(short, key=lambda row: _rank(row, seed))
    return ranked[:num] if task.labels is None else in_turns(ranked, task.completion)[:num]


def _rank(row: Row, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{row.get('id')}".encode()).hexdigest()


# Whether the fields of a task go together.


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


# How tokens are drawn where a task's answers are to differ; evaluation never draws.


@card
class Sampling:
    """What inference does beside `decode`; temperature 0 is greedy, `top_k` 0 is all.

    `min_p` keeps the tokens that are at least so likely in terms of the likeliest (Nguyen et al.,
    2024). `repetition_penalty` divides what was said already (Keskar et al., 2019); 1 changes nothing.
    """

    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_k: Annotated[int, Field(ge=0)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0


@card
class Decode:
    """How answers are generated: greedily or by beams; only `sampling` draws.

    `max_length_ratio` also caps the new tokens of each row at that multiple of its own prompt's
    tokens (shots not counted). An answer ends before the first of the `stop` strings.
    """

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    max_length_ratio: Annotated[float, Field(gt=0)] | None = None
    num_beams: Annotated[int, Field(ge=1)] = 1
    stop: tuple[str, ...] = ()

    def limit(self, num_prompt: int) -> int:
        """Most new tokens for a prompt of `num_prompt` tokens."""
        if self.max_length_ratio is None:
            return self.max_new_tokens
        return max(1, min(self.max_new_tokens, round(self.max_length_ratio * num_prompt)))


@card
class Task:
    """One YAML: fields, templates, head, how to decode and how to judge.

    `template` makes the prompt and `answer` the completion: plain text with `{field}`; other
    braces stand for themselves, `{{` and `}}` for one brace. For `classify` the answer names the
    label. `labels: from_data` means the sorted labels of the training split, found by `for_data`.
    A generating model whose task has labels is asked which of them is likeliest after the prompt,
    as the answer says them; `verbalizer` gives words for values (`neg` → `terrible`). With the head
    `masked`, `{mask}` in the template is a gap for such a word (a cloze). A model that
    was not trained is shown `shots` rows of the training split before the prompt. `truncate` is the
    side that loses tokens of a text longer than the model's window. With `chat` the model's own
    template writes the prompt, under `system` where that is given; `turns` names the field that
    holds a conversation, a list of texts, the user's first. With the
    head `extract` the answer is a piece of the field `passage`. `grounding` puts
    entries of a FAQ before a chat. `baseline` answers without any
    model; an evaluation tells its scores beside every checkpoint's.
    """

    name: str = "task"
    head: Head = "causal"
    fields: tuple[str, ...]
    template: str = ""
    answer: str = ""
    separator: str = "\n"
    shots: Annotated[int, Field(ge=0)] = 0
    chat: bool = False
    system: str = ""
    turns: str = ""
    passage: str = ""
    grounding: Grounding | None = None
    labels: tuple[str, ...] | Literal["from_data"] | None = None
    verbalizer: dict[str, str] = field(default_factory=dict)
    language: str = ""
    truncate: Literal["left", "right"] = "right"
    decode: Decode = field(default_factory=Decode)
    sampling: Sampling = field(default_factory=Sampling)  # inference's own
    metrics: tuple[Annotated[Any, Choice("metrics")], ...] = ()
    baseline: Annotated[Any, Choice("baselines", optional=True)] = None

    def __post_init__(self) -> None:
        require_sound(self)

    def prompt(self, row: Row, demos: Sequence[Row] = ()) -> str:
        """What the model is shown, shots first, without any chat template."""
        if self.turns:
            return self.separator.join(chatting.history(self, row))
        shots = "".join(self._shown(demo) + self.separator for demo in demos)
        gapped = {**row, cloze.PLACE: cloze.GAP} if self.is_cloze else row
        return shots + fill(self.template, gapped)

    def completion(self, row: Row) -> str:
        """What the model should say, leading space included; of a conversation its last turn."""
        if self.turns:
            return (chatting.assistant_turns(self, row) or [""])[-1]
        return fill(self.answer, self._verbalized(row))

    def text(self, row: Row) -> str:
        """Prompt and completion as one text; what vocabulary, calibration and pretraining read.

        Of a cloze the fields alone, for its word would tell a label.
        """
        if self.turns:
            return self.separator.join(row[self.turns])
        if self.passage:
            return f"{fill(self.template, row)}{self.separator}{row.get(self.passage, '')}"
        if self.is_cloze:
            return " ".join(map(str, self.source(row).values()))
        return fill(self.template, row) + self.completion(row)

    def _shown(self, row: Row) -> str:
        if self.is_cloze:
            return fill(self.template, {**row, cloze.PLACE: self.completion(row)})
        return self.text(row)

    def source(self, row: Row) -> dict[str, Any]:
        """The fields that the prompt shows; what a report prints beside the answer."""
        if self.turns:
            return {self.turns: chatting.history(self, row)}
        shown = dict.fromkeys([*places(self.template), *filter(None, [self.passage])])
        return {name: row[name] for name in shown if name in row}

    def question(self, row: Row) -> str:
        """The question of a row alone: by it a baseline finds similar rows."""
        return chatting.history(self, row)[-1] if self.turns else fill(self.template, row)

    @property
    def asked(self) -> tuple[str, ...]:
        """The fields that a prompt is made of, which whoever asks must give."""
        shown = {*places(self.template), *places(self.system), self.passage, self.turns}
        return tuple(name for name in self.fields if name in shown)

    def draw(self, rows: Iterable[Row], seed: int, num: int | None = None) -> list[Row]:
        """`num` shots, the same for every model."""
        return drawn(self, rows, seed, self.shots if num is None else num)

    def _verbalized(self, row: Row) -> Row:
        if not self.verbalizer:
            return row
        return {key: self.verbalizer.get(str(value), value) for key, value in row.items()}

    def for_data(self, data: PreparedData) -> Task:
        """This task with its labels known; reads the training split only for `from_data`."""
        if self.labels != "from_data":
            return self
        names = sorted({self.completion(row).strip() for row in data.rows("train")})
        if len(names) < 2:
            raise DataError(f"the training split has {len(names)} labels; two are needed.")
        return replace(self, labels=tuple(names))

    @property
    def is_cloze(self) -> bool:
        """Whether a masked language model puts a label's word into the gap of the template."""
        return self.head == "masked" and cloze.PLACE in places(self.template)

    @property
    def is_ranked(self) -> bool:
        """Whether a language model chooses among labels instead of writing."""
        return self.is_cloze or (self.labels is not None and self.head in ("causal", "seq2seq"))

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes in the order of their numbers; raises DataError before `for_data`."""
        if self.labels is None or self.labels == "from_data":
            raise DataError(f"task {self.name!r}: its labels are not known without data.")
        return self.labels

    def classes(self, named: Sequence[str]) -> tuple[str, ...]:
        """The classes of a model that has them `named` by number, empty where its config names none.

        Raises DataError when they are not the task's.
        """
        if self.labels is None or self.labels == "from_data":
            return tuple(named) or ("LABEL_0", "LABEL_1")
        if named and len(named) != len(self.labels):
            raise DataError(
                f"the model has {len(named)} classes, task {self.name!r} has {len(self.labels)}: "
                f"{', '.join(self.labels)}; fine-tune it on this task first."
            )
        return tuple(named) if set(named) == set(self.labels) else self.labels

    def label(self, row: Row) -> int:
        """The number of a row's class; raises DataError for a class the task does not have."""
        name = self.completion(row).strip()
        if name not in self.label_names:
            known = ", ".join(self.label_names)
            raise DataError(f"row {row.get('id')}: label {name!r} is not one of {known}.")
        return self.label_names.index(name)

    def prompt_ids(
        self,
        row: Row,
        tokenizer: PreTrainedTokenizerBase,
        *,
        demos: Sequence[Row] = (),
        max_length: int | None = None,
    ) -> list[int]:
        """The prompt's tokens as both trainer and decoder see them: one BOS where one is due.

        Encoder inputs carry the tokenizer's own special tokens.
        """
        if self.is_cloze:
            text = self.prompt(row, demos)
            return cloze.gap_ids(text, tokenizer, max_length=max_length, side=self.truncate)[0]
        if self.passage:
            length = max_length or tokenizer.model_max_length
            return next(extractive_qa.passage_windows(self, row, tokenizer, length)).ids
        if self.head != "causal":
            return self._encoder_ids(self.prompt(row, demos), tokenizer, max_length)[0]
        if self.turns and not demos:
            return chatting.history_ids(self, row, tokenizer, max_length)
        ids = self._causal_ids(row, tokenizer, demos)
        return cut(ids, max_length, self.truncate)

    def completion_ids(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The completion's own tokens, without the end token."""
        if self.head == "seq2seq":
            ids = list(tokenizer(text_target=self.completion(row))["input_ids"])
            return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
        text = self.completion(row)
        return plain_ids(text.strip() if self.chat else text, tokenizer)

    def label_ids(self, name: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The tokens of a label as a completion."""
        lead = self.answer[: len(self.answer) - len(self.answer.lstrip())]
        if self.head == "seq2seq":
            return list(tokenizer(text_target=f"{lead}{name}")["input_ids"])
        return plain_ids(name if self.chat else f"{lead}{name}", tokenizer)

    def encode(self, row: Row, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Example:
        """A row as training sees it, at most `max_length` tokens, EOS after the completion.

        Of a long causal prompt tokens go, never of its completion unless that alone is too long.
        """
        if self.turns:
            return chatting.encode(self, row, tokenizer, max_length=max_length)
        if self.passage:
            return extractive_qa.encode(self, row, tokenizer, max_length)
        if self.head == "causal":
            return self._encode_causal(row, tokenizer, max_length)
        if self.is_cloze:
            return cloze.encode(
                self.prompt(row), self.completion(row), tokenizer, max_length=max_length, side=self.truncate
            )
        prompt = self.prompt(row) or self.completion(row)
        ids, num_cut = self._encoder_ids(prompt, tokenizer, max_length)
        if self.head == "classify":
            return Example(ids, self.label(row), len(ids), num_cut)
        if self.head in ("embed", "masked", "paired"):
            return Example(ids, [], len(ids), num_cut)
        target = list(tokenizer(text_target=self.completion(row))["input_ids"])
        kept = cut(target, max_length, "right", num_tail=1)
        return Example(ids, kept, len(ids), num_cut + len(target) - len(kept))

    def _encode_causal(self, row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Example:
        prompt = self._causal_ids(row, tokenizer, ())
        answer = self._answer_ids(row, tokenizer)
        num_whole = len(prompt) + len(answer)
        answer = answer[: max_length - min(1, len(prompt))]
        prompt = cut(prompt, max_length - len(answer), self.truncate)
        labels = [IGNORED] * len(prompt) + answer
        ids = prompt + answer
        return Example(ids, labels, len(prompt), num_whole - len(ids))

    def _causal_ids(self, row: Row, tokenizer: PreTrainedTokenizerBase, demos: Sequence[Row]) -> list[int]:
        if self.chat:
            return plain_ids(chatting.opening(self, row, tokenizer, demos), tokenizer)
        ids = plain_ids(self.prompt(row, demos), tokenizer)
        return [int(tokenizer.bos_token_id), *ids] if needs_bos(tokenizer) else ids

    def _answer_ids(self, row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        if self.chat:
            return chatting.answer_ids(self, row, tokenizer)
        ids = plain_ids(self.completion(row), tokenizer)
        return ids if tokenizer.eos_token_id is None else [*ids, int(tokenizer.eos_token_id)]

    def _encoder_ids(
        self, text: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> tuple[list[int], int]:
        """Tokens with the tokenizer's specials kept at both ends, and how many were cut."""
        whole = plain_ids(text, tokenizer)
        kept = whole
        if max_length is not None:
            kept = whole[: max(0, max_length - tokenizer.num_special_tokens_to_add())]
        if len(kept) == len(whole):
            return list(tokenizer(text)["input_ids"]), 0
        return frame_of(tokenizer).single(kept), len(whole) - len(kept)
