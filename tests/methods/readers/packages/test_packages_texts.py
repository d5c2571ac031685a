"""Readers of conversations, FAQs and package descriptions, from files as they come."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from data_archives import zip_of

from lcc.config.cards import Choice
from lcc.core.errors import DataError

POD = """=head1 Data: Numbers

=head2 Why is C<int()> broken?

It is not; see L<the manual|perlnumber>.
Some C<< $x < 1 >> are small.

    print 1;

Last words.

=head2 Not a question

Text.

=head1 Other
"""
PAGE = """<div class="section"><div><h2 class="title"><a id="a"></a>1.2.\u00a0What is Debian?</h2>
</div>
<p>
A <em>distribution</em>
of software.
</p><p>More &amp; more.</p></div><div class="navfooter"><p>no</p></div>"""


def reader(name: str, **options: Any) -> Any:
    return Choice("readers").decode({"name": name, **options})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LCC_HOME", str(tmp_path))
    return tmp_path


def test_conversations_take_turns_and_alternatives_do_not(home: Path) -> None:
    talk = "conversations:\n- - Hello\n  - Hi\n  - How are you?\n- - 1 + 1\n  - 2\n- broken\n"
    folder = home / "packages/chatterbot-corpus==1.3.3"
    wheel = zip_of(
        folder / "c.whl",
        {
            "corpus/data/english/talk.yml": talk.encode(),
            "corpus/data/english/emotion.yml": b"conversations:\n- - You are sad\n  - No\n  - Am I?\n",
            "corpus/data/english/coding.yml": b"conversations:\n- - a\n  - b\n",
        },
    )
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    rows = list(reader("chatterbot", sha256=sha256, leave_out=["coding"]).read())
    assert [row["turns"] for row in rows] == [
        ["Hello", "Hi", "How are you?"],
        ["1 + 1", "2"],
        ["You are sad", "No"],
        ["You are sad", "Am I?"],
    ]
    assert rows[2]["doc"] == rows[3]["doc"]
    assert rows[0]["text"] == "Hello\nHi\nHow are you?"
    with pytest.raises(DataError, match="holds no language 'latin'"):
        list(reader("chatterbot", sha256=sha256, language="latin").read())


def _package(home: Path, name: str, files: dict[str, str]) -> None:
    root = home / "build" / name
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b>\nDescription: x\n"
    )
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    target = home / "debian" / name
    target.mkdir(parents=True)
    subprocess.run(
        ["dpkg-deb", "-b", str(root), str(target / f"{name}.deb")], check=True, capture_output=True
    )


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_faqs_are_questions_with_the_prose_that_follows(home: Path) -> None:
    _package(home, "perl-doc", {"pod/perlfaq1.pod": POD})
    _package(home, "debian-faq", {"faq/a.en.html": PAGE})
    pages = [{"package": "perl-doc", "pattern": "*.pod"}, {"package": "debian-faq", "pattern": "*.html"}]
    first, second = reader("faq", pages=pages, paragraphs=2).read()
    assert first["question"] == "Why is int() broken?"
    assert first["answer"] == "It is not; see the manual. Some $x < 1 are small. Last words."
    assert second["question"] == "What is Debian?"
    assert second["answer"] == "A distribution of software. More & more."
    assert second["turns"] == [second["question"], second["answer"]]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_passages_hold_the_answer_once_at_no_fixed_place(home: Path) -> None:
    text = "=head1 X\n\n" + "".join(f"=head2 What is {c}?\n\n{c} is a letter.\n\n" for c in "abcdefgh")
    _package(home, "perl-doc", {"pod/perlfaq1.pod": text})
    pages = [{"package": "perl-doc", "pattern": "*.pod"}]
    rows = list(reader("faq", pages=pages, passages=4, draws=2).read())
    assert len(rows) == 16 and len({row["id"] for row in rows}) == 16
    assert all(row["context"].split("\n").count(row["answer"]) == 1 for row in rows)
    assert all(len(row["context"].split("\n")) == 4 for row in rows)
    assert len({row["context"].split("\n").index(row["answer"]) for row in rows}) > 1


def test_descriptions_are_prose_and_their_first_line(home: Path) -> None:
    stanza = (
        "Package: {n}\nDescription-md5: 1\nDescription-en: {s}\n Long text about\n this.\n"
        "  * a list\n .\n More.\n"
    )
    other = "Package: c\nDescription-md5: 2\nDescription-en: third\n Another.\n"
    (home / "apt/Translation-en").mkdir(parents=True)
    (home / "apt/Translation-en/Translation-en").write_text(
        "\n".join([stanza.format(n="a", s="one"), stanza.format(n="b", s="two"), other])
    )
    rows = list(reader("descriptions").read())
    assert [(row["id"], row["source"], row["target"]) for row in rows] == [
        ("a", "Long text about this. More.", "one"),
        ("c", "Another.", "third"),
    ]


def test_summaries_with_gaps_are_filled_from_their_descriptions(home: Path) -> None:
    told = (
        "Package: a\nDescription-md5: 1\nDescription-en: small text editor\n"
        " Contextual: an editor, and small.\n\n"
        "Package: b\nDescription-md5: 2\nDescription-en: the and\n Of it.\n"
    )
    (home / "apt/Translation-en").mkdir(parents=True)
    (home / "apt/Translation-en/Translation-en").write_text(told)
    (row,) = reader("descriptions", gaps=True).read()
    assert row["answer"] in ("small", "editor")
    left = "small text editor".replace(row["answer"], "____")
    assert row["question"] == f'What is ____ in "{left}"?'
    assert row["context"][row["answer_start"] :].startswith(row["answer"])
