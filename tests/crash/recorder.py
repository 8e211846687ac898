# SPDX-License-Identifier: BSD-3-Clause
"""Children whose file operations are recorded, and spoiled, by recorder.c."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engine.build import CC

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EVER = 2**31
_RECORD = struct.Struct("<IIiIIIQQQ")

CREATED, TRUNCATED, FOLDER = 1, 2, 1
"""Flags of an open, and of a sync."""


@dataclass(frozen=True)
class Op:
    """An operation on the folder, as recorder.c logs it."""

    kind: str
    """o(pen), w(rite), t(runcate), p (fallocate), s(ync), r(ename), l(ink), u(nlink),
    c(lose), or m(ark)."""
    flags: int
    error: int
    """0, or the errno that it failed with."""
    path: str
    to: str
    inode: int
    offset: int
    bytes: int
    data: bytes

    def __str__(self) -> str:
        name = os.path.basename(self.path) + (self.to and f" -> {self.to}")
        place = f" [{self.offset}, {self.offset + self.bytes})" if self.bytes else ""
        failed = f" failed: {os.strerror(self.error)}" if self.error else ""
        return f"{self.kind} {name}{place}{failed}"


def read_log(path: Path) -> list[Op]:
    """Return the operations of a log."""
    data, at, ops = path.read_bytes(), 0, []
    while at < len(data):
        kind, flags, error, *lengths, inode, offset, nbytes = _RECORD.unpack_from(
            data, at
        )
        at += _RECORD.size
        parts = []
        for length in lengths:
            parts.append(data[at : at + length])
            at += length
        name, to = (os.fsdecode(part) for part in parts[:2])
        ops.append(
            Op(chr(kind), flags, error, name, to, inode, offset, nbytes, parts[2])
        )
    return ops


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the operations of some kinds, counted from 1."""

    action: str
    """``kill`` before the first; ``fail`` with `error`; ``short``: half of a write;
    ``full``: the first is short, the later ones fail; ``swallow``: a sync that does
    nothing."""
    kinds: str
    """Letters as in `Op`, or ``*``."""
    first: int = 1
    last: int = EVER
    error: int = 0

    def __str__(self) -> str:
        return f"{self.action} {self.kinds} {self.first} {self.last} {self.error}"


@dataclass(frozen=True)
class Result:
    """What has become of a run."""

    status: int
    """The exit status of the child; -9: it was killed."""
    ops: list[Op]
    answer: dict[str, Any]
    """What the child has to say; see child.py."""

    def check(self, what: str) -> None:
        """Fail if the child has not come to its end."""
        if self.status != 0 or self.answer["traceback"]:
            text = self.answer.get("traceback")
            raise AssertionError(f"{what}: exit status {self.status}\n{text}")


class Recorder:
    """A process that runs scenarios, each in a fork of its own."""

    def __init__(self, folder: Path) -> None:
        library = folder / "recorder.so"
        flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        command = [*CC.split(), *flags, "-pthread", HERE / "recorder.c", "-o", library]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self._log, self._answer = folder / "log", folder / "answer"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.child", library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "LD_PRELOAD": str(library)},
        )

    def run(self, scenario: str, folder: Path, fault: Fault | None = None) -> Result:
        """Run a scenario in a folder that its setup has made."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._answer.unlink(missing_ok=True)
        request = {
            "scenario": scenario,
            "folder": os.path.realpath(folder),
            "fault": str(fault or ""),
            "log": str(self._log),
            "answer": str(self._answer),
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        answer = {}
        if self._answer.exists():
            answer = json.loads(self._answer.read_text(encoding="utf-8"))
        return Result(status, read_log(self._log), answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0
