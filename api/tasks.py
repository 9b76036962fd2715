"""Celery: thin tasks with ids, safe to run twice, and sweeps that make every nudge optional.

What must happen is a row in the database. A task that is lost with Redis is found by its sweep.
"""

import logging
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from celery import Celery, current_app, shared_task
from kombu.exceptions import OperationalError

from accounting import (
    clock,
    consent_requests,
    consents,
    events,
    factors,
    jobs,
    outbox,
    proofs,
    read_receipts,
    subscriptions,
    walks,
)
from accounting.enterprise import (
    alert_reviews,
    alerting,
    inventory_days,
    inventory_entries,
    periods,
    validating,
)
from accounting.jobs import Job
from api import feed_rows, plants, queues
from api.bookkeeping import RULES
from api.config import Config
from footprint import grade, greenlist, policy_preview, preview, regrading, upkeep
from integrations import (
    bank_files,
    closing,
    delivery,
    devices,
    exports,
    feeds,
    firebase,
    imports,
    reversals,
    uploads,
    webhook_targets,
    webhooks,
)
from integrations.firebase import FirebaseSettings
from integrations.mapping import ACTIVITIES, BILLS
from integrations.push import ByPlatform, FirebasePusher, Pusher
from integrations.push_file import FilePusher
from points import (
    batches,
    bill_crediting,
    campaigns,
    crediting,
    deciding,
    feed,
    liability,
    passing,
    programme,
    pushes,
    restating,
)
from rewards import disputes, expiring, redemptions, reminding, settlement, stock, takings

log = logging.getLogger(__name__)

# After a failure the queue is left alone this long, so that a hanging one costs a request that
# leaves several rows one timeout, not one each.
PAUSE_S = 5.0
# Files: what takes their rows in, and the form of a row.
FILES: dict[str, tuple[imports.TakeRows, feeds.Form]] = {
    ACTIVITIES: (feed_rows.take_file_rows, feeds.REPORTS),
    BILLS: (feed_rows.take_file_rows, feeds.BILLS),
    plants.READINGS: (plants.take_file_rows, feeds.READINGS),
}
# What a job of another kind is run by.
RUN: dict[str, Callable[[str], Any]] = {
    exports.KIND: exports.run,
    preview.KIND: partial(preview.run, worth=restating.worth),
    passing.KIND: passing.run,
    liability.KIND: liability.run,
    restating.KIND: restating.run,
    regrading.RANGE_KIND: regrading.run_range,
    policy_preview.KIND: policy_preview.run,
    upkeep.KIND: upkeep.run,
    proofs.KIND: partial(proofs.run, rules=RULES),
    reversals.KIND: reversals.run,
    settlement.KIND: settlement.run,
    pushes.KIND: pushes.run,
    bank_files.KIND: bank_files.run,
}
# A period that is being settled has claimed its moves, a push is stopped as a push, and what a
# resident asked to be given is nobody else's to stop.
NOT_STOPPABLE = frozenset({settlement.KIND, pushes.KIND, exports.KIND})
# A sweep of notifications begins no batch after this, so that the next one finds it done.
CARRY_S = 12.0

_paused_until = 0.0


def stoppable(job: Job) -> bool:
    """Whether a job may be cancelled by itself; a share ends with its whole."""
    return job.whole is None and job.kind not in NOT_STOPPABLE


def make_celery(config: Config) -> Celery:
    """The Celery app of one process; the API publishes to it, a worker runs it."""
    global _paused_until
    _paused_until = 0.0
    celery = queues.make(config)
    celery.conf.tanhui_pusher = pusher_of(config)
    # Loopback is for trying things out on one machine.
    celery.conf.tanhui_webhook_post = partial(webhook_targets.post, loopback=config.demo)
    events.on_left(lambda webhook_id: nudge(carry_webhook, webhook_id))
    outbox.on_left(lambda notification_id: nudge(deliver, notification_id))
    return celery


def pusher_of(config: Config) -> Pusher | None:
    """The provider of this city: Firebase, files for a gateway of its own, or both.

    With both, what has no Google services (Harmony) goes to the files.
    """
    app = firebase.client(FirebaseSettings(config.fcm_url, config.google_credentials))
    google = FirebasePusher(app, dry_run=config.push_dry_run) if app else None
    files = FilePusher(config.push_folder) if config.push_folder else None
    if google and files:
        return ByPlatform(google, {"harmony": files})
    return google or files


def nudge(task: Any, *arguments: str) -> None:
    """Tell a worker, if the queue is there; if not, the sweep finds the row."""
    global _paused_until
    if time.monotonic() < _paused_until:
        return
    try:
        task.apply_async(arguments, retry=False)
    except OperationalError as error:
        _paused_until = time.monotonic() + PAUSE_S
        log.warning("the queue is away, the sweep will find %s: %s", arguments, error)


@shared_task(name="tanhui.deliver")
def deliver(notification_id: str) -> None:
    delivery.deliver(notification_id, current_app.conf.tanhui_pusher)


@shared_task(name="tanhui.run_job")
def run_job(job_id: str) -> None:
    job = jobs.get(job_id)
    if job is None:
        return
    if job.kind == regrading.KIND:
        for share in regrading.cut(job_id):
            nudge(run_job, share.id)
    elif job.kind in RUN:
        RUN[job.kind](job_id)
    else:
        _read_file(job)


def _read_file(job: Job) -> None:
    """Read a file or a share of one; the shares of a large file go to whoever is free."""
    whole = jobs.get(job.whole) if job.whole is not None else job
    assert whole is not None, "jobs are never deleted"
    take_rows, form = FILES[whole.kind]
    if imports.run(job.id, take_rows, form, lambda one: nudge(run_job, one.id)) is None:
        left = jobs.get(job.id)
        if left is not None and left.state == jobs.QUEUED and left.leased_until <= clock.now():
            nudge(run_job, job.id)  # A share that has had its stint: behind whatever waits.
        # A worker that was stopped: rows it took since may be behind the walk that takes it back.
        reversal_id = walks.again_after(whole.id)
        if reversal_id is not None:
            nudge(run_job, reversal_id)


@shared_task(name="tanhui.carry_service")
def carry_service() -> None:
    """What concerns the resident: carried as soon as may be."""
    delivery.carry_due(outbox.SERVICE, current_app.conf.tanhui_pusher, CARRY_S)


@shared_task(name="tanhui.carry_marketing")
def carry_marketing() -> None:
    """What the resident may do without: it waits behind everything else."""
    delivery.carry_due(outbox.MARKETING, current_app.conf.tanhui_pusher, CARRY_S)


@shared_task(name="tanhui.drop_idle_devices")
def drop_idle_devices() -> None:
    devices.drop_idle(clock.now())


@shared_task(name="tanhui.carry_webhook")
def carry_webhook(webhook_id: str) -> None:
    """Carry what waits for one webhook; a slow receiver holds up no other for long."""
    if webhooks.carry(webhook_id, current_app.conf.tanhui_webhook_post):
        nudge(carry_webhook, webhook_id)


@shared_task(name="tanhui.sweep_webhooks")
def sweep_webhooks() -> None:
    for webhook_id in subscriptions.to_be_carried(clock.now()):
        nudge(carry_webhook, webhook_id)


@shared_task(name="tanhui.sweep_jobs")
def sweep_jobs() -> None:
    for job_id in jobs.waiting(clock.now()):
        nudge(run_job, job_id)


@shared_task(name="tanhui.let_time_pass")
def let_time_pass() -> None:
    """Queue tonight's job; a second beat, or a second clock, finds it queued."""
    nudge(run_job, passing.queue("clock", day=clock.city_day(clock.now())).id)


@shared_task(name="tanhui.prove_the_book")
def prove_the_book() -> None:
    """Queue tonight's proof."""
    nudge(run_job, proofs.queue("clock", day=clock.city_day(clock.now())).id)


@shared_task(name="tanhui.keep_summaries")
def keep_summaries() -> None:
    """Queue tonight's walk over the summaries; it checks the sums of tonight's accounts."""
    nudge(run_job, upkeep.queue_tonight().id)


@shared_task(name="tanhui.expire_vouchers")
def expire_vouchers() -> None:
    """End the vouchers nobody used; one that was begun twice finds nothing left to do."""
    expiring.run(clock.now())


@shared_task(name="tanhui.grade_everybody")
def grade_everybody() -> None:
    """Queue the scheduled grading of this month, unless it was queued on a day before."""
    nudge(run_job, regrading.queue("clock", month=clock.city_month(clock.now())).id)


@shared_task(name="tanhui.sweep_half_done")
def sweep_half_done() -> None:
    """Finish whatever a crash left half-way."""
    now = clock.now()
    crediting.sweep(now)
    batches.sweep(now)
    bill_crediting.sweep(now)
    deciding.sweep(now)
    redemptions.sweep(now)
    expiring.sweep(now)
    stock.sweep()
    takings.book_unbooked(now - crediting.SWEEP_AFTER)
    disputes.sweep(now - crediting.SWEEP_AFTER)
    feed.sweep(now)
    closing.sweep(now)
    grade.sweep(now - crediting.SWEEP_AFTER)
    consent_requests.sweep(now)
    greenlist.sweep(now)
    pushes.sweep()
    inventory_entries.sweep(now - crediting.SWEEP_AFTER)
    periods.sweep(now - crediting.SWEEP_AFTER)
    uploads.sweep(now)


@shared_task(name="tanhui.remind_of_consents")
def remind_of_consents() -> None:
    """Tell residents, once each, that a consent ends within a week."""
    while consents.remind(clock.now()) == consents.SWEEP_MAX:
        pass


@shared_task(name="tanhui.remind_of_vouchers")
def remind_of_vouchers() -> None:
    """Tell residents, once each, of vouchers that end within three days, or tomorrow."""
    reminding.remind(clock.now())


@shared_task(name="tanhui.tell_of_reads")
def tell_of_reads() -> None:
    """Tell residents which bank read their grade."""
    read_receipts.tell(clock.now())


@shared_task(name="tanhui.make_bank_files")
def make_bank_files() -> None:
    """Queue tonight's look at all green lists, and every bank's file of the day."""
    nudge(run_job, bank_files.queue("clock", clock.city_day(clock.now())).id)


@shared_task(name="tanhui.validate_readings")
def validate_readings() -> None:
    """Validate the days of meters whose wait is over."""
    _for_a_while(validating.sweep, validating.SWEEP_MAX)


@shared_task(name="tanhui.count_inventory")
def count_inventory() -> None:
    """Count the days of plants whose validated readings changed."""
    _for_a_while(inventory_days.sweep, inventory_days.TOGETHER_MAX)


def _for_a_while(sweep: Callable[[datetime], int], most: int) -> None:
    """Sweep on while there is more than one sweep takes, until the next one is due.

    A city of 111,000 meters has 123 days of meters a second to look at.
    """
    until = time.monotonic() + CARRY_S
    while sweep(clock.now()) == most and time.monotonic() < until:
        pass


@shared_task(name="tanhui.post_inventory")
def post_inventory() -> None:
    """Value anew what has newer factors, then post plants' days that are over to the book."""
    inventory_days.restate(factors.shipped())
    periods.run(clock.now())


@shared_task(name="tanhui.watch_plants")
def watch_plants() -> None:
    """Look for alerts in the days whose layer changed, and tell what a crash left untold."""
    alerting.sweep(clock.now())


@shared_task(name="tanhui.listen_to_meters")
def listen_to_meters() -> None:
    alerting.listen(clock.now())


@shared_task(name="tanhui.review_plants")
def review_plants() -> None:
    """What alerts say once a night; a second run finds the same."""
    alert_reviews.review(clock.now())


@shared_task(name="tanhui.keep_pools")
def keep_pools() -> None:
    """Slow or stop funders whose pools run low, and add up what the programme's page shows."""
    now = clock.now()
    campaigns.sweep(now)
    programme.refresh(now)


@shared_task(name="tanhui.add_up_liability")
def add_up_liability() -> None:
    nudge(run_job, liability.queue("clock").id)
