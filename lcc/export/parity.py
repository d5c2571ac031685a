"""Parity of an export with its source: tokens, logits, labels, vectors, splits and templates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lcc.evaluation.generate import eos_ids
from lcc.inference.session import GeneratedAnswer, greedy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lcc.core.types import Array
    from lcc.data.dataset import PreparedData
    from lcc.inference.session import Session
    from lcc.tasks.task import Task

    Rows = Sequence[Sequence[int]]

# The fixed texts that an export is compared on: 200, and a conversation; or a task's own.

NUM_PROMPTS = 200
SUBJECTS = (
    "the harbour at night", "a letter that was never sent", "how bread rises", "prime numbers",
    "the third of May, 1808", "an empty railway station", "rain on a tin roof", "the word 'maybe'",
    "two brothers and a boat", "Newton's second law", "a recipe for lentil soup", "snow in April",
    "the price of copper", "an old violin", "life under the ice", "error 404", "the Silk Road",
    "ten moves of chess", "why cats purr", "天气预报", "la ville de Lyon", "der erste Schnee",
    "Москва и река", "def main(argv):", "x = 3.14 * r ** 2",
)  # fmt: skip
FRAMES = (
    "{}", "Write one sentence about {}.", "Question: what is known about {}?\nAnswer:",
    "Once upon a time there was {}, and", "1. {}\n2.", "Translate into French: {}",
    "The following is a careful note on {}:\n\n", "{}? No, thank you; but",
)  # fmt: skip
CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "Good morning!  Can you help me?"},
    {"role": "assistant", "content": "Yes. What do you need?"},
    {"role": "user", "content": "A word for {{rain}} & <snow>;\n  and a 你好."},
]


def texts() -> list[str]:
    """The fixed texts, in a fixed order."""
    prompts = [frame.format(subject) for frame in FRAMES for subject in SUBJECTS]
    assert len(prompts) == NUM_PROMPTS
    return prompts


def encoded(tokenizer: PreTrainedTokenizerBase, *, longest: int) -> list[list[int]]:
    """The fixed texts as a tokenizer says them, each of 1 to `longest` tokens."""
    rows = [list(tokenizer(text)["input_ids"])[:longest] for text in texts()]
    return [row for row in rows if row]


def rendered(tokenizer: PreTrainedTokenizerBase) -> list[str] | None:
    """Conversations as a tokenizer's chat template renders them; None where it has none.

    What a template refuses is told by what it says.
    """
    if not tokenizer.chat_template:
        return None
    system = [{"role": "system", "content": "Be brief."}]
    texts = []
    for messages in (CONVERSATION[:1], CONVERSATION, system + CONVERSATION):
        for prompted in (False, True):
            texts.append(_rendered(tokenizer, messages, prompted))
    return texts


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], prompted: bool) -> str:
    import jinja2

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
    except jinja2.TemplateError as error:
        return f"refused: {error}"
    return str(text)


def task_prompts(folder: Path, task: Task, data: PreparedData) -> list[list[int]]:
    """Prompts of a task's test rows (their texts, where it has no prompt), 200 at most."""
    from lcc.evaluation.metrics import chosen_rows
    from lcc.models.bundle import open_bundle

    tokenizer = open_bundle(folder).tokenizer
    rows = data.rows("test")
    prompts = []
    for row in chosen_rows(rows, min(NUM_PROMPTS, len(rows)), "test"):
        ids = list(task.prompt_ids(row, tokenizer))
        if len(ids) < 2:
            ids = list(tokenizer(task.text(row))["input_ids"])
        prompts.append(ids)
    return [ids for ids in prompts if ids]


# How two tables of logits differ: by how much of their spread, and where another is in front.


FORBIDDEN = -1e30
MOST_NEVER_SAID = 4  # tokens that an engine forbids, such as padding


class Errors:
    """Squares of what logits are off by, and of how they spread, each row around its mean."""

    def __init__(self) -> None:
        self.wrong = self.spread = self.count = 0.0

    def add(self, expected: Array, got: Array) -> None:
        """Rows of both, (rows, vocabulary)."""
        centred = expected - expected.mean(-1, keepdims=True)
        difference = got - got.mean(-1, keepdims=True) - centred
        self.wrong += float(np.square(difference, dtype=np.float64).sum())
        self.spread += float(np.square(centred, dtype=np.float64).sum())
        self.count += centred.size

    @property
    def share(self) -> float:
        """The root mean square of what they are off by, of their spread."""
        return float(np.sqrt(self.wrong / max(self.spread, 1e-300)))

    @property
    def deviation(self) -> float:
        """The spread itself."""
        return float(np.sqrt(self.spread / max(self.count, 1.0)))


def alike(expected: Array, got: Array) -> tuple[Array, Array]:
    """Without columns that only one has: rows beyond the vocabulary, and tokens it never says."""
    width = min(expected.shape[-1], got.shape[-1])
    expected, got = expected[..., :width].astype(np.float32), got[..., :width].astype(np.float32)
    never = (got < FORBIDDEN).all(axis=tuple(range(got.ndim - 1)))
    if 0 < never.sum() <= MOST_NEVER_SAID:
        return expected[..., ~never], got[..., ~never]
    return expected, got


def preferences(expected: Array, got: Array) -> list[float]:
    """By how much the source prefers its own choice to the export's, where they differ."""
    mine, other = expected.argmax(-1), got.argmax(-1)
    rows = np.flatnonzero(mine != other)
    return [float(expected[r, mine[r]] - expected[r, other[r]]) for r in rows]


NEW_TOKENS = 8
TOGETHER = 8  # texts whose logits are in memory at once
# Two logits may each be off by a few times their usual error before another token in front counts
# as wrong.
MARGIN = 8.0
LEAST_ERROR = 1e-3  # of the spread: what sums in another order do
MOST_UNEXPLAINED = 0.005  # of all tokens
MOST_SPLITS = 0.01  # of all texts, that the file's own tokenizer splits in another way
NUM_SHOWN = 3
NUM_LIKELIEST = 20
NUM_WRITTEN = 24  # prompts whose answers an export of a decoder writes too, several at once


@dataclass
class Parity:
    """What was compared and found; shares are of `num_tokens`, errors of the logits' own spread.

    `unexplained_share` are tokens that differ where the source is surer than the error explains;
    `contradicted_share` are those of an export's own answers that its own reading of them gainsays.
    `same_splits` and `same_template` are None where the format carries neither.
    """

    kind: str  # tokens, labels, vectors
    tolerance: float
    num_prompts: int = 0
    num_tokens: int = 0
    agreement: float = 0.0
    unexplained_share: float = 0.0
    logit_error: float = 0.0
    contradicted_share: float | None = None
    encoder_error: float | None = None  # of a model that hears: what its encoder's states are off
    rehearsed_error: float | None = None  # what the format's rounding costs, where it was rehearsed
    same_splits: float | None = None
    same_template: bool | None = None
    shown: list[dict[str, Any]] = field(default_factory=list)  # where they differ most
    stopped: str | None = None  # what its engine says of an export that it cannot run

    def refusals(self) -> list[str]:
        """Why the gate closes, a sentence each; none when the export passes."""
        if self.stopped is not None:
            return [self.stopped]
        sentences, most = list[str](), f"{self.tolerance:.3g}"
        # Written so that a NaN fails too.
        if not self.logit_error <= self.tolerance:
            sentences.append(
                f"its {self._what} are off by {self.logit_error:.3g} of their spread, "
                f"more than the {most} that the format explains."
            )
        if self.encoder_error is not None and not self.encoder_error <= self.tolerance:
            sentences.append(
                f"what its encoder hears is off by {self.encoder_error:.3g} of its "
                f"spread, more than the {most} that the format explains."
            )
        if not self.unexplained_share <= MOST_UNEXPLAINED:
            sentences.append(
                f"{self.unexplained_share:.1%} of its {self._answers} are others where the source is sure."
            )
        if self.contradicted_share is not None and not self.contradicted_share <= MOST_UNEXPLAINED:
            sentences.append(
                f"{self.contradicted_share:.1%} of the tokens that it writes are not what "
                "it says when it reads them."
            )
        if self.same_splits is not None and self.same_splits < 1 - MOST_SPLITS:
            sentences.append(
                f"its own tokenizer splits {1 - self.same_splits:.1%} of the texts in another way."
            )
        if self.same_template is False:
            sentences.append("its chat template renders other bytes.")
        return sentences

    def facts(self) -> dict[str, Any]:
        """For the report."""
        return dataclasses.asdict(self)

    @property
    def _what(self) -> str:
        return "vectors" if self.kind == "vectors" else "logits"

    @property
    def _answers(self) -> str:
        return "labels" if self.kind == "labels" else "tokens"


def compare(
    source: Session, export: Session, prompts: Rows, *, tolerance: float, new_tokens: int = NEW_TOKENS
) -> Parity:
    """Ask both the same, each its own kind of question; see `Parity`."""
    head = source.card.head
    if head == "causal":
        parity = _tokens(source, export, prompts, tolerance, new_tokens)
    elif head == "seq2seq":
        parity = _answers(source, export, prompts, tolerance, new_tokens)
    else:
        parity = _readings(source, export, prompts, tolerance)
    parity.num_prompts = len(prompts)
    own = getattr(export, "own_ids", None)
    if own is not None:
        same = [own(text) == list(source.tokenizer(text)["input_ids"]) for text in texts()]
        parity.same_splits = sum(same) / len(same)
    expected = rendered(source.tokenizer)
    if expected is not None:
        parity.same_template = rendered(export.tokenizer) == expected
    return parity


def _tokens(source: Session, export: Session, prompts: Rows, tolerance: float, new_tokens: int) -> Parity:
    """Both read the source's own answers; at each token, which would they say next?"""
    answers = greedy(source, prompts, new_tokens)
    rows = [[*prompt, *answer.ids] for prompt, answer in zip(prompts, answers, strict=True)]
    errors, said, margins, row_errors = Errors(), 0, list[float](), list[tuple[float, int]]()
    for first in range(0, len(rows), TOGETHER):
        part = rows[first : first + TOGETHER]
        both = zip(source.logits(part), export.logits(part), strict=True)
        for i, (expected, got) in enumerate(both, first):
            start = len(prompts[i]) - 1
            expected, got = alike(expected[start:], got[start:])
            mine = Errors()
            for each in (errors, mine):
                each.add(expected, got)
            row_errors.append((mine.share, i))
            said += len(expected)
            margins += preferences(expected, got)
    parity = Parity("tokens", tolerance, num_tokens=said, logit_error=errors.share)
    count_differences(parity, margins, errors.deviation)
    worst = [i for _, i in sorted(row_errors, reverse=True)[:NUM_SHOWN]]
    parity.shown = _shown(source, export, [prompts[i] for i in worst], new_tokens)
    allowed = MARGIN * usual_error(parity) * errors.deviation
    some, inner = prompts[:: max(1, len(prompts) // NUM_WRITTEN)], cast("Any", source)
    ends = eos_ids(inner.module, source.tokenizer)
    parity.contradicted_share = contradicted(export, some, new_tokens, allowed, ends)
    return parity


def contradicted(
    export: Session, prompts: Rows, new_tokens: int, allowed: float, ends: Sequence[int]
) -> float:
    """Of the tokens that it writes, an answer's end among them, those that lie more than `allowed`
    below the likeliest when the same session reads the answer whole: a past or a position that is
    kept wrongly shows only so.
    """
    said, wrong = 0, 0
    for prompt, answer in zip(prompts, greedy(export, prompts, new_tokens), strict=True):
        read = export.logits([[*prompt, *answer.ids]])[0][len(prompt) - 1 :]
        own = [float(place[token]) for place, token in zip(read, answer.ids, strict=False)]
        if answer.finish == "stop":
            own.append(max((float(read[len(own)][end]) for end in ends), default=-np.inf))
        best = read[: len(own)].max(-1)
        said += len(own)
        wrong += int((~(best - np.array(own) <= allowed)).sum())
    return wrong / max(said, 1)


def count_differences(parity: Parity, margins: list[float], deviation: float) -> None:
    """What agrees, and what differs where the source is sure; in place."""
    allowed = MARGIN * usual_error(parity) * deviation
    total = max(parity.num_tokens, 1)
    parity.agreement = 1 - len(margins) / total
    parity.unexplained_share = sum(margin > allowed for margin in margins) / total


def usual_error(parity: Parity) -> float:
    """What logits are off by, of their spread, as far as the format explains it."""
    return max(LEAST_ERROR, min(parity.tolerance, parity.logit_error))


def _answers(source: Session, export: Session, prompts: Rows, tolerance: float, new_tokens: int) -> Parity:
    """Answers token by token up to the first that differs, and what they begin with."""
    errors = Errors()
    for first in range(0, len(prompts), TOGETHER):
        part = prompts[first : first + TOGETHER]
        for expected, got in zip(source.logits(part), export.logits(part), strict=True):
            errors.add(*alike(expected, got))
    mine = greedy(source, prompts, new_tokens, logprobs=NUM_LIKELIEST)
    other = greedy(export, prompts, new_tokens)
    parity, margins, differing = Parity("tokens", tolerance, logit_error=errors.share), [], []
    for i, (expected_answer, got_answer) in enumerate(zip(mine, other, strict=True)):
        num, margin = _first_difference(expected_answer, got_answer)
        parity.num_tokens += num
        if margin is not None:
            margins.append(margin)
            differing.append((margin, i))
    count_differences(parity, margins, errors.deviation)
    worst = [i for _, i in sorted(differing, reverse=True)[:NUM_SHOWN]] or [0]
    parity.shown = [_pair(source, prompts[i], mine[i], other[i]) for i in worst]
    return parity


def _first_difference(expected: GeneratedAnswer, got: GeneratedAnswer) -> tuple[int, float | None]:
    """Tokens compared, and how much likelier the source's own was where they part."""
    for i, token in enumerate(expected.tokens):
        if i >= len(got.ids) or got.ids[i] != token.id:
            known = dict(token.top)
            least = min(known.values(), default=-np.inf)
            other = known.get(got.ids[i], least) if i < len(got.ids) else least
            return i + 1, float((token.logprob or 0.0) - other)
    ended = len(got.ids) > len(expected.ids)
    return len(expected.ids) + 1, 0.0 if ended else None


def _readings(source: Session, export: Session, prompts: Rows, tolerance: float) -> Parity:
    """Labels of a classifier, tokens of a masked model, vectors of an encoder."""
    by_vector = source.card.head == "embed"
    kind = "vectors" if by_vector else "labels" if source.card.head == "classify" else "tokens"
    errors, parity, margins = Errors(), Parity(kind, tolerance), list[float]()
    worst: list[tuple[float, dict[str, Any]]] = []
    for first in range(0, len(prompts), TOGETHER):
        part = prompts[first : first + TOGETHER]
        asked = [s.embed(part) if by_vector else s.logits(part) for s in (source, export)]
        for prompt, expected, got in zip(part, *asked, strict=True):
            pair = alike(np.atleast_2d(expected), np.atleast_2d(got))
            mine = Errors()
            for each in (errors, mine):
                each.add(*pair)
            parity.num_tokens += len(pair[0])
            margins += [] if by_vector else preferences(*pair)
            worst.append(
                (
                    mine.share,
                    {
                        "prompt": source.tokenizer.decode(prompt),
                        "source": [round(float(x), 4) for x in pair[0][0][:8]],
                        "export": [round(float(x), 4) for x in pair[1][0][:8]],
                    },
                )
            )
    parity.logit_error = errors.share
    count_differences(parity, margins, errors.deviation)
    worst.sort(key=lambda item: -item[0])
    parity.shown = [facts for _, facts in worst[:NUM_SHOWN]]
    return parity


def _shown(source: Session, export: Session, prompts: Rows, new_tokens: int) -> list[dict[str, Any]]:
    mine, other = greedy(source, prompts, new_tokens), greedy(export, prompts, new_tokens)
    return [_pair(source, *each) for each in zip(prompts, mine, other, strict=True)]


def _pair(
    source: Session, prompt: Sequence[int], mine: GeneratedAnswer, other: GeneratedAnswer
) -> dict[str, Any]:
    text = source.tokenizer.decode(list(prompt))
    return {"prompt": text, "source": mine.text, "export": other.text}
