"""Gettext catalogues: the pairs of a compiled .mo file, as sentences rather than as menu labels."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from lcc.config.cards import card, digest
from lcc.core.errors import DataError
from lcc.data.local_files import Row
from lcc.methods.readers.packages.archives import contents
from lcc.methods.readers.packages.cache import PackageFile

CHARSET = re.compile(rb"charset=([\w-]+)")
LITTLE, BIG = b"\xde\x12\x04\x95", b"\x95\x04\x12\xde"
APPENDED_KEY = re.compile(r"\s*[(（]([&_~])([A-Za-z0-9])[)）]")
# At the start of a word, and not an identifier such as _name_ or an entity such as &lt;
LEADING_MARK = re.compile(r"(?<![^\s(\"“])[&_~](?=[A-Za-z][A-Za-z-]*(?![\w;/_]))")


def catalogue_pairs(content: bytes, *, where: str) -> Iterator[tuple[str, str]]:
    """(source, target) of every message, without header and context.

    Of a message with plural forms, the plural source goes with the last target form, which is
    the general one. Marks of shortcut keys are taken out.
    """
    for source, target in _messages(content, where=where):
        is_header = not source
        source = source.rpartition("\x04")[2].rpartition("\0")[2]
        target = target.rpartition("\0")[2]
        if source and target and not is_header:
            yield without_shortcuts(source, target)


def _messages(content: bytes, *, where: str) -> Iterator[tuple[str, str]]:
    """Message pairs after the header, decoded as it says, by the tables of the file format."""
    order = {LITTLE: "<", BIG: ">"}.get(content[:4])
    if order is None:
        raise DataError(f"{where}: is no compiled gettext catalogue.")
    try:
        _, count, sources, targets = struct.unpack(f"{order}4I", content[4:20])
        raw = [
            (_string(content, order, sources + 8 * i), _string(content, order, targets + 8 * i))
            for i in range(count)
        ]
        named = CHARSET.search(next((target for source, target in raw if not source), b""))
        charset = named.group(1).decode() if named else "utf-8"
        for source, target in raw:
            yield source.decode(charset), target.decode(charset)
    except (struct.error, UnicodeDecodeError, LookupError) as error:
        raise DataError(f"{where}: is a damaged gettext catalogue: {error}.") from None


def _string(content: bytes, order: str, entry: int) -> bytes:
    length, offset = struct.unpack(f"{order}2I", content[entry : entry + 8])
    return content[offset : offset + length]


def without_shortcuts(source: str, target: str) -> tuple[str, str]:
    """The pair without the marks of a shortcut key: `&File`/`文件(&F)` is `File`/`文件`.

    A mark inside a word is taken for one only when the target shows the same key.
    """
    shown = APPENDED_KEY.search(target)
    if shown is not None:
        mark, key = shown.group(1), shown.group(2)
        inside = re.compile(rf"{re.escape(mark)}(?={re.escape(key)})", re.IGNORECASE)
        target = APPENDED_KEY.sub("", target)
        return inside.sub("", source, count=1), target
    if len(LEADING_MARK.findall(source)) == 1:
        source = LEADING_MARK.sub("", source)
    if len(LEADING_MARK.findall(target)) == 1:
        target = LEADING_MARK.sub("", target)
    return source, target


# -----------------------------------------------------------------------------
# Human translations: gettext catalogues inside wheels of the package index.


@card
class Wheel:
    """One wheel (`requirement: django==5.2`) and where in it the catalogues lie."""

    requirement: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+$")]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    patterns: tuple[str, ...] = ("*/zh_CN/LC_MESSAGES/*.mo", "*/zh_Hans/LC_MESSAGES/*.mo")
    bytes: Annotated[int, Field(ge=0)] = 0
    licence: str = ""


@card
class Gettext:
    """Rows `{source, target, doc}`; a document is one catalogue of one package."""

    word: ClassVar[str] = "gettext"
    revision: ClassVar[int] = 1

    packages: Annotated[tuple[Wheel, ...], Field(min_length=1)]

    def requirements(self) -> tuple[PackageFile, ...]:
        return tuple(map(_package_file, self.packages))

    def fingerprint(self) -> str:
        return digest([wheel.sha256 for wheel in self.packages])

    def read(self) -> Iterator[Row]:
        for wheel in self.packages:
            archive = _package_file(wheel).verified()
            for name, content in contents(archive, wheel.patterns):
                for source, target in catalogue_pairs(content, where=f"{archive.name}:{name}"):
                    yield {"doc": name, "source": source, "target": target}


def _package_file(wheel: Wheel) -> PackageFile:
    return PackageFile(wheel.requirement, wheel.bytes, wheel.licence, sha256=wheel.sha256)
