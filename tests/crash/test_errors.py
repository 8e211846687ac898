# SPDX-License-Identifier: BSD-3-Clause
"""Does an operation that the disk refuses raise, spoil nothing, and succeed later?"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

import lazymem as lm
from lazymem.testing import failing
from tests.crash.conftest import Bench
from tests.crash.explore import DEPTH, IS_FULL
from tests.crash.recorder import Fault
from tests.crash.scenarios import CASES, NAME, SCENARIOS, A, B
from tests.crash.state import State, read_state

REFUSALS = [
    ("fail", "w", errno.ENOSPC),
    ("full", "w", errno.ENOSPC),
    ("fail", "w", errno.EIO),
    ("fail", "s", errno.EIO),
    ("fail", "o", errno.EROFS),
    ("fail", "r", errno.EIO),
]


@pytest.mark.parametrize("name", CASES)
def test_refused(bench: Bench, name: str) -> None:
    faults = [fault for how in REFUSALS for fault in bench.faults(name, *how)]
    assert {"w", "s"} <= {fault.kinds for fault in faults}
    for fault in faults:
        refuse(bench, name, fault)


def refuse(bench: Bench, name: str, fault: Fault) -> None:
    states = SCENARIOS[name].states
    path, disk, result = bench.run(name, fault)
    result.check(f"{name}, {fault}")
    (failed,) = result.answer["errors"]
    assert failed["errno"] == fault.error, (fault, failed)
    before = failed["steps_done"]
    # What a sync was to make durable may count, whatever the system says.
    may_count = fault.kinds == "s"
    assert failed["state"] in ((before, before + 1) if may_count else (before,)), fault
    is_there = states[failed["state"]] is not None
    assert failed["names"] == ([NAME] if is_there else []), fault
    # And the second try:
    assert read_state(path) == states[-1], fault
    assert os.listdir(path.parent) == [NAME], fault
    # A sync that failed has lost something; after other errors little is new.
    if fault.kinds == "s" or IS_FULL:
        depth = max(4, DEPTH // (4 if fault.kinds == "s" else 20))
        bench.check(name, str(fault), disk, result, depth)


@pytest.mark.parametrize("is_lost", [False, True])
def test_what_a_failed_sync_has_lost_is_not_committed(
    tmp_path: Path, is_lost: bool
) -> None:
    path = tmp_path / NAME
    lm.save(path, a=A)
    with ExitStack() as stack:
        store = lm.open(path, "r+")
        stack.callback(store.close, discard=True)
        at = path.stat().st_size + 10
        store["b"] = B
        with (
            failing("sync", errno.EIO, count=1),
            pytest.raises(OSError, match="Errno 5"),
        ):
            store.flush()
        if is_lost:
            with path.open("r+b") as file:
                file.seek(at)
                file.write(b"?")
            with pytest.raises(OSError, match="Errno 5"):
                store.flush()
        else:
            store.flush()
    both = {"a": A, "b": B}
    assert read_state(path) == State.of({"a": A} if is_lost else both)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("action", "kinds", "error"),
    [("short", "w", 0), ("fail", "w", errno.EINTR)],
    ids=["short", "interrupted"],
)
def test_writes_go_on(
    bench: Bench, name: str, action: str, kinds: str, error: int
) -> None:
    for fault in bench.faults(name, action, kinds, error):
        path, _, result = bench.run(name, fault)
        result.check(str(fault))
        assert result.answer["errors"] == [], fault
        assert read_state(path) == SCENARIOS[name].states[-1]
