# SPDX-License-Identifier: BSD-3-Clause
"""The magics of ``%load_ext lazymem``: save, restore and go back in a notebook."""

from __future__ import annotations

import argparse
import os
import shlex
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NoReturn

from lazymem import session
from lazymem.errors import LazyMemError, SnapshotNotFoundError, UnsavedChangesError
from lazymem.extras import needs
from lazymem.linetrace import LineTrace, table
from lazymem.store import Store, open

with needs("ipython"):
    from IPython.core.error import UsageError
    from IPython.core.magic import Magics, line_cell_magic, magics_class

if TYPE_CHECKING:
    from types import FrameType

    from IPython.core.interactiveshell import InteractiveShell

_MIB = 1 << 20


@magics_class
class LazyMemMagics(Magics):  # type: ignore[misc, unused-ignore]
    """The magic ``%lazymem``, and what it has open.

    Stores stay open as long as the kernel runs: the newest one is what checkpoints go
    to, one in memory until a file is named.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(shell)
        self._stores: dict[str, Store] = {}
        self._seen: defaultdict[str, set[str]] = defaultdict(set)
        """Names that were saved to a file, or restored from it, in this kernel."""

    @line_cell_magic  # type: ignore[misc, unused-ignore]
    def lazymem(self, line: str, cell: str | None = None) -> None:
        """Save, restore and go back to the variables of a notebook.

        ::

            %lazymem save FILE [NAME ...] [--adopt] [--replace] [--pickle]
            %lazymem restore FILE [NAME ...] [--trust-pickle]
            %lazymem checkpoint NAME [--pickle]
            %lazymem rollback NAME [--trust-pickle]
            %lazymem status
            %%lazymem trace

        ``save`` appends to FILE what has changed since the last time.  ``restore``
        brings the variables back, in a new kernel, say; arrays are filled when they are
        touched, and written to in place.  ``checkpoint`` keeps the variables as they
        are, in FILE or in memory, and binds them to tracked arrays; ``rollback`` goes
        back to them, at the cost of what was written since.  ``trace`` runs a cell and
        shows which of its lines faulted how much.
        """
        words = _parser().parse_args(shlex.split(line))
        if (words.command == "trace") != (cell is not None):
            raise UsageError("%%lazymem trace is for a cell, all else for a line")
        try:
            if cell is not None:
                self._trace(cell)
            else:
                getattr(self, f"_{words.command}")(words)
        except KeyError as exc:
            raise UsageError(str(exc.args[0] if exc.args else exc)) from exc
        except (LazyMemError, OSError, ValueError) as exc:
            raise UsageError(str(exc)) from exc

    def close(self, *, discard: bool = False) -> None:
        """Close what is open, as `Store.close` does."""
        while self._stores:
            self._stores.popitem()[1].close(discard=discard)

    # ---- commands --------------------------------------------------------------------

    def _save(self, words: Any) -> None:
        names, path = self._variables(), _absolute(words.file)
        store = self._open(path, may_create=True)
        if not (words.names or words.replace):
            self._check_foreign(store, names)
        info = session.save(
            names, store, *words.names, adopt=words.adopt, pickle=words.pickle
        )
        self._report(info, names, path)

    def _restore(self, words: Any) -> None:
        store = self._open(_absolute(words.file))
        if store.unsaved:
            raise UnsavedChangesError(
                f"{store.path}: restore would mix what was saved with what was not; "
                "save, or roll back to a checkpoint, first"
            )
        found = session.restore(store, *words.names, trust_pickle=words.trust_pickle)
        self.shell.user_ns.update(found)
        self._seen[store.path].update(found)
        print(f"restored {', '.join(found) or 'nothing'} from {store.path}")

    def _checkpoint(self, words: Any) -> None:
        if not self._stores:
            store = Store()
            self._stores[store.path] = store
        names, store = self._variables(), list(self._stores.values())[-1]
        self._check_foreign(store, names)
        info, _ = session.checkpoint(names, store, words.name, pickle=words.pickle)
        self._report(info, names, store.path)

    def _rollback(self, words: Any) -> None:
        for store in reversed(self._stores.values()):
            if any(entry.name == words.name for entry in store.log()):
                break
        else:
            stores = self._stores.values()
            known = [entry.name for store in stores for entry in store.log()]
            told = ", ".join(name for name in known if name) or "none"
            raise SnapshotNotFoundError(
                f"there is no checkpoint {words.name!r}; there is {told}"
            )
        info = session.rollback(
            self.shell.user_ns, store, words.name, trust_pickle=words.trust_pickle
        )
        print(
            f"back at {words.name!r}: {info.chunks_dropped} chunks of memory given up, "
            f"{info.seconds * 1e3:.1f} ms"
        )

    def _status(self, words: Any) -> None:
        if not self._stores:
            print("no store is open; %lazymem save FILE, or checkpoint NAME, opens one")
        for store in self._stores.values():
            size = store.commit.file_bytes / _MIB
            print(f"{store.path}: {size:,.1f} MiB{', unsaved' * store.unsaved}")
            names = ", ".join(entry.name for entry in store.log() if entry.name)
            print(f"  checkpoints: {names or 'none'}")
            print(f"  variables: {', '.join(session.names_in(store)) or 'none'}")
            for name, stats in store.stats().arrays.items():
                print(
                    f"  {name}: {stats.chunks_resident:,} of {stats.chunks:,} chunks "
                    f"in memory, {stats.chunks_dirty:,} written"
                )

    def _trace(self, cell: str) -> None:
        shell, files = self.shell, set[str]()

        def is_traced(frame: FrameType) -> bool:
            code = frame.f_code
            if not files and frame.f_globals is shell.user_ns:
                files.add(code.co_filename)  # the cell's first line
            return code.co_filename in files

        with LineTrace(is_traced) as trace:
            result = shell.run_cell(cell, store_history=False)
        print(table(trace.costs, cell))
        result.raise_error()

    # ---- inside ----------------------------------------------------------------------

    def _variables(self) -> dict[str, Any]:
        """Return the user's own variables."""
        hidden, nothing = self.shell.user_ns_hidden, object()
        return {
            name: value
            for name, value in self.shell.user_ns.items()
            if hidden.get(name, nothing) is not value
        }

    def _open(self, path: str, *, may_create: bool = False) -> Store:
        """Return the store of a file, which is the newest from now on."""
        store = self._stores.pop(path, None)
        if store is None:
            is_new = may_create and not os.path.lexists(path)
            store = open(path, "x" if is_new else "r+")
        self._stores[path] = store
        return store

    def _check_foreign(self, store: Store, names: dict[str, Any]) -> None:
        """Refuse to replace what this kernel knows nothing of."""
        foreign = set(session.names_in(store)) - set(names) - self._seen[store.path]
        if foreign:
            raise UsageError(
                f"{store.path} holds {', '.join(sorted(foreign))}, which are no "
                "variables here: restore it first, save some NAMEs, or save with "
                "--replace"
            )

    def _report(self, info: session.SaveInfo, names: dict[str, Any], path: str) -> None:
        self._seen[path].update(info.saved)
        for name in info.adopted:
            self.shell.user_ns[name] = names[name]
        print(
            f"{path}: {', '.join(info.saved) or 'nothing'}; "
            f"{info.bytes_written / _MIB:,.1f} MiB appended, {info.seconds:.2f} s"
        )
        for name, reason in info.skipped.items():
            print(f"  not saved: {name}: {reason}")


def register(shell: InteractiveShell) -> None:
    """Give a shell the magics."""
    shell.register_magics(LazyMemMagics(shell))


def unregister(shell: InteractiveShell) -> None:
    """Close what the magics of a shell have open."""
    shell.magics_manager.registry["LazyMemMagics"].close()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"%lazymem: {message}; see %lazymem?")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("%lazymem", add_help=False)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, *positional: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, add_help=False)
        for word in positional:
            found.add_argument(word)
        return found

    save, restore = command("save", "file"), command("restore", "file")
    save.add_argument("--adopt", action="store_true")
    save.add_argument("--replace", action="store_true")
    for found in (save, restore):
        found.add_argument("names", nargs="*")
    for found in (save, command("checkpoint", "name")):
        found.add_argument("--pickle", action="store_true")
    for found in (restore, command("rollback", "name")):
        found.add_argument("--trust-pickle", action="store_true")
    command("status")
    command("trace")
    return parser


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
