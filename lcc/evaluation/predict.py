"""Predictions of a model for a task's rows: answers, choices of a class, likelihoods."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcc.core.errors import DataError
from lcc.core.lazy import torch
from lcc.evaluation.generate import Generated, answer
from lcc.evaluation.metrics import Need, Prediction
from lcc.evaluation.score import Span, choices, context_length, extracted, fills, nats, token_windows
from lcc.models.card import class_names
from lcc.tasks.chat import assistant_turns, exchanges
from lcc.tasks.cloze import word_ids
from lcc.tasks.encode import needs_bos, plain_ids
from lcc.tasks.task import Task
from lcc.tasks.template import Row
from lcc.training.loss import token_logits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NUM_GIVEN = 8  # tokens of a text that has no prompt, for a model to go on from


def _silent(num: float) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Predictor:
    """One model at one task; `window` and `stride` are for texts longer than a window."""

    module: Any
    tokenizer: PreTrainedTokenizerBase
    task: Task
    demos: Sequence[Row] = ()
    batch_size: int = 32
    window: int = 1024
    stride: int = 512
    advance: Callable[[float], None] = _silent

    def answers(self, rows: Sequence[Row], needs: set[Need]) -> list[Prediction]:
        """One Answer per row, with what `needs` asks for."""
        answers = [
            Prediction(str(row["id"]), self.task.source(row), self.task.completion(row).strip())
            for row in rows
        ]
        if "answers" in needs:
            outputs = self.outputs(rows)
            answers = [
                dataclasses.replace(one, output=text, finished=finished)
                for one, (text, finished) in zip(answers, outputs, strict=True)
            ]
        if "likelihood" in needs:
            # Where answers were generated too, those rows have been counted already.
            facts = self._likelihoods(rows, advance=_silent if "answers" in needs else self.advance)
            answers = [dataclasses.replace(one, **f) for one, f in zip(answers, facts, strict=True)]
        return answers

    def generated(self, rows: Sequence[Row]) -> list[Generated]:
        """Answers as the task decodes them, prompts cut so that the answer has room.

        Where a task has no prompt and the model no BOS, the text's first tokens stand in.
        """
        room = context_length(self.module)
        prompts, limits = [], []
        for row in rows:
            prompt = self._prompt(row)
            if not prompt and self.task.head == "causal":
                prompt = plain_ids(self.task.text(row), self.tokenizer)[:NUM_GIVEN]
            own = self._prompt(row, shown=()) if self.demos else prompt
            limit = min(self.task.decode.limit(len(own)), max(1, room // 2))
            if self.task.head == "causal" and len(prompt) + limit > room:
                prompt = self._prompt(row, max_length=room - limit)
            prompts.append(prompt)
            limits.append(limit)
        return answer(
            self.module,
            self.tokenizer,
            prompts,
            decode=self.task.decode,
            limits=limits,
            batch_size=self.batch_size,
            advance=self.advance,
        )

    def predicted_classes(self, rows: Sequence[Row]) -> list[str]:
        """The class name that a classifier gives each row."""
        names = self.task.classes(class_names(self.module.config.to_dict()))
        room = context_length(self.module)
        ids = [self._prompt(row, max_length=room) for row in rows]
        numbers = choices(self.module, self.tokenizer, ids, batch_size=self.batch_size, advance=self.advance)
        return [names[i] for i in numbers]

    def ranked(self, rows: Sequence[Row]) -> list[str]:
        """The label that a language model finds likeliest after each row's prompt."""
        names = self.task.label_names
        if self.task.is_cloze:
            return self._filled(rows, names)
        labels = [self.task.label_ids(name, self.tokenizer) for name in names]
        room = context_length(self.module) - max(map(len, labels))
        spans = []
        for row in rows:
            prompt = self._prompt(row, max_length=room)
            spans += [
                Span(label, 0, prompt)
                if self.task.head == "seq2seq"
                else Span(prompt + label, max(1, len(prompt)))
                for label in labels
            ]
        costs = nats(
            self.module,
            self.tokenizer,
            spans,
            batch_size=self.batch_size,
            advance=lambda n: self.advance(n / len(names)),
        )
        each = [costs[i : i + len(names)] for i in range(0, len(costs), len(names))]
        return [names[values.index(min(values))] for values in each]

    def _filled(self, rows: Sequence[Row], names: Sequence[str]) -> list[str]:
        room = context_length(self.module)
        ids = [self._prompt(row, max_length=room) for row in rows]
        numbers = fills(
            self.module,
            self.tokenizer,
            ids,
            word_ids(names, self.tokenizer),
            batch_size=self.batch_size,
            advance=self.advance,
        )
        return [names[i] for i in numbers]

    def reading(self, row: Row) -> str:
        """What an encoder that guesses tokens takes each token of a row for, nothing hidden."""
        ids = self._prompt(row, max_length=context_length(self.module))
        with torch.inference_mode():
            output = self.module(input_ids=torch.tensor([ids], device=self.module.device))
        return str(self.tokenizer.decode(token_logits(output).argmax(-1)[0].tolist()))

    def outputs(self, rows: Sequence[Row]) -> list[tuple[str, bool]]:
        """What the model says to each row, and whether it ended by itself."""
        if self.task.head == "classify":
            return [(name, True) for name in self.predicted_classes(rows)]
        if self.task.is_ranked:
            return [(name, True) for name in self.ranked(rows)]
        if self.task.head == "extract":
            spans = extracted(
                self.module, self.tokenizer, self.task, rows, batch_size=self.batch_size, advance=self.advance
            )
            return [(text, True) for text in spans]
        if self.task.head in ("masked", "paired"):
            return [(self.reading(row), True) for row in rows]
        if self.task.head == "embed":
            raise DataError(
                f"task {self.task.name!r}: head embed gives no answers to evaluate; "
                "choose a task with another head."
            )
        return [(one.text, one.finished) for one in self.generated(rows)]

    def _likelihoods(self, rows: Sequence[Row], *, advance: Callable[[float], None]) -> list[dict[str, Any]]:
        if self.task.head not in ("causal", "seq2seq"):
            raise DataError(
                f"task {self.task.name!r}: head {self.task.head} has no likelihood of a text; drop "
                "perplexity and bits_per_byte from task.metrics."
            )
        spans, owners = [], []
        for number, row in enumerate(rows):
            mine = self._spans(row)
            spans += mine
            owners += [number] * len(mine)
        values = nats(
            self.module,
            self.tokenizer,
            spans,
            batch_size=self.batch_size,
            advance=lambda n: advance(n * len(rows) / len(spans)),
        )
        sums = [0.0] * len(rows)
        tokens = [0] * len(rows)
        for number, span, value in zip(owners, spans, values, strict=True):
            sums[number] += value
            tokens[number] += len(span.ids) - span.start
        return [
            {"nats": n, "num_tokens": t, **self._sizes(row)}
            for n, t, row in zip(sums, tokens, rows, strict=True)
        ]

    def _spans(self, row: Row) -> list[Span]:
        completion = self.task.completion_ids(row, self.tokenizer)
        room = context_length(self.module)
        if self.task.head == "seq2seq":
            return [Span(completion[:room], 0, self._prompt(row, max_length=room))]
        if self.task.turns:
            return [
                Span((before + said)[-room:], min(len(before) + len(said), room) - len(said))
                for before, said in exchanges(self.task, row, self.tokenizer)
                if len(said) < room
            ]
        if self._is_plain:
            window = min(self.window, room)
            stride = min(self.stride, max(1, window // 2))
            bos = self.tokenizer.bos_token_id if needs_bos(self.tokenizer) else None
            return list(token_windows(completion, window=window, stride=stride, bos=bos))
        completion = completion[: room - 1]
        prompt = self._prompt(row, max_length=room - len(completion))
        return [Span(prompt + completion, max(1, len(prompt)))]

    def _sizes(self, row: Row) -> dict[str, int]:
        """Size of what was predicted: without BOS a plain text's first token is given away."""
        text, given = self.task.completion(row), ""
        if self.task.turns:
            text = "".join(assistant_turns(self.task, row))
        if self._is_plain and not needs_bos(self.tokenizer):
            given = str(self.tokenizer.decode(plain_ids(text, self.tokenizer)[:1]))
        return {
            "num_bytes": len(text.encode()) - len(given.encode()),
            "num_characters": len(text) - len(given),
        }

    @property
    def _is_plain(self) -> bool:
        return self.task.head == "causal" and not self.task.template and not self.task.chat

    def _prompt(
        self, row: Row, *, shown: Sequence[Row] | None = None, max_length: int | None = None
    ) -> list[int]:
        shown = self.demos if shown is None else shown
        return self.task.prompt_ids(row, self.tokenizer, demos=shown, max_length=max_length)


def majority(task: Task, training: Sequence[Row], rows: Sequence[Row]) -> list[Prediction]:
    """Every row answered with the training split's most frequent class."""
    counts = Counter(task.completion(row).strip() for row in training)
    name = min(counts, key=lambda label: (-counts[label], label))
    return [Prediction(str(row["id"]), task.source(row), task.completion(row).strip(), name) for row in rows]
