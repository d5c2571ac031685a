"""The fixed texts that an export is compared on: 200, and a conversation; or a task's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lcc.parts.data import PreparedData
    from lcc.parts.task import Task

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
    found = [frame.format(subject) for frame in FRAMES for subject in SUBJECTS]
    assert len(found) == NUM_PROMPTS
    return found


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
    told = []
    for messages in (CONVERSATION[:1], CONVERSATION, system + CONVERSATION):
        for prompted in (False, True):
            told.append(_rendered(tokenizer, messages, prompted))
    return told


def _rendered(tokenizer: Any, messages: list[dict[str, Any]], prompted: bool) -> str:
    import jinja2

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False,
                                             add_generation_prompt=prompted)  # fmt: skip
    except jinja2.TemplateError as error:
        return f"refused: {error}"
    return str(text)


def task_prompts(folder: Path, task: Task, data: PreparedData) -> list[list[int]]:
    """Prompts of a task's test rows (their texts, where it has no prompt), 200 at most."""
    from lcc.parts.model import open_bundle
    from lcc.parts.samples import chosen_rows

    tokenizer = open_bundle(folder).tokenizer
    rows = data.rows("test")
    found = []
    for row in chosen_rows(rows, min(NUM_PROMPTS, len(rows)), "test"):
        ids = list(task.prompt_ids(row, tokenizer))
        if len(ids) < 2:
            ids = list(tokenizer(task.text(row))["input_ids"])
        found.append(ids)
    return [ids for ids in found if ids]
