"""Evaluate a masked language model: hide tokens of the held-out rows and count what it guesses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lcc.core.errors import DataError
from lcc.engine.corpus import Document, Encoding, TextRows
from lcc.engine.decoding import pad_id
from lcc.engine.guessing import guesses, most_frequent
from lcc.engine.pretraining import Drawing, Objective
from lcc.engine.scoring import context_length
from lcc.methods.objectives.masked import Masked
from lcc.methods.objectives.next_sentence import NextSentence
from lcc.parts.metrics import Answer
from lcc.stages._corpora import material_of, sentences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lcc.parts.task import Row, Task

FREQUENT_ROWS = 2000  # training rows whose tokens are counted for the baseline


@dataclasses.dataclass(frozen=True)
class Guessing:
    """What is asked: `training` rows tell the most frequent token, `seed` what is hidden."""

    task: Task
    training: Sequence[Row]
    seed: int
    window: int
    batch_size: int
    advance: Callable[[float], None]

    def counted(
        self, answers: list[Answer], rows: Sequence[Row], module: Any,
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Answer]:  # fmt: skip
        """The answers with what was hidden in each and how much of it was guessed."""
        encode = Encoding(tokenizer, ends=False)
        seen = encode([[self.task.text(row)] for row in self.training[:FREQUENT_ROWS]])
        frequent = most_frequent(one.ids for one in seen)
        counts: list[dict[str, float]] = [{} for _ in rows]
        for objective in self._objectives():
            # A text of one sentence makes no pair; its tokens can be guessed all the same.
            documents = [[] if found.get("masked") else self._document(row, objective)
                         for row, found in zip(rows, counts, strict=True)]  # fmt: skip
            corpus = TextRows.of(encode(documents))
            length = min(self.window, context_length(module))
            drawing = Drawing(objective, material_of(corpus, tokenizer, length=length),
                              seed=self.seed, split="eval")  # fmt: skip
            more = guesses(module, drawing, pad=pad_id(tokenizer), frequent=frequent,
                           batch_size=self.batch_size, advance=self.advance)  # fmt: skip
            counts = [{n: found.get(n, 0.0) + value for n, value in new.items()}
                      for found, new in zip(counts, more, strict=True)]  # fmt: skip
        return [dataclasses.replace(one, counts=found)
                for one, found in zip(answers, counts, strict=True)]  # fmt: skip

    def _objectives(self) -> list[Objective]:
        if self.task.head == "masked":
            return [Masked()]
        if self.task.head == "paired":
            return [NextSentence(), Masked()]
        raise DataError(f"task {self.task.name!r}: head {self.task.head} hides no tokens; drop "
                        "masked_accuracy and its like from task.metrics.")  # fmt: skip

    def _document(self, row: Row, objective: Objective) -> Document:
        text = self.task.text(row)
        return sentences([text]) if objective.by_sentence else [text]
