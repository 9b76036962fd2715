"""Progress, rate and the time left: of the last minute of work, and honest after a pause."""

from datetime import UTC, datetime, timedelta

import pytest

from accounting import clock, jobs, pace
from accounting.jobs import Job

pytestmark = pytest.mark.usefixtures("app")

NOW = datetime(2026, 5, 20, 4, tzinfo=UTC)
COUNTS = dict.fromkeys(jobs.COUNTS, 0)


class Clockwork:
    """A job of 1,000 accounts, worked on by the second."""

    def __init__(self, total: int | None = 1_000, size: int | None = None) -> None:
        arguments = {"size": size} if size else {}
        with clock.stand(NOW):
            self.id = jobs.queue("projections", "op", arguments, total=total).id

    def take(self, second: int) -> Job:
        with clock.stand(NOW + timedelta(seconds=second)):
            taken = jobs.take(self.id)
        assert taken is not None
        return taken

    def step(self, second: int, done: int, bytes_done: int = 0) -> None:
        with clock.stand(NOW + timedelta(seconds=second)):
            job = jobs.get(self.id)
            assert job is not None
            assert jobs.advance(job, done, bytes_done, COUNTS)

    def seen(self, second: int) -> tuple[int, int, int | None]:
        """Percent, units a second, seconds left."""
        with clock.stand(NOW + timedelta(seconds=second)):
            job = jobs.get(self.id)
            assert job is not None
            left = job.seconds_left
            eta = None if left is None else clock.now() + timedelta(seconds=left)
            assert job.eta == eta
            return job.progress, job.rate_milli // pace.MILLI, left


def test_there_is_no_rate_before_the_first_step() -> None:
    work = Clockwork()
    assert work.seen(0) == (0, 0, None)
    work.take(5)
    assert work.seen(6) == (0, 0, None)


def test_the_rate_is_that_of_the_last_minute() -> None:
    work = Clockwork()
    work.take(0)
    for second in range(10, 61, 10):
        work.step(second, second * 10)
    # 100 in every ten seconds: 600 of 1,000, 10 a second, 400 left.
    assert work.seen(60) == (60, 10, 40)
    # Then one a second. Of the 13 marks, a step apart, the oldest is that of second 40.
    for count, second in enumerate(range(70, 161, 10), start=1):
        work.step(second, 600 + count * 10)
    assert work.seen(160) == (70, (700 - 400) // 120, -(-300 * 120 // 300))


def test_a_pause_is_no_work() -> None:
    work = Clockwork()
    work.take(0)
    work.step(10, 100)
    with clock.stand(NOW + timedelta(seconds=20)):
        jobs.cancel(work.id, "anna", "busy hour")
        stopped = jobs.get(work.id)
    assert stopped is not None
    # What was done in the ten seconds until its last step.
    assert (stopped.rate_milli, stopped.seconds_left) == (10_000, None)
    with clock.stand(NOW + timedelta(hours=1)):
        jobs.resume(work.id)
    assert work.seen(3_601) == (10, 0, None), "nobody works on it"
    work.take(3_700)
    assert work.seen(3_701) == (10, 0, None), "nothing is known of how fast it goes now"
    work.step(3_710, 150)
    # 50 in ten seconds, and 850 left.
    assert work.seen(3_710) == (15, 5, 170)
    with clock.stand(NOW + timedelta(seconds=3_720)):
        job = jobs.get(work.id)
        assert job is not None
        jobs.advance(job, 1_000, 0, COUNTS)
        jobs.finish(job, 1_000)
        over = jobs.get(work.id)
    assert over is not None
    # 1,000 in the 10 + 20 seconds of work, not in the hour.
    assert (over.progress, over.worked_ms, over.rate_milli) == (100, 30_000, 33_333)


def test_a_job_whose_worker_died_has_no_rate_and_its_gap_is_not_counted() -> None:
    work = Clockwork()
    work.take(0)
    work.step(10, 100)
    assert work.seen(69) == (10, 10, 90)
    assert work.seen(71) == (10, 0, None), "its lease is over"
    # Its shares were found by the sweep before itself was: no more than a lease is work.
    work.step(1_000, 200)
    with clock.stand(NOW + timedelta(seconds=1_000)):
        job = jobs.get(work.id)
    assert job is not None
    assert (job.worked_ms, job.rate_milli) == (70_000, 0)


def test_a_file_of_unknown_length_is_measured_by_its_bytes() -> None:
    work = Clockwork(total=None, size=4_000)
    work.take(0)
    work.step(30, 500, bytes_done=1_000)
    # A quarter of the bytes were 500 rows in 30 seconds: three more quarters.
    assert work.seen(30) == (25, 16, 91)  # 1,500 rows at 16.666 a second.


def test_more_than_was_expected_is_nearly_done_and_never_over() -> None:
    work = Clockwork(total=100)
    work.take(0)
    work.step(10, 130)
    assert work.seen(10) == (99, 13, 0)
