"""Plots as PNG files that look the same on every machine: no display, no installed font needed."""

import io
from collections.abc import Callable

from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure

from accounting import fonts

DPI = 150
# Colours that stay apart for colour-blind eyes (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

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


def png(draw: Callable[[Figure], None], *, width_in: float = 9.0, height_in: float = 5.0) -> bytes:
    """What `draw` puts on a figure, as PNG. The same drawing gives the same bytes."""
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout="constrained")
    draw(figure)
    found = io.BytesIO()
    figure.savefig(found, format="png", metadata={"Software": None})
    return found.getvalue()
