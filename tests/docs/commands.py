"""The commands that README.md and the guides tell people to type, read out of their fenced blocks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.contracts.sources import ROOT

BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELLS = {"sh", "bash", "shell", "console"}
NESTED = re.compile(r"\$\(([^()]*)\)")
PREFIX = re.compile(r"^([A-Za-z_]+=|do$|then$|else$)")
REDIRECTIONS = {">", ">>", "<", "2>"}
OPERATORS = {"|", "||", "&&", ";", "&", "(", ")", ">", ">>", "<"}


class Command(NamedTuple):
    """One command with the file that tells it."""

    document: str
    words: tuple[str, ...]


def documents() -> list[Path]:
    """Every text that tells commands."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str) -> Iterator[str]:
    """The shell blocks of a Markdown text, continued lines joined."""
    for language, body in BLOCK.findall(text):
        if language in SHELLS:
            yield re.sub(r"\\\n\s*", " ", body)


def split(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of one line: comments go, pipes and lists are taken apart, assignments stay in front."""
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    after = ""
    for word in lexer:
        if word in OPERATORS and word not in REDIRECTIONS:
            if words:
                yield tuple(words)
            words = []
        elif word not in REDIRECTIONS and after not in REDIRECTIONS:
            words.append(word)
        after = word
    if words:
        yield tuple(words)


def unnested(line: str) -> Iterator[str]:
    """The line, and what stands in its `$(...)`, each by itself."""
    while match := NESTED.search(line):
        yield match[1]
        line = NESTED.sub("X", line, count=1)
    yield line


def commands_in(text: str, *, document: str) -> Iterator[Command]:
    """Every command of a Markdown text's shell blocks, without what stands before it as variable=value."""
    for block in blocks(text):
        for line in (part for whole in block.splitlines() for part in unnested(whole)):
            for words in split(line):
                named = [i for i, word in enumerate(words) if not PREFIX.match(word)]
                if named:
                    yield Command(document, words[named[0] :])


def commands() -> list[Command]:
    """Every command of every document."""
    return [
        command
        for path in documents()
        if path.is_file()
        for command in commands_in(path.read_text("utf-8"), document=path.relative_to(ROOT).as_posix())
    ]


PATH = re.compile(
    r"`((?:[A-Za-z0-9_.-]+/)+[A-Za-z0-9_.-]+\.(?:py|md|toml|csv|json|yaml|txt|po|pot|Dockerfile)|(?:[a-z_]+/)+)`"
)


def named_paths() -> Iterator[tuple[str, str]]:
    """Every file or folder that a document names in backticks, with the document."""
    for path in documents():
        if path.is_file():
            for name in PATH.findall(path.read_text("utf-8")):
                yield path.relative_to(ROOT).as_posix(), name
