# SPDX-License-Identifier: BSD-3-Clause
"""The demo: right answers, the same from every reader, and files cleaned away."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from lazymem import cli, demo

if TYPE_CHECKING:
    from pathlib import Path

needs_data = pytest.mark.skipif(
    not (find_spec("global_land_mask") and find_spec("de405")),
    reason="the demo's data are not installed",
)

READING = demo.Reading(
    open_seconds=0.1,
    first_seconds=0.2,
    questions_seconds=0.3,
    questions_rss_bytes=1000,
    count_seconds=0.4,
    count_rss_bytes=2000,
    count_anonymous_bytes=500,
    answers={"land": True},
)


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the data by an Earth of cells of a degree, all land in the north."""
    folder = tmp_path / "data"
    folder.mkdir()
    lat, lon = 90.0 - np.arange(180), -180.0 + np.arange(360)
    mask = np.broadcast_to(lat[:, None] <= 0, (180, 360))
    np.savez_compressed(folder / "mask.npz", mask=mask, lat=lat, lon=lon)
    values = {"jalpha": 2305424.5, "jomega": 2525008.5, "AU": 1.5e8, "EMRAT": 81.3}
    dtype = [("name", "S6"), ("value", "<f8")]
    constants = np.array([(k.encode(), v) for k, v in values.items()], dtype)
    np.save(folder / "constants.npy", constants)
    for scale, body in enumerate(("earthmoon", "mars", "moon", "sun"), 1):
        series = np.zeros((6862, 3, 4))
        series[:, 0, 0] = scale * 1e6  # stands still on the x axis
        np.save(folder / f"jpl-{body}.npy", series)
    found = (folder / "mask.npz", sorted(folder.glob("*.npy")))
    monkeypatch.setattr(demo, "find_data", lambda: found)


@pytest.mark.filterwarnings("ignore::lazymem.LazyMemWarning")
@pytest.mark.usefixtures("small_data")
def test_run_answers_from_the_data(tmp_path: Path) -> None:
    folder, steps = tmp_path / "work", []
    folder.mkdir()
    result = demo.run(folder, 1, steps.append)
    assert "London is on land" in result.told
    assert "Canberra is at sea" in result.told
    assert any("Iceland is 100.0% land" in told for told in result.told)
    assert "of the mask's 64,800 cells 32,400 are ocean" in result.told
    assert any("a Moon 3,000,000 km away" in told for told in result.told)
    assert len(steps) == demo.steps(1)
    sizes = {row.reader: row.file_bytes for row in result.rows}
    assert sizes["lazymem"] == (folder / "demo.lzm").stat().st_size
    assert sizes["np.load npz"] == (folder / "demo.npz").stat().st_size


@pytest.mark.usefixtures("small_data")
def test_demo_shows_answers_and_a_row_for_each_reader(tmp_path: Path) -> None:
    args = ["demo", "--rounds", "1", "--dir", str(tmp_path / "work")]
    result = CliRunner().invoke(cli.cli, args)
    assert result.exit_code == 0, result.output
    assert "- London is on land" in result.stdout
    for reader in demo.READERS:
        assert f"\n{reader} " in result.stdout
    assert (tmp_path / "work/demo.lzm").exists()


@pytest.mark.usefixtures("small_data")
def test_demo_without_dir_removes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    result = CliRunner().invoke(cli.cli, ["demo", "--rounds", "1", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rounds"] == 1
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.usefixtures("small_data")
def test_demo_in_folder_with_files_exits_1_and_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/mask.npy").write_text("mine")
    result = CliRunner().invoke(cli.cli, ["demo", "--dir", str(tmp_path / "work")])
    assert result.exit_code == 1
    assert "is not empty" in result.output
    assert (tmp_path / "work/mask.npy").read_text() == "mine"


@pytest.mark.parametrize("package", ["global_land_mask", "de405"])
@needs_data
def test_demo_without_data_exits_1_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = CliRunner().invoke(cli.cli, ["demo"])
    assert result.exit_code == 1
    needs = (
        f"Error: the demo needs the package {package}: pip install 'lazymem[demo]'\n"
    )
    assert result.output == needs


def test_readers_that_agree_give_their_answers() -> None:
    readings = {"one": [READING, READING], "other": [READING]}
    assert demo.agreed_answers(readings) == {"land": True}


def test_readers_that_differ_raise_and_are_named() -> None:
    other = replace(READING, answers={"land": False})
    with pytest.raises(ValueError, match="land: other says False, one says True"):
        demo.agreed_answers({"one": [READING], "other": [other]})


@needs_data
def test_positions_are_those_of_the_almanac() -> None:
    folder = demo.find_data()[1][0].parent
    arrays = cache(lambda name: np.load(folder / f"{name}.npy", mmap_mode="r"))
    answers = {q.key: q.ask(arrays) for q in demo.QUESTIONS if "land" not in q.key}
    # The nearest approach in 60,000 years was widely reported, to the kilometre.
    assert round(answers["distance of Mars"]) == 55_758_006
    np.testing.assert_allclose(
        answers["position of Mars"], [1.390716, 0.001401, -0.036960], atol=1e-6
    )
    assert 356_000 < answers["distance of the Moon"] < 407_000


@needs_data
@pytest.mark.slow
def test_demo_on_the_real_data_finds_land_and_opens_faster_than_npz() -> None:
    result = CliRunner().invoke(cli.cli, ["demo", "--rounds", "1", "--json"])
    assert result.exit_code == 0, result.output
    rows = {row["reader"]: row for row in json.loads(result.stdout)["rows"]}
    answers = rows["lazymem"]["median"]["answers"]
    for place in ("London", "Cairo", "Quito", "Canberra"):
        assert answers[f"land at {place}"] is True
    for place in ("the wreck of the Titanic", "Point Nemo", "0 N 0 E"):
        assert answers[f"land at {place}"] is False
    assert answers["land in Iceland"][1] == pytest.approx(102_775, rel=0.02)
    assert answers["ocean cells"][1] == 21_600 * 43_200
    lazy, npz = rows["lazymem"], rows["np.load npz"]
    assert lazy["file_bytes"] < npz["file_bytes"] * 1.1
    assert lazy["median"]["first_seconds"] < npz["median"]["first_seconds"]
