"""Links of the pages lead to files and headings that are there."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from code_blocks import GENERATED, PAGES
from markdown_it import MarkdownIt
from markdown_it.token import Token

from aeflow_monai.cli.parsers import parser

WRITTEN = [page for page in PAGES if page not in GENERATED]


def headings(path: Path) -> set[str]:
    """Anchors of a page, as GitHub and MyST make them."""
    tokens = MarkdownIt().parse(path.read_text(encoding="utf-8"))
    titles = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(path: Path) -> Iterator[str]:
    """Addresses of the links and pictures of a page."""

    def inside(tokens: list[Token]) -> Iterator[str]:
        for token in tokens:
            yield from (str(token.attrs[name]) for name in ("href", "src") if name in token.attrs)
            yield from inside(token.children or [])

    return inside(MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", WRITTEN)
def test_links_lead_somewhere(page: str) -> None:
    for address in links(PAGES[page]):
        if re.match(r"\w+:", address):
            continue
        name, _, anchor = address.partition("#")
        path = (PAGES[page].parent / name).resolve() if name else PAGES[page]
        assert path.exists(), address
        assert not anchor or anchor in headings(path), address


def test_every_word_of_the_glossary_is_linked() -> None:
    linked = {address.partition("#")[2] for page in WRITTEN for address in links(PAGES[page]) if "#" in address}
    assert headings(PAGES["docs/glossary.md"]) - {"glossary"} <= linked


def test_the_page_of_the_command_has_all_verbs() -> None:
    (verbs,) = (action.choices for action in parser()._actions if action.dest == "verb")
    listed = re.findall(r"^\| `(\w+)` \|", PAGES["docs/command.md"].read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(listed) == set(verbs or ())
