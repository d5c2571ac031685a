"""Wheels and sdists in the cache become rows, and say what must be fetched or is broken."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from data_archives import compiled_catalogue, tar_bytes, tar_of, zip_of

from lcc.config.cards import Choice
from lcc.core.errors import DataError, RecipeError, ResourceError
from lcc.core.progress import Progress
from lcc.methods.readers.packages.archives import contents


def reader(name: str, **options: Any) -> Any:
    try:
        return Choice("readers").decode({"name": name, **options})
    except ValueError as error:
        raise RecipeError(str(error)) from None


def _put(home: Path, requirement: str, name: str, files: dict[str, bytes]) -> str:
    """A hand-made archive in the cache; its digest."""
    make = zip_of if name.endswith(".whl") else tar_of
    path = make(home / "packages" / requirement.lower() / name, files)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LCC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_catalogues_in_a_wheel_become_pairs_by_catalogue(home: Path) -> None:
    files = {
        "pets/locale/zh_CN/LC_MESSAGES/pets.mo": compiled_catalogue({"&Feed": "喂食(&F)"}),
        "pets/locale/zh_Hans/LC_MESSAGES/more.mo": compiled_catalogue({"Walk": "散步"}),
        "pets/locale/de/LC_MESSAGES/pets.mo": compiled_catalogue({"Feed": "Füttern"}),
    }
    digest = _put(home, "pets==1.0", "pets-1.0-py3-none-any.whl", files)
    source = reader("gettext", packages=[{"requirement": "pets==1.0", "sha256": digest}])
    assert list(source.read()) == [
        {"doc": "pets/locale/zh_CN/LC_MESSAGES/pets.mo", "source": "Feed", "target": "喂食"},
        {"doc": "pets/locale/zh_Hans/LC_MESSAGES/more.mo", "source": "Walk", "target": "散步"},
    ]


def test_a_wheel_must_be_pinned_and_fetched(home: Path) -> None:
    with pytest.raises(RecipeError, match="requirement"):
        reader("gettext", packages=[{"requirement": "pets>=1", "sha256": "0" * 64}])
    source = reader("gettext", packages=[{"requirement": "pets==1.0", "sha256": "0" * 64}])
    assert [one.requirement for one in source.requirements()] == ["pets==1.0"]
    with pytest.raises(ResourceError, match="lcc fetch"):
        list(source.read())


def _vader(home: Path, text: str, **options: Any) -> Any:
    inner = tar_bytes(
        {
            "h/movieReviewSnippets_GroundTruth.txt": text.encode(),
            "h/nytEditorialSnippets_GroundTruth.txt": text.encode(),
        }
    )
    files = {"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner}
    digest = _put(home, "vadersentiment==3.3.2", "vaderSentiment-3.3.2.tar.gz", files)
    return reader("vader", sha256=digest, **options)


def test_ratings_become_labels_and_the_undecided_stay_out(home: Path) -> None:
    text = "1\t2.5\tA ''great'' film.\r\n2\t-0.2\tIt is long.\r\n3\t-1.0\tDull.\r\n"
    two = list(_vader(home, text).read())
    assert two == [
        {"id": "movie-1", "text": 'A "great" film.', "label": "positive"},
        {"id": "movie-3", "text": "Dull.", "label": "negative"},
    ]
    three = list(_vader(home, text, labels="three").read())
    assert [row["label"] for row in three] == ["positive", "neutral", "negative"]


def test_snippets_join_to_documents_for_language_modelling(home: Path) -> None:
    text = "1_1\t0.1\tOne.\n1_2\t0.2\tTwo.\n2_1\t0.3\tThree.\n"
    source = _vader(home, text, collection="nyt", labels="none", unit="document")
    assert list(source.read()) == [{"doc": "1", "text": "One. Two."}, {"doc": "2", "text": "Three."}]
    with pytest.raises(RecipeError, match="collection with documents"):
        _vader(home, text, labels="none", unit="document")


def test_a_bad_line_of_ratings_is_named(home: Path) -> None:
    with pytest.raises(DataError, match=r"GroundTruth\.txt:2: expected id, rating and text"):
        list(_vader(home, "1\t2.5\tFine.\n2 no tabs\n").read())


@pytest.mark.network
@pytest.mark.slow
def test_debian_gives_its_manuals_and_catalogues(home: Path) -> None:
    source = reader(
        "debian",
        catalogues=[{"package": "tar"}],
        manuals=[
            {
                "source_package": "debian-faq",
                "target_package": "debian-faq-zh-cn",
                "source_pages": "usr/share/doc/debian/FAQ/{page}.en.html",
                "target_pages": "usr/share/doc/debian/FAQ/zh-cn/{page}.zh-cn.html",
                "align": "structure",
            }
        ],
    )
    paths = [package.fetch(Progress(quiet=True)) for package in source.requirements()]
    assert all(any(contents(path)) for path in paths)
    docs = {row["doc"].partition("/")[0] for row in source.read()}
    assert docs == {"tar", "debian-faq"}
