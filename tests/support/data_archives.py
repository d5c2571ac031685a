"""Small hand-made archives and catalogues for the tests of data."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from lcc.data.local_files import Row


def compiled_catalogue(messages: Mapping[str, str], *, charset: str = "UTF-8") -> bytes:
    """The bytes of a .mo file with a header and `messages`."""
    header = f"Content-Type: text/plain; charset={charset}\nPlural-Forms: nplurals=1; plural=0;\n"
    pairs = [(k.encode(charset), v.encode(charset)) for k, v in {"": header, **messages}.items()]
    count = len(pairs)
    sources, targets = 28, 28 + 8 * count
    data, tables = b"", [b"", b""]
    for side in (0, 1):
        for pair in pairs:
            tables[side] += struct.pack("<2I", len(pair[side]), 28 + 16 * count + len(data))
            data += pair[side] + b"\0"
    magic = struct.pack("<7I", 0x950412DE, 0, count, sources, targets, 0, 0)
    return magic + tables[0] + tables[1] + data


def zip_of(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tar_of(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files))
    return path


def tar_bytes(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def pairs(num_docs: int, per_doc: int) -> list[Row]:
    """Different sentence pairs in `num_docs` documents."""
    animals = ["cat", "dog", "horse", "bird", "fish", "fox", "cow", "sheep", "bee", "whale"]
    places = ["river", "house", "forest", "market", "school", "garden", "bridge", "tower"]
    rows = []
    for doc in range(num_docs):
        for n in range(per_doc):
            animal, place = animals[(doc + n) % len(animals)], places[n % len(places)]
            source = f"Story {chr(97 + doc)}{chr(97 + n)}: a {animal} went to the {place}."
            rows.append({"doc": f"doc{doc}", "source": source, "target": f"故事{doc}之{n}：动物去了那里。"})
    return rows
