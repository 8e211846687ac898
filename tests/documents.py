# SPDX-License-Identifier: BSD-3-Clause
"""Texts that people read: what they include, their code, and commands they name."""

from __future__ import annotations

import re
from pathlib import Path

_INCLUDE = re.compile(r"^(`{3,})\{include\} (\S+)\n((?::.*\n)*)\1$", re.MULTILINE)
_CODE = r"```(?:{})\n(.*?)```"


def text_of(page: Path) -> str:
    """Return a text with all that it includes, as Sphinx puts it there."""

    def included(match: re.Match[str]) -> str:
        text = text_of(page.parent / match[2])
        options = dict(re.findall(r':([\w-]+): "(.*)"', match[3]))
        for option, place in (("start-after", 1), ("end-before", 0)):
            if option in options:
                parts = text.split(options[option], 1)
                assert len(parts) == 2, f"{page}: {match[2]} lacks {options[option]!r}"
                text = parts[place]
        return text

    return _INCLUDE.sub(included, page.read_text(encoding="utf-8"))


def run(page: Path) -> int:
    """Run the Python of a text from top to bottom; return of how many blocks it is."""
    blocks = re.findall(_CODE.format("python"), text_of(page), flags=re.DOTALL)
    exec(compile("\n".join(blocks), page.name, "exec"), {})
    return len(blocks)


def verbs(text: str, program: str) -> set[str]:
    """Return the first words that follow a program's name, where it is code."""
    shell = re.findall(_CODE.format("sh|console"), text, flags=re.DOTALL)
    code = "\n".join([*re.findall(r"`([^`\n]+)`", text), *shell])
    found = re.findall(rf"(?:^|[&|;] ){program} ([a-z][a-z-]*)", code, re.MULTILINE)
    return set(found)
