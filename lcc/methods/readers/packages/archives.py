"""Archives (wheels, sdists, Debian packages) read as data: nothing is unpacked or run."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from lcc.core.errors import DataError, IntegrityError, ResourceError, SafetyError

TAR_ENDINGS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar")


def members(archive: Path) -> list[str]:
    """The names of the regular files in `archive`, sorted."""
    return sorted(name for name, _ in _walk(archive))


def contents(archive: Path, patterns: Sequence[str] = ("*",)) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file whose name matches one of `patterns`, in archive order."""
    for name, file in _walk(archive):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            yield name, file.read()


def extract(archive: Path, member: str, target: Path) -> Path:
    """Write the one file `member` to `target` (a file path), whatever its name inside says.

    Raises DataError when there is no such member.
    """
    for name, file in _walk(archive):
        if name == member:
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.{os.getpid()}.part")
            with part.open("wb") as out:
                shutil.copyfileobj(file, out, 1 << 20)
            part.chmod(0o644)
            return part.replace(target)
    raise DataError(f"{archive.name}: holds no file {member!r}.")


def _walk(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Every regular file as (name, stream); the stream is valid until the next one is asked for."""
    name = archive.name.lower()
    try:
        if name.endswith((".whl", ".zip")):
            yield from _walk_zip(archive)
        elif name.endswith(".deb"):
            with _debian_tar(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                yield from _walk_tar(tar, archive)
        elif name.endswith(TAR_ENDINGS):
            with tarfile.open(archive) as tar:
                yield from _walk_tar(tar, archive)
        else:
            raise DataError(f"{archive}: is no wheel, zip, tar or Debian package.")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise IntegrityError(f"{archive}: cannot be read ({error}); delete it and fetch it again.") from error


def _walk_zip(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if not info.is_dir():
                with file.open(info) as stream:
                    yield _safe(info.filename, archive=archive), stream


def _walk_tar(tar: tarfile.TarFile, archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    for info in tar:
        stream = tar.extractfile(info) if info.isreg() else None
        if stream is not None:
            yield _safe(info.name, archive=archive), stream


def _safe(name: str, *, archive: Path) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise SafetyError(f"{archive.name}: member {name!r} points outside the archive; refused.")
    return str(path)


@contextmanager
def _debian_tar(archive: Path) -> Iterator[IO[bytes]]:
    """The file tree of a .deb as a tar stream; nothing is unpacked and no script of it runs."""
    tool = shutil.which("dpkg-deb")
    if tool is None:
        raise ResourceError(
            f"{archive.name}: reading Debian packages needs dpkg-deb, which this machine lacks; "
            "use a dataset from the package index, e.g. dataset=packages_en_zh."
        )
    process = subprocess.Popen(
        [tool, "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.stdout.close()
        process.wait()
