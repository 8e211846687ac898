# SPDX-License-Identifier: BSD-3-Clause
"""TIFF and GeoTIFF images, by tifffile."""

from __future__ import annotations

import math
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lazymem import sources
from lazymem.formats.contents import Contents, library, naming, with_dims
from lazymem.sources import Source, as_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from lazymem.sources import Bytes

_DIMS = {"T": "time", "C": "channel", "S": "band"}
"""Of tifffile's letters for axes; the others stand for themselves."""
_TAGS = ("ImageDescription", "GDAL_METADATA", "GDAL_NODATA")


def open_file(path: str, stack: ExitStack) -> Contents:
    """Open a TIFF file; an image is named by the file's stem, several ``stem/0``, ...

    Notes
    -----
    An image of many pages is one array.  Of a pyramid the full resolution is kept.
    """
    tifffile = library("tifffile", "tiff")
    contents = Contents(path)
    stem = os.path.splitext(os.path.basename(path))[0]
    with naming(path):
        file = stack.enter_context(tifffile.TiffFile(path))
        several = len(file.series) > 1
        for i, series in enumerate(file.series):
            name = f"{stem}/{i}" if several else stem
            if series.dtype is None or not series.shape:
                contents.left_out[name] = "an image without pixels"
                continue
            read = partial(_blocks, series)
            attrs = contents.json_attrs(_raw_attrs(series.keyframe), name)
            dims = [_DIMS.get(axis, axis.lower()) for axis in series.axes]
            contents.add(
                name,
                Source(
                    series.shape,
                    series.dtype,
                    "C",
                    read,
                    attrs=with_dims(attrs, dims),
                ),
            )
    return contents


def _raw_attrs(page: Any) -> dict[str, Any]:
    tags = {name: page.tags[name].value for name in _TAGS if name in page.tags}
    geo = page.geotiff_tags
    return {**tags, **({"geotiff": geo} if geo else {})}


def _blocks(series: Any) -> Iterator[Bytes]:
    for page in series.pages:
        if page is None:
            raise ValueError("a page is missing")
        yield from _page_blocks(page.aspage(), series.dtype)


def _page_blocks(page: Any, dtype: np.dtype[Any]) -> Iterator[Bytes]:
    """Decode a page by rows of tiles or strips, which come in order."""
    # The library would fill in for what is not there.
    file_bytes = page.parent.filehandle.size
    places = list(zip(page.dataoffsets, page.databytecounts))
    expected = math.prod(page.chunked)
    if len(places) < expected:
        raise ValueError(f"{len(places)} of {expected} tiles or strips are listed")
    for offset, nbytes in places:
        if offset + nbytes > file_bytes:
            raise ValueError(f"the file ends before its data at {offset} do")
    # Sample, depth, length, width, sample: one of the first and last is 1.
    _, _, length, width, samples = page.shaped
    rows = np.empty(0, dtype)
    start = (0, 0, 0)
    segments = page.segments(buffersize=sources.BLOCK_BYTES)
    for segment, (sample, depth, row, column, _), (_, height, *_) in segments:
        if (sample, depth, row) != start or not rows.size:
            if rows.size:
                yield as_bytes(rows)
            start = (sample, depth, row)
            extents = (min(height, length - row), width, samples)
            rows = np.full(extents, page.nodata, dtype)
        if segment is not None:
            part = segment[0, : len(rows), : width - column]
            rows[: part.shape[0], column : column + part.shape[1]] = part
    yield as_bytes(rows)
