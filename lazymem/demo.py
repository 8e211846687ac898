# SPDX-License-Identifier: BSD-3-Clause
"""The demo: questions about the Earth and the planets, put to lazymem and `numpy.load`.

The data are those of two packages: the land mask of the Earth of global-land-mask, a
bool for each of 21600 x 43200 cells of 1/120 degree, and the ephemeris JPL DE405 of
de405, the coefficients of Chebyshev polynomials that give the positions of the planets.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import lazymem as lm

Arrays = Callable[[str], npt.NDArray[Any]]
"""Returns an array by name, the same one each time."""

_STORE = "demo.lzm"
_NPZ = "demo.npz"
_CELL_KM = 6371.0 * np.pi / 180 / 120
"""Height of a cell of the mask, and its width at the equator."""


# ---- questions -----------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """Something to be found out from the arrays."""

    key: str
    """Its name in the results."""
    ask: Callable[[Arrays], Any]
    """Finds the answer, a JSON value."""
    tell: Callable[[Any], str]
    """Puts the answer in words."""


def _land_at(latitude: float, longitude: float) -> Callable[[Arrays], bool]:
    def ask(arrays: Arrays) -> bool:
        row = _cell(arrays("lat"), latitude)
        column = _cell(arrays("lon"), longitude)
        return not arrays("mask")[row, column]

    return ask


def _cell(axis: npt.NDArray[np.float64], degrees: float) -> int:
    return int((degrees - axis[0]) / (axis[1] - axis[0]))


def _land_in(
    south: float, north: float, west: float, east: float
) -> Callable[[Arrays], list[float]]:
    """Ask for the share of land in a box, and for its area in square kilometres."""

    def ask(arrays: Arrays) -> list[float]:
        lat, lon = arrays("lat"), arrays("lon")
        rows = slice(_cell(lat, north), _cell(lat, south))
        columns = slice(_cell(lon, west), _cell(lon, east))
        land = np.count_nonzero(~arrays("mask")[rows, columns], axis=1)
        cell_km2 = _CELL_KM**2 * np.cos(np.radians(lat[rows]))
        area = float(land @ cell_km2)
        return [area / float(cell_km2.sum() * (columns.stop - columns.start)), area]

    return ask


def _position(arrays: Arrays, body: str, julian_date: float) -> npt.NDArray[np.float64]:
    """Return where a body is, in km: shape ``(3,)``.

    References
    ----------
    X X Newhall, "Numerical Representation of Planetary Ephemerides", Celestial
    Mechanics 45 (1989) 305-310.
    """
    series = arrays(f"jpl-{body}")
    first, last = _constant(arrays, "jalpha"), _constant(arrays, "jomega")
    days = (last - first) / len(series)
    idx, offset = divmod(julian_date - first, days)
    coefficients = series[int(idx)]
    where = np.polynomial.chebyshev.chebval(2 * offset / days - 1, coefficients.T)
    return np.asarray(where)


def _constant(arrays: Arrays, name: str) -> float:
    constants = arrays("constants")
    return float(constants["value"][constants["name"] == name.encode()][0])


def _moon_distance(julian_date: float) -> Callable[[Arrays], float]:
    return lambda arrays: float(np.linalg.norm(_position(arrays, "moon", julian_date)))


def _mars_distance(julian_date: float) -> Callable[[Arrays], float]:
    def ask(arrays: Arrays) -> float:
        mars = _position(arrays, "mars", julian_date)
        both = _position(arrays, "earthmoon", julian_date)
        moon = _position(arrays, "moon", julian_date)
        earth = both - moon / (1 + _constant(arrays, "EMRAT"))
        return float(np.linalg.norm(mars - earth))

    return ask


def _mars_position(julian_date: float) -> Callable[[Arrays], list[float]]:
    def ask(arrays: Arrays) -> list[float]:
        sun = _position(arrays, "sun", julian_date)
        au_km = _constant(arrays, "AU")
        position = (_position(arrays, "mars", julian_date) - sun) / au_km
        return [float(x) for x in position]

    return ask


_PLACES = (
    ("London", 51.507, -0.128),
    ("Cairo", 30.044, 31.236),
    ("Quito", -0.220, -78.512),
    ("Canberra", -35.282, 149.129),
    ("the wreck of the Titanic", 41.726, -49.948),
    ("Point Nemo", -48.877, -123.393),
    ("0 N 0 E", 0.0, 0.0),
)
_BOXES = (
    ("Iceland", (63.0, 67.0, -25.0, -13.0)),
    ("Madagascar", (-26.0, -11.5, 43.0, 51.0)),
)
# Julian dates in barycentric dynamical time: UTC and 40 s in 1969, 64 s in 2003.
_APOLLO_11_LANDS = 2440423.34606
_MARS_IS_NEAREST = 2452878.91131
_YEAR_2000 = 2451545.0


def _tell_place(name: str) -> Callable[[bool], str]:
    return lambda on_land: f"{name} is {'on land' if on_land else 'at sea'}"


def _tell_box(name: str) -> Callable[[list[float]], str]:
    return lambda answer: (
        f"the box around {name} is {answer[0]:.1%} land: {answer[1]:,.0f} km2"
    )


QUESTIONS = (
    *(
        Question(f"land at {name}", _land_at(lat, lon), _tell_place(name))
        for name, lat, lon in _PLACES
    ),
    *(
        Question(f"land in {name}", _land_in(*box), _tell_box(name))
        for name, box in _BOXES
    ),
    Question(
        "distance of the Moon",
        _moon_distance(_APOLLO_11_LANDS),
        lambda km: f"Apollo 11 landed (20 July 1969) on a Moon {km:,.0f} km away",
    ),
    Question(
        "distance of Mars",
        _mars_distance(_MARS_IS_NEAREST),
        lambda km: f"on 27 August 2003 Mars came as near as {km:,.0f} km",
    ),
    Question(
        "position of Mars",
        _mars_position(_YEAR_2000),
        lambda xyz: (
            "on 1 January 2000, noon, Mars was at "
            f"({xyz[0]:+.6f}, {xyz[1]:+.6f}, {xyz[2]:+.6f}) au from the Sun"
        ),
    ),
)
"""Each touches a small part of the data."""

COUNT = Question(
    "ocean cells",
    lambda arrays: [int(np.count_nonzero(arrays("mask"))), arrays("mask").size],
    lambda answer: f"of the mask's {answer[1]:,} cells {answer[0]:,} are ocean",
)
"""Touches the whole mask."""


# ---- readers -------------------------------------------------------------------------


def _open_store(folder: Path) -> Arrays:
    return lm.open(folder / _STORE).__getitem__


def _open_npy(folder: Path) -> Arrays:
    return lambda name: np.load(folder / f"{name}.npy")


def _open_npy_mapped(folder: Path) -> Arrays:
    return lambda name: np.load(folder / f"{name}.npy", mmap_mode="r")


def _open_npz(folder: Path) -> Arrays:
    return np.load(folder / _NPZ).__getitem__  # type: ignore[no-any-return]


READERS: Mapping[str, tuple[Callable[[Path], Arrays], str]] = {
    "lazymem": (_open_store, _STORE),
    "np.load mmap npy": (_open_npy_mapped, "*.npy"),
    "np.load npy": (_open_npy, "*.npy"),
    "np.load npz": (_open_npz, _NPZ),
}
"""How each opens the data, and which files it reads."""


@dataclass(frozen=True)
class Reading:
    """What one reader did in a process of its own."""

    open_seconds: float
    """Until the mask was an array."""
    first_seconds: float
    """Until the first question was answered, opening included."""
    questions_seconds: float
    """Until all questions but the count were answered, opening included."""
    questions_rss_bytes: int
    """Memory that the process had gained by then."""
    count_seconds: float
    """For the count of the whole mask, which follows."""
    count_rss_bytes: int
    """Memory that the process had gained by then."""
    count_anonymous_bytes: int
    """Of this, memory that is no part of a file."""
    answers: dict[str, Any]
    """By question."""


def read(reader: str, folder: Path) -> Reading:
    """Answer all questions in this process, which should be a fresh one."""
    before = _memory()
    start = time.perf_counter()
    arrays = cache(READERS[reader][0](folder))
    arrays("mask")
    opened = time.perf_counter()
    answers = {QUESTIONS[0].key: QUESTIONS[0].ask(arrays)}
    first = time.perf_counter()
    answers.update((question.key, question.ask(arrays)) for question in QUESTIONS[1:])
    answered = time.perf_counter()
    memory = _memory()
    start_of_count = time.perf_counter()
    answers[COUNT.key] = COUNT.ask(arrays)
    counted = time.perf_counter()
    memory_in_the_end = _memory()
    return Reading(
        open_seconds=opened - start,
        first_seconds=first - start,
        questions_seconds=answered - start,
        questions_rss_bytes=memory["VmRSS"] - before["VmRSS"],
        count_seconds=counted - start_of_count,
        count_rss_bytes=memory_in_the_end["VmRSS"] - before["VmRSS"],
        count_anonymous_bytes=memory_in_the_end["RssAnon"] - before["RssAnon"],
        answers=answers,
    )


def _memory() -> dict[str, int]:
    """Return the sizes, in bytes, that the kernel gives in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(kib) << 10 for name, kib, _ in fields}


def _read_afresh(reader: str, folder: Path) -> Reading:
    code = "import sys; from lazymem import demo; demo._print_reading(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, reader, str(folder)],
        stdout=subprocess.PIPE,
        check=True,
        start_new_session=True,  # Ctrl-C is for this process, which ends that one
    )
    return Reading(**json.loads(done.stdout))


def _print_reading(reader: str, folder: str) -> None:
    print(json.dumps(asdict(read(reader, Path(folder)))))


# ---- the run -------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A reader's medians."""

    reader: str
    """Which."""
    file_bytes: int
    """Length of its files."""
    median: Reading
    """Medians of all its readings."""


@dataclass(frozen=True)
class Result:
    """What the demo found."""

    told: list[str]
    """The answers in words."""
    rows: list[Row]
    """A row for each reader."""
    pack_seconds: float
    """For packing all data into the store."""
    data_bytes: int
    """Bytes of the arrays."""
    rounds: int
    """Readings of each reader."""


def find_data() -> tuple[Path, list[Path]]:
    """Return the land mask's ``.npz`` file and the ephemeris' ``.npy`` files.

    Raises
    ------
    ModuleNotFoundError
        If a package is not installed.
    """
    mask = _package_folder("global_land_mask") / "globe_combined_mask_compressed.npz"
    return mask, sorted(_package_folder("de405").glob("*.npy"))


def _package_folder(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the demo needs the package {name}: pip install 'lazymem[demo]'", name=name
        )
    return Path(spec.submodule_search_locations[0])


def run(folder: Path, rounds: int, step: Callable[[str], None]) -> Result:
    """Pack the data, and let each reader answer the questions in fresh processes.

    Parameters
    ----------
    folder : pathlib.Path
        For the files, about 1.1 GB; empty.
    rounds : int
        Readings of each reader; they take turns.
    step : callable
        Told what is about to happen; called :func:`steps` times.

    Raises
    ------
    ModuleNotFoundError
        If the data are not installed.
    ValueError
        If the folder is not empty, or if two readers differ in an answer.
    """
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: the demo fills a folder of its own")
    mask, ephemeris = find_data()
    step("unpack the packages' data")
    _write_rivals(folder, mask, ephemeris)
    step("pack")
    start = time.perf_counter()
    lm.save(folder / _STORE, sorted(folder.glob("*.npy")))
    pack_seconds = time.perf_counter() - start
    readings: dict[str, list[Reading]] = {reader: [] for reader in READERS}
    for _ in range(rounds):
        for reader in READERS:
            step(reader)
            readings[reader].append(_read_afresh(reader, folder))
    answers = agreed_answers(readings)
    with lm.open(folder / _STORE) as store:
        store["lat"]  # warns, here and once, of what the machine lacks
        data_bytes = sum(store.info(name).nbytes for name in store)
    return Result(
        told=[question.tell(answers[question.key]) for question in (*QUESTIONS, COUNT)],
        rows=[
            Row(
                reader=reader,
                file_bytes=sum(path.stat().st_size for path in folder.glob(files)),
                median=_median(readings[reader]),
            )
            for reader, (_, files) in READERS.items()
        ],
        pack_seconds=pack_seconds,
        data_bytes=data_bytes,
        rounds=rounds,
    )


def steps(rounds: int) -> int:
    """Return how many steps a run has."""
    return 2 + rounds * len(READERS)


def _write_rivals(folder: Path, mask: Path, ephemeris: list[Path]) -> None:
    """Write all arrays as ``.npy`` files, and all of them in one ``.npz`` file."""
    with zipfile.ZipFile(mask) as archive:
        archive.extractall(folder)
    shutil.copyfile(mask, folder / _NPZ)
    with zipfile.ZipFile(folder / _NPZ, "a", zipfile.ZIP_DEFLATED) as archive:
        for path in ephemeris:
            shutil.copyfile(path, folder / path.name)
            archive.write(path, path.name)
    for path in folder.iterdir():  # or the disk is busy while the first reader is timed
        with path.open("rb") as file:
            os.fsync(file.fileno())


def agreed_answers(readings: Mapping[str, list[Reading]]) -> dict[str, Any]:
    """Return the answers that all readers gave.

    Raises
    ------
    ValueError
        If two differ.
    """
    all_readings = [(name, one) for name, group in readings.items() for one in group]
    first_reader, first = all_readings[0]
    for reader, reading in all_readings:
        for key, answer in reading.answers.items():
            if answer != first.answers[key]:
                raise ValueError(
                    f"{key}: {reader} says {answer}, "
                    f"{first_reader} says {first.answers[key]}"
                )
    return first.answers


def _median(readings: list[Reading]) -> Reading:
    columns = {key: [getattr(r, key) for r in readings] for key in asdict(readings[0])}
    answers = columns.pop("answers")[0]
    medians = {key: statistics.median_low(column) for key, column in columns.items()}
    return Reading(**medians, answers=answers)
