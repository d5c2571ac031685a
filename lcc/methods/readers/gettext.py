"""Human translations: gettext catalogues inside wheels of the package index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from lcc.core.decode import card
from lcc.core.describe import digest
from lcc.parts.catalogues import catalogue_pairs
from lcc.parts.packages import Requirement, contents, require
from lcc.parts.rows import Row


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

    def requirements(self) -> tuple[Requirement, ...]:
        return tuple(map(_requirement, self.packages))

    def fingerprint(self) -> str:
        return digest([wheel.sha256 for wheel in self.packages])

    def read(self) -> Iterator[Row]:
        for wheel in self.packages:
            archive = require(_requirement(wheel))
            for name, content in contents(archive, wheel.patterns):
                for source, target in catalogue_pairs(content, where=f"{archive.name}:{name}"):
                    yield {"doc": name, "source": source, "target": target}


def _requirement(wheel: Wheel) -> Requirement:
    return Requirement(
        name=wheel.requirement.partition("==")[0],
        requirement=wheel.requirement,
        bytes=wheel.bytes,
        licence=wheel.licence,
        sha256=wheel.sha256,
    )
