# SPDX-License-Identifier: BSD-3-Clause
"""Does Pillow make images of arrays?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lazymem as lm
from tests.conftest import smooth
from tests.consumers.conftest import save
from tests.faults.test_damage import flip, places

pytestmark = pytest.mark.needs_uffd
PIXELS = smooth((2000, 300), "i4").astype("u1")


def test_an_image_of_a_part(tmp_path: Path) -> None:
    with lm.open(save(tmp_path / "s.lzm", PIXELS)) as store:
        pixels = store["a"]
        image = Image.fromarray(pixels[100:200])
        np.testing.assert_array_equal(np.asarray(image), PIXELS[100:200])
        assert pixels.residency().chunks_resident <= 2
        small = Image.fromarray(pixels).resize((30, 200))
        expected = Image.fromarray(PIXELS).resize((30, 200))
        np.testing.assert_array_equal(np.asarray(small), np.asarray(expected))


def test_damage_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "s.lzm", PIXELS)
    flip(path, places(path)["payload"] + 3)
    with lm.open(path) as store, pytest.raises(lm.ChecksumError):
        Image.fromarray(store["a"]).resize((30, 200))
