# SPDX-License-Identifier: BSD-3-Clause
"""The command: what each verb prints and leaves behind, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import lazymem as lm
from lazymem import cli

if TYPE_CHECKING:
    from pathlib import Path

CHUNK_BYTES = 4096

ARRAYS = {
    "fortran": np.asfortranarray(np.arange(6000.0).reshape(60, 100)),
    "big-endian": np.arange(5000, dtype=">i4"),
    "structured": np.ones(900, dtype=[("a", "<f8"), ("b", ">i2", (3,))]),
    "dates": np.arange("2020-01", "2020-03", dtype="M8[D]"),
    "text": np.array(["a", "häß", ""]),
    "scalar": np.array(5.0),
    "empty": np.empty((0, 3), "f4"),
    "zeros": np.zeros(10_000),
}


def run(*args: object) -> Result:
    return CliRunner().invoke(cli.cli, [str(arg) for arg in args])


def run_process(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, **options
    )


def assert_one_line_error(result: Result, text: str) -> None:
    assert result.exit_code == 1
    assert text in result.output
    assert result.output.count("\n") == 1


@pytest.fixture
def noise() -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(20)
    return rng.integers(0, 256, 5 * CHUNK_BYTES, dtype=np.uint8)


@pytest.fixture
def store(tmp_path: Path, noise: np.ndarray[Any, Any]) -> Path:
    path = tmp_path / "store.lzm"
    arrays = {"noise": noise, "ramp": np.arange(1000)}
    lm.save(path, arrays, chunk_bytes=CHUNK_BYTES, attrs={"by": "test"})
    return path


@pytest.fixture
def damaged(store: Path, noise: np.ndarray[Any, Any]) -> tuple[Path, int]:
    """Flip a byte of chunk 3 of "noise"; return the file and the chunk's offset."""
    data = bytearray(store.read_bytes())
    offset = data.index(noise[3 * CHUNK_BYTES : 4 * CHUNK_BYTES].tobytes())
    data[offset + 100] ^= 1
    store.write_bytes(data)
    return store, offset


# ---- pack ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::lazymem.LazyMemWarning")
def test_pack_npy_and_npz_keeps_every_array(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", ARRAYS["fortran"])
    np.savez(tmp_path / "two.npz", x=ARRAYS["big-endian"], y=ARRAYS["text"])
    out = tmp_path / "out.lzm"
    result = run("pack", out, tmp_path / "one.npy", tmp_path / "two.npz", "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert summary["objects"] == 3
    assert summary["file_bytes"] == out.stat().st_size
    with lm.open(out) as packed:
        np.testing.assert_array_equal(packed["one"], ARRAYS["fortran"])
        np.testing.assert_array_equal(packed["x"], ARRAYS["big-endian"])
        np.testing.assert_array_equal(packed["y"], ARRAYS["text"])
        nbytes = sum(packed.info(name).nbytes for name in packed)
    assert summary["nbytes"] == nbytes


def test_pack_prints_summary(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(1000))
    result = run("pack", tmp_path / "out.lzm", tmp_path / "x.npy")
    assert result.exit_code == 0
    words = result.stdout.split()
    assert words[words.index("objects") + 1] == "1"
    assert words[words.index("bytes") + 1 :][:2] == ["8.0", "kB"]


def test_pack_options_reach_the_store(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(100_000))
    out = tmp_path / "out.lzm"
    options = ("--codec", "lz4", "--level", "5", "--no-shuffle", "--chunk", "8K")
    assert run("pack", out, tmp_path / "x.npy", *options).exit_code == 0
    with lm.open(out) as packed:
        info = packed.info("x")
    assert (info.codec, info.level, info.shuffle) == ("lz4", 5, 0)
    assert info.chunk_bytes == 8192


@pytest.mark.parametrize(
    ("text", "chunk_bytes"),
    [("65536", 1 << 16), ("64K", 1 << 16), ("64KiB", 1 << 16), ("1M", 1 << 20)],
)
def test_pack_chunk_takes_units(tmp_path: Path, text: str, chunk_bytes: int) -> None:
    np.save(tmp_path / "x.npy", np.arange(10))
    out = tmp_path / "out.lzm"
    assert run("pack", out, tmp_path / "x.npy", "--chunk", text).exit_code == 0
    with lm.open(out) as packed:
        assert packed.info("x").chunk_bytes == chunk_bytes


def test_pack_chunk_that_is_no_number_exits_2(tmp_path: Path) -> None:
    result = run("pack", tmp_path / "out.lzm", "x.npy", "--chunk", "64Q")
    assert result.exit_code == 2
    assert "64Q" in result.output


def test_pack_chunk_that_is_no_power_of_two_exits_1(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(10))
    result = run("pack", tmp_path / "out.lzm", tmp_path / "x.npy", "--chunk", "5K")
    assert_one_line_error(result, "power of two")


def test_pack_onto_npy_exits_2_and_keeps_it(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(10))
    before = (tmp_path / "x.npy").read_bytes()
    assert run("pack", tmp_path / "x.npy", tmp_path / "x.npy").exit_code == 2
    assert (tmp_path / "x.npy").read_bytes() == before


def test_pack_of_python_objects_exits_1_and_writes_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([None]), allow_pickle=True)
    result = run("pack", tmp_path / "out.lzm", tmp_path / "x.npy")
    assert_one_line_error(result, "Python objects")
    assert os.listdir(tmp_path) == ["x.npy"]


def test_pack_of_cut_off_npz_exits_1(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.arange(1000))
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[:-200])
    result = run("pack", tmp_path / "out.lzm", tmp_path / "x.npz")
    assert_one_line_error(result, "x.npz")


def test_pack_of_missing_file_exits_1_and_names_it(tmp_path: Path) -> None:
    result = run("pack", tmp_path / "out.lzm", tmp_path / "nope.npy")
    assert_one_line_error(result, "nope.npy: No such file")


# ---- unpack --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARRAYS)
def test_unpack_gives_back_the_very_npy_file(tmp_path: Path, name: str) -> None:
    source = tmp_path / f"{name}.npy"
    np.save(source, ARRAYS[name])
    store, folder = tmp_path / "s.lzm", tmp_path / "out"
    lm.save(store, source, chunk_bytes=CHUNK_BYTES)
    result = run("unpack", store, "--to", folder)
    assert result.exit_code == 0
    assert result.stdout == f"{folder / source.name}\n"
    assert (folder / source.name).read_bytes() == source.read_bytes()
    assert os.listdir(folder) == [source.name]


def test_unpack_named_object_leaves_the_others(store: Path, tmp_path: Path) -> None:
    result = run("unpack", store, "ramp", "--to", tmp_path / "out", "--json")
    assert json.loads(result.stdout) == {"ramp": str(tmp_path / "out/ramp.npy")}
    assert os.listdir(tmp_path / "out") == ["ramp.npy"]


def test_unpack_unknown_name_exits_1_and_suggests(store: Path, tmp_path: Path) -> None:
    result = run("unpack", store, "ram", "--to", tmp_path / "out")
    assert_one_line_error(result, "did you mean 'ramp'?")


def test_unpack_name_with_slash_makes_folders(tmp_path: Path) -> None:
    lm.save(tmp_path / "s.lzm", {"a/b/c": np.arange(3)})
    assert run("unpack", tmp_path / "s.lzm", "--to", tmp_path / "out").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out/a/b/c.npy"), np.arange(3))


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "a//x", "a/", ".", "..", "a/./x", "x\0"]
)
def test_unpack_name_that_is_no_path_inside_is_refused(
    tmp_path: Path, name: str
) -> None:
    lm.save(tmp_path / "s.lzm", {"good": np.arange(3), name: np.arange(3)})
    result = run("unpack", tmp_path / "s.lzm", "--to", tmp_path / "out")
    assert_one_line_error(result, f"object {name!r}")
    assert os.listdir(tmp_path) == ["s.lzm"]


def test_unpack_through_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    lm.save(tmp_path / "s.lzm", {"link/x": np.arange(3)})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/link").symlink_to(tmp_path / "elsewhere")
    result = run("unpack", tmp_path / "s.lzm", "--to", tmp_path / "out")
    assert_one_line_error(result, "object 'link/x'")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_unpack_onto_existing_file_needs_force(store: Path, tmp_path: Path) -> None:
    taken = tmp_path / "ramp.npy"
    taken.write_text("mine")
    result = run("unpack", store, "--to", tmp_path)
    assert_one_line_error(result, "--force")
    assert taken.read_text() == "mine"
    assert not (tmp_path / "noise.npy").exists()
    assert run("unpack", store, "--to", tmp_path, "--force").exit_code == 0
    np.testing.assert_array_equal(np.load(taken), np.arange(1000))


def test_unpack_with_force_replaces_link_and_not_its_target(
    store: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "ramp.npy").symlink_to(tmp_path / "precious")
    assert run("unpack", store, "--to", tmp_path, "--force").exit_code == 0
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "ramp.npy").is_symlink()


def test_unpack_of_damaged_object_exits_1_and_leaves_no_file(
    damaged: tuple[Path, int], tmp_path: Path
) -> None:
    result = run("unpack", damaged[0], "noise", "--to", tmp_path / "out")
    assert_one_line_error(result, "chunk 3")
    assert os.listdir(tmp_path / "out") == []


# ---- ls and info ---------------------------------------------------------------------


def test_ls_shows_a_row_for_each_object(store: Path) -> None:
    result = run("ls", store)
    header, noise, ramp = (line.split() for line in result.stdout.splitlines())
    assert header[:3] == ["name", "shape", "dtype"]
    assert noise[:3] == ["noise", "(20480,)", "uint8"]
    assert noise[3:] == ["20.5", "kB", "20.5", "kB", "1.0", "zstd"]
    assert ramp[0] == "ramp"


def test_ls_json_gives_facts_of_each_object(store: Path) -> None:
    noise, ramp = json.loads(run("ls", store, "--json").stdout)
    assert noise["name"] == "noise"
    assert noise["shape"] == [5 * CHUNK_BYTES]
    assert noise["stored_bytes"] == noise["nbytes"] == 5 * CHUNK_BYTES
    assert (ramp["dtype"], ramp["chunks"]) == ("<i8", 2)


def test_ls_of_long_name_cuts_nothing_off(tmp_path: Path) -> None:
    name = "long" * 100
    lm.save(tmp_path / "s.lzm", {name: np.arange(3)})
    assert name in run("ls", tmp_path / "s.lzm").stdout


def test_ls_of_name_with_escape_sequence_shows_it_escaped(tmp_path: Path) -> None:
    lm.save(tmp_path / "s.lzm", {"\x1b[31mred": np.arange(3), "[b]x": np.arange(3)})
    output = run("ls", tmp_path / "s.lzm").stdout
    assert "\x1b" not in output
    assert r"\x1b[31mred" in output
    assert "[b]x" in output


def test_ls_of_other_file_exits_1(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(100))
    assert_one_line_error(run("ls", tmp_path / "x.npy"), "not a lazymem store")


def test_info_of_store_gives_its_facts(store: Path) -> None:
    facts = json.loads(run("info", store, "--json").stdout)
    assert facts["path"] == str(store)
    assert facts["file_bytes"] == store.stat().st_size
    assert (facts["objects"], facts["sequence"], facts["torn_bytes"]) == (2, 1, 0)
    assert facts["writer"] == f"lazymem {lm.__version__}"
    assert facts["attrs"] == {"by": "test"}


def test_info_of_object_gives_its_facts(store: Path) -> None:
    result = run("info", store, "noise")
    facts = dict(line.split(None, 1) for line in result.stdout.splitlines())
    assert facts["chunk_bytes"].strip() == str(CHUNK_BYTES)
    assert facts["shape"].strip() == "[20480]"


def test_info_of_torn_store_warns_in_one_line(store: Path) -> None:
    with store.open("ab") as file:
        file.write(b"x" * 500)
    code = f"import sys; sys.argv[1:] = ['info', {str(store)!r}, '--json']"
    done = run_process(f"{code}; from lazymem.__main__ import main; main()")
    assert done.returncode == 0
    assert json.loads(done.stdout)["torn_bytes"] == 500
    assert done.stderr.startswith(f"Warning: {store}: 500 bytes")
    assert done.stderr.count("\n") == 1


def test_info_shows_objects_and_attributes_as_a_tree(tmp_path: Path) -> None:
    with lm.Writer(tmp_path / "s.lzm", attrs={"title": "T" * 99}) as writer:
        writer.create("a/b/x", (3, 4), "f4", attrs={"unit": "\x1b[1m"})
        for i in range(102):
            writer.create(f"many/{i}", 1, "u1")
    lines = run("info", tmp_path / "s.lzm").stdout.splitlines()
    tree = [line.rstrip() for line in lines[lines.index("") + 1 :]]
    assert tree[:6] == [
        str(tmp_path / "s.lzm"),
        f'├── @title: "{"T" * 59}...',
        "├── a/",
        "│   └── b/",
        "│       └── x  (3, 4) float32, 48 bytes, 0 bytes stored",
        r'│           └── @unit: "\u001b[1m"',
    ]
    assert tree[6] == "└── many/"
    assert tree[7].startswith("    ├── 0  (1,) uint8")
    assert tree[-1] == "    └── and 2 more: lazymem ls shows all"
    assert len(tree) == 7 + 101


# ---- verify --------------------------------------------------------------------------


def test_verify_of_intact_store_exits_0(store: Path) -> None:
    result = run("verify", store)
    assert result.exit_code == 0
    assert result.stdout == f"{store}: 2 objects, 28.5 kB: all intact\n"


def test_verify_after_flipped_byte_exits_3_and_names_the_chunk(
    damaged: tuple[Path, int],
) -> None:
    path, offset = damaged
    result = run("verify", path)
    assert result.exit_code == 3
    (line,) = result.stdout.splitlines()
    assert f"object 'noise', chunk 3, offset {offset}:" in line


def test_verify_json_after_flipped_byte_gives_the_place(
    damaged: tuple[Path, int],
) -> None:
    path, offset = damaged
    result = run("verify", path, "--json")
    assert result.exit_code == 3
    (place,) = json.loads(result.stdout)["damage"]
    assert place["error"] == "ChecksumError"
    assert (place["object"], place["chunk"], place["offset"]) == ("noise", 3, offset)


def test_verify_of_cut_off_store_exits_3(store: Path) -> None:
    os.truncate(store, store.stat().st_size - 10)
    result = run("verify", store)
    assert result.exit_code == 3
    assert "no intact commit record" in result.stdout


def test_verify_of_other_file_exits_1(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(100))
    assert_one_line_error(run("verify", tmp_path / "x.npy"), "not a lazymem store")


# ---- history -------------------------------------------------------------------------


@pytest.fixture
def lived(tmp_path: Path) -> Path:
    """Make a store of some states, the last of them flushed."""
    path = tmp_path / "lived.lzm"
    with lm.open(path, "w") as store:
        store["rows"] = np.zeros((100, 10))
        store["gone"] = [1]
        store.snapshot("2024")
        store["rows"] = np.arange(1000.0).reshape(100, 10)
        del store["gone"]
        store["new"] = [2]
        store.snapshot("later", "with\nnumbers")
        store["new"] = [3]
        store.flush()
    return path


def test_log_lists_snapshots(lived: Path) -> None:
    entries = json.loads(run("log", lived, "--json").stdout)
    assert [entry["sequence"] for entry in entries] == [2, 3]
    assert [entry["name"] for entry in entries] == ["2024", "later"]
    assert [entry["parent"] for entry in entries] == [None, 2]
    assert entries[1]["message"] == "with\nnumbers"
    text = run("log", lived).stdout
    assert text.count("\n") == 3
    assert r"with\nnumbers" in text
    assert json.loads(run("info", lived, "--json").stdout)["snapshots"] == 2


@pytest.mark.parametrize("at", ["2024", "2"])
def test_at_shows_an_earlier_state_by_name_or_number(
    lived: Path, tmp_path: Path, at: str
) -> None:
    listed = json.loads(run("ls", lived, "--at", at, "--json").stdout)
    assert [entry["name"] for entry in listed] == ["rows", "gone"]
    facts = json.loads(run("info", lived, "--at", at, "--json").stdout)
    assert facts["sequence"] == 2
    assert run("verify", lived, "--at", at).exit_code == 0
    assert run("unpack", lived, "--at", at, "--to", tmp_path).exit_code == 0
    assert np.load(tmp_path / "rows.npy").sum() == 0
    assert_one_line_error(run("ls", lived, "--at", "9"), "it has '2024', 'later'")


def test_diff_tells_what_differs(lived: Path) -> None:
    lines = run("diff", lived, "2024", "later").stdout.splitlines()
    assert lines == ["- gone", "+ new", "~ rows: 1 chunk, axis 0 at 0:100"]
    assert run("diff", lived, "later").stdout == "~ new: 1 chunk, axis 0 at 0\n"
    found = json.loads(run("diff", lived, "2", "3", "--json").stdout)
    assert (found["removed"], found["added"]) == (["gone"], ["new"])
    assert found["changed"]["rows"]["ranges"] == [[0, 100]]
    assert run("diff", lived, "2024", "2024").stdout == ""


def test_diff_tells_of_many_rows_in_short(lived: Path) -> None:
    with lm.open(lived, "r+") as store:
        rows = np.asarray(store["rows"]).copy()
        rows[::2] = -1
        store["rows"] = rows
        store["rows"].attrs["unit"] = "K"
        store["new"] = np.zeros(3)
        store.attrs["by"] = "me"
        store.flush()
    assert run("diff", lived, "later").stdout.splitlines() == [
        "attributes of the store",
        "~ rows: attributes; 1 chunk, axis 0 at 0, 2, 4, 6, 8, 10, 12, 14, and 42 more",
        "~ new: shape, dtype or order",
    ]


def test_restore_loses_nothing(lived: Path) -> None:
    assert run("restore", lived, "2024").exit_code == 0
    with lm.open(lived) as store:
        assert list(store) == ["rows", "gone"]
        kept = store.log()[-1]
        assert kept.message == "before going back to 2024"
    assert lm.open(lived, at=kept)["new"].tolist() == [3]
    done = json.loads(run("restore", lived, "later", "--json").stdout)
    assert done["restored"]["name"] == "later"
    assert lm.open(lived)["new"].tolist() == [2]


def test_delete_snapshot_forgets_it(lived: Path) -> None:
    result = run("delete-snapshot", lived, "2024", "--json")
    assert [entry["name"] for entry in json.loads(result.stdout)] == ["later"]
    assert_one_line_error(run("delete-snapshot", lived, "2024"), "no snapshot 2024")
    assert "0 snapshots are left" in run("delete-snapshot", lived, "later").stdout
    assert lm.open(lived)["new"].tolist() == [3]


def test_prune_and_compact_keep_what_is_left(lived: Path) -> None:
    run("delete-snapshot", lived, "2024")
    assert json.loads(run("prune", lived, "--json").stdout)["freed_bytes"] >= 0
    assert "given back" in run("prune", lived).stdout
    sizes = json.loads(run("compact", lived, "--json").stdout)
    assert 0 < sizes["after_bytes"] == lived.stat().st_size <= sizes["before_bytes"]
    assert run("compact", lived, "--codec", "none").exit_code == 0
    with lm.open(lived) as store:
        assert store.verify() == []
        assert {store.info(name).codec for name in store} == {"none"}
        assert [entry.name for entry in store.log()] == ["later"]
    assert run("compact", lived, "--codec", "gzip").exit_code == 2


def test_repair_of_a_damaged_end(lived: Path) -> None:
    assert (
        "the last state, commit 4, is intact" in run("verify", "--repair", lived).stdout
    )
    with lm.open(lived) as store:
        offset = store.log()[-1].offset
    data = bytearray(lived.read_bytes())
    data[offset + 128] ^= 1  # the first byte of the commit behind it
    lived.write_bytes(data)
    assert run("verify", lived).exit_code == 3
    text = run("verify", "--repair", lived).stdout
    assert "commit 4: " in text
    assert "commit 3, later is intact, and is the last state again" in text
    assert run("verify", lived).exit_code == 0
    done = json.loads(run("verify", "--repair", lived, "--json").stdout)
    assert not done["is_repaired"]
    assert run("verify", "--repair", "--at", "2024", lived).exit_code == 2


def test_a_store_that_is_written_is_one_line(lived: Path) -> None:
    with lm.open(lived, "r+"):
        assert_one_line_error(run("restore", lived, "2024"), "this process has it open")


# ---- the command ---------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["click", "rich", "tqdm"])
def test_command_without_extra_exits_1_and_says_what_to_install(missing: str) -> None:
    done = run_process(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from lazymem.__main__ import main\n"
        "sys.exit(main())"
    )
    assert done.returncode == 1
    needs = f"lazymem: the command needs {missing}: pip install 'lazymem[cli]'\n"
    assert done.stderr == needs
    assert done.stdout == ""


def test_library_works_without_extra(tmp_path: Path) -> None:
    done = run_process(
        "import sys\n"
        "for name in ('click', 'rich', 'tqdm'): sys.modules[name] = None\n"
        "import lazymem as lm\n"
        "lm.save('x.lzm', {'x': range(3)})\n"
        "print(lm.open('x.lzm')['x'].sum())",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.stdout == "3\n", done.stderr


def test_interrupted_command_exits_130_without_traceback(tmp_path: Path) -> None:
    fifo = tmp_path / "x.npy"
    os.mkfifo(fifo)
    out = tmp_path / "out.lzm"
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import sys; sys.argv[1:] = ['pack', {str(out)!r}, {str(fifo)!r}]\n"
        "from lazymem.__main__ import main\n"
        "sys.exit(main())"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True
    )
    with child, fifo.open("wb"):  # opens once the child reads from it
        child.send_signal(signal.SIGINT)
        _, prose = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in prose
    assert os.listdir(tmp_path) == ["x.npy"]


def test_closed_stdout_exits_1_without_traceback(store: Path) -> None:
    code = (
        f"import sys; sys.argv[1:] = ['ls', {str(store)!r}, '--json']\n"
        "from lazymem.__main__ import main\n"
        "sys.exit(main())"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""


def test_an_error_tells_the_next_step(damaged: tuple[Path, int]) -> None:
    path, _ = damaged
    unpacked = run("unpack", path, "--to", path.parent)
    assert_one_line_error(unpacked, "'lazymem verify' lists all that is damaged")
    np.save(path.with_name("x.npy"), [1])
    assert_one_line_error(run("ls", path.with_name("x.npy")), "'lazymem pack' makes")
    assert_one_line_error(run("log", path.with_name("nope")), "nope: No such file")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert f"_LAZYMEM_COMPLETE={shell}_complete" in result.stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lazymem ver", {"plain,verify"}),
        ("lazymem info FILE no", {"plain,noise"}),
        ("lazymem unpack FILE ramp n", {"plain,noise"}),
        ("lazymem info /nowhere no", set()),
    ],
)
def test_completion_of_verbs_and_objects(
    store: Path, line: str, expected: set[str]
) -> None:
    words = line.replace("FILE", str(store))
    env = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "lazymem"],
        env={**os.environ, **env, "_LAZYMEM_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
    )
    assert set(done.stdout.split()) == expected
    assert done.stderr == ""


def test_unknown_verb_exits_2() -> None:
    result = run("pock")
    assert result.exit_code == 2
    assert "No such command 'pock'" in result.output


def test_help_tells_the_exit_codes() -> None:
    assert "3 verify found damage" in " ".join(run("--help").output.split())


def test_module_runs_as_the_command(store: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lazymem", "ls", store, "--json"],
        stdout=subprocess.PIPE,
        check=True,
    )
    assert [entry["name"] for entry in json.loads(done.stdout)] == ["noise", "ramp"]
