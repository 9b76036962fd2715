"""`celery -A bench.push_worker`: a worker or beat with the clock moved to the noon of the bench."""

import os
from datetime import timedelta

from accounting import clock
from api.worker import celery

__all__ = ["celery"]

_travel = clock.travel(timedelta(seconds=float(os.environ["BENCH_SHIFT_S"])))
_travel.__enter__()
