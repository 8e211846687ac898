# SPDX-License-Identifier: BSD-3-Clause
"""The notebooks run from their committed source, and find what they say they find."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
from jupyter_client.kernelspec import KernelSpec  # noqa: E402
from jupyter_client.manager import AsyncKernelManager  # noqa: E402

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SOURCES = sorted(NOTEBOOKS.glob("*.ipynb"))
CELL_SECONDS_MAX = 300


def kernel_manager() -> AsyncKernelManager:
    """Return a manager of kernels of this very interpreter, whatever is installed."""
    manager = AsyncKernelManager()
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager._kernel_spec = KernelSpec(argv=command, display_name="", language="python")
    return manager


@pytest.fixture(autouse=True)
def figures_in_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let matplotlib draw as it does in a notebook, whatever pytest was told."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")


def run(name: str, expressions: dict[str, str], folder: Path) -> dict[str, Any]:
    """Execute a notebook in a folder; returns what expressions are worth at its end.

    The folder is to be empty then.
    """
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    values = ", ".join(f"{name!r}: {text}" for name, text in expressions.items())
    notebook.cells.append(nbformat.v4.new_code_cell(f"print(repr({{{values}}}))"))
    client = nbclient.NotebookClient(
        notebook,
        km=kernel_manager(),
        timeout=CELL_SECONDS_MAX,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(cleanup_kc=True)
    result = ast.literal_eval(notebook.cells[-1].outputs[0].text)
    assert isinstance(result, dict)
    assert list(folder.iterdir()) == []
    return result


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_committed_notebook_has_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def land_by_latitude() -> list[float]:
    """Return what the notebook's bands should be, without lazymem."""
    import numpy as np

    spec = importlib.util.find_spec("global_land_mask")
    assert spec is not None
    assert spec.origin is not None
    npz = Path(spec.origin).with_name("globe_combined_mask_compressed.npz")
    with np.load(npz) as arrays:
        sample = arrays["mask"][::60, ::10]
    bands = (~sample).reshape(18, -1).mean(axis=1)
    return [float(share) for share in bands]


@pytest.mark.slow
@pytest.mark.needs_uffd
def test_lazy_arrays_answers_and_costs(tmp_path: Path) -> None:
    pytest.importorskip("global_land_mask")
    pytest.importorskip("matplotlib")
    expressions = {
        "answers": "{k: bool(v) for k, v in answers.items()}",
        "bands": "bands.tolist()",
        "sea": "int(sea)",
        "sea_numpy": "int(sea_numpy)",
        "after_open": "resident_after_open",
        "after_points": "resident_after_points",
        "after_bands": "resident_after_bands",
        "chunk_bytes": "mask.residency().chunk_bytes",
        "opened_mib": "opened_mib",
        "closed_mib": "closed_mib",
        "file_bytes": "file_bytes",
        "fills": "(stats.fills, stats.chunks)",
        "closed": "isinstance(closed_error, lm.ClosedError)",
        "path_exists": "path.exists()",
    }
    found = run("01-lazy-arrays.ipynb", expressions, tmp_path)

    assert list(found["answers"].values()) == [True, True, True, False, False]
    assert found["bands"] == pytest.approx(land_by_latitude())
    assert found["sea"] == found["sea_numpy"]
    assert found["after_open"] == 0
    assert 0 < found["after_points"] <= 2 * len(found["answers"])
    row_bytes, rows_apart = 43_200, 60  # each row touched fills the chunks it lies in
    touched = (found["chunk_bytes"] / row_bytes + 1) / (rows_apart - 1)
    assert 0 < found["after_bands"] < touched < 0.2
    assert found["opened_mib"] < 16
    assert found["closed_mib"] < 64
    assert found["file_bytes"] < 4 << 20
    assert found["fills"][0] == found["fills"][1]
    assert found["closed"]
    assert not found["path_exists"]


@pytest.mark.slow
@pytest.mark.needs_uffd
def test_snapshots_and_undo(tmp_path: Path) -> None:
    expressions = {
        "chunks": "victoria.chunks",
        "share": "share",
        "ranges": "diff.changed['mask'].ranges",
        "lake": "(lake[0].start, lake[0].stop)",
        "water": "(before_water, reopened)",
        "back": "brought_back",
        "unsaved": "unsaved",
    }
    found = run("02-snapshots-and-undo.ipynb", expressions, tmp_path)
    assert 0 < found["chunks"] < 200
    assert 0.6 < found["share"] < 0.75
    (low, high), (first, last) = found["ranges"][0], found["lake"]
    assert low <= first
    assert last <= high
    assert high - low < 400
    assert found["water"][0] < 0.5
    assert found["water"][1] == 1
    assert found["back"][0] == "global-land-mask"
    assert found["back"][1] > 0.5
    assert found["unsaved"] is False


@pytest.mark.slow
@pytest.mark.needs_uffd
def test_larger_than_memory(tmp_path: Path) -> None:
    expressions = {
        "share": "sea / mask.size",
        "scan_mib": "scan_mib",
        "pinned": "pinned",
        "spilled": "made.spilled",
        "work_mib": "work_mib",
        "right": "right",
        "resident_mib": "resident_mib",
    }
    found = run("03-larger-than-memory.ipynb", expressions, tmp_path)
    assert 0.6 < found["share"] < 0.75
    assert found["scan_mib"] < 64 + 24
    assert found["pinned"] == 1
    assert found["spilled"] > 1000
    assert found["work_mib"] < 2 * 64 + 100  # figures were drawn meanwhile
    assert found["right"]
    assert found["resident_mib"] <= 32


@pytest.mark.slow
@pytest.mark.needs_uffd
def test_sharing_with_workers(tmp_path: Path) -> None:
    expressions = {
        "bytes": "(len(message), sent)",
        "again": "again.shape",
        "shares": "shares",
        "resident": "resident",
        "dask": "bool(np.allclose(dask_shares, shares))",
        "joblib": "bool(np.allclose(joblib_shares, shares))",
    }
    found = run("04-sharing-with-workers.ipynb", expressions, tmp_path)
    assert max(found["bytes"]) < 20_000
    assert found["bytes"][0] < 1000
    assert found["again"] == (10, 6172)
    assert found["resident"] < 0.05
    assert 0.2 < sum(found["shares"]) / 18 < 0.4
    assert found["dask"]
    assert found["joblib"]
