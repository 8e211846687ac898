# SPDX-License-Identifier: BSD-3-Clause
"""Is an entry of a long manifest, found alone, what it is when all are parsed?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm
from lazymem import manifest
from lazymem.manifest import Entries

NAMES = [
    *(f"x{i}" for i in range(2000)),
    "x",
    "",
    'quo"te',
    "back\\slash",
    "line\nbreak",
    "\x01\x1f\x7f",
    "snow \u2603 \U0001f600 \u2028",
    '"objects":{',
    "}}",
]
ATTRS = {"objects": {"x0": 1}, "text": 'a\n"x1":{}\n}}'}
OBJECTS = {name: {"n": i, "attrs": {"name": name}} for i, name in enumerate(NAMES)}


def _lazily(data: bytes) -> dict[str, Any]:
    return manifest.decode(data, "p", lazily=True)


@pytest.fixture(scope="module")
def data() -> bytes:
    return manifest.encode(OBJECTS, ATTRS, snapshot=None)


def test_the_text_is_what_json_says(data: bytes) -> None:
    content = json.loads(data)
    assert content["objects"] == OBJECTS
    assert list(content["objects"]) == NAMES
    assert content["attrs"] == ATTRS
    assert data.count(b"\n") == len(NAMES) + 1


def test_entries_are_found_one_by_one(data: bytes) -> None:
    for names in (NAMES[-9:], NAMES, NAMES[::-1]):
        content = _lazily(data)
        objects = content["objects"]
        assert isinstance(objects, Entries)
        assert content["attrs"] == ATTRS
        assert len(objects) == len(NAMES)
        assert all(objects[name] == OBJECTS[name] for name in names)


def test_what_is_not_there_is_not_found(data: bytes) -> None:
    objects = _lazily(data)["objects"]
    for name in ("y", "n", "name", "attrs", 'x1":', 5, None):
        assert name not in objects
    assert list(objects) == NAMES
    assert dict(objects) == OBJECTS == objects


def test_other_layouts_are_read_as_the_json_they_are(data: bytes) -> None:
    content = json.loads(data)
    escaped = data.replace(b'"x5":', b'"\\u00785":')
    inside = {"attrs": content["attrs"], "more": {"objects": content["objects"]}}
    nested = json.dumps(inside, separators=(",", ":"), indent=0).encode()
    for text in (
        json.dumps(content).encode(),
        json.dumps(content, indent=1).encode(),
        json.dumps(content, indent=0, separators=(",", ":")).encode(),
        escaped,
    ):
        assert len(text) > 65536
        assert _lazily(text)["objects"]["x5"] == OBJECTS["x5"]
        assert dict(_lazily(text)["objects"]) == OBJECTS
    with pytest.raises(lm.FormatError, match="lists no objects"):
        _lazily(nested)


def test_damaged_text_is_a_format_error(data: bytes) -> None:
    objects = _lazily(data.replace(b'{"n":7,', b'{"n":7;'))["objects"]
    assert objects["x5"] == OBJECTS["x5"]
    with pytest.raises(lm.FormatError, match="p: the manifest is no JSON"):
        objects["x7"]
    with pytest.raises(lm.FormatError, match="p: the manifest is no JSON"):
        list(objects)
    with pytest.raises(lm.FormatError, match="p: the manifest is no JSON"):
        _lazily(b'{"objects":{' + b" " * 65536 + b"\n}}}")


def test_stores_of_many_arrays(tmp_path: Path) -> None:
    path = tmp_path / "s.lzm"
    with lm.Writer(path) as writer:
        for i in range(1000):
            writer.create(f"x{i}", shape=(i,), dtype="u1", attrs={"i": i})
    with lm.open(path) as store:
        assert isinstance(store._content["objects"], Entries)
        assert store["x77"].shape == (77,)
        assert store.info("x78").attrs == {"i": 78}
        assert len(store) == 1000
        assert "x1000" not in store
    with lm.open(path, "r+") as store:
        store["x5"] = np.arange(3)
        store.attrs["a"] = 1
        store.snapshot("changed")
    with lm.open(path) as store, lm.open(path, at=1) as before:
        assert store["x5"].tolist() == [0, 1, 2]
        assert store.attrs == {"a": 1}
        assert before["x5"].shape == (5,)
        assert sorted(before) == sorted(store)
