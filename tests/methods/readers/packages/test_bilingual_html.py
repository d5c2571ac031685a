"""Two versions of a page give only pairs that belong together."""

from __future__ import annotations

from lcc.methods.readers.packages.bilingual_html import aligned_by_id, aligned_by_structure

ENGLISH = """<html><head><title>No</title></head><body><h1 id="h">Trains</h1>
<p id="p1">A train <b>runs</b>
on rails.<br>Always.</p><p>No id here.</p>
<table><tr><td><p id="p2">It is long.</p></td></tr></table>
<script>var x = "<p id='p9'>";</script></body></html>"""
CHINESE = """<html><body><h1 id="h">火车</h1><p id="p2">它很长。</p>
<p id="p1">火车在铁轨上<b>行驶</b>。</p></body></html>"""


def test_ids_pair_blocks_wherever_they_stand() -> None:
    assert list(aligned_by_id(ENGLISH, CHINESE)) == [
        ("Trains", "火车"),
        ("A train runs on rails. Always.", "火车在铁轨上行驶。"),
        ("It is long.", "它很长。"),
    ]


def _page(*sections: tuple[str, ...]) -> str:
    return "".join(f"<h2>{head}</h2>" + "".join(f"<p>{p}</p>" for p in body) for head, *body in sections)


def test_sections_built_alike_are_paired() -> None:
    pairs = list(
        aligned_by_structure(_page(("One", "a", "b"), ("Two", "c")), _page(("一", "甲", "乙"), ("二", "丙")))
    )
    assert pairs == [("One", "一"), ("a", "甲"), ("b", "乙"), ("Two", "二"), ("c", "丙")]


def test_a_section_that_lost_a_paragraph_is_left_out_whole() -> None:
    pairs = list(
        aligned_by_structure(_page(("One", "a", "b"), ("Two", "c")), _page(("一", "乙"), ("二", "丙")))
    )
    assert pairs == [("Two", "二"), ("c", "丙")]


def test_a_page_with_other_headings_gives_nothing() -> None:
    assert list(aligned_by_structure(_page(("One", "a"), ("Two", "b")), _page(("一", "甲")))) == []


def test_end_tags_left_out_do_no_harm() -> None:
    source = "<ul><li id='x'>one<li id='y'>two</ul><p id='z'>three"
    target = "<ul><li id='x'>一</li><li id='y'>二</li></ul><p id='z'>三</p>"
    assert {("two", "二"), ("three", "三")} <= set(aligned_by_id(source, target))
