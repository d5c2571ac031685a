"""Upload an export to a model hub, with its card and its manifest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lcc.cli.arguments import Arguments, emit
from lcc.core.errors import GateError, IntegrityError, RecipeError, ResourceError, SafetyError
from lcc.store import artifact

USAGE = """usage: lcc push FOLDER repo=OWNER/NAME [private=true]

  lcc push my_gguf repo=someone/my-model-gguf

FOLDER is what lcc export made. Every byte is checked first, and an export that its parity gate
refused is not uploaded. Needs a token of the hub (hf auth login, or HF_TOKEN) and a network."""


def main(arguments: Arguments) -> int:
    folder, repo, private = _parse_words(arguments)
    _check(folder)
    address = _upload(folder, repo, private=private)
    emit(
        {"folder": str(folder), "repo": repo, "address": address},
        arguments.json,
        f"pushed {folder} to {address}",
    )
    return 0


def _parse_words(arguments: Arguments) -> tuple[Path, str, bool]:
    given = dict(word.partition("=")[::2] for word in arguments.overrides)
    unknown = next((key for key in given if key not in ("repo", "private")), None)
    if unknown is not None:
        raise RecipeError(f"push takes repo=OWNER/NAME and private=true, not '{unknown}='.")
    if len(arguments.words) != 1 or "repo" not in given:
        raise RecipeError("say what and where to: lcc push FOLDER repo=OWNER/NAME.")
    if given.get("private", "false") not in ("true", "false"):
        raise RecipeError(f"private: expected true or false, got {given['private']!r}.")
    return Path(arguments.words[0]), given["repo"], given.get("private") == "true"


def _check(folder: Path) -> None:
    """Only what is whole, proved and described leaves this machine."""
    from lcc.inference.sidecar import require_passed

    if not (folder / "README.md").is_file() or not (folder / artifact.MANIFEST).is_file():
        raise RecipeError(
            f"{folder}: no export of lcc's (no README.md and MANIFEST.json); make one with lcc export."
        )
    try:
        require_passed(folder)
        key = json.loads((folder / artifact.MANIFEST).read_text(encoding="utf-8")).get("key")
        artifact.verify(folder, key=key)
    except GateError as error:
        raise SafetyError(f"{error} Nothing was pushed.") from None
    except (artifact.Damage, ValueError) as damage:
        raise IntegrityError(f"{folder}: {damage}; export again.") from None


def _upload(folder: Path, repo: str, *, private: bool) -> str:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise ResourceError("HF_HUB_OFFLINE is set, so nothing is pushed; unset it.")
    if huggingface_hub.get_token() is None:
        raise ResourceError("no token of the hub is here; set HF_TOKEN, or run hf auth login.")
    api: Any = huggingface_hub.HfApi()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Export")
    except HFValidationError as error:
        raise RecipeError(f"repo: {error}") from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ResourceError(f"the hub does not take {repo}: {reason}") from None
    return str(made)
