"""argv in, exit code out."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lcc.cli.arguments import parse
from lcc.core.errors import LccError, PreemptedError, RecipeError, did_you_mean

VERBS = Path(__file__).parent / "commands"


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
    if verb not in verbs():
        raise RecipeError(f"no verb is named {verb!r}{did_you_mean(verb, verbs())}")
    arguments = parse(rest)
    if arguments.help:
        print(_verb_help(verb))
        return 0
    module: Any = importlib.import_module(f"lcc.cli.commands.{verb.replace('-', '_')}")
    return int(module.main(arguments))


def verbs() -> dict[str, str]:
    """Verb → its one-line help, read from the files of lcc/verbs without importing them."""
    return {path.stem: _first_line(path) for path in sorted(VERBS.glob("[!_]*.py"))}


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


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


def _verb_help(verb: str) -> str:
    """The verb's sentence and its USAGE, which is a constant string and so needs no import."""
    tree = ast.parse((VERBS / f"{verb}.py").read_text(encoding="utf-8"))
    usage = next(
        (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            and node.value is not None
            and "USAGE" in ast.unparse(node).split("=")[0]
        ),
        "",
    )
    return f"{ast.get_docstring(tree)}\n\n{usage.strip()}"
