# SPDX-License-Identifier: BSD-3-Clause
"""The variables of a program in a store: saved, restored, and gone back to.

How values become objects of the store::

    values --document.py--> JSON that says how they hang together --> object ".session"
                       '--> arrays --memory.py--> objects, named after the variables

Arrays, frames and plain values are taken apart by one module for each package:
plain, arrays (with objects), frames, labelled, tensors; and pickled for the rest.
"""

from lazymem.session.document import UnsupportedValueError
from lazymem.session.state import (
    SaveInfo,
    checkpoint,
    names_in,
    restore,
    rollback,
    save,
)

__all__ = [
    "SaveInfo",
    "UnsupportedValueError",
    "checkpoint",
    "names_in",
    "restore",
    "rollback",
    "save",
]
