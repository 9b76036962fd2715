"""Plots as PNG files that look the same on every machine: no display, no installed font needed."""

import io
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from accounting import fonts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
# Colours that stay apart for colour-blind eyes (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def png(
    draw: Callable[["Figure"], None], *, width_in: float = 9.0, height_in: float = 5.0
) -> bytes:
    """What `draw` puts on a figure, as PNG. The same drawing gives the same bytes."""
    figure = _figures()(figsize=(width_in, height_in), dpi=DPI, layout="constrained")
    draw(figure)
    found = io.BytesIO()
    figure.savefig(found, format="png", metadata={"Software": None})
    return found.getvalue()


@cache
def _figures() -> "type[Figure]":
    # Imported by who draws: it would cost every process of a stack half its start.
    from matplotlib import font_manager, rcParams
    from matplotlib.figure import Figure

    font_manager.fontManager.addfont(fonts.FILE)
    rcParams.update(
        {
            "font.family": fonts.FAMILY,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#dddddd",
            "legend.frameon": False,
        }
    )
    return Figure
