# SPDX-License-Identifier: BSD-3-Clause
"""How Sphinx builds the site: ``make docs``.

It needs no network, and refers to nobody's inventory: names of other packages are
code, not references.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from numpydoc.xref import DEFAULT_LINKS

import lazymem
from lazymem import session

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "lazymem"
author = "the lazymem authors"
copyright = "the lazymem authors; BSD 3-clause licence"
release = lazymem.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc", "sphinx_click"]
default_role = "code"
smartquotes = False  # code is to be copied

html_theme = "furo"
html_title = f"lazymem {release}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say what types are
autodoc_mock_imports = ["xarray"]  # its name is enough
numpydoc_show_class_members = False
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"
numpydoc_xref_aliases = {
    **{word: word for word in DEFAULT_LINKS},
    **{
        name: f"{module.__name__}.{name}"
        for module in (lazymem, session)
        for name in module.__all__
        if name[0].isupper()
    },
}


_MADE_BY_STORES = (
    lazymem.Attrs,
    lazymem.LazyArray,
    lazymem.ObjectWriter,
    lazymem.Pin,
)


def _hide_signature(
    app: Sphinx, what: str, name: str, obj: Any, *_: Any
) -> tuple[str, None] | None:
    """Leave out how what only lazymem makes is made."""
    is_ours = dataclasses.is_dataclass(obj) or obj in _MADE_BY_STORES
    return ("", None) if is_ours else None


_PAGES = {
    "benchmarks/RESULTS.md": "/results.md",
    "CONTRIBUTING.md": "/architecture.md",
    "ext/FORMAT.md": "/format.md",
}


def _lead_to_pages(app: Sphinx, path: Any, parent: str, content: list[str]) -> None:
    """Let links to texts of the repository lead to the pages that include them."""
    for file, page in _PAGES.items():
        content[0] = content[0].replace(f"]({file})", f"]({page})")


def setup(app: Sphinx) -> None:
    """Connect what Sphinx calls."""
    app.connect("autodoc-process-signature", _hide_signature)
    app.connect("include-read", _lead_to_pages)
