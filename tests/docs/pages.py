"""What README and docs/ show: their code blocks, and the commands in them."""

from __future__ import annotations

import itertools
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

GATES, RECIPES = ROOT / "fastast/gates/README.md", ROOT / "benchmarks/recipes/README.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")), GATES, RECIPES]


def name_of(page: Path) -> str:
    """Its path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a language, also those inside lists."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command that the page's shell blocks run; pipes and lists of commands are taken apart."""
    for line in "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for is_separator, words in itertools.groupby(lexer, lambda word: set(word) <= set("&|;()")):
            if not is_separator:
                yield list(_without_redirections(words))


def _without_redirections(words: Iterator[str]) -> Iterator[str]:
    for word in words:
        if set(word) <= set("<>"):
            next(words)
        else:
            yield word
