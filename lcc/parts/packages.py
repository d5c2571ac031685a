"""The cache of package-index and Debian packages, fetched as data: never installed or imported."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lcc.core.errors import IntegrityError, ResourceError
from lcc.core.progress import Progress
from lcc.parts import downloading
from lcc.parts.archives import contents as contents
from lcc.parts.archives import extract as extract
from lcc.parts.archives import members as members

SPARE_BYTES = 200_000_000  # left free on the disk beside what is downloaded


@dataclass(frozen=True)
class Requirement:
    """One file that a model or a dataset needs, told to the user before it is fetched.

    `requirement` is what pip or apt is asked for (`django==5.2.19`); `bytes` is the download.
    """

    name: str
    requirement: str
    bytes: int = 0
    licence: str = ""
    sha256: str | None = None
    sdist: bool = False
    debian: bool = False
    index: bool = False  # one of apt's own lists, e.g. Translation-en

    @property
    def found(self) -> Path | None:
        """Its file in the cache, if it is there."""
        if self.index:
            return find_index(self.requirement)
        return find_debian(self.requirement) if self.debian else find(self.requirement)

    @property
    def digest(self) -> str | None:
        """SHA-256 of its file, if it is there."""
        return None if self.found is None else file_digest(self.found)


def cache_root() -> Path:
    """Where everything fetched lies: `LCC_HOME`, or `~/.cache/lcc`."""
    home = os.environ.get("LCC_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "lcc"


def find(requirement: str) -> Path | None:
    """The cached wheel or sdist of `requirement`, if it was fetched."""
    return _only_file(cache_root() / "packages" / _folder_name(requirement))


def find_debian(package: str) -> Path | None:
    """The cached .deb of `package`, if it was fetched."""
    return _only_file(cache_root() / "debian" / _folder_name(package))


def find_index(name: str) -> Path | None:
    """The cached list `name` of apt, if it was fetched."""
    return _only_file(cache_root() / "apt" / name)


def fetch(
    requirement: str,
    *,
    progress: Progress,
    sdist: bool = False,
    sha256: str | None = None,
    bytes: int = 0,
) -> Path:
    """The cached file of `requirement`, downloaded first if need be and checked against `sha256`.

    Raises ResourceError without a network or space, IntegrityError when the digest differs.
    """
    found = find(requirement)
    if found is not None:
        return check_digest(found, sha256)
    target = cache_root() / "packages" / _folder_name(requirement)
    with tempfile.TemporaryDirectory(dir=_staging(bytes, requirement)) as staging:
        with progress.track(f"fetch {requirement}", bytes or None, "bytes") as bar:
            downloading.pip_download(requirement, Path(staging), sdist=sdist, bar=bar)
        return _adopt(Path(staging) / "got", target, sha256=sha256)


def fetch_debian(package: str, *, progress: Progress, bytes: int = 0) -> Path:
    """The cached .deb of `package`, through `apt-get download` if need be (apt checks digests)."""
    found = find_debian(package)
    if found is not None:
        return found
    target = cache_root() / "debian" / _folder_name(package)
    with tempfile.TemporaryDirectory(dir=_staging(bytes, package)) as staging:
        with progress.track(f"fetch {package}", bytes or None, "bytes") as bar:
            downloading.apt_download(package, Path(staging), bar=bar)
        return _adopt(Path(staging) / "got", target, sha256=None)


def fetch_index(name: str, *, progress: Progress, bytes: int = 0) -> Path:
    """apt's list `name` of the release at hand; the system's own lists are left alone."""
    found = find_index(name)
    if found is not None:
        return found
    with tempfile.TemporaryDirectory(dir=_staging(bytes, name)) as staging:
        with progress.track(f"fetch {name}", bytes or None, "bytes") as bar:
            downloading.apt_index(name, Path(staging), bar=bar)
        return _adopt(Path(staging) / "got", cache_root() / "apt" / name, sha256=None)


def fetch_all(requirements: Sequence[Requirement], progress: Progress) -> list[Path]:
    """Every file of `requirements`, in their order."""
    return [
        fetch_index(one.requirement, progress=progress, bytes=one.bytes)
        if one.index
        else fetch_debian(one.requirement, progress=progress, bytes=one.bytes)
        if one.debian
        else fetch(one.requirement, progress=progress, sdist=one.sdist, sha256=one.sha256,
                   bytes=one.bytes)
        for one in requirements
    ]  # fmt: skip


def require(requirement: Requirement) -> Path:
    """The cached, verified file of `requirement`; raises ResourceError when it was not fetched."""
    found = requirement.found
    if found is None:
        raise ResourceError(
            f"package '{requirement.requirement}' is not in {cache_root()}; run: lcc fetch."
        )
    return check_digest(found, requirement.sha256)


def check_digest(path: Path, sha256: str | None) -> Path:
    """`path`, if its SHA-256 is `sha256` (or none is asked); raises IntegrityError."""
    if sha256 is not None and file_digest(path) != sha256:
        raise IntegrityError(
            f"{path}: its SHA-256 is {file_digest(path)[:16]}…, promised was {sha256[:16]}…; "
            "delete the file and fetch it again, or correct the digest in the config."
        )
    return path


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex characters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _adopt(got: Path, target: Path, *, sha256: str | None) -> Path:
    """Move the one downloaded file into its place in the cache, by one rename, if it is right."""
    files = list(got.iterdir())
    assert len(files) == 1, files
    check_digest(files[0], sha256)
    files[0].chmod(0o644)
    target.mkdir(parents=True, exist_ok=True)
    return files[0].replace(target / files[0].name)


def _staging(num_bytes: int, what: str) -> Path:
    """A folder of the cache's own disk to download into, if that disk has room."""
    staging = cache_root() / "staging"
    staging.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(staging).free
    # While pip works, its temporary copy and the finished file exist side by side.
    if free < 2 * num_bytes + SPARE_BYTES:
        raise ResourceError(
            f"'{what}' needs {(2 * num_bytes + SPARE_BYTES) / 1e6:,.0f} MB in {staging}, which "
            f"has {free / 1e6:,.0f} MB free; clear some space or point LCC_HOME to another disk."
        )
    return staging


def _only_file(folder: Path) -> Path | None:
    files = sorted(p for p in folder.glob("*") if p.is_file() and not p.name.startswith("."))
    return files[0] if files else None


def _folder_name(requirement: str) -> str:
    """`Django == 5.2` and `django==5.2` are one package."""
    name, equals, version = requirement.replace(" ", "").partition("==")
    normal = re.sub(r"[-_.]+", "-", name).lower()
    return f"{normal}{equals}{version}"
