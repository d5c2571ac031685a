"""Archives are read as data: no member gets out of its place and nothing is run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from data_archives import tar_of, zip_of

from lcc.core.errors import DataError, IntegrityError, SafetyError
from lcc.methods.readers.packages.archives import contents, extract, members


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
