"""The cache of package-index and Debian packages, fetched as data: never installed or imported."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from lcc.core.disk import folder_bytes
from lcc.core.errors import DataError, IntegrityError, ResourceError, SafetyError
from lcc.core.format import size
from lcc.core.progress import Bar, Progress

# Ask pip and apt for one file each, with a bar, and turn their failures into sentences.

POLL_SECONDS = 0.3

# pip asks an sdist's build backend for metadata before it saves the file, which would run the
# sdist's own setup.py. This stand-in for setuptools answers from PKG-INFO and runs nothing of it.
BACKEND = """\
import os, shutil

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    name = "package.dist-info"
    os.mkdir(os.path.join(metadata_directory, name))
    shutil.copy("PKG-INFO", os.path.join(metadata_directory, name, "METADATA"))
    return name

class _Legacy:
    get_requires_for_build_wheel = staticmethod(get_requires_for_build_wheel)
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)

__legacy__ = _Legacy()
"""


def pip_download(requirement: str, staging: Path, *, sdist: bool, bar: Bar) -> None:
    """Download the file of `requirement`, without what it depends on, into `staging/got`."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--ignore-requires-python",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
        "--retries",
        "2",
        "-d",
        str(staging / "got"),
    ]
    environment = {"TMPDIR": str(_made(staging / "tmp"))}
    if sdist:
        command += ["--no-binary", ":all:", "--no-build-isolation"]
        environment["PYTHONPATH"] = str(_stand_in_backend(staging / "backend"))
    else:
        command += ["--only-binary", ":all:"]
    _made(staging / "got")
    rc, output = _run([*command, requirement], staging, environment=environment, bar=bar)
    if rc != 0:
        raise ResourceError(_pip_sentence(requirement, output))


def apt_download(package: str, staging: Path, *, bar: Bar) -> None:
    """Download the .deb of `package` into `staging/got`."""
    tool = shutil.which("apt-get")
    if tool is None:
        raise ResourceError(
            f"Debian package '{package}': this machine has no apt-get; use a dataset from the "
            "package index, e.g. dataset=packages_en_zh."
        )
    got = _made(staging / "got")
    # Without this option apt, run as root, complains that its own user cannot write here.
    command = [tool, "download", "-q", "-o", "APT::Sandbox::User=root", package]
    rc, output = _run(command, got, environment={"LC_ALL": "C.UTF-8"}, bar=bar)
    if rc != 0 or not any(got.iterdir()):
        reason = _last_line(output, "E:") or "apt-get gave no reason"
        raise ResourceError(
            f"Debian package '{package}' could not be downloaded: {reason}. Check the network, run "
            "apt-get update, or use dataset=packages_en_zh, which needs only the package index."
        )


def apt_index(name: str, staging: Path, *, bar: Bar) -> None:
    """Download apt's list `name` (`Translation-en`) of this machine's release into `staging/got`.

    In folders of its own, so that nothing of the system's changes; apt checks the signatures.
    """
    tool = shutil.which("apt-get")
    if tool is None:
        raise ResourceError(
            f"apt's list '{name}': this machine has no apt-get; use a dataset from "
            "the package index, or dataset=local."
        )
    lists, language = staging / "lists", name.partition("-")[2]
    _made(lists / "partial")
    settings = staging / "apt.conf"
    settings.write_text(
        f'#clear Acquire::Languages;\nAcquire::Languages {{ "{language}"; }};\n', encoding="utf-8"
    )
    options = [
        f"Dir::State::Lists={lists}",
        "APT::Sandbox::User=root",
        "Acquire::GzipIndexes=false",
        "Acquire::IndexTargets::deb::Packages::DefaultEnabled=false",
    ]
    command = [tool, "-q", "-c", str(settings), *(w for o in options for w in ("-o", o)), "update"]
    rc, output = _run(command, lists, environment={"LC_ALL": "C.UTF-8"}, bar=bar)
    indexes = sorted(lists.glob(f"*_{name}"), key=lambda file: file.stat().st_size)
    if rc != 0 or not indexes:
        reason = _last_line(output, "E:") or "no source offers it"
        raise ResourceError(
            f"apt's list '{name}' could not be downloaded: {reason}. Check the network and apt's "
            "sources, then run the same command again."
        )
    # The release's own list, not that of its updates.
    indexes[-1].replace(_made(staging / "got") / name)


def _run(
    command: Sequence[str], folder: Path, *, environment: Mapping[str, str], bar: Bar
) -> tuple[int, str]:
    """Exit code and output of `command` run in `folder`, whose growth moves the bar."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        text=True,
        errors="replace",
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(folder, bar, done), daemon=True)
    watcher.start()
    try:
        output, _ = process.communicate()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        done.set()
        watcher.join()
    return process.returncode, output


def _watch(folder: Path, bar: Bar, done: threading.Event) -> None:
    while not done.wait(POLL_SECONDS):
        grown = folder_bytes(folder) - bar.done
        if grown > 0:
            bar.advance(min(grown, bar.total - bar.done) if bar.total else grown)


def _stand_in_backend(folder: Path) -> Path:
    package = _made(folder / "setuptools")
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "build_meta.py").write_text(BACKEND, encoding="utf-8")
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _pip_sentence(requirement: str, output: str) -> str:
    if "No module named pip" in output:
        return (
            f"'{requirement}' cannot be fetched: this Python has no pip; "
            f"run {sys.executable} -m ensurepip, then again."
        )
    reason = _last_line(output, "ERROR:") or "pip gave no reason"
    return (
        f"'{requirement}' could not be downloaded: {reason.rstrip('.')}. Check the network and "
        "pip's index settings (pip config list), then run the same command again."
    )


def _last_line(output: str, mark: str) -> str:
    lines = [line.removeprefix(mark).strip() for line in output.splitlines() if mark in line]
    return lines[-1] if lines else ""


# Look into wheels, sdists and Debian packages and take single files out, running nothing.

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
    def path(self) -> Path | None:
        """Its file in the cache, if it is there."""
        if self.index:
            return find_index(self.requirement)
        return find_debian(self.requirement) if self.debian else find(self.requirement)

    @property
    def digest(self) -> str | None:
        """SHA-256 of its file, if it is there."""
        return None if self.path is None else file_digest(self.path)


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
    requirement: str, *, progress: Progress, sdist: bool = False, sha256: str | None = None, bytes: int = 0
) -> Path:
    """The cached file of `requirement`, downloaded first if need be and checked against `sha256`.

    Raises ResourceError without a network or space, IntegrityError when the digest differs.
    """
    cached = find(requirement)
    if cached is not None:
        return check_digest(cached, sha256)
    target = cache_root() / "packages" / _folder_name(requirement)
    with tempfile.TemporaryDirectory(dir=_staging(bytes, requirement)) as staging:
        with progress.track(f"fetch {requirement}", bytes or None, "bytes") as bar:
            pip_download(requirement, Path(staging), sdist=sdist, bar=bar)
        return _adopt(Path(staging) / "got", target, sha256=sha256)


def fetch_debian(package: str, *, progress: Progress, bytes: int = 0) -> Path:
    """The cached .deb of `package`, through `apt-get download` if need be (apt checks digests)."""
    cached = find_debian(package)
    if cached is not None:
        return cached
    target = cache_root() / "debian" / _folder_name(package)
    with tempfile.TemporaryDirectory(dir=_staging(bytes, package)) as staging:
        with progress.track(f"fetch {package}", bytes or None, "bytes") as bar:
            apt_download(package, Path(staging), bar=bar)
        return _adopt(Path(staging) / "got", target, sha256=None)


def fetch_index(name: str, *, progress: Progress, bytes: int = 0) -> Path:
    """apt's list `name` of the release at hand; the system's own lists are left alone."""
    cached = find_index(name)
    if cached is not None:
        return cached
    with tempfile.TemporaryDirectory(dir=_staging(bytes, name)) as staging:
        with progress.track(f"fetch {name}", bytes or None, "bytes") as bar:
            apt_index(name, Path(staging), bar=bar)
        return _adopt(Path(staging) / "got", cache_root() / "apt" / name, sha256=None)


def fetch_all(requirements: Sequence[Requirement], progress: Progress) -> list[Path]:
    """Every file of `requirements`, in their order."""
    return [
        fetch_index(one.requirement, progress=progress, bytes=one.bytes)
        if one.index
        else fetch_debian(one.requirement, progress=progress, bytes=one.bytes)
        if one.debian
        else fetch(one.requirement, progress=progress, sdist=one.sdist, sha256=one.sha256, bytes=one.bytes)
        for one in requirements
    ]


def require(requirement: Requirement) -> Path:
    """The cached, verified file of `requirement`; raises ResourceError when it was not fetched."""
    cached = requirement.path
    if cached is None:
        raise ResourceError(f"package '{requirement.requirement}' is not in {cache_root()}; run: lcc fetch.")
    return check_digest(cached, requirement.sha256)


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
            f"'{what}' needs {size(2 * num_bytes + SPARE_BYTES)} in {staging}, which "
            f"has {size(free)} free; clear some space or point LCC_HOME to another disk."
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
