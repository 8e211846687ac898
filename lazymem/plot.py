# SPDX-License-Identifier: BSD-3-Clause
"""A figure of which chunks of a store's arrays are in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazymem import show, strip
from lazymem.extras import needs
from lazymem.strip import Strip

with needs("plot"):
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from lazymem.store import Store

_NAME_MAX = 24
_DIRTY_HEIGHT = 0.3


def plot_residency(store: Store, ax: Axes | None) -> Axes:
    """See :meth:`lazymem.Store.plot_residency`."""
    found = strip.of_store(store).values()
    rows = [seen for seen in found if isinstance(seen, Strip) and seen.chunks]
    if ax is None:
        size = (8, 1.2 + 0.3 * len(rows))
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.barh(range(len(rows)), 100, 0.8, color="0.5", alpha=0.15)
    for y, seen in enumerate(rows):
        resident = [cell.resident / cell.chunks for cell in seen.cells]
        dirty = [cell.dirty / cell.chunks for cell in seen.cells]
        _draw(ax, resident, "Blues", (y + 0.4, y - 0.4))
        _draw(ax, dirty, "Oranges", (y + 0.4, y + 0.4 - _DIRTY_HEIGHT))
    names = [show.cut(seen.info.name, _NAME_MAX) for seen in rows]
    ax.set_yticks(range(len(rows)), names, parse_math=False)
    ax.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5), xlabel="% of the array")
    colours = {"in memory": "Blues", "dirty": "Oranges"}
    ax.legend(
        handles=[Patch(color=plt.get_cmap(colours[x])(0.8), label=x) for x in colours],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2,
        frameon=False,
    )
    return ax


def _draw(
    ax: Axes, shares: Sequence[float], cmap: str, bottom_top: tuple[float, float]
) -> None:
    """Draw cells, shaded from a fifth on, so that the least share can be seen."""
    shade = np.array([shares])
    ax.imshow(
        np.ma.masked_equal(np.where(shade > 0, 0.2 + 0.6 * shade, 0), 0),
        cmap=cmap,
        vmin=0,
        vmax=1,
        extent=(0, 100, *bottom_top),
        aspect="auto",
        interpolation="nearest",
    )
