# SPDX-License-Identifier: BSD-3-Clause
"""Do notebooks show what is in memory, without touching it?"""

from __future__ import annotations

import gc
import os
import re
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

import lazymem as lm
from lazymem import live, plot, show, strip
from tests.conftest import smooth, wait_until

CHUNK = 65536
A = smooth((1000, 1000))  # 62 chunks
NASTY = "<script>alert(1)</script> \"'& $x_1$ é"

mpl.use("Agg")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    arrays = {"a": A, "b": A[:100]}
    lm.save(tmp_path / "s.lzm", arrays, chunk_bytes=CHUNK)
    return tmp_path / "s.lzm"


class Page(HTMLParser):
    """HTML that is well-formed, has no scripts, and says something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.classes: list[str] = []
        self.text = ""
        self.lanes: list[dict[str, dict[int, float]]] = []
        """Of each strip and each state: the opacity of its cells."""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        found = dict(attrs)
        assert tag not in ("script", "img", "iframe", "link", "br")
        assert not any(name.startswith("on") for name in found)
        self.open.append(tag)
        if tag == "svg":
            self.lanes.append({"resident": {}, "dirty": {}})
        elif tag == "path":
            cells = self.lanes[-1][found["class"].removeprefix("lazymem-")]
            for start, count in re.findall(r"M(\d+) \d+h(\d+)v\d+h-\d+z", found["d"]):
                for i in range(int(start), int(start) + int(count)):
                    assert i not in cells
                    cells[i] = float(found["opacity"])

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] not in ("style", "title"):
            self.text += data + " "


def shown(what: Any) -> Page:
    return Page(what._repr_html_())


# ---- what is in memory ---------------------------------------------------------------


@pytest.mark.needs_uffd
def test_each_chunk_is_shown_in_its_state(path: Path) -> None:
    with lm.open(path, "r+") as store:
        a = store["a"]
        a.advise("random")
        flat = a.reshape(-1).view("u1")
        for chunk in (0, 7, 8, 61):
            assert flat[chunk * CHUNK] is not None
        for chunk in (8, 30):
            flat[chunk * CHUNK] = 1
        (lane,) = shown(a).lanes
        assert set(lane["resident"]) == {0, 7, 8, 30, 61}
        assert set(lane["resident"]) == set(np.flatnonzero(a.residency().mask))
        assert set(lane["dirty"]) == {8, 30}
        assert set(lane["resident"].values()) == set(lane["dirty"].values()) == {1}
        assert "5 of 62 chunks" in shown(a).text
        assert "2 of 62 chunks" in shown(a).text
        of_store = shown(store)
        assert of_store.lanes[0] == lane
        assert of_store.lanes[1] == {"resident": {}, "dirty": {}}
        assert "dirty 128 KiB" in of_store.text
        store.flush()
        assert shown(a).lanes[0] == {"resident": lane["resident"], "dirty": {}}


@pytest.mark.needs_uffd
def test_cells_are_shaded_by_their_share(tmp_path: Path, rng: Any) -> None:
    chunks = 3000
    data = np.zeros(chunks * 4096 - 5, "u1")
    lm.save(tmp_path / "s.lzm", x=data, chunk_bytes=4096)
    with lm.open(tmp_path / "s.lzm") as store:
        x = store["x"]
        x.advise("random")
        touched = rng.random(chunks) < np.linspace(-0.2, 1.2, chunks)
        assert not x[np.flatnonzero(touched) * 4096].any()
        mask = x.residency().mask
        np.testing.assert_array_equal(mask, touched)
        parts = np.array_split(mask, strip.CELLS_MAX)
        seen = strip.of_array(x)
        assert [cell.chunks for cell in seen.cells] == [len(part) for part in parts]
        assert [cell.resident for cell in seen.cells] == [sum(part) for part in parts]
        lane = shown(x).lanes[0]["resident"]
        for i, part in enumerate(parts):
            share = part.mean()
            assert (i in lane) == (share > 0)
            assert share <= lane.get(i, 0) <= max(0.3, share + 0.3)
        part = strip.of_array(x[4096 * 100 + 1 : 4096 * 200])
        assert [cell.resident for cell in part.cells] == mask[100:200].tolist()


def look_live(store: lm.Store) -> None:
    store.live(1000).close()


@pytest.mark.needs_uffd
@pytest.mark.parametrize("mode", ["r", "c", "r+"])
@pytest.mark.parametrize(
    "look",
    [
        lambda store: store._repr_html_(),
        lambda store: store["a"]._repr_html_(),
        lambda store: store["a"][::3, 5]._repr_html_(),
        lambda store: store.plot_residency(),
        look_live,
    ],
)
def test_looking_touches_nothing(
    path: Path, mode: Any, look: Callable[[lm.Store], Any]
) -> None:
    with lm.open(path, mode) as store:
        a = store["a"]
        assert a[500, 0] == A[500, 0]
        a[:10].load()
        before = store.stats().arrays
        look(store)
        assert store.stats().arrays == before
        assert list(before) == ["a"]  # and no array was opened to be shown


@pytest.mark.needs_uffd
def test_sixteen_tebibytes_take_little_memory_to_show(tmp_path: Path) -> None:
    with lm.Writer(tmp_path / "s.lzm") as writer:
        writer.create("x", 1 << 44, "u1").write(np.ones(1), at=1 << 43)
    with lm.open(tmp_path / "s.lzm") as store:
        x = store["x"]
        assert x[1 << 43] == 1
        shown(x)  # imports, and reads its style
        tracemalloc.start()
        try:
            assert shown(x).lanes[0]["resident"] == {128: 0.3}
            assert shown(store).lanes[0]["resident"] == {128: 0.3}
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


def test_of_many_objects_those_held_are_shown(tmp_path: Path) -> None:
    count = 1000
    arrays = {f"n{i}": np.arange(i, i + 3) for i in range(count)}
    lm.save(tmp_path / "s.lzm", arrays)
    with lm.open(tmp_path / "s.lzm") as store:
        last = store["n999"]
        page = shown(store)
        assert len(page.lanes) == strip.ROWS_MAX
        assert "n999" in page.text
        assert "n30 " in page.text
        assert "n31 " not in page.text
        assert "1,000 arrays" in page.text
        assert f"and {count - strip.ROWS_MAX} more arrays" in page.text
        assert last[0] == 999


# ---- every kind of array and store ---------------------------------------------------


def views(a: lm.LazyArray) -> Iterator[Any]:
    yield from (a, a[3:5], a[3:5][1:, ::-2], a.T, a[0], a[..., None], a[:0], a[2:2, 3])
    yield from (a[5, 5, ...], a.reshape(-1), a.view("i4"), a[::-1])


def test_views_of_views_are_shown(path: Path) -> None:
    with lm.open(path) as store:
        for view in views(store["a"]):
            page = shown(view)
            assert str(view.shape) in page.text
            assert str(view.dtype) in page.text
            assert ("view" in page.text) == (view is not store["a"])
            assert len(page.lanes) == (view.size > 0)


@pytest.mark.parametrize(
    "array",
    [
        np.float64(3),
        np.zeros((0, 3)),
        np.zeros(3, [(NASTY, "f4"), ("b", "u1", (2, 2))]),
        np.asfortranarray(np.ones((20, 30), ">c16")),
        np.arange(5).astype("M8[D]"),
        np.array([NASTY]),
    ],
    ids=["0-d", "empty", "records", "Fortran", "dates", "strings"],
)
def test_arrays_of_all_kinds_are_shown(tmp_path: Path, array: Any) -> None:
    lm.save(tmp_path / "s.lzm", x=array)
    for mode in ("r", "c", "r+"):
        with lm.open(tmp_path / "s.lzm", mode) as store:  # type: ignore[call-overload]
            assert str(store["x"].dtype)[:100] in shown(store["x"]).text
            assert str(store["x"].shape) in shown(store).text


def test_a_copy_is_left_to_numpy(path: Path) -> None:
    with lm.open(path) as store:
        a = store["a"]
        assert not hasattr(a + 1, "_repr_html_")
        alone = np.ndarray.__new__(lm.LazyArray, 3)
        assert alone._repr_html_() is None


@pytest.mark.needs_uffd
def test_closed_stores_are_shown(path: Path) -> None:
    for mode in ("r", "c", "r+"):
        store = lm.open(path, mode)  # type: ignore[call-overload]
        a, part = store["a"], store["a"][3:5]
        a.load()
        store.close()
        page = shown(store)
        assert "closed" in page.text
        assert "in memory 0 B" in page.text
        assert {"resident": {}, "dirty": {}} in page.lanes
        for array in (a, part):
            assert "the store is closed" in shown(array).text
            assert shown(array).lanes == [{"resident": {}, "dirty": {}}]


@pytest.mark.needs_uffd
def test_stores_without_files_and_arrays_that_are_gone_are_shown() -> None:
    with lm.Store() as store:
        assert "<memory>" in shown(store).text
        x = store.create("x", (1000, 1000), "f8", attrs={"unit": "K"})
        x[:10] = 1
        assert "unit" in shown(x).text
        del store["x"]
        assert "was deleted" in shown(x).text
        assert shown(store).lanes == []


def test_an_entry_that_is_damaged_is_told_in_its_row(path: Path) -> None:
    with lm.open(path) as store:
        store._content["objects"]["b"]["codec"] = NASTY
        page = shown(store)
        assert "bad entry in the manifest" in page.text
        assert "(1000, 1000)" in page.text
        assert len(plot.plot_residency(store, None).get_yticklabels()) == 1


def test_arrays_that_were_loaded_whole_are_shown(
    path: Path, run_python: Callable[..., CompletedProcess[str]]
) -> None:
    script = """
import sys, warnings
warnings.simplefilter("ignore")
import lazymem as lm
from lazymem import strip
store = lm.open(sys.argv[1])
a = store["a"]
for seen in strip.of_array(a), strip.of_store(store)["a"], strip.of_store(store)["b"]:
    print(seen.resident, seen.chunks, seen.dirty)
print(len(store._repr_html_()) > 0, len(a[3:5]._repr_html_()) > 0)
"""
    done = run_python(script, path, LAZYMEM_MASK="dev,syscall,user")
    assert done.stdout.split("\n")[:3] == ["62 62 0", "62 62 0", "0 7 0"], done.stderr
    assert "True True" in done.stdout


# ---- what users say ------------------------------------------------------------------


def test_what_users_say_is_escaped(tmp_path: Path) -> None:
    with lm.open(tmp_path / f"{NASTY.replace('/', '')}.lzm", "w") as store:
        store.attrs[NASTY] = NASTY
        x = store.create(NASTY, (10, 10), "f4", attrs={NASTY: [NASTY]})
        x[:] = 1
        told = store.snapshot(NASTY, message=NASTY)
        for page in (shown(store), shown(x), shown(told), shown(store.log()[0])):
            assert NASTY in page.text
        assert 'alert(1)</script> \\"' in shown(x).text  # as JSON has it


def test_long_names_are_cut(tmp_path: Path) -> None:
    lm.save(tmp_path / "s.lzm", {"&" * 1000: A[:2]}, attrs={"k": "x" * 10_000})
    with lm.open(tmp_path / "s.lzm") as store:
        page = shown(store)
        assert "&" * 199 + "…" in page.text
        assert len(page.text) < 1000


def test_a_path_that_is_no_text_is_shown(path: Path) -> None:
    with lm.open(path.rename(os.fsdecode(bytes(path.parent) + b"/\xff.lzm"))) as store:
        assert "?.lzm" in shown(store).text
        store._repr_html_().encode()


def test_snapshots_are_shown() -> None:
    with lm.Store() as store:
        store["x"] = A
        store.snapshot("first", message="all went well")
        store["x"][:5] = 0
        second = store.snapshot()
        assert "first" in shown(store.log()[0]).text
        assert "all went well" in shown(store.log()[0]).text
        assert f"snapshot {second.sequence}" in shown(second).text
        assert f"after {store.log()[0].sequence}" in shown(second).text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (131072, "128 KiB")],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert show._size(nbytes) == text
    assert show._size(2.0**63) == "8.19e+03 PiB"
    assert [show._ratio(x, 84) for x in (84 * 381_000, 180, 0)] == [
        "381,000",
        "2.14",
        "0",
    ]


# ---- figures -------------------------------------------------------------------------


@pytest.mark.needs_uffd
def test_a_figure_has_a_row_for_each_array(path: Path) -> None:
    with lm.open(path, "r+") as store:
        store["a"][50] = store["a"][700] = 1  # chunks 3 and 42: no run to go on from
        store["b"].load()
        store.create("none", (0,), "f4")
        axes = store.plot_residency()
        assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
        rows = [np.ma.getmaskarray(image.get_array())[0] for image in axes.images]
        a, a_dirty, b, b_dirty = rows
        np.testing.assert_array_equal(~a, store["a"].residency().mask)
        assert list(np.flatnonzero(~a_dirty)) == [3, 42]
        assert store.stats().arrays["a"].chunks_dirty == 2
        assert not b.any()
        assert b_dirty.all()
        axes.figure.canvas.draw()
        assert store.plot_residency(axes) is axes
        mpl.pyplot.close("all")
        store.flush()


def test_names_in_a_figure_are_text(tmp_path: Path) -> None:
    lm.save(tmp_path / "s.lzm", {r"$\nope$": A, "x" * 100: A})
    with lm.open(tmp_path / "s.lzm") as store:
        axes = store.plot_residency()
        axes.figure.canvas.draw()
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert names == [r"$\nope$", "x" * 23 + "…"]
        mpl.pyplot.close("all")


@pytest.mark.parametrize(
    ("module", "extra", "call"),
    [
        ("matplotlib.pyplot", "plot", lambda store: store.plot_residency()),
        ("anywidget", "live", lambda store: store.live()),
    ],
)
def test_without_its_package_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, extra: str, call: Any
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"lazymem.{extra}")
    monkeypatch.delattr(lm, extra)
    with lm.Store() as store, pytest.raises(ImportError, match=rf"lazymem\[{extra}\]"):
        call(store)


def test_import_does_not_load_what_only_notebooks_need(
    run_python: Callable[..., CompletedProcess[str]],
) -> None:
    script = "import sys, lazymem; print(sorted(sys.modules))"
    loaded = run_python(script).stdout
    for name in ("lazymem.show", "lazymem.strip", "matplotlib", "IPython", "html"):
        assert f"'{name}'" not in loaded


# ---- live ----------------------------------------------------------------------------


class Wire:
    """A comm that keeps what is sent."""

    sent: list[dict[str, Any]]

    def __init__(self, **_: Any) -> None:
        self.comm_id, self.sent = "1", []

    def send(self, data: Any = None, **_: Any) -> None:
        self.sent.append(data)

    def on_msg(self, _: Any) -> None: ...

    def close(self, *_: Any, **__: Any) -> None: ...


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comm.create_comm", Wire)


def last(view: live.LiveView) -> Page:
    return Page([data["state"]["html"] for data in view.comm.sent][-1])


@pytest.mark.needs_uffd
@pytest.mark.usefixtures("wire")
def test_a_live_view_sends_what_happens_and_ends_with_its_store(path: Path) -> None:
    store = lm.open(path, "r+")
    view = store.live(0.001)
    a = store["a"].load()
    wait_until(lambda: view.comm.sent and len(last(view).lanes[0]["resident"]) == 62)
    a[:500] = 1
    wait_until(lambda: len(last(view).lanes[0]["dirty"]) >= 31)
    assert view._thread.is_alive()
    store.close(discard=True)
    wait_until(lambda: not view._thread.is_alive())
    assert "closed" in last(view).text
    assert last(view).lanes[0] == {"resident": {}, "dirty": {}}
    view.close()


@pytest.mark.needs_uffd
@pytest.mark.usefixtures("wire")
def test_rates_are_of_one_second(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 100, 2))
    monkeypatch.setattr("lazymem.live.time.monotonic", lambda: next(now))
    with lm.open(path) as store:
        view = store.live(1000)
        a = store["a"]
        a.advise("random")
        for row in range(0, 1000, 100):
            assert a[row, 500] == A[row, 500]
        text = Page(view._look(store)).text
        assert "5 fills/s · decodes 320 KiB/s" in text
        read = store.stats().arrays["a"].stored_bytes_read
        assert f"reads {show._size(read / 2)}/s" in text
        assert "0 faults/s · 0 fills/s · decodes 0 B/s" in Page(view._look(store)).text
        view.close()


@pytest.mark.usefixtures("wire")
def test_a_live_view_keeps_no_store(path: Path) -> None:
    store = lm.open(path)
    view, alive = store.live(0.001), weakref.ref(store)
    part = np.asarray(store["a"].load())[5]
    wait_until(lambda: view.comm.sent)
    del store
    gc.collect()
    wait_until(lambda: not view._thread.is_alive())
    assert alive() is None
    assert "gone" in last(view).text
    np.testing.assert_array_equal(part, A[5])
    view.close()


@pytest.mark.usefixtures("wire")
def test_a_live_view_of_nothing_is_shown_and_its_end_ends_its_thread() -> None:
    with lm.Store() as store:
        view = store.live(0.001)
        store.create("x", 5, "f4")
        wait_until(lambda: view.comm.sent and "1 array " in last(view).text)
        view.close()
        assert not view._thread.is_alive()
        view.close()
    assert not [t for t in threading.enumerate() if t.name == "lazymem-live"]


CELL = """
import pathlib, sys
import lazymem as lm
store = lm.open({path!r})
view = store.live(0.01)
a = store["a"].load()
while not pathlib.Path({done!r}).exists():
    a.sum()
store.close()
view._thread.join()
"""


@pytest.mark.needs_uffd
def test_a_live_view_is_up_to_date_while_a_cell_runs(path: Path) -> None:
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import KernelManager

    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager, done = KernelManager(), path.with_name("done")
    manager._kernel_spec = KernelSpec(argv=argv, display_name="", language="python")
    manager.start_kernel(cwd=str(path.parent))
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        cell = client.execute(CELL.format(path=str(path), done=str(done)))
        for state in states(client, cell):
            if len(state.lanes[0]["resident"]) == 62:
                done.touch()  # no sooner does the cell end
        assert "closed" in state.text
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def states(client: Any, cell: str) -> Iterator[Page]:
    """Yield what a widget shows, until the cell that made it has ended."""
    while True:
        message = client.get_iopub_msg(timeout=60)
        content = message["content"]
        assert message["msg_type"] not in ("error", "stream"), content
        assert message["parent_header"].get("msg_id") == cell
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            return
        if message["msg_type"] == "comm_msg":
            yield Page(content["data"]["state"]["html"])


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf")])
def test_a_live_view_needs_an_interval(interval: float) -> None:
    with lm.Store() as store, pytest.raises(ValueError, match="positive"):
        store.live(interval)


def test_a_closed_store_has_no_live_view(path: Path) -> None:
    store = lm.open(path)
    store.close()
    with pytest.raises(lm.ClosedError, match="live"):
        store.live()
