# SPDX-License-Identifier: BSD-3-Clause
"""Does lazymem do without what not everybody has, and say what is missing?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazymem as lm


def test_importing_lazymem_imports_numpy_and_the_engine_alone(run_python: Any) -> None:
    script = """
import json, sys
before = set(sys.modules)
import lazymem
names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(names - sys.stdlib_module_names)))
"""
    assert json.loads(run_python(script).stdout) == [
        "_cffi_backend",
        "lazymem",
        "numpy",
    ]


@pytest.mark.parametrize(
    ("package", "extra", "use"),
    [
        ("dask", "dask", "lm.open(sys.argv[1])['x'].to_dask()"),
        ("joblib", "joblib", "import lazymem.joblib; lazymem.joblib.by_reference()"),
        ("xarray", "xarray", "import lazymem.xarray"),
        ("IPython", "ipython", "lm.load_ipython_extension(None)"),
        ("matplotlib", "plot", "lm.Store().plot_residency()"),
        ("anywidget", "live", "lm.Store().live()"),
    ],
)
def test_a_package_that_is_missing_is_an_error_with_its_extra(
    package: str, extra: str, use: str, tmp_path: Path, run_python: Any
) -> None:
    lm.save(tmp_path / "x.lzm", x=np.arange(3))
    script = f"import sys, lazymem as lm\nsys.modules[{package!r}] = None\n{use}"
    told = run_python(script, tmp_path / "x.lzm").stderr.splitlines()[-1]
    hint = f"pip install 'lazymem[{extra}]'"
    assert told == f"ImportError: {package} is missing: {hint}"
