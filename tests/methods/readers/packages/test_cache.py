"""Packages are data: checked by digest, never run, and a missing network is one sentence."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from data_archives import tar_of, zip_of

from lcc.core.errors import IntegrityError, ResourceError
from lcc.core.progress import Progress
from lcc.methods.readers.packages.archives import members
from lcc.methods.readers.packages.cache import PackageFile, debian_package

QUIET = Progress(quiet=True)
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
    path = PackageFile("pets==1.0").fetch(QUIET)
    assert path.is_relative_to(cache)
    assert PackageFile("Pets == 1.0").path == path
    assert PackageFile("pets==2.0").path is None
    assert [p.name for p in (cache / "staging").iterdir()] == []


def test_a_wheel_with_another_digest_never_enters_the_cache(cache: Path, index: Path) -> None:
    _wheel(index)
    with pytest.raises(IntegrityError, match="promised was 0000") as caught:
        PackageFile("pets==1.0", sha256="0" * 64).fetch(QUIET)
    assert caught.value.exit_code == 4
    assert PackageFile("pets==1.0").path is None


def test_a_file_damaged_in_the_cache_is_refused(cache: Path, index: Path) -> None:
    digest = hashlib.sha256(_wheel(index).read_bytes()).hexdigest()
    needed = PackageFile("pets==1.0", sha256=digest)
    path = needed.fetch(QUIET)
    assert needed.verified() == path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError):
        needed.verified()


def test_fetching_an_sdist_runs_nothing_of_it(cache: Path, index: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    tar_of(
        index / "pets-1.0.tar.gz",
        {
            "pets-1.0/setup.py": HOSTILE % str(mark),
            "pets-1.0/PKG-INFO": b"Metadata-Version: 2.1\nName: pets\nVersion: 1.0\n",
        },
    )
    path = PackageFile("pets==1.0", sdist=True).fetch(QUIET)
    assert "pets-1.0/setup.py" in members(path)
    assert not mark.exists()


def test_what_the_index_lacks_is_one_sentence_with_a_way_out(cache: Path, index: Path) -> None:
    with pytest.raises(ResourceError, match=r"'pets==1.0' could not be downloaded: .*network") as no:
        PackageFile("pets==1.0").fetch(QUIET)
    assert no.value.exit_code == 6
    assert "\n" not in str(no.value)


def test_a_package_that_was_not_fetched_names_the_command(cache: Path) -> None:
    with pytest.raises(ResourceError, match="lcc fetch"):
        PackageFile("pets==1.0").verified()


def test_a_full_disk_is_noticed_before_the_download(
    cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ResourceError, match="LCC_HOME"):
        PackageFile("pets==1.0", 10**18).fetch(QUIET)


def test_without_apt_another_dataset_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ResourceError, match="dataset=packages_en_zh"):
        debian_package("git").fetch(QUIET)


@pytest.mark.network
def test_the_real_index_serves_a_source_distribution_as_data(cache: Path) -> None:
    sha256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
    path = PackageFile("vaderSentiment==3.3.2", sdist=True, sha256=sha256).fetch(QUIET)
    assert any(name.endswith("hutto_ICWSM_2014.tar.gz") for name in members(path))
