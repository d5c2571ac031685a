"""The page stands alone, runs nothing, and shows every text as text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sample_run import change_report, write_sample_run

from lcc import reports

VOID = {"meta", "circle", "rect", "polyline", "br"}


class Page(HTMLParser):
    """Every element of a page, and whether each is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.seen if name == tag]


def page_of(run: Path) -> Page:
    reports.write_reports(run)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_the_page_loads_nothing_and_runs_nothing(run_folder: Path) -> None:
    page = page_of(run_folder)
    assert not [tag for tag, _ in page.seen if tag in ("script", "img", "link", "iframe", "object")]
    addresses = [v for _, a in page.seen for n, v in a.items() if n in ("href", "src", "action")]
    assert addresses and all(str(address).startswith("#") for address in addresses)
    assert not [n for _, attributes in page.seen for n in attributes if n.startswith("on")]
    text = (run_folder / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text


def test_every_text_is_escaped_wherever_it_comes_from(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    run = write_sample_run(tmp_path, command=f"lcc run {evil}")
    change_report(
        run,
        "width",
        notes=[evil],
        warnings=[evil],
        node={evil: evil},
        tables={evil: [{evil: evil}]},
        machine={evil: evil},
        versions={evil: evil},
        measures={evil: {"value": evil, "unit": evil}},
    )
    change_report(run, "base", node={"spec": {"name": evil, "licence": evil, "origin": evil}})
    page = page_of(run)
    assert page.all("script") == [] and page.all("img") == []
    assert sum(evil in words for words in page.words) >= 8
    assert "<script>alert(1)</script>" in "".join(page.words)  # a model's output, as text


def test_tables_and_charts_speak_to_those_who_cannot_see_them(run_folder: Path) -> None:
    page = page_of(run_folder)
    tables, svgs = page.all("table"), page.all("svg")
    assert len(tables) > 5 and all(t["aria-label"] for t in tables)
    assert all(th["scope"] in ("col", "row") for th in page.all("th"))
    assert len(svgs) == 5 and all(svg["aria-label"] and svg["role"] == "img" for svg in svgs)
    text = (run_folder / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<svg [^>]*><title>[^<]+</title><desc>[^<]+</desc>", text)) == 5
    assert [box["tabindex"] for box in page.all("div") if box.get("class") == "box"]


@pytest.mark.parametrize(
    "words",
    [
        "选择要设置格式的单元格。",
        "(empty)",
        "base",
        "lcc run +recipe=mt_en_zh_small",
        "lcc fetch model=gemma3_270m dataset=gettext_en_zh",
        "Gemma terms of use",
        "method.rank: 16",
        "clipped in 67.3 % of 560 steps",
        "nrefs:1|case:mixed|tok:zh|smooth:exp",
        "14.5 GB/s",
        "no speed is claimed",
        "Xeon 8488C",
        "torch 2.13.0",
        "prefers-color-scheme: dark",
    ],
)
def test_the_report_tells(words: str, run_folder: Path) -> None:
    assert words in "".join(page_of(run_folder).words)


def test_a_run_with_nothing_finished_still_has_a_page(run_folder: Path) -> None:
    text = (run_folder / "run.json").read_text().replace('"finished"', '"pending"')
    (run_folder / "run.json").write_text(text)
    page = page_of(run_folder)
    assert "No checkpoint has been made yet." in page.words


def test_a_sentence_that_many_steps_say_stands_once(run_folder: Path) -> None:
    for name in ("eval.base", "eval.vocab"):
        change_report(run_folder, name, notes=["Paired bootstrap, 1000 resamples."])
    words = "".join(page_of(run_folder).words)
    assert words.count("Paired bootstrap, 1000 resamples.") == 1
    assert "eval.base, eval.vocab: Paired bootstrap" in words
