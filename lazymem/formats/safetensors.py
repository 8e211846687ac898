# SPDX-License-Identifier: BSD-3-Clause
"""Tensors of models, as safetensors keeps them.

The library checks the header and says what is in the file; the bytes are read from the
file itself, since numpy has no types for some of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lazymem.formats.contents import Contents, library, naming
from lazymem.formats.flat import file_source

if TYPE_CHECKING:
    from contextlib import ExitStack

_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
}
_BIT_PATTERNS = {
    "BF16": ("<u2", "bfloat16"),
    "F8_E4M3": ("u1", "float8_e4m3fn"),
    "F8_E5M2": ("u1", "float8_e5m2"),
    "F8_E8M0": ("u1", "float8_e8m0fnu"),
}
"""Types that numpy lacks: integers of their width, and what ml_dtypes calls them."""


def open_file(path: str, stack: ExitStack) -> Contents:
    """Open a safetensors file.

    Notes
    -----
    What numpy has no type for is kept bit by bit as integers, whose attribute ``dtype``
    has the type's name.
    """
    safe_open = library("safetensors", "safetensors").safe_open
    contents = Contents(path)
    file = stack.enter_context(open(path, "rb"))
    with naming(path), safe_open(path, "np") as tensors:
        contents.attrs = contents.json_attrs(tensors.metadata() or {})
        # The format has no gaps, which the library has checked.
        start = 8 + int.from_bytes(file.read(8), "little")
        for name in tensors.offset_keys():
            part = tensors.get_slice(name)
            kind, shape = part.get_dtype(), tuple(part.get_shape())
            code, attrs = _DTYPES.get(kind), {}
            if kind in _BIT_PATTERNS:
                code, attrs["dtype"] = _BIT_PATTERNS[kind]
            if code is None:
                raise ValueError(f"tensor {name!r}: dtype {kind} is not known")
            dtype = np.dtype(code)
            source = file_source(file, shape, dtype, start=start, attrs=attrs)
            contents.add(name, source)
            start += math.prod(shape) * dtype.itemsize
    return contents
