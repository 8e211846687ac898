# SPDX-License-Identifier: BSD-3-Clause
"""The recorded side: a process that runs scenarios, each in a fork of its own.

    python -m tests.crash.child RECORDER.SO < requests > statuses

A step that fails with an OSError is tried once more, without the fault, on what the
scenario has open.  The answer tells of the error, of what the failure has left, and of
the second try.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.crash.scenarios import NAME, OTHERS, SCENARIOS
from tests.crash.state import read_state


class Run:
    """One run of a scenario."""

    def __init__(self, recorder: ctypes.CDLL, request: dict[str, Any]) -> None:
        self._recorder, self._request = recorder, request
        self._scenario = {**SCENARIOS, **OTHERS}[request["scenario"]]
        self._path = Path(request["folder"], NAME)
        self._answer: dict[str, Any] = {"errors": [], "traceback": ""}

    def steps(self) -> None:
        """Run the steps, and answer."""
        os.environ["LAZYMEM_RECORD_FOLDER"] = self._request["folder"]
        os.environ["LAZYMEM_RECORD_LOG"] = self._request["log"]
        self._recorder.recorder_begin(self._request["fault"].encode())
        try:
            opened = self._try(0, self._scenario.open, self._path)
            for number, step in enumerate(self._scenario.steps, 1):
                self._try(number - 1, step, opened)
                self._recorder.recorder_mark(number)
            if hasattr(opened, "close"):
                opened.close()
        except BaseException:
            self._answer["traceback"] = traceback.format_exc()
        Path(self._request["answer"]).write_text(json.dumps(self._answer))

    def _try(
        self, steps_done: int, function: Callable[[Any], Any], argument: Any
    ) -> Any:
        try:
            return function(argument)
        except OSError as exc:
            self._recorder.recorder_relent()
            error = {
                "errno": exc.errno,
                "text": repr(exc),
                "steps_done": steps_done,
                "names": os.listdir(self._path.parent),
                "state": self._scenario.states.index(read_state(self._path)),
            }
            self._answer["errors"].append(error)
        return function(argument)


def main() -> None:
    """Serve requests, one a line."""
    recorder = ctypes.CDLL(sys.argv[1])
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            Run(recorder, json.loads(line)).steps()
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
