"""The clockwork: every line of it starts a task the worker has, from the queue it belongs in."""

from flask import Flask

from api import processes, queues
from api.schedule import SCHEDULE, for_beat


def test_every_line_starts_a_task_that_is_registered(app: Flask) -> None:
    celery = app.extensions["celery"]
    assert {entry["task"] for entry in SCHEDULE.values()} <= set(celery.tasks)
    assert all(" " in name for name in SCHEDULE), "a line is a sentence an operator can read"


def test_a_sweep_that_waited_until_the_next_is_dropped() -> None:
    for name, entry in for_beat().items():
        if isinstance(entry["schedule"], float):
            assert entry["options"] == {"expires": entry["schedule"]}, name
        else:
            assert "options" not in entry, "what is due once a night waits for a worker"


def test_each_queue_has_a_worker_and_only_long_work_is_in_the_slow_one(app: Flask) -> None:
    celery = app.extensions["celery"]
    assert set(celery.conf.task_queues) == set(processes.QUEUES.values())
    assert set(queues.SLOW) <= set(celery.tasks), "a name that routes nothing"
    for name in celery.tasks:
        queue = celery.amqp.router.route({}, name)["queue"].name
        slow = "bulk" if name in queues.SLOW else "urgent"
        assert queue == ("webhooks" if name == "tanhui.carry_webhook" else slow), name
    assert celery.conf.task_default_queue == queues.URGENT


def test_tasks_may_be_lost_with_their_worker(app: Flask) -> None:
    """Acknowledged only when done, JSON only, one at a time."""
    conf = app.extensions["celery"].conf
    assert (conf.task_acks_late, conf.task_reject_on_worker_lost) == (True, True)
    assert (conf.accept_content, conf.worker_prefetch_multiplier) == (["json"], 1)
