# SPDX-License-Identifier: BSD-3-Clause
"""Does the engine do what it says, without Python?

Compiles the C programs of this folder and runs them.  ``LAZYMEM_SANITIZERS`` says how:
a list of ``plain``, ``asan`` (with UBSan) and ``tsan``, separated by commas; by default
``plain``.  ``CC`` names the compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from lazymem import _engine

HERE = Path(__file__).resolve().parent
EXT = HERE.parents[1] / "ext"
CC = os.environ.get("CC", "cc")
FLAGS = ["-std=gnu11", "-O1", "-g", "-DLM_CHECKS", "-pthread"]
FLAGS += ["-Wall", "-Wextra", "-Werror"]
VARIANTS = {
    "plain": [],
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "tsan": ["-fsanitize=thread"],
}
SKIPPED = 77
TIMEOUT_S = {"plain": 60, "asan": 240, "tsan": 240}
SOURCES = [path for path in sorted(EXT.glob("*.c")) if path.name != "python.c"]
PROGRAMS = sorted(path.stem for path in HERE.glob("*.c"))
SELECTED = os.environ.get("LAZYMEM_SANITIZERS", "plain").split(",")


def compile_c(variant: str, *args: str) -> None:
    command = [*CC.split(), *FLAGS, *VARIANTS[variant], f"-I{EXT}", f"-I{HERE}", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


@pytest.fixture(scope="session", params=SELECTED)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[str], Path]:
    """Return the variant, the engine's object files, and their folder."""
    variant = request.param
    folder = tmp_path_factory.mktemp(f"engine-{variant}")
    if shutil.which(CC.split()[0]) is None:
        pytest.skip(f"no C compiler: {CC}")
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    try:
        compile_c(variant, str(probe), "-o", str(folder / "probe"))
        subprocess.run([folder / "probe"], check=True)
    except (AssertionError, subprocess.CalledProcessError):
        if variant == "plain":
            raise
        pytest.skip(f"{CC} has no working {variant}")
    objects = []
    for source in SOURCES:
        objects.append(str(folder / source.with_suffix(".o").name))
        compile_c(variant, "-c", str(source), "-o", objects[-1])
    return variant, objects, folder


def environment(folder: Path) -> dict[str, str]:
    """Return where the codecs are, and what the sanitizers must not do."""
    env = {
        **os.environ,
        "TMPDIR": str(folder),
        # Children of a process with threads start threads of their own.
        "TSAN_OPTIONS": "die_after_fork=0 halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    lz4 = _engine.extension_file("lz4", "block", "_block")
    zstd = _engine.extension_file("zstandard", "_cffi")
    if lz4 and zstd and sysconfig.get_config_var("Py_ENABLE_SHARED"):
        lib = Path(sysconfig.get_config_var("LIBDIR"))
        env["LAZYMEM_TEST_PYTHON"] = str(lib / sysconfig.get_config_var("INSTSONAME"))
        env["LAZYMEM_TEST_LZ4"], env["LAZYMEM_TEST_ZSTD"] = lz4, zstd
    return env


@pytest.mark.parametrize("program", PROGRAMS)
def test_engine(program: str, engine: tuple[str, list[str], Path]) -> None:
    variant, objects, folder = engine
    binary = folder / program
    compile_c(variant, str(HERE / f"{program}.c"), *objects, "-ldl", "-o", str(binary))
    done = subprocess.run(
        [binary],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S[variant],
        check=False,
    )
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
