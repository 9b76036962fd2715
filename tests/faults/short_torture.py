"""A torture without the minutes its stack's own sweeps would take: they run here, two minutes on.

python short_torture.py DATA_DIR BASE_URL SEED SECONDS
"""

import sys
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from accounting import clock
from api import tasks
from api.torture import checks
from api.torture.run import torture


def sweep() -> None:
    with clock.travel(timedelta(minutes=2)):
        tasks.sweep_half_done()
    assert checks.half_way() == {}, checks.half_way()


if __name__ == "__main__":
    data_dir, base_url, seed, seconds = sys.argv[1:]
    found = torture(
        Path(data_dir), base_url, int(seed), float(seconds), Console(), calm=sweep, pause_s=(0.5, 2)
    )
    sys.exit("\n".join(found) or None)
