"""What a plant's meters cannot say: process emissions, and green power with evidence.

Each is an entry over a span of days with the evidence it rests on, stored once on (plant, event).
It counts on its days evenly until it is taken back; then the event may be told anew, as its next
number. A certificate of green power is used once in the whole city: a claim, let go when its entry
is taken back.

Whether green power is no more than was bought is judged by all of it, so the entries of a plant
come in turn: each takes the next number after those it has seen, and of two with the same number
one looks again.

An entry marks itself as due until its days are counted, so a crash between leaves it to the sweep.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any

import mongoengine as me
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import claims, clock, factors, storage, sweeping
from accounting.enterprise import carbon, inventory, inventory_days, meterdays, plants
from accounting.enterprise.inventory_days import Day, Process
from accounting.errors import DomainError, KeyReused, NotFound, ValidationFailed
from accounting.factors import PROCESS_SET, Series
from accounting.proration import Use

DAYS_MAX = 366
SWEEP_MAX = 200
# Entries of a plant that share days; more are refused.
LIVE_MAX = 200
_CERTIFICATE = "green_certificate"
_DAY = timedelta(days=1)


class Kind(StrEnum):
    PROCESS = "process"
    GREEN_POWER = "green_power"


class Evidence(StrEnum):
    """What green power may rest on (GB/T 32150, Annex D): nothing else makes it zero."""

    CERTIFICATE = "certificate"
    CONTRACT = "contract"


class CertificateUsed(DomainError):
    """Facts: certificate."""

    code = "certificate_used"
    en = "The certificate {certificate} has been used already; each counts once in the city."
    zh = "凭证 {certificate} 已被使用；每张凭证全市只能使用一次。"


class MoreThanBought(DomainError):
    """Facts: bought_kwh, green_kwh."""

    code = "green_power_exceeds_purchase"
    en = "{bought_kwh} kWh are known to be bought in this span, {green_kwh} kWh would be green."
    zh = "该时段已知购入 {bought_kwh} kWh，绿电将达 {green_kwh} kWh。"
    # More may be known tomorrow.
    final = False


@storage.indexed
class InventoryEntryDocument(me.Document):
    id = me.StringField(primary_key=True)
    plant = me.StringField(required=True)
    kind = me.StringField(required=True)
    last_day = me.StringField(required=True)
    recorded_at = me.DateTimeField(required=True)
    due_at = me.DateTimeField()
    turn = me.IntField()

    meta = {
        "collection": "inventory_entries",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["plant", "kind", "recorded_at", "_id"]},
            {"fields": ["plant", "last_day"]},
            {
                "fields": ["due_at"],
                "name": "entries_due",
                "partialFilterExpression": {"due_at": {"$type": "date"}},
            },
            {
                "fields": ["plant", "turn"],
                "unique": True,
                "partialFilterExpression": {"turn": {"$gt": 0}},
            },
        ],
    }


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `amount` is milligrams of CO2e for a process, watt-hours for green power.

    `material` and `quantity_g` say what a process used, with the factor `factor`; without them the
    emission was measured or balanced, as `evidence` says. `evidence_kind` is of green power.
    """

    plant: str
    event: str
    kind: Kind
    first_day: date
    last_day: date
    amount: int
    evidence: str
    recorded_at: datetime
    by: str
    evidence_kind: Evidence | None = None
    material: str | None = None
    quantity_g: int | None = None
    factor: str | None = None
    node: str | None = None
    number: int = 1
    taken_back: str | None = None
    taken_back_by: str | None = None

    @property
    def id(self) -> str:
        return f"{self.plant}/{self.event}/{self.number}"

    @property
    def over(self) -> Use:
        return Use(self.first_day, self.last_day, Decimal(self.amount))


# --- process ------------------------------------------------------------------------------------


def materials() -> tuple[str, ...]:
    """The materials whose process emission has a factor."""
    found = {one.carrier for one in factors.shipped().factors if one.series is Series.PROCESS}
    return tuple(sorted(found))


def add_process(
    plant_id: str,
    event: str,
    first: date,
    last: date,
    *,
    evidence: str,
    by: str,
    material: str | None = None,
    quantity_g: int | None = None,
    co2e_mg: int | None = None,
    node: str | None = None,
) -> Entry:
    """Record a process emission: of a material that was used up, or as it was measured.

    The same again changes nothing; other content under the same event raises `KeyReused`.
    Raises `MissingFactor`, `ValidationFailed`.
    """
    if node is not None and all(one.node != node for one in plants.nodes(plant_id)):
        raise ValidationFailed("/node", "There is no such node.", "没有该节点。")
    factor = None
    if material is not None:
        assert quantity_g is not None, "a material has a quantity"
        registry = factors.shipped()
        found = registry.lookup(
            material, carbon.NATION, last, series=Series.PROCESS, set=PROCESS_SET, today=last
        )
        factor, co2e_mg = found.factor.id, found.factor.mg(quantity_g, "g")
    assert co2e_mg is not None, "a process emission is computed or measured"
    return _add(
        Entry(
            plant=plant_id,
            event=event,
            kind=Kind.PROCESS,
            first_day=first,
            last_day=last,
            amount=co2e_mg,
            evidence=evidence,
            recorded_at=clock.now(),
            by=by,
            material=material,
            quantity_g=quantity_g,
            factor=factor,
            node=node,
        )
    )


# --- green power --------------------------------------------------------------------------------


def add_green_power(
    plant_id: str,
    certificate: str,
    first: date,
    last: date,
    *,
    wh: int,
    evidence_kind: Evidence,
    evidence: str,
    by: str,
) -> Entry:
    """Record green power that a plant bought, by the id of its certificate or contract.

    Raises `CertificateUsed`, `MoreThanBought`, `KeyReused` for the same certificate with other
    content.
    """
    entry = Entry(
        plant=plant_id,
        event=certificate,
        kind=Kind.GREEN_POWER,
        first_day=first,
        last_day=last,
        amount=wh,
        evidence=evidence,
        recorded_at=clock.now(),
        by=by,
        evidence_kind=evidence_kind,
    )
    return _add(entry)


def _check_bought(entry: Entry) -> None:
    span = (entry.plant, entry.first_day, entry.last_day)
    bought, green = _bought(*span), _green(*span) + entry.amount
    if green > bought:
        raise MoreThanBought(bought_kwh=bought // 1_000, green_kwh=green // 1_000)


def _turn(plant_id: str) -> int:
    """The turn of the next green power of a plant; read before what it is judged by."""
    taken = {"plant": plant_id, "turn": {"$gt": 0}}
    newest = _entries().find_one(taken, {"turn": 1}, sort=[("turn", -1)])
    return newest["turn"] + 1 if newest else 1


def _bought(plant_id: str, first: date, last: date) -> int:
    """The watt-hours a plant is known to have bought."""
    by_carrier = inventory.for_period(plant_id, first, last).total.by_carrier
    return by_carrier[carbon.ELECTRICITY].quantity if carbon.ELECTRICITY in by_carrier else 0


def _green(plant_id: str, first: date, last: date) -> int:
    live = _live(plant_id, first, last, Kind.GREEN_POWER)
    return sum(one.over.within(first, last).__ceil__() for one in live)


# --- both ---------------------------------------------------------------------------------------


def entries_before(
    plant_id: str, kind: Kind, *, before: tuple[datetime, str] | None, limit: int
) -> list[Entry]:
    """The entries of a plant, the newest first; `before` is (recorded_at, id) of the last seen."""
    wanted: storage.Doc = {"plant": plant_id, "kind": kind.value}
    if before is not None:
        at, last = before
        wanted["$or"] = [{"recorded_at": {"$lt": at}}, {"recorded_at": at, "_id": {"$lt": last}}]
    found = _entries().find(wanted).sort([("recorded_at", -1), ("_id", -1)]).limit(limit)
    return [_entry(row) for row in found]


def take_back(plant_id: str, kind: Kind, event: str, *, reason: str, by: str) -> Entry:
    """Let an entry count no more; it stays readable. Taken back twice, the first reason stays.

    Raises `NotFound`.
    """
    known = _of_event(plant_id, event)
    if not known or known[-1].kind is not kind:
        raise NotFound
    change = {"taken_back": reason, "taken_back_by": by, "due_at": clock.now()}
    _entries().update_one({"_id": known[-1].id, "taken_back": None}, {"$set": change})
    entry = _of_event(plant_id, event)[known[-1].number - 1]
    _settle(entry)
    return entry


def sweep(now: datetime) -> int:
    """Count the days of entries that a crash left half-way; returns how many."""
    found = _entries().find({"due_at": meterdays.due_by(now)}).sort("due_at", 1).limit(SWEEP_MAX)
    return sweeping.each("inventory entry", [_entry(row) for row in found], _settle)


def _add(entry: Entry) -> Entry:
    _check_span(entry)
    green, claimed, turn = entry.kind is Kind.GREEN_POWER, False, {}
    while True:
        if green:
            turn = {"turn": _turn(entry.plant)}
        known = _of_event(entry.plant, entry.event)
        same = [one for one in known if _told(one) == _told(entry)]
        if same:
            entry = same[-1]
            break
        if known and known[-1].taken_back is None:
            raise KeyReused(key=entry.event)
        if len(_live(entry.plant, entry.first_day, entry.last_day)) >= LIVE_MAX:
            raise ValidationFailed(
                "/from", "Too many entries on these days.", "这些日期的记录过多。"
            )
        entry = replace(entry, number=len(known) + 1)
        if green:
            try:
                _check_bought(entry)
            except MoreThanBought:
                if claimed:
                    claims.release(entry.id)
                raise
            _claim(entry)
            claimed = True
        try:
            _entries().insert_one(_document(entry) | turn | {"due_at": clock.now()})
        except DuplicateKeyError:
            continue  # Another took this number or turn; each round one of them gets on.
        break
    _settle(entry)
    return entry


def _claim(entry: Entry) -> None:
    """The claim names the certificate alone, so another plant meets it."""
    owner = f"{entry.plant}/{entry.event}"
    if claims.take(_CERTIFICATE, entry.event, owner, entry.id) != owner:
        raise CertificateUsed(certificate=entry.event)


def _told(entry: Entry) -> tuple[Any, ...]:
    """What was told, not who told it when, nor what its factor made of it or became of it."""
    amount = None if entry.material else entry.amount
    what = (entry.kind, entry.first_day, entry.last_day, entry.material, entry.quantity_g)
    return (*what, amount, entry.node, entry.evidence_kind, entry.evidence)


def _of_event(plant_id: str, event: str) -> list[Entry]:
    """All that was told under an event, in order; events have no slash in their names."""
    between = {"$gte": f"{plant_id}/{event}/", "$lt": f"{plant_id}/{event}0"}
    found = map(_entry, _entries().find({"_id": between}))
    return sorted(found, key=lambda one: one.number)


def _check_span(entry: Entry) -> None:
    if entry.last_day < entry.first_day:
        raise ValidationFailed("/to", "Must not lie before from.", "不得早于 from。")
    if entry.over.days > DAYS_MAX:
        raise ValidationFailed("/to", f"At most {DAYS_MAX} days.", f"最多 {DAYS_MAX} 天。")
    if entry.last_day > clock.city_day(clock.now()):
        raise ValidationFailed("/to", "Has not ended yet.", "尚未结束。")


def _settle(entry: Entry) -> None:
    """Count the entry's days, let go of its certificate if it was taken back; safe to repeat."""
    days = [entry.first_day + number * _DAY for number in range(entry.over.days)]
    inventory_days.change(entry.plant, days, lambda held: _laid(entry.plant, held))
    if entry.taken_back is not None and entry.kind is Kind.GREEN_POWER:
        claims.release(entry.id)
    # Taken back meanwhile, it has days to count again.
    done = {"_id": entry.id, "taken_back": entry.taken_back}
    _entries().update_one(done, {"$unset": {"due_at": ""}})


def _laid(plant_id: str, held: Sequence[Day]) -> list[Day]:
    """Days with the parts of all entries that count on them now."""
    first, last = held[0].day, held[-1].day
    live = _live(plant_id, first, last)
    return [
        replace(
            day,
            process=tuple(
                Process(one.event, one.node, one.over.on(day.day))
                for one in live
                if one.kind is Kind.PROCESS and one.over.days_within(day.day, day.day)
            ),
            green_wh=sum(
                one.over.on(day.day)
                for one in live
                if one.kind is Kind.GREEN_POWER and one.over.days_within(day.day, day.day)
            ),
            cause=inventory_days.ENTRIES,
        )
        for day in held
    ]


def _live(plant_id: str, first: date, last: date, kind: Kind | None = None) -> list[Entry]:
    wanted: dict[str, Any] = {
        "plant": plant_id,
        "last_day": {"$gte": first.isoformat()},
        "first_day": {"$lte": last.isoformat()},
        "taken_back": None,
    }
    if kind is not None:
        wanted["kind"] = kind.value
    # Some may have come at once, each the last that there was room for.
    found = [_entry(row) for row in _entries().find(wanted).sort("_id", 1).limit(2 * LIVE_MAX)]
    assert len(found) < 2 * LIVE_MAX, f"{plant_id} has too many entries from {first} to {last}"
    return found


def _document(entry: Entry) -> storage.Doc:
    row = {one.name: getattr(entry, one.name) for one in fields(entry)}
    return {
        **row,
        "_id": entry.id,
        "kind": entry.kind.value,
        "evidence_kind": entry.evidence_kind.value if entry.evidence_kind else None,
        "first_day": entry.first_day.isoformat(),
        "last_day": entry.last_day.isoformat(),
    }


def _entry(row: storage.Doc) -> Entry:
    held = {one.name: row[one.name] for one in fields(Entry)}
    return Entry(
        **{
            **held,
            "kind": Kind(row["kind"]),
            "evidence_kind": Evidence(row["evidence_kind"]) if row["evidence_kind"] else None,
            "first_day": date.fromisoformat(row["first_day"]),
            "last_day": date.fromisoformat(row["last_day"]),
        }
    )


def _entries() -> "Collection[storage.Doc]":
    return storage.strong(InventoryEntryDocument._get_collection())
