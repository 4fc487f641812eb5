"""The checker of links finds what leads nowhere, and nothing else."""

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def dead_links(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    from check_links import dead_links

    yield dead_links
    sys.modules.pop("check_links")


def test_dead_links_are_reported(tmp_path, dead_links):
    (tmp_path / "guide").mkdir()
    (tmp_path / "index.html").write_text(
        '<a href="guide/a.html#here">good</a> <a href="guide/a.html#gone">bad anchor</a>'
        '<a href="lost.html">bad page</a> <img src="lost.png"> <a href="#top">bad</a>'
        '<a href="https://example.org/nothing#x">not ours</a> <a href="guide/">good</a>'
    )
    (tmp_path / "guide" / "a.html").write_text('<p id="here"></p><a href="../index.html">good</a>')
    (tmp_path / "guide" / "index.html").write_text('<a href="b%20c.html#%C3%A9">good</a>')
    (tmp_path / "guide" / "b c.html").write_text('<p id="\u00e9">', encoding="utf-8")
    assert dead_links(tmp_path) == [
        "index.html: #top",
        "index.html: guide/a.html#gone",
        "index.html: lost.html",
        "index.html: lost.png",
    ]


def test_templates_of_the_theme_are_not_pages(tmp_path, dead_links):
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "macros.html").write_text('<a href="{{ pathto(1) }}">x</a>')
    assert dead_links(tmp_path) == []
