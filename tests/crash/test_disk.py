# SPDX-License-Identifier: BSD-3-Clause
"""Does the simulated disk lose what a real one may lose, and nothing else?"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash.disk import SECTOR, Disk
from tests.crash.recorder import CREATED, FOLDER, Op

OLD = b"o" * SECTOR
A, B = b"a" * SECTOR, b"b" * SECTOR
LOST = b"\0" * SECTOR


class Log:
    """A disk that holds one file, and short words for what is done to it."""

    def __init__(self, folder: Path, *files: str) -> None:
        self.inodes = {}
        for name in files:
            (folder / name).write_bytes(OLD)
            self.inodes[name] = (folder / name).stat().st_ino
        self.disk = Disk(folder)

    def do(
        self,
        kind: str,
        name: str = "f",
        offset: int = 0,
        data: bytes = b"",
        **more: int,
    ) -> None:
        to = "g" if kind in "rl" else ""
        op = {"flags": 0, "error": 0, "bytes": len(data), **more}
        inode = self.inodes.setdefault(name, 999)
        self.disk.do(
            Op(kind, path=name, to=to, inode=inode, offset=offset, data=data, **op)
        )

    def images(self, name: str = "f", most: int = 1000) -> set[bytes | None]:
        found: set[bytes | None] = set()
        for seed in range(20):
            found.update(self.disk.images(name, random.Random(seed), most))
        return found


def test_a_write_that_is_not_synced_is_there_or_not(tmp_path: Path) -> None:
    log = Log(tmp_path, "f")
    log.do("w", data=A)
    assert log.images() == {OLD, A}
    log.do("s")
    assert log.images() == {A}


def test_a_sync_that_failed_covers_nothing_ever(tmp_path: Path) -> None:
    log = Log(tmp_path, "f")
    log.do("w", data=A)
    log.do("s", error=5)
    log.do("s")
    assert log.images() == {OLD, A}
    log.do("w", data=A)
    log.do("s")
    assert log.images() == {A}


def test_a_later_write_may_arrive_without_an_earlier_one(tmp_path: Path) -> None:
    log = Log(tmp_path, "f")
    log.do("w", offset=SECTOR, data=A)
    log.do("w", offset=2 * SECTOR, data=B)
    images = log.images()
    assert {OLD, OLD + A, OLD + A + B, OLD + LOST, OLD + LOST + B} <= images
    garbage = {image[SECTOR : 2 * SECTOR] for image in images if len(image) > SECTOR}
    assert len(garbage - {A, LOST}) > 0
    assert all(image.startswith(OLD) for image in images)


def test_a_write_is_torn_between_sectors_only(tmp_path: Path) -> None:
    log = Log(tmp_path, "f")
    log.do("w", offset=100, data=b"n" * SECTOR)
    new = OLD[:100] + b"n" * (SECTOR - 100)
    tail = b"n" * 100
    assert {OLD, new, new + tail, OLD + tail, OLD + bytes(100)} <= log.images()
    assert {image[:SECTOR] for image in log.images() if image} == {OLD, new}


def test_a_cut_may_be_missing(tmp_path: Path) -> None:
    log = Log(tmp_path, "f")
    log.do("t", bytes=10)
    log.do("w", offset=10, data=b"x")
    assert log.images() == {
        OLD,
        OLD[:10],
        OLD[:10] + b"x",
        OLD[:10] + b"\0",
        OLD[:10] + b"x" + OLD[11:],
    }


def test_a_punched_hole_keeps_the_length(tmp_path: Path) -> None:
    log = Log(tmp_path, "f")
    log.do("p", bytes=10_000, flags=3)
    assert log.images() == {OLD, LOST}


def test_a_rename_is_there_or_not(tmp_path: Path) -> None:
    log = Log(tmp_path, "f", "g")
    log.do("w", data=A)
    log.do("s")
    log.do("r")
    assert log.images("f") == {None, A}
    assert log.images("g") == {OLD, A}
    log.do("s", flags=FOLDER)
    assert log.images("f") == {None}
    assert log.images("g") == {A}


def test_a_rename_may_overtake_the_data(tmp_path: Path) -> None:
    log = Log(tmp_path, "g")
    log.do("o", flags=CREATED)
    log.do("w", data=A)
    log.do("r")
    log.do("s", flags=FOLDER)
    assert {b"", LOST, A} <= log.images("g")
    assert OLD not in log.images("g")


def test_a_sync_of_a_new_file_does_not_name_it(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.do("o", flags=CREATED)
    log.do("w", data=A)
    log.do("s")
    assert log.images() == {None, A}
    log.do("s", flags=FOLDER)
    assert log.images() == {A}


def test_a_removal_is_there_or_not(tmp_path: Path) -> None:
    log = Log(tmp_path, "f")
    log.do("l")
    log.do("u")
    assert log.images("f") == {None, OLD}
    assert log.images("g") == {None, OLD}


@pytest.mark.parametrize("most", [5, 50])
def test_where_there_is_too_much_some_is_tried(tmp_path: Path, most: int) -> None:
    log = Log(tmp_path, "f")
    for i in range(1, 50):
        log.do("w", offset=i * SECTOR, data=A)
    once = list(log.disk.images("f", random.Random(1), most))
    assert len(once) <= most
    assert once == list(log.disk.images("f", random.Random(1), most))
    assert {OLD, OLD + 49 * A} <= set(once)
