"""Answer texts with a model: a line, a file of any size, or a conversation."""

from __future__ import annotations

import dataclasses
import json
import sys

from lcc.core.arguments import Arguments
from lcc.core.errors import RecipeError
from lcc.verbs._inferring import Answers, Asked, split

USAGE = """usage: lcc infer [CHECKPOINT] [+recipe=NAME | model=PATH task=NAME]
                 [--text TEXT | --chat] [input=FILE output=FILE.jsonl]
                 [engine=NAME] [workers=N] [option=value …]

  lcc infer model=./folder task=translation --text "Open the file."
  lcc infer +recipe=mt_en_zh < lines.txt     its last finished model; one answer per line
  lcc infer base --text "Open the file."     the model named base of the last run
  lcc infer model=./folder task=translation input=en.jsonl output=zh.jsonl workers=4
  lcc infer model=./folder --chat temperature=0.7 system="You are brief."

Rows are lines: JSON objects, or the one field of the prompt as it is. Without output the answers
go to the terminal in the order of the rows. OUTPUT.jsonl has a line for each row, with its answer
and seconds; the same command goes on where a killed one stopped. follow=true waits for new lines.
report=FILE.html (or .md) shows classes, trend and alerts beside the output, written anew each
second: report_watch=negative is the class that alerts are about, of report_window=50 texts each.
engine=auto tries every engine that can run the model, and says which is fastest here.
slots=N and batch_tokens=N bound what is answered at once; prefix_mb=N what is kept of what was
read, for prompts that begin so. max_new_tokens, num_beams, stop, temperature, top_k, top_p and
repetition_penalty replace those of the task; seed makes draws repeat.

Nothing is shown beside the prompt, so a base model that needs examples answers worse here than in
its evaluation."""


def main(arguments: Arguments) -> int:
    if len(arguments.words) > 1:
        raise RecipeError(f"one checkpoint at a time, not {' and '.join(arguments.words)}.")
    own, rest = split(arguments.overrides)
    options = Asked.decoded(own)
    from lcc.core import preemption
    from lcc.verbs._models import found_model

    chats = "chat" in arguments.options
    recipe, folder = found_model(dataclasses.replace(arguments, overrides=rest), "infer")
    if recipe.task is None and not chats:
        raise RecipeError("infer needs a task; add task=NAME, e.g. task=translation.")
    with preemption.watched(tells=True):
        if chats:
            from lcc.verbs._chatting import chat

            return chat(recipe, folder, options)
        answers = Answers(recipe, folder, options)
        text = arguments.options.get("text")
        if options.output is not None:
            if text is not None or arguments.json:
                raise RecipeError("output=FILE takes rows from input=FILE, and is JSON anyway.")
            return answers.to_file()
        return _shown(answers, text, as_json=arguments.json)


def _shown(answers: Answers, text: str | None, *, as_json: bool) -> int:
    """Every answer on the terminal, in order."""
    said = []
    streams = text is not None and not as_json and sys.stdout.isatty()
    for row, one in answers.in_order(text, streams=streams):
        if as_json:
            said.append(answers.line(row, one))
        else:
            print("" if streams and answers.shown else one.output, flush=True)
    if as_json:
        print(json.dumps(said, ensure_ascii=False, indent=2))
    return 0
