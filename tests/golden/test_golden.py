# SPDX-License-Identifier: BSD-3-Clause
"""Do files of every version open, and does the specification suffice to read them?"""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

import lazymem as lm
from tests import reference_reader
from tests.golden.make import FOLDER, arrays

FILES = sorted(FOLDER.glob("*.lzm"))


def test_there_are_golden_files() -> None:
    codecs = {"v1-none", "v1-lz4", "v1-zstd"}
    assert {file.stem for file in FILES} >= codecs | {"v1-zstd-packed-index"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_golden_file_opens(file: Path) -> None:
    with lm.open(file) as store:
        assert list(store) == list(arrays())
        assert store.attrs["codec"] in file.stem
        for name, expected in arrays().items():
            assert store[name].dtype == expected.dtype
            assert store[name].shape == expected.shape
            assert store[name].tobytes() == expected.tobytes()
            assert store[name].attrs == {"of": name}
        assert store.info("fortran").order == "F"
        assert store.info("zero").index is None
        assert store.verify() == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_reference_reader_reads_a_golden_file(file: Path) -> None:
    found, manifest = reference_reader.read(file)
    for name, expected in arrays().items():
        assert found[name].dtype == expected.dtype
        assert np.array_equal(found[name], expected)
    assert manifest["attrs"]["codec"] in file.stem


def test_the_reference_reader_is_short_and_independent() -> None:
    source = inspect.getsource(reference_reader)
    assert len(source.splitlines()) <= 150
    assert "import lazymem" not in source
    assert "from lazymem" not in source
