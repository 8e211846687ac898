# SPDX-License-Identifier: BSD-3-Clause
"""The engine without Python, and C programs that are linked to it.

``LAZYMEM_SANITIZERS`` says how they are built: a list of ``plain``, ``asan`` (with
UBSan) and ``tsan``, separated by commas; by default ``plain``.  ``CC`` names the
compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
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
SELECTED = os.environ.get("LAZYMEM_SANITIZERS", "plain").split(",")
SOURCES = [path for path in sorted(EXT.glob("*.c")) if path.name != "python.c"]


def compile_c(variant: str, *args: str) -> None:
    command = [*CC.split(), *FLAGS, *VARIANTS[variant], f"-I{EXT}", f"-I{HERE}", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


@dataclass(frozen=True)
class Engine:
    """Object files of one variant, in a folder for what is made of them."""

    variant: str
    objects: list[str]
    folder: Path

    def program(self, source: Path) -> Path:
        """Build a program."""
        binary = self.folder / source.stem
        compile_c(self.variant, str(source), *self.objects, "-ldl", "-o", str(binary))
        return binary


@pytest.fixture(scope="session", params=SELECTED)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Engine:
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
    return Engine(variant, objects, folder)


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
