"""The code of the pages: every fenced and indented block of README and docs."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path for path in sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])}
GENERATED = ("docs/api.md", "docs/config_files.md")  # by docs/conf.py


class Block(NamedTuple):
    """A block of code: `language` is the word behind its fence, "" of an indented one."""

    page: str
    line: int
    language: str
    code: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def first_line(self) -> str:
        return self.code.strip().partition("\n")[0]


@cache
def all_blocks() -> tuple[Block, ...]:
    """Those of all pages, but for the directives of Sphinx."""
    found = []
    for page, path in PAGES.items():
        for token in MarkdownIt().parse(path.read_text(encoding="utf-8")) if page not in GENERATED else ():
            if token.type in ("fence", "code_block") and not token.info.startswith("{"):
                assert token.map is not None
                found.append(Block(page, token.map[0] + 1, token.info.strip(), token.content))
    return tuple(found)


def inline_commands(page: str, program: str) -> list[str]:
    """Commands of a program in the running text of a page."""
    text = PAGES[page].read_text(encoding="utf-8")
    return [code.replace("\n", " ") for code in re.findall(rf"`([^`\n]*{program} [^`]+)`", text)]
