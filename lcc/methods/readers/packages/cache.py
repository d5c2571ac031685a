"""The cache of package-index and Debian packages, fetched as data: never installed or imported."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lcc.core.disk import file_digest
from lcc.core.errors import IntegrityError, ResourceError
from lcc.core.format import size
from lcc.core.progress import Progress
from lcc.data.local_files import Requirement
from lcc.methods.readers.packages.download import apt_download, apt_index, pip_download

SPARE_BYTES = 200_000_000  # left free on the disk beside what is downloaded
KINDS = {"packages": "package", "debian": "Debian package", "apt": "list of apt"}


@dataclass(frozen=True)
class PackageFile(Requirement):
    """A wheel or sdist, a .deb, or one of apt's own lists (`Translation-en`), in the cache or not.

    `requirement` is what pip or apt is asked for (`django==5.2.19`); `folder` is that of its kind
    in the cache.
    """

    sha256: str | None = None
    sdist: bool = False
    folder: Literal["packages", "debian", "apt"] = "packages"

    @property
    def kind(self) -> str:
        return KINDS[self.folder]

    @property
    def path(self) -> Path | None:
        files = sorted(p for p in self._home().glob("*") if p.is_file() and not p.name.startswith("."))
        return files[0] if files else None

    def verified(self) -> Path:
        """The cached file, its digest checked; raises ResourceError when it was not fetched."""
        path = self.path
        if path is None:
            raise ResourceError(f"package '{self.requirement}' is not in {cache_root()}; run: lcc fetch.")
        return check_digest(path, self.sha256)

    def fetch(self, progress: Progress) -> Path:
        """The cached file, downloaded first if need be; of a .deb, apt checks the digest.

        Raises ResourceError without a network or space, IntegrityError when the digest differs.
        """
        if self.path is not None:
            return self.verified()
        with tempfile.TemporaryDirectory(dir=_staging(self.bytes, self.requirement)) as name:
            staging = Path(name)
            with progress.track(f"fetch {self.requirement}", self.bytes or None, "bytes") as bar:
                if self.folder == "debian":
                    apt_download(self.requirement, staging, bar=bar)
                elif self.folder == "apt":
                    apt_index(self.requirement, staging, bar=bar)
                else:
                    pip_download(self.requirement, staging, sdist=self.sdist, bar=bar)
            return _adopt(staging / "got", self._home(), sha256=self.sha256)

    def _home(self) -> Path:
        name = self.requirement
        return cache_root() / self.folder / (name if self.folder == "apt" else _folder_name(name))


def debian_package(name: str, bytes: int = 0, licence: str = "") -> PackageFile:
    """The .deb of the Debian package `name`, of the release at hand."""
    return PackageFile(name, bytes, licence, folder="debian")


def cache_root() -> Path:
    """Where everything fetched lies: `LCC_HOME`, or `~/.cache/lcc`."""
    home = os.environ.get("LCC_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "lcc"


def check_digest(path: Path, sha256: str | None) -> Path:
    """`path`, if its SHA-256 is `sha256` (or none is asked); raises IntegrityError."""
    if sha256 is not None and file_digest(path) != sha256:
        raise IntegrityError(
            f"{path}: its SHA-256 is {file_digest(path)[:16]}…, promised was {sha256[:16]}…; "
            "delete the file and fetch it again, or correct the digest in the config."
        )
    return path


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
            f"'{what}' needs {size(2 * num_bytes + SPARE_BYTES)} in {staging}, which "
            f"has {size(free)} free; clear some space or point LCC_HOME to another disk."
        )
    return staging


def _folder_name(requirement: str) -> str:
    """`Django == 5.2` and `django==5.2` are one package."""
    name, equals, version = requirement.replace(" ", "").partition("==")
    normal = re.sub(r"[-_.]+", "-", name).lower()
    return f"{normal}{equals}{version}"
