"""The queues: where they are, what goes into which, how long a task may take. Knows no task."""

from celery import Celery

from api import schedule
from api.config import Config

# Longer than any task may run, or Redis hands the task out twice.
VISIBILITY_S = 3_600
PUBLISH_S = 0.5
URGENT, BULK, OUTSIDE = "urgent", "bulk", "webhooks"
# What may take long.
SLOW = (
    "tanhui.run_job",
    "tanhui.carry_marketing",
    "tanhui.expire_vouchers",
    "tanhui.remind_of_consents",
    "tanhui.remind_of_vouchers",
    "tanhui.tell_of_reads",
    "tanhui.validate_readings",
    "tanhui.count_inventory",
    "tanhui.post_inventory",
    "tanhui.watch_plants",
    "tanhui.listen_to_meters",
    "tanhui.review_plants",
)


def make(config: Config) -> Celery:
    """The Celery app of one process, for the clock as it is; workers know tasks besides."""
    celery = Celery("tanhui")
    # "Current" is per thread, and requests run in many: shared tasks must find this app in all.
    celery.set_default()
    celery.conf.update(
        broker_url=config.redis_url,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_S,
            "socket_connect_timeout": PUBLISH_S,
            "socket_timeout": 5,
            # A request must not wait for a queue that is away: the sweep finds the row.
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0,
        },
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        # A worker of its own for each: a push or a sweep never waits behind a file.
        task_queues={URGENT: {}, BULK: {}, OUTSIDE: {}},
        task_default_queue=URGENT,
        task_routes={
            **{name: {"queue": BULK} for name in SLOW},
            # What waits for somebody else's server holds up nothing of ours.
            "tanhui.carry_webhook": {"queue": OUTSIDE},
        },
        task_publish_retry=False,
        timezone="Asia/Shanghai",
        beat_schedule=schedule.for_beat(),
    )
    return celery
