"""Downloads of single files with pip and apt, with a progress bar; their failures become sentences."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from lcc.core.disk import folder_bytes
from lcc.core.errors import ResourceError
from lcc.core.progress import Bar

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
    environment = {"TMPDIR": str(_create_folder(staging / "tmp"))}
    if sdist:
        command += ["--no-binary", ":all:", "--no-build-isolation"]
        environment["PYTHONPATH"] = str(_stand_in_backend(staging / "backend"))
    else:
        command += ["--only-binary", ":all:"]
    _create_folder(staging / "got")
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
    got = _create_folder(staging / "got")
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
    _create_folder(lists / "partial")
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
    files = sorted(lists.glob(f"*_{name}"), key=lambda file: file.stat().st_size)
    if rc != 0 or not files:
        reason = _last_line(output, "E:") or "no source offers it"
        raise ResourceError(
            f"apt's list '{name}' could not be downloaded: {reason}. Check the network and apt's "
            "sources, then run the same command again."
        )
    # The release's own list, not that of its updates.
    files[-1].replace(_create_folder(staging / "got") / name)


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
    package = _create_folder(folder / "setuptools")
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "build_meta.py").write_text(BACKEND, encoding="utf-8")
    return folder


def _create_folder(folder: Path) -> Path:
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
