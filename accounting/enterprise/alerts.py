"""Alerts of a plant: raised once for what lasts, acknowledged by people, closed by what is normal.

At most one alert of a rule and subject is open at a time (a unique index holds it), whoever
evaluates at once. What comes back within eight hours of its end is the same alert again. Every
change is one guarded write that also says what is still to be told; telling leaves an event and
strikes it off, so a crash between the two tells it later, and never twice.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import mongoengine as me
from pymongo import ReturnDocument
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, events, storage
from accounting.clients import Kind as ClientKind
from accounting.enterprise.alert_rules import Rule, Severity
from accounting.errors import AccountBusy, DomainError, NotFound
from accounting.ids import new_id

# What comes back so soon after its end is the same alert.
TOGETHER = timedelta(hours=8)
ATTEMPTS_MAX = 16
LIVE_MAX = 10_000
TELL_MAX = 1_000

log = logging.getLogger(__name__)


class State(StrEnum):
    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    CLOSED = "closed"


class Why(StrEnum):
    """Why an alert was closed: normal again, or later readings say that it never was."""

    NORMAL = "normal"
    WITHDRAWN = "withdrawn"


class AlertClosed(DomainError):
    code = "alert_closed"
    en = "The alert is closed already."
    zh = "该告警已关闭。"


@storage.indexed
class AlertDocument(me.Document):
    """`live` is the key while it is not closed; `to_tell` what no event was left for yet."""

    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)
    key = me.StringField(required=True)
    live = me.StringField()
    state = me.StringField(required=True)
    last_at = me.DateTimeField(required=True)
    to_tell = me.ListField(me.StringField())
    version = me.IntField(required=True)

    meta = {
        "collection": "plant_alerts",
        "auto_create_index": False,
        "indexes": [
            {
                "fields": ["live"],
                "unique": True,
                "partialFilterExpression": {"live": {"$type": "string"}},
            },
            {"fields": ["key", "last_at"]},
            {"fields": ["plant", "_id"]},
            {"fields": ["plant", "state", "_id"]},
            {
                "fields": ["to_tell"],
                "name": "to_be_told",
                "partialFilterExpression": {"to_tell": {"$gt": ""}},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Subject:
    """What an alert is about: a node and carrier, a meter, or something else by its name."""

    node: str | None = None
    carrier: str | None = None
    meter: str | None = None
    of: str | None = None

    def key(self, plant_id: str, rule: Rule) -> str:
        parts = (plant_id, rule, self.node, self.carrier, self.meter, self.of)
        return "/".join(part or "" for part in parts)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found, from the first instant to the last that it saw."""

    rule: Rule
    subject: Subject
    severity: Severity
    first_at: datetime
    last_at: datetime
    facts: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert. `worst` is its worst severity since it was last opened, `times` the openings."""

    id: str
    plant: str
    key: str
    rule: Rule
    subject: Subject
    state: State
    severity: Severity
    worst: Severity
    first_at: datetime
    last_at: datetime
    opened_at: datetime
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    closed_at: datetime | None
    why_closed: Why | None
    times: int
    facts: dict[str, int | str]
    to_tell: tuple[str, ...]
    version: int


# --- reading ------------------------------------------------------------------------------------


def get(plant_id: str, alert_id: str) -> Alert:
    """Raises `NotFound`, also for an alert of another plant."""
    found = _rows().find_one({"_id": alert_id, "plant": plant_id})
    if found is None:
        raise NotFound
    return _alert(found)


def listed(plant_id: str, state: State | None, *, before: str | None, limit: int) -> list[Alert]:
    """Newest first; `before` is the id of the last one of the page before."""
    wanted: storage.Doc = {"plant": plant_id}
    if state is not None:
        wanted["state"] = state
    if before is not None:
        wanted["_id"] = {"$lt": before}
    return [_alert(row) for row in _rows().find(wanted).sort("_id", -1).limit(limit)]


def live(plant_id: str) -> list[Alert]:
    """What is not closed, oldest first."""
    wanted = {"plant": plant_id, "state": {"$in": [State.OPEN, State.ACKNOWLEDGED]}}
    return [_alert(row) for row in _rows().find(wanted).sort("_id", 1).limit(LIVE_MAX)]


# --- writing ------------------------------------------------------------------------------------


def found(plant_id: str, finding: Finding) -> Alert:
    """Open an alert, or add to the one that stands; the same finding again changes nothing.

    What lies further back than what is open, and was never told, is written down as closed.
    Raises `AccountBusy` when others keep changing the same alert.
    """
    key = finding.subject.key(plant_id, finding.rule)
    for attempt in range(ATTEMPTS_MAX):
        standing = _rows().find_one({"live": key})
        if standing is not None and finding.last_at >= standing["first_at"] - TOGETHER:
            changed = _add(_alert(standing), finding)
        else:
            near = _near(key, finding)
            if near is None:
                changed = _open(plant_id, key, finding, over=standing is not None)
            elif standing is not None or not _news(near, finding):
                return near
            else:
                changed = _reopen(near, finding)
        if changed is not None:
            return tell(changed)
        storage.pause(attempt)
    raise AccountBusy(retry_after=1)


def close(alert: Alert, why: Why) -> Alert | None:
    """Close an alert as it was read; None if it changed meanwhile, which must be looked at anew."""
    if alert.state is State.CLOSED:
        return None
    change = {"state": State.CLOSED, "closed_at": clock.now(), "why_closed": why}
    closed = _change(alert, change, tell=f"closed:{alert.times}", over=True)
    return tell(closed) if closed else None


def acknowledge(plant_id: str, alert_id: str, by: str) -> Alert:
    """Somebody has seen it; whoever came first stays. Raises `NotFound`, `AlertClosed`.

    An alert that gets worse after that is open again.
    """
    for attempt in range(ATTEMPTS_MAX):
        alert = get(plant_id, alert_id)
        if alert.state is State.CLOSED:
            raise AlertClosed
        if alert.state is State.ACKNOWLEDGED:
            return alert
        seen = {"acknowledged_at": clock.now(), "acknowledged_by": by}
        changed = _change(alert, {"state": State.ACKNOWLEDGED, **seen})
        if changed is not None:
            return changed
        storage.pause(attempt)
    raise AccountBusy(retry_after=1)


def tell(alert: Alert) -> Alert:
    """Leave the events of what was not told yet, in order, and strike it off."""
    if alert.to_tell:
        events.leave(*(_happening(alert, what) for what in alert.to_tell))
        _rows().update_one({"_id": alert.id}, {"$pullAll": {"to_tell": list(alert.to_tell)}})
    return alert


def tell_untold(limit: int = TELL_MAX) -> int:
    """Tell what a crash kept from being told; returns how many alerts that were."""
    found = _rows().find({"to_tell": {"$gt": ""}}).limit(limit)
    return len([tell(_alert(row)) for row in found])


def _add(alert: Alert, finding: Finding) -> Alert | None:
    """Take a finding into the alert that stands; None if it changed meanwhile."""
    newer = finding.last_at >= alert.last_at
    worse = finding.severity.rank > alert.worst.rank
    change: storage.Doc = {
        "first_at": min(alert.first_at, finding.first_at),
        "last_at": max(alert.last_at, finding.last_at),
        # What the newest look says, and never less for a look at what is long past.
        "severity": finding.severity if newer or worse else alert.severity,
        "facts": dict(finding.facts) if newer or worse else alert.facts,
    }
    if worse:
        change |= {"state": State.OPEN, "worst": finding.severity}
    if all(getattr(alert, name) == value for name, value in change.items()):
        return alert
    told = f"escalated:{alert.times}:{finding.severity}" if worse else None
    return _change(alert, change, tell=told)


def _news(near: Alert, finding: Finding) -> bool:
    """Whether a finding says more than a closed alert: what is later, or was withdrawn."""
    return finding.last_at > near.last_at or near.why_closed is Why.WITHDRAWN


def _near(key: str, finding: Finding) -> Alert | None:
    """The last closed alert of a key that a finding overlaps or follows within eight hours."""
    wanted = {
        "key": key,
        "state": State.CLOSED,
        "last_at": {"$gte": finding.first_at - TOGETHER},
        "first_at": {"$lte": finding.last_at + TOGETHER},
    }
    row = _rows().find_one(wanted, sort=[("last_at", -1)])
    return _alert(row) if row else None


def _open(plant_id: str, key: str, finding: Finding, *, over: bool) -> Alert | None:
    """A new alert, `over` when it is past already; None if another opened it first."""
    now, subject = clock.now(), finding.subject
    row: storage.Doc = {
        "_id": new_id("alt"),
        "plant": plant_id,
        "key": key,
        "rule": finding.rule,
        "node": subject.node,
        "carrier": subject.carrier,
        "meter": subject.meter,
        "of": subject.of,
        "state": State.CLOSED if over else State.OPEN,
        "severity": finding.severity,
        "worst": finding.severity,
        "first_at": finding.first_at,
        "last_at": finding.last_at,
        "opened_at": now,
        "acknowledged_at": None,
        "acknowledged_by": None,
        "closed_at": now if over else None,
        "why_closed": Why.NORMAL if over else None,
        "times": 1,
        "facts": dict(finding.facts),
        "to_tell": ["opened:1", "closed:1"] if over else ["opened:1"],
        "version": 1,
        **({} if over else {"live": key}),
    }
    try:
        _rows().insert_one(row)
    except DuplicateKeyError:
        return None
    return _alert(row)


def _reopen(alert: Alert, finding: Finding) -> Alert | None:
    change = {
        "state": State.OPEN,
        "live": alert.key,
        "severity": finding.severity,
        "worst": finding.severity,
        "first_at": min(alert.first_at, finding.first_at),
        "last_at": finding.last_at,
        "closed_at": None,
        "why_closed": None,
        "times": alert.times + 1,
        "facts": dict(finding.facts),
    }
    return _change(alert, change, tell=f"opened:{alert.times + 1}")


def _change(
    alert: Alert, change: storage.Doc, *, tell: str | None = None, over: bool = False
) -> Alert | None:
    """Write a change to an alert as it was read; None if it is not what was read any more."""
    update: storage.Doc = {"$set": change, "$inc": {"version": 1}}
    if tell is not None:
        update["$push"] = {"to_tell": tell}
    if over:
        update["$unset"] = {"live": ""}
    guard = {"_id": alert.id, "version": alert.version}
    try:
        row = _rows().find_one_and_update(guard, update, return_document=ReturnDocument.AFTER)
    except DuplicateKeyError:  # Another of its key was opened meanwhile.
        return None
    return _alert(row) if row else None


def _happening(alert: Alert, what: str) -> events.Happening:
    """The event of one thing to be told, such as `opened:1` or `escalated:1:critical`."""
    kind, _, _ = what.partition(":")
    party = events.party(ClientKind.PLANT, alert.plant)
    return events.Happening(
        party, _TYPES[kind], f"alert:{alert.id}", f"{alert.id}:{what}", _data(alert)
    )


def _data(alert: Alert) -> storage.Doc:
    subject = alert.subject
    return {
        "plant_id": alert.plant,
        "alert_id": alert.id,
        "rule": str(alert.rule),
        "severity": str(alert.severity),
        "state": str(alert.state),
        "node": subject.node,
        "carrier": subject.carrier,
        "meter": subject.meter,
        "first_at": clock.iso(alert.first_at),
        "last_at": clock.iso(alert.last_at),
        "facts": alert.facts,
    }


_TYPES: Mapping[str, events.Type] = {
    "opened": events.Type.ALERT_OPENED,
    "escalated": events.Type.ALERT_ESCALATED,
    "closed": events.Type.ALERT_CLOSED,
}


def _alert(row: Mapping[str, Any]) -> Alert:
    return Alert(
        id=row["_id"],
        rule=Rule(row["rule"]),
        subject=Subject(row["node"], row["carrier"], row["meter"], row["of"]),
        state=State(row["state"]),
        severity=Severity(row["severity"]),
        worst=Severity(row["worst"]),
        why_closed=Why(row["why_closed"]) if row["why_closed"] else None,
        facts=dict(row["facts"]),
        to_tell=tuple(row["to_tell"]),
        **{name: row[name] for name in _SAME},
    )


_SAME = (
    *("plant", "key", "first_at", "last_at", "opened_at", "times", "version"),
    *("acknowledged_at", "acknowledged_by", "closed_at"),
)


def _rows() -> "Collection[storage.Doc]":
    return storage.strong(AlertDocument._get_collection())
