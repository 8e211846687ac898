# SPDX-License-Identifier: BSD-3-Clause
"""Does the site build, is it complete, and is what it says still so?"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import lazymem as lm
from lazymem import cli, errors, session, testing
from tests.conftest import ROOT
from tests.documents import run, text_of, verbs

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *DOCS.rglob("*.rst"), ROOT / "README.md"])
RUN = [page for page in PAGES if "\n```python\n" in page.read_text("utf-8")]
TROUBLE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it as ``make docs`` does."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(r"-m sphinx (.*) docs build/docs$", makefile, re.MULTILINE)
    assert found
    out = tmp_path_factory.mktemp("docs")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *found[1].split(), DOCS, out],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(
    "module", [lm, session, testing], ids=lambda module: module.__name__
)
def test_each_public_name_is_in_the_reference(module: object, site: Path) -> None:
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    known = set(re.findall(r"^(\S+) py:", zlib.decompress(packed).decode(), re.M))
    names = {f"{module.__name__}.{name}" for name in module.__all__}
    assert sorted(names - known) == []


@pytest.mark.parametrize(
    "page", RUN, ids=lambda page: str(page.relative_to(ROOT).with_suffix(""))
)
def test_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(page) >= 1


def test_each_exception_has_an_entry_in_troubleshooting() -> None:
    classes = inspect.getmembers(errors, inspect.isclass)
    names = {name for name, kind in classes if issubclass(kind, lm.LazyMemError)}
    entries = set(re.findall(r"^### `(\w+)`$", TROUBLE, re.MULTILINE))
    assert names | {"UnsupportedValueError"} == entries


def source() -> str:
    """Return the code that tells what went wrong, texts in one piece."""
    files = sorted((ROOT / "lazymem").rglob("*.py"))
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return re.sub(r'"\s*\n\s*f?"', "", code) + (ROOT / "ext/error.c").read_text("utf-8")


def test_troubleshooting_quotes_what_the_code_says() -> None:
    quoted = re.findall(r"^\| `([^`]+)` \|", TROUBLE, re.MULTILINE)
    code = source()
    assert len(quoted) > 40
    assert [text for text in quoted if text not in code] == []


def test_troubleshooting_has_each_warning() -> None:
    rows = TROUBLE.partition("## Warnings")[2].partition("## The machine")[0]
    assert rows.count("\n| `") == source().count("warnings.warn(")


def test_each_command_that_is_named_exists() -> None:
    text = "\n".join(map(text_of, PAGES))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert len(verbs(text, "make")) > 3
    assert verbs(text, "make") <= targets
    assert len(verbs(text, "lazymem")) > 8
    assert verbs(text, "lazymem") <= set(cli.cli.commands)
