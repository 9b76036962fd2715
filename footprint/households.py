"""Households: a meter account of a utility and the residents who live behind it.

The account number is an external id: encrypted, found by keyed hash, and kept nowhere else. The
first resident opens the account and says how many live there; others may join up to that many.
Everything that must hold together lies in one document and changes by one guarded update.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import mongoengine as me
from pymongo.collection import Collection, ReturnDocument
from pymongo.errors import DuplicateKeyError

from accounting import clock, events, notices, outbox, storage, vault
from accounting.clients import Kind
from accounting.errors import AccountBusy, DomainError, NotFound, ValidationFailed
from accounting.events import Happening, Type
from accounting.ids import new_id
from accounting.links import AlreadyLinked
from footprint.billing_rules import BASELINE_YEARS, Carrier

MEMBERS_MAX = 12
ACCOUNT_NO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}")
# One row a day at most, so every day a bill may still be credited for is among them.
COUNTS_KEPT = 366
JOIN_ATTEMPTS_MAX = 8


class HouseholdFull(DomainError):
    """Facts: members."""

    code = "household_full"
    en = "All {members} members of this meter account are linked already."
    zh = "该户号登记的 {members} 位成员均已绑定。"


class MembersConflict(DomainError):
    """Facts: members."""

    code = "members_conflict"
    en = "This meter account is registered with {members} members; join with the same number."
    zh = "该户号已登记为 {members} 人，请以相同人数加入。"


class MembersBelowJoined(DomainError):
    """Facts: joined."""

    code = "members_below_joined"
    en = "{joined} residents are linked to this meter account; it cannot have fewer members."
    zh = "该户号已有 {joined} 位居民绑定，成员数不能少于该人数。"


@storage.indexed
class HouseholdDocument(me.Document):
    id = me.StringField(primary_key=True)
    carrier = me.StringField(required=True)
    number_hash = me.StringField(required=True)
    number_sealed = me.BinaryField(required=True)
    members = me.IntField(required=True)
    # {since: city day, members}, oldest first.
    counts = me.ListField(me.DictField())
    # {resident, since, once}, in the order of joining; never more than `members`.
    residents = me.ListField(me.DictField())
    opened_at = me.DateTimeField(required=True)
    # {members, agreed}: another number of members, and who of the residents agreed to it.
    proposed = me.DictField()
    # {partner, at}: whose history is wanted since whom; written with the place it is wanted for.
    asked = me.DictField()

    meta = {
        "collection": "households",
        "auto_create_index": False,
        "indexes": [
            {"fields": ["number_hash"], "unique": True},
            {"fields": ["residents.resident", "_id"]},
            {"fields": ["asked.partner", "asked.at", "_id"]},
        ],
    }


@dataclass(frozen=True, slots=True)
class Household:
    """One meter account as bills see it; `residents` are those linked now."""

    id: str
    carrier: Carrier
    members: int
    residents: tuple[str, ...]
    counts: tuple[tuple[date, int], ...]

    def members_on(self, day: date) -> int:
        """How many lived there on a city day; before the first count, as many as it says."""
        known = [members for since, members in self.counts if since <= day]
        return known[-1] if known else self.counts[0][1]


@dataclass(frozen=True, slots=True)
class HistoryAsked:
    """A meter account whose bills of `first` to `last` its utility is asked for."""

    id: str
    carrier: Carrier
    account_no: str
    first: date
    last: date
    at: datetime


@dataclass(frozen=True, slots=True)
class Proposal:
    """Another number of members: in force once all who are linked have agreed to it."""

    members: int
    agreed: int


@dataclass(frozen=True, slots=True)
class Membership:
    """One resident's place in a household; the id is the household's, `joined` are linked."""

    id: str
    resident: str
    carrier: Carrier
    account_no: str
    members: int
    joined: int
    since: datetime
    proposed: Proposal | None


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(HouseholdDocument._get_collection())


def number_hash(carrier: str, account_no: str) -> str:
    return vault.keyed_hash("meter_account", f"{carrier}\x1f{account_no}")


def join(
    resident: str,
    carrier: Carrier,
    account_no: str,
    members: int,
    partner: str | None = None,
    *,
    once: str | None = None,
) -> Membership:
    """Link a resident to a meter account, opening it for the first.

    Whoever is the first asks the utility for its history: the `partner` that proved the account,
    or any that may send the carrier.

    `once` is the request it is for; `joined_by` finds the place again.

    Raises `AlreadyLinked` for a resident who is in it, `MembersConflict` when it is registered with
    another number of members, and `HouseholdFull` when that many are linked.
    """
    _check_members(members)
    if ACCOUNT_NO.fullmatch(account_no) is None:
        raise ValidationFailed("/account_no", "Not an account number.", "户号格式不正确。")
    hashed = number_hash(carrier, account_no)
    place: storage.Doc = {"resident": resident, "since": clock.now()}
    if once is not None:
        place["once"] = once
    for _ in range(JOIN_ATTEMPTS_MAX):
        found = _collection().find_one({"number_hash": hashed})
        if found is None:
            opened = _opened(carrier, account_no, hashed, members, place, partner)
            if opened is not None:
                return _membership(opened, resident)
            continue
        _refuse_join(found, resident, members)
        joined = _joined(found, members, place, partner)
        if joined is not None:
            return _membership(joined, resident)
    raise AccountBusy(retry_after=1)


def joined_by(
    once: str | None, resident: str, carrier: Carrier, account_no: str
) -> Membership | None:
    """The place a request made, when a crash lost its answer."""
    found = _collection().find_one({"number_hash": number_hash(carrier, account_no)})
    if once is None or found is None:
        return None
    made = [(place["resident"], place.get("once")) for place in found["residents"]]
    return _membership(found, resident) if (resident, once) in made else None


def get(resident: str, household_id: str) -> Membership:
    """Raises `NotFound` unless the resident is in the household."""
    found = _collection().find_one(_place(resident, household_id))
    if found is None:
        raise NotFound()
    return _membership(found, resident)


def of_resident(resident: str, *, before: str | None, limit: int) -> list[Membership]:
    """The resident's households, the account opened last first."""
    wanted: dict[str, Any] = {"residents.resident": resident}
    if before is not None:
        wanted["_id"] = {"$lt": before}
    found = _collection().find(wanted).sort("_id", -1).limit(limit)
    return [_membership(document, resident) for document in found]


def leave(resident: str, household_id: str) -> None:
    """End a resident's place; what it earned stays. Raises `NotFound` if there is none.

    Whoever stays may have agreed on another number of members already.
    """
    staying = {"$filter": {"input": "$residents", "cond": {"$ne": ["$$this.resident", resident]}}}
    agreed = {"$ifNull": ["$proposed.agreed", []]}
    left = _collection().update_one(
        _place(resident, household_id),
        [{"$set": {"residents": staying}}, *_if_agreed("$proposed.members", agreed)],
    )
    if left.matched_count == 0:
        raise NotFound()


def leave_all(resident: str) -> None:
    """End every place of a closed account; a number only this resident was linked to goes too."""
    wanted = {"residents.resident": resident}
    _collection().delete_many({**wanted, "residents": {"$size": 1}})
    _collection().update_many(wanted, {"$pull": {"residents": {"resident": resident}}})


def change_members(resident: str, household_id: str, members: int) -> Membership:
    """Say how many live there from today on; bills that ended before keep their count.

    It is a proposal until all who are linked have said the same; saying the number that is in force
    ends it. Raises `NotFound` unless the resident is in the household, `MembersBelowJoined` for
    fewer than are linked.
    """
    _check_members(members)
    wanted = _place(resident, household_id)
    changed = _collection().find_one_and_update(
        # Whoever is linked has a place, so the place after the last allowed one must be free.
        {**wanted, f"residents.{members}": {"$exists": False}},
        _proposed(resident, members),
        return_document=ReturnDocument.AFTER,
    )
    if changed is not None:
        _tell_others(changed, resident)
        return _membership(changed, resident)
    found = _collection().find_one(wanted)
    if found is None:
        raise NotFound()
    raise MembersBelowJoined(joined=len(found["residents"]))


def by_number(carrier: Carrier, account_no: str) -> Household | None:
    return by_numbers([(carrier, account_no)]).get((carrier, account_no))


def by_numbers(
    numbers: Iterable[tuple[Carrier, str]],
) -> dict[tuple[Carrier, str], Household]:
    """The meter accounts somebody opened, by carrier and number, in one read."""
    hashed = {number_hash(carrier, number): (carrier, number) for carrier, number in numbers}
    found = _collection().find({"number_hash": {"$in": list(hashed)}})
    return {hashed[document["number_hash"]]: _household(document) for document in found}


def histories_asked(
    partner: str,
    carriers: Iterable[str],
    *,
    since: datetime | None,
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[HistoryAsked]:
    """The accounts a partner is asked the history of, the first asked first; from `since` on."""
    wanted: dict[str, Any] = {
        "asked.partner": {"$in": [partner, None]},
        "carrier": {"$in": sorted(carriers)},
    }
    if since is not None:
        wanted["asked.at"] = {"$gte": since}
    if after is not None:
        at, last = after
        wanted["$or"] = [{"asked.at": {"$gt": at}}, {"asked.at": at, "_id": {"$gt": last}}]
    found = _collection().find(wanted).sort([("asked.at", 1), ("_id", 1)]).limit(limit)
    return [_history_asked(document) for document in found]


def _history_asked(document: storage.Doc) -> HistoryAsked:
    at = document["asked"]["at"]
    last = clock.city_day(at)
    # As far as a baseline looks back.
    first = clock.add_months(clock.month_of(last), -12 * max(BASELINE_YEARS))
    return HistoryAsked(
        id=document["_id"],
        carrier=document["carrier"],
        account_no=vault.decrypt(document["number_sealed"], "meter_account"),
        first=clock.first_day(first),
        last=last,
        at=at,
    )


def _check_members(members: int) -> None:
    if not 1 <= members <= MEMBERS_MAX:
        raise ValidationFailed(
            "/members", f"Must be 1 to {MEMBERS_MAX}.", f"应为 1 至 {MEMBERS_MAX}。"
        )


def _place(resident: str, household_id: str) -> dict[str, Any]:
    return {"_id": household_id, "residents.resident": resident}


def _opened(
    carrier: Carrier,
    account_no: str,
    hashed: str,
    members: int,
    place: dict[str, Any],
    partner: str | None,
) -> storage.Doc | None:
    document: storage.Doc = {
        "_id": new_id("hh"),
        "carrier": carrier,
        "number_hash": hashed,
        "number_sealed": vault.encrypt(account_no, "meter_account"),
        "members": members,
        "counts": [{"since": _today(), "members": members}],
        "residents": [place],
        "opened_at": place["since"],
        "asked": {"partner": partner, "at": place["since"]},
        "proposed": None,
    }
    _tell_asked(document["_id"], carrier, document["asked"])
    try:
        _collection().insert_one(document)
    except DuplicateKeyError:
        # Opened by another resident meanwhile; this one joins it.
        return None
    return document


def _tell_asked(household_id: str, carrier: str, asked: dict[str, Any]) -> None:
    """Leave word for a utility that a history is wanted; the list of them says whose."""
    if asked["partner"] is not None:
        events.leave(
            Happening(
                events.party(Kind.DATA, asked["partner"]),
                Type.HISTORY_REQUESTED,
                f"household:{household_id}",
                f"history:{household_id}:{asked['at'].isoformat()}",
                {"carrier": str(carrier)},
            )
        )


def _refuse_join(found: storage.Doc, resident: str, members: int) -> None:
    residents = [place["resident"] for place in found["residents"]]
    if resident in residents:
        raise AlreadyLinked()
    if not residents:
        return
    if found["members"] != members:
        raise MembersConflict(members=found["members"])
    if len(residents) >= found["members"]:
        raise HouseholdFull(members=found["members"])


def _joined(
    found: storage.Doc, members: int, place: dict[str, Any], partner: str | None
) -> storage.Doc | None:
    """Add a place if the document still allows it; None asks to judge it again."""
    change: dict[str, Any] = {"residents": {"$concatArrays": ["$residents", [place]]}}
    wanted: dict[str, Any] = {"_id": found["_id"]}
    if found["residents"]:
        wanted |= {
            "members": members,
            "residents.resident": {"$ne": place["resident"]},
            "residents.0": {"$exists": True},
            # The last allowed place is free; joins of others do not get in each other's way.
            f"residents.{members - 1}": {"$exists": False},
        }
    else:
        # Everybody left: whoever comes next says anew how many live there.
        wanted |= {"residents": []}
        change |= {**_counted(members), "asked": {"partner": partner, "at": place["since"]}}
        change |= {"proposed": None}
        _tell_asked(found["_id"], found["carrier"], change["asked"])
    joined: storage.Doc | None = _collection().find_one_and_update(
        wanted, [{"$set": change}], return_document=ReturnDocument.AFTER
    )
    return joined


def _proposed(resident: str, members: int) -> list[dict[str, Any]]:
    """A pipeline update: the resident says a number, which holds if everybody said it."""
    same = {"$eq": ["$proposed.members", members]}
    said = {
        "$cond": [same, {"$setUnion": ["$proposed.agreed", [resident]]}, [resident]],
    }
    in_force = {"$eq": ["$members", members]}
    proposal = {"members": members, "agreed": said}
    return [
        {"$set": {"proposed": {"$cond": [in_force, None, proposal]}}},
        *_if_agreed("$proposed.members", "$proposed.agreed"),
    ]


def _if_agreed(members: Any, agreed: Any) -> list[dict[str, Any]]:
    """Stages that put a proposal into force once all who are linked are among `agreed`."""
    everybody = {
        "$and": [
            {"$gt": ["$proposed", None]},
            {"$gt": [{"$size": "$residents"}, 0]},
            {"$setIsSubset": ["$residents.resident", {"$ifNull": [agreed, []]}]},
        ]
    }
    fields = {**_counted(members), "proposed": None}
    kept = {name: {"$cond": [everybody, value, f"${name}"]} for name, value in fields.items()}
    return [{"$set": kept}]


def _tell_others(document: storage.Doc, by: str) -> None:
    """Tell the others of a proposal, once a day for each number."""
    proposed = document["proposed"]
    for place in document["residents"] if proposed else ():
        if place["resident"] in (by, *proposed["agreed"]):
            continue
        notice = notices.make(
            "members_proposed",
            place["resident"],
            f"members/{document['_id']}/{proposed['members']}/{_today()}",
            household=document["_id"],
            members=proposed["members"],
        )
        outbox.leave(notice)


def _counted(members: Any) -> dict[str, Any]:
    """The fields of a pipeline update that dates a count; the last one of a day stands."""
    earlier = {"$filter": {"input": "$counts", "cond": {"$ne": ["$$this.since", _today()]}}}
    row = {"since": _today(), "members": members}
    return {
        "members": members,
        "counts": {"$slice": [{"$concatArrays": [earlier, [row]]}, -COUNTS_KEPT]},
    }


def _today() -> str:
    return clock.city_day(clock.now()).isoformat()


def _household(document: storage.Doc) -> Household:
    return Household(
        id=document["_id"],
        carrier=document["carrier"],
        members=document["members"],
        residents=tuple(place["resident"] for place in document["residents"]),
        counts=tuple(
            (date.fromisoformat(row["since"]), row["members"]) for row in document["counts"]
        ),
    )


def _membership(document: storage.Doc, resident: str) -> Membership:
    own = next(place for place in document["residents"] if place["resident"] == resident)
    return Membership(
        id=document["_id"],
        resident=resident,
        carrier=document["carrier"],
        account_no=vault.decrypt(document["number_sealed"], "meter_account"),
        members=document["members"],
        joined=len(document["residents"]),
        since=own["since"],
        proposed=(
            Proposal(document["proposed"]["members"], len(document["proposed"]["agreed"]))
            if document["proposed"]
            else None
        ),
    )
