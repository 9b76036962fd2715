"""What a forked process may be asked to do; each takes and returns plain JSON values."""

import os
import random
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from accounting import book, clock, jobs, links, proofs, storage
from accounting.book import Ask, Decision, Head, Line, Wanted
from accounting.enterprise import (
    alerting,
    alerts,
    editing,
    inventory_days,
    inventory_entries,
    meters,
    periods,
    readings,
    validating,
)
from accounting.enterprise.alerts import Why
from accounting.enterprise.meters import Kind
from accounting.enterprise.readings import Reading
from accounting.errors import AccountBusy, DomainError
from accounting.jobs import Job
from api import plants as plant_rows
from api.backup import restoring, taking
from api.bookkeeping import RULES
from faults import mess
from footprint import activities, greenlist, reviews, summaries, upkeep, versions
from footprint.rules import Report
from integrations import (
    closing,
    delivery,
    drop_folder,
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
from integrations.push import FirebasePusher
from points import batches, crediting, deciding, feed, holds, milestones, passing, pushes, restating
from points.wallet import InsufficientPoints, Wallet
from rewards import catalogue, expiring, redemptions, settlement, till, vouchers
from rewards.vouchers import USED


def deposit(account: str, key: str, amount: int) -> bool:
    """Post one amount; True when an earlier try had posted it."""

    def decide(head: Head, now: datetime) -> Decision:
        held = int(head.after.get("held", 0))
        lines = (Line("points", "issued:city", -amount), Line("points", "available", amount))
        return Decision(lines=lines, after={"held": held + amount})

    ask = Ask(account, key, "earn", book.fingerprint(amount), datetime(2026, 5, 1, tzinfo=UTC))
    return book.post(ask, decide).replayed


def read_meter(plant: str, meter: str, at: str, value: str) -> list[str]:
    """Hand over one reading and validate what it touched."""
    row = Reading(meter, datetime.fromisoformat(at), Decimal(value), Kind.INTERVAL)
    ends = [end.outcome for end in readings.take(plant, [row])]
    validating.sweep(clock.now() + 2 * readings.DEBOUNCE)
    return ends


def edit_meter(plant: str, meter: str, at: str) -> None:
    """Set one slot by hand."""
    edits = [editing.Edit(datetime.fromisoformat(at), 7_000)]
    editing.edit(meters.get(plant, meter), edits, above=False, by="op", reason="first")


def count_inventory() -> int:
    """Count what changed at plants, as the sweep does."""
    return inventory_days.sweep(clock.now() + timedelta(days=1))


def post_inventory() -> int:
    return periods.run(clock.now())


def close_month(plant: str, month: str) -> int:
    return periods.close(plant, month, by="gateway").revision


def add_process(plant: str, event: str, day: str) -> int:
    """A process emission of a day, measured as one tonne."""
    on, tonne_mg = date.fromisoformat(day), 1_000_000_000
    entry = inventory_entries.add_process(
        plant, event, on, on, evidence="balance", by="gateway", co2e_mg=tonne_mg
    )
    return entry.amount


def look_for_alerts() -> int:
    return alerting.sweep(clock.now() + 2 * readings.DEBOUNCE)


def close_alert(plant: str, alert: str) -> bool:
    return alerts.close(alerts.get(plant, alert), Why.NORMAL) is not None


def deposit_for_ever(account: str, acknowledged: str) -> None:
    """Post one after the other; what was acknowledged is on disk before the next begins."""
    log = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in range(100_000):
        key = f"{os.getpid()}-{number}"
        try:
            deposit(account, key, 1)
        except AccountBusy:
            continue
        os.write(log, f"{key}\n".encode())
        os.fsync(log)


def back_up(file: str) -> int:
    return taking.take(Path(file)).documents


def restore_into(uri: str, file: str) -> int:
    """Into the database of another URI; whatever this process asks then goes there."""
    storage.disconnect()
    storage.connect(uri)
    return restoring.restore(Path(file), replace=False).book.entries


def carry(fcm_url: str, category: str) -> int:
    """Carry what is due of a class to the stand-in, as a sweep does."""
    app = firebase.client(FirebaseSettings(fcm_url=fcm_url))
    assert app is not None
    return delivery.carry_due(category, FirebasePusher(app), 30)


def move_many(accounts: list[str], worker: int, seed: int) -> list[str]:
    """A seeded batch of gains and spends over accounts; what became of each."""
    chance = random.Random(seed)

    def wanted(number: int) -> Wanted:
        amount = chance.randint(-6, 9)
        key, account = f"{worker}-{number}", chance.choice(accounts)

        def decide(head: Head, now: datetime) -> Decision:
            if book.balance(head.after, "points", "available") + amount < 0:
                raise NoMore()
            lines = (Line("points", "issued:city", -amount), Line("points", "available", amount))
            return Decision(lines, {}, {"amount": amount})

        print_of = book.fingerprint(amount)
        return Wanted(Ask(account, key, "earn", print_of, datetime(2026, 5, 1, tzinfo=UTC)), decide)

    answers = []
    for result in book.post_many([wanted(number) for number in range(60)]):
        if isinstance(result, AccountBusy):
            answers.append("busy")
        elif isinstance(result, DomainError):
            answers.append(result.code)
        else:
            answers.append("replayed" if result.replayed else "posted")
    return answers


def carry_webhook(webhook_id: str) -> bool:
    return webhooks.carry(webhook_id, partial(webhook_targets.post, loopback=True))


class NoMore(DomainError):
    code = "no_more"


def report(
    resident: str,
    behaviour: str,
    quantity: str,
    at: str,
    event_id: str,
    source: str | None = None,
    **attributes: Any,
) -> list[Any]:
    what = Report(behaviour, Decimal(quantity), datetime.fromisoformat(at), None, attributes)
    activity, fresh = crediting.report(
        resident, what, source=source or f"app:{resident}", event_id=event_id, evidence="A"
    )
    return [activity.status, activity.mg, activity.points, fresh]


def reverse(activity_id: str) -> str | None:
    found = activities.by_id(activity_id)
    assert found is not None
    return crediting.reverse(found, reason="refund", by="operator").status


def take_in_a_mess(seed: int) -> list[str]:
    received = batches.take_in(mess.a_days_mess(seed))
    return [one.code if isinstance(one, DomainError) else str(one[0].status) for one in received]


def credit_parked(resident: str, link_id: str) -> int:
    found = links.of_resident(resident, before=None, limit=100)
    return feed.credit_parked(next(link for link in found if link.id == link_id))


def redeem(resident: str, key: str, reward_id: str, quantity: int = 1) -> str:
    return redemptions.redeem(resident, key, reward_id, quantity).state


def redeem_each(residents: list[str], reward_id: str) -> list[str]:
    """One voucher for each of these residents; `ok`, or the code of the refusal."""
    ends = []
    for resident in residents:
        try:
            redemptions.redeem(resident, "race", reward_id, 1)
        except DomainError as refusal:
            ends.append(refusal.code)
        else:
            ends.append("ok")
    return ends


def expire_vouchers() -> int:
    return expiring.run(clock.now())


def cancel(resident: str, redemption_id: str) -> str:
    return redemptions.cancel(resident, redemption_id).state


def scan(voucher_id: str, store_id: str, terminal_ref: str) -> str:
    found = vouchers.get(voucher_id)
    assert found is not None
    merchant_id = catalogue.reward(found.reward_id).merchant_id
    till.redeem(found, merchant_id=merchant_id, store_id=store_id, terminal_ref=terminal_ref)
    return USED


def refund(voucher_id: str, merchant_id: str) -> str:
    return till.refund(voucher_id, merchant_id=merchant_id).status


def settle(job_id: str) -> str:
    job = settlement.run(job_id)
    assert job is not None
    return job.state


def decide(queue: str, review_id: str, accept: bool, reason: str, by: str) -> str:
    decision = reviews.Decision(accept, reason, by)
    return deciding.decide(reviews.get(queue, review_id), decision).status


def export(job_id: str) -> str:
    job = exports.run(job_id)
    assert job is not None
    return job.state


def close_account(resident: str) -> None:
    closing.close(resident)


def follow_green(resident: str) -> None:
    greenlist.follow(resident)


def run_import(job_id: str, chunk_rows: int) -> str:
    imports.CHUNK_ROWS = chunk_rows
    job = imports.run(job_id, bus_rows)
    assert job is not None
    return job.state


def look_at_drop_folder(root: str) -> int:
    """One look of a watcher for whom every file stands still."""
    watcher = drop_folder.Watcher(Path(root), lambda _job_id: None, settle=timedelta(0))
    return watcher.look()


def finish_upload(upload_id: str) -> str:
    upload = uploads.get(upload_id)
    assert upload is not None
    return uploads.finish(upload).id


def run_shares(job_id: str, chunk_rows: int, first: int, leave: int = 0) -> str:
    """A worker that takes up the shares of an import, from one of them round, and leaves some."""
    imports.CHUNK_ROWS = chunk_rows
    made = [one.id for one in jobs.shares(job_id, imports.SHARES_MAX)]
    for one in made[first:] + made[leave:first]:
        imports.run(one, bus_rows)
    job = jobs.get(job_id)
    assert job is not None
    return job.state


def run_readings_file(job_id: str) -> str:
    job = imports.run(job_id, plant_rows.take_file_rows, feeds.READINGS)
    assert job is not None
    return job.state


def run_reversal(job_id: str) -> str:
    job = reversals.run(job_id)
    assert job is not None
    return job.state


def run_restatement(job_id: str) -> str:
    versions.register.install()
    job = restating.run(job_id)
    assert job is not None
    return job.state


def run_passing(job_id: str) -> str:
    job = passing.run(job_id)
    assert job is not None
    return job.state


def run_push(job_id: str) -> str | None:
    job = pushes.run(job_id)
    return job.state if job is not None else None


def hold(account: str, key: str, points: int) -> int:
    return holds.hold(account, key, points, timedelta(hours=1), purpose="scale").points


def capture(account: str, key: str, points: int) -> int:
    return holds.capture(account, key, points, reason="weighed").seq


def move_points(account: str, key: str, kind: str, points: int) -> int:
    """One entry that earns or spends, and says so in its refs; returns its number."""

    def decide(head: Head, now: datetime) -> Decision:
        wallet = Wallet.load(head.after)
        wallet.advance(now)
        if kind == "earn":
            wallet.earn(points, "city", over=now, maturity=timedelta(0))
            wallet.advance(now)
        else:
            wallet.spend(points)
        return Decision(tuple(wallet.lines), {"wallet": wallet.dump()}, {"points": points})

    ask = Ask(account, key, kind, book.fingerprint(kind, points), clock.now())
    return book.post(ask, decide).entry.seq


def live(accounts: list[str], name: str, count: int) -> int:
    """Earn, spend, hold, capture and let go on these accounts, in an order of the name's own.

    Returns how often there were not enough points.
    """
    order = random.Random(name)
    refused = 0
    for number in range(count):
        account, points = order.choice(accounts), order.randint(1, 40)
        key = f"{name}-{number}"
        what = order.choice(("earn", "spend", "capture", "release"))
        try:
            if what in ("earn", "spend"):
                _patiently(move_points, account, key, what, points)
                continue
            _patiently(hold, account, key, points)
            if what == "capture":
                _patiently(capture, account, key, order.randint(1, points))
            else:
                _patiently(holds.release, account, key, reason="left")
        except InsufficientPoints:
            refused += 1
    return refused


def _patiently(do: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Ask again while the account is busy: on purpose everybody wants the same one."""
    for _ in range(100):
        try:
            return do(*args, **kwargs)
        except AccountBusy:
            continue
    raise AssertionError("still busy after 100 tries")


def prove(job_id: str, stretch: int) -> str | None:
    proofs.STRETCH = stretch
    job = proofs.run(job_id, RULES)
    return job.state if job is not None else None


def follow_to_milestone(resident: str, name: str) -> None:
    """Follow the book as its process does, until a resident has a milestone."""
    wanted = {"resident": resident, "milestone": name}
    there = storage.database()["milestones"].count_documents
    upkeep.follow(lambda: bool(there(wanted)), milestones.look)


def follow_book(heads: dict[str, int]) -> dict[str, int]:
    """Follow the book until these heads are taken in; returns the cursors then."""
    upkeep.follow(lambda: summaries.cursors(heads) == heads)
    return summaries.cursors(heads)


def bus_rows(job: Job, raw: Sequence[dict[str, Any]]) -> list[imports.RowResult]:
    """Take rows of bus rides through the feed, as the worker does behind the row schema."""
    rows = [
        feed.Row(
            one["external_id"],
            one["source_event_id"],
            Report("bus_km", Decimal(one["quantity"]), datetime.fromisoformat(one["occurred_at"])),
            job.id,
        )
        for one in raw
    ]
    results = []
    for taken in feed.take(feed.Partner(job.owner), rows):
        if taken.refusal is not None or taken.activity is None:
            results.append(imports.RowResult("rejected", taken.refusal))
            continue
        status = taken.activity.status_at(clock.now())
        if taken.fresh and status == "rejected":
            results.append(imports.RowResult(status, reason=taken.activity.reasons[0]))
            continue
        status = {"capped": "credited"}.get(status, status)
        results.append(imports.RowResult(status if taken.fresh else "duplicate"))
    return results


SCENARIOS: dict[str, Callable[..., Any]] = {
    one.__name__: one
    for one in (
        deposit,
        deposit_for_ever,
        back_up,
        restore_into,
        read_meter,
        edit_meter,
        count_inventory,
        post_inventory,
        close_month,
        add_process,
        look_for_alerts,
        close_alert,
        carry,
        move_many,
        report,
        reverse,
        take_in_a_mess,
        credit_parked,
        redeem,
        redeem_each,
        expire_vouchers,
        cancel,
        scan,
        refund,
        settle,
        decide,
        export,
        close_account,
        follow_green,
        run_import,
        look_at_drop_folder,
        finish_upload,
        run_shares,
        run_restatement,
        follow_book,
        follow_to_milestone,
        prove,
        run_readings_file,
        run_reversal,
        run_passing,
        run_push,
        hold,
        capture,
        move_points,
        live,
        carry_webhook,
    )
}
