"""Gettext catalogues: the pairs of a compiled .mo file, as sentences rather than as menu labels."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from lcc.core.errors import DataError

LITTLE, BIG = b"\xde\x12\x04\x95", b"\x95\x04\x12\xde"
APPENDED_KEY = re.compile(r"\s*[(（][&_~][A-Za-z0-9][)）]")


def catalogue_pairs(
    content: bytes, *, where: str, accelerator: str = ""
) -> Iterator[tuple[str, str]]:
    """(source, target) of every message, without header and context.

    Of a message with plural forms, the plural source goes with the last target form, which is
    the general one. `accelerator` is the character that marks a shortcut key (`&`, `_`, `~`).
    """
    for source, target in _messages(content, where=where):
        source = source.rpartition("\x04")[2].rpartition("\0")[2]
        target = target.rpartition("\0")[2]
        if source and target:
            yield _without_key(source, accelerator), _without_key(target, accelerator)


def _messages(content: bytes, *, where: str) -> Iterator[tuple[str, str]]:
    """Raw message pairs, by the tables of the file format."""
    order = {LITTLE: "<", BIG: ">"}.get(content[:4])
    if order is None:
        raise DataError(f"{where}: is no compiled gettext catalogue.")
    try:
        _, count, sources, targets = struct.unpack(f"{order}4I", content[4:20])
        for index in range(count):
            yield tuple(_string(content, order, table + 8 * index)  # type: ignore[misc]
                        for table in (sources, targets))  # fmt: skip
    except (struct.error, UnicodeDecodeError) as error:
        raise DataError(f"{where}: is a damaged gettext catalogue: {error}.") from None


def _string(content: bytes, order: str, entry: int) -> str:
    length, offset = struct.unpack(f"{order}2I", content[entry : entry + 8])
    return content[offset : offset + length].decode("utf-8")


def _without_key(text: str, accelerator: str) -> str:
    """`文件(&F)` and `&File` without the shortcut; a text with several marks is left alone."""
    if not accelerator:
        return text
    text = APPENDED_KEY.sub("", text)
    mark = re.compile(
        rf"(?<!\w){re.escape(accelerator)}(?=\w)|(?<=\w){re.escape(accelerator)}(?=[a-z])"
    )
    return mark.sub("", text) if len(mark.findall(text)) == 1 else text
