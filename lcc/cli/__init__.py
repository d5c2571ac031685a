"""The command line: argv in, exit code out."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lcc.cli.arguments import parse
from lcc.core.errors import LccError, PreemptedError, RecipeError, did_you_mean

COMMANDS = Path(__file__).parent / "commands"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the user's mistakes become one message and the documented exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except LccError as error:
        print(f"lcc: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("lcc: interrupted; run the same command again to continue.", file=sys.stderr)
        return PreemptedError.exit_code
    except BrokenPipeError:
        # The reader (head, less) has seen enough; a second error at shutdown would only confuse.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] in ("-V", "--version"):
        from lcc import __version__

        print(f"lcc {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    pages = _pages()
    if verb not in pages:
        raise RecipeError(f"no verb is named {verb!r}{did_you_mean(verb, sorted(pages))}")
    arguments = parse(rest, verb)
    if arguments.help:
        print(pages[verb].text)
        return 0
    module: Any = importlib.import_module(f"lcc.cli.commands.{pages[verb].module}")
    return int(module.main(arguments))


def verbs() -> dict[str, str]:
    """Verb → its one-line help, read from the files of lcc/cli/commands without importing them."""
    return {verb: page.line for verb, page in sorted(_pages().items())}


class _Page(NamedTuple):
    module: str
    line: str
    text: str  # what `lcc VERB --help` prints


def _pages() -> dict[str, _Page]:
    """Verb → its help: from a file's docstring and USAGE, or from its table VERBS, all constants."""
    pages = {}
    for path in sorted(COMMANDS.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        doc = ast.get_docstring(tree) or ""
        table = _constant(tree, "VERBS")
        entries = table or {path.stem: (doc, _constant(tree, "USAGE") or "")}
        for verb, (sentence, usage) in entries.items():
            line = sentence.partition("\n")[0]
            pages[verb] = _Page(path.stem, line, f"{sentence}\n\n{usage.strip()}")
    return pages


def _constant(tree: ast.Module, name: str) -> Any:
    """The value of a module's constant, or None."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return ast.literal_eval(node.value)  # type: ignore[attr-defined]
    return None


def _help() -> str:
    lines = "\n".join(f"  {verb:10} {line}" for verb, line in verbs().items())
    return f"""usage: lcc VERB [+recipe=NAME] [key=value …] [--json] [--cfg] [-m]

Fine-tune and compress language models from one YAML recipe.

{lines}

  lcc run +recipe=tiny                     seconds, offline: the whole chain on a tiny model
  lcc finetune +recipe=mt_en_zh clip.max_norm=0.5
  lcc VERB --help                          what a verb takes

Exit codes: 0 fine · 2 usage or recipe · 3 data · 4 integrity · 5 refused for safety · 6 resources ·
7 diverged · 8 busy · 9 gate missed · 75 preempted, run again to continue."""
