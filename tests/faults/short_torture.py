"""A torture without the minutes its stack's own sweeps would take: they run here, two minutes on.

python short_torture.py DATA_DIR BASE_URL SEED SECONDS
"""

import sys
import time
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from accounting import clock
from api import tasks
from api.torture import checks
from api.torture.run import torture

SWEEPS_MAX = 10
PAUSE_S = 3


def sweep() -> None:
    # The stack's own sweep may have some of it in hand, or an account be busy: what stays is wrong.
    for _ in range(SWEEPS_MAX):
        with clock.travel(timedelta(minutes=2)):
            tasks.sweep_half_done()
        if checks.half_way() == {}:
            return
        time.sleep(PAUSE_S)
    raise AssertionError(checks.half_way())


if __name__ == "__main__":
    data_dir, base_url, seed, seconds = sys.argv[1:]
    found = torture(
        Path(data_dir), base_url, int(seed), float(seconds), Console(), calm=sweep, pause_s=(0.5, 2)
    )
    sys.exit("\n".join(found) or None)
