# SPDX-License-Identifier: BSD-3-Clause
"""Build recipe of the extension module ``lazymem._lazymem``.

The cdef is ``lazymem.h`` without the preprocessor's lines, so nothing is declared
twice. ``setup.py`` names :data:`ffibuilder`; cffi compiles it when the package is
installed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cffi import FFI

EXT = Path(__file__).resolve().parent
ROOT = EXT.parent


def cdef() -> str:
    """Return the declarations of ``lazymem.h`` as cffi's parser takes them."""
    text = (EXT / "lazymem.h").read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    inner = "\n".join(lines)
    return inner.replace('extern "C" {', "", 1).rsplit("}", 1)[0]


def compile_args() -> list[str]:
    """Return the compiler flags: optimised, and strict where a check asks for it."""
    flags = ["-std=gnu11", "-O3", "-fvisibility=hidden", "-pthread"]
    if os.environ.get("LAZYMEM_STRICT"):
        flags += ["-Wall", "-Wextra", "-Wshadow", "-Wvla", "-DLM_CHECKS"]
    return flags


ffibuilder = FFI()
ffibuilder.cdef(cdef())
ffibuilder.set_source(
    "lazymem._lazymem",
    '#include "lazymem.h"',
    sources=[str(path.relative_to(ROOT)) for path in sorted(EXT.glob("*.c"))],
    include_dirs=["ext"],
    depends=[str(path.relative_to(ROOT)) for path in sorted(EXT.glob("*.h"))],
    extra_compile_args=compile_args(),
    extra_link_args=["-pthread", "-Wl,-z,now"],
    libraries=["dl"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
