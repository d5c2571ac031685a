"""Question answering in SQuAD's JSON: articles, paragraphs, questions with answers by character."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from lcc.config.cards import card
from lcc.core.errors import DataError
from lcc.data.local_files import LocalFiles, Row, read_text


@card
class Squad(LocalFiles):
    """Rows `{id, doc, question, context, answer, answer_start}`; a document is one article.

    Of several answers the first stands; questions without one (SQuAD 2) are left out.
    """

    word: ClassVar[str] = "squad"
    revision: ClassVar[int] = 1

    def read_file(self, path: Path) -> Iterator[Row]:
        try:
            node: Any = json.loads(read_text(path))
            for number, article in enumerate(node["data"]):
                doc = str(article.get("title") or number)
                for paragraph in article["paragraphs"]:
                    yield from _rows(doc, paragraph)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: is not SQuAD's JSON ({error!r}).") from None


def _rows(doc: str, paragraph: dict[str, Any]) -> Iterator[Row]:
    for asked in paragraph["qas"]:
        if asked["answers"]:
            answer = asked["answers"][0]
            yield {
                "id": str(asked["id"]),
                "doc": doc,
                "question": asked["question"],
                "context": paragraph["context"],
                "answer": answer["text"],
                "answer_start": int(answer["answer_start"]),
            }
