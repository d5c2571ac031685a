"""Packages are data: checked by digest, never run, and a missing network is one sentence."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from data_archives import tar_of, zip_of

from lcc.core.errors import DataError, IntegrityError, ResourceError, SafetyError
from lcc.core.progress import Progress
from lcc.data import packages
from lcc.data.packages import contents, extract, members

HOSTILE = b"""import pathlib
pathlib.Path(%r).write_text("it ran")
from setuptools import setup
setup()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LCC_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def _wheel(index: Path, name: str = "pets-1.0-py3-none-any.whl") -> Path:
    info = "pets-1.0.dist-info"
    metadata = b"Metadata-Version: 2.1\nName: pets\nVersion: 1.0\n"
    return zip_of(
        index / name,
        {
            "pets/cat.txt": b"meow",
            f"{info}/METADATA": metadata,
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        },
    )


def test_a_fetched_wheel_is_found_again_under_any_spelling(cache: Path, index: Path) -> None:
    _wheel(index)
    path = packages.fetch("pets==1.0", progress=Progress(quiet=True))
    assert path.is_relative_to(cache)
    assert packages.find("Pets == 1.0") == path
    assert packages.find("pets==2.0") is None
    assert [p.name for p in (cache / "staging").iterdir()] == []


def test_a_wheel_with_another_digest_never_enters_the_cache(cache: Path, index: Path) -> None:
    _wheel(index)
    with pytest.raises(IntegrityError, match="promised was 0000") as caught:
        packages.fetch("pets==1.0", progress=Progress(quiet=True), sha256="0" * 64)
    assert caught.value.exit_code == 4
    assert packages.find("pets==1.0") is None


def test_a_file_damaged_in_the_cache_is_refused(cache: Path, index: Path) -> None:
    digest = hashlib.sha256(_wheel(index).read_bytes()).hexdigest()
    needed = packages.Requirement(name="pets", requirement="pets==1.0", sha256=digest)
    [path] = packages.fetch_all([needed], Progress(quiet=True))
    assert packages.require(needed) == path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError):
        packages.require(needed)


def test_fetching_an_sdist_runs_nothing_of_it(cache: Path, index: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    tar_of(
        index / "pets-1.0.tar.gz",
        {
            "pets-1.0/setup.py": HOSTILE % str(mark),
            "pets-1.0/PKG-INFO": b"Metadata-Version: 2.1\nName: pets\nVersion: 1.0\n",
        },
    )
    path = packages.fetch("pets==1.0", progress=Progress(quiet=True), sdist=True)
    assert "pets-1.0/setup.py" in members(path)
    assert not mark.exists()


def test_what_the_index_lacks_is_one_sentence_with_a_way_out(cache: Path, index: Path) -> None:
    with pytest.raises(ResourceError, match=r"'pets==1.0' could not be downloaded: .*network") as no:
        packages.fetch("pets==1.0", progress=Progress(quiet=True))
    assert no.value.exit_code == 6
    assert "\n" not in str(no.value)


def test_a_package_that_was_not_fetched_names_the_command(cache: Path) -> None:
    with pytest.raises(ResourceError, match="lcc fetch"):
        packages.require(packages.Requirement(name="pets", requirement="pets==1.0"))


def test_a_full_disk_is_noticed_before_the_download(
    cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ResourceError, match="LCC_HOME"):
        packages.fetch("pets==1.0", progress=Progress(quiet=True), bytes=10**18)


def test_without_apt_another_dataset_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ResourceError, match="dataset=packages_en_zh"):
        packages.fetch_debian("git", progress=Progress(quiet=True))


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil.txt", "a/../../evil.txt"])
def test_a_member_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    archive = zip_of(tmp_path / "bad.whl", {name: b"x"})
    with pytest.raises(SafetyError, match="outside"):
        members(archive)


def test_one_member_is_taken_out_under_the_name_we_choose(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar.gz", {"a/b.txt": b"text", "a/c.bin": b"\0"})
    assert members(archive) == ["a/b.txt", "a/c.bin"]
    assert dict(contents(archive, ("*.bin",))) == {"a/c.bin": b"\0"}
    target = extract(archive, "a/b.txt", tmp_path / "out" / "mine.txt")
    assert target.read_text() == "text"
    assert target.stat().st_mode & 0o777 == 0o644
    with pytest.raises(DataError, match=r"no file 'a/d\.txt'"):
        extract(archive, "a/d.txt", tmp_path / "out" / "d.txt")


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.whl").write_bytes(b"no zip")
    with pytest.raises(IntegrityError, match=r"broken\.whl"):
        members(tmp_path / "broken.whl")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_debian_package_is_read_without_unpacking_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        "Package: pets\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
    )
    (root / "usr/share").mkdir(parents=True)
    (root / "usr/share/cat.txt").write_text("meow")
    subprocess.run(["dpkg-deb", "-b", str(root), str(tmp_path / "pets.deb")], check=True, capture_output=True)
    assert dict(contents(tmp_path / "pets.deb")) == {"usr/share/cat.txt": b"meow"}


@pytest.mark.network
def test_the_real_index_serves_a_source_distribution_as_data(cache: Path) -> None:
    sha256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
    path = packages.fetch("vaderSentiment==3.3.2", progress=Progress(quiet=True), sdist=True, sha256=sha256)
    assert any(name.endswith("hutto_ICWSM_2014.tar.gz") for name in members(path))
