"""A bank sees a grade only under a live consent, and every read it made or tried is on record."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from accounting import clock, consent_texts, consents, storage
from accounting.consents import Consent

pytestmark = pytest.mark.usefixtures("app")

ANNA, BO = "res_anna", "res_bo"
BANK, OTHER_BANK = "bank_kecheng", "bank_other"
NOW = datetime(2026, 5, 20, 4, tzinfo=UTC)
DAY, MS = timedelta(days=1), timedelta(milliseconds=1)


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


def grant(
    who: str = ANNA,
    *,
    bank: str = BANK,
    purpose: str = "loan",
    fields: tuple[str, ...] = ("grade",),
    days: int = 30,
) -> Consent:
    return consents.grant(
        who, bank_id=bank, purpose=purpose, fields=fields, expires_at=NOW + days * DAY
    )


def log(who: str = ANNA) -> list[tuple[str, str, str, bool, tuple[str, ...]]]:
    return [
        (one.bank_id, one.purpose, one.what, one.allowed, one.fields)
        for one in consents.access_log(who, before=None, limit=50)
    ]


@pytest.mark.parametrize(
    ("state", "bank", "purpose", "what"),
    list(
        itertools.product(
            ("active", "withdrawn", "expired"),
            (BANK, OTHER_BANK),
            ("loan", "card"),
            ("grade", "margin"),
        )
    ),
)
def test_only_this_bank_for_this_purpose_and_field_while_it_is_live(
    state: str, bank: str, purpose: str, what: str
) -> None:
    consent = grant(fields=("grade",))
    if state == "withdrawn":
        consents.withdraw(ANNA, consent.id)
    with clock.travel(30 * DAY if state == "expired" else timedelta(0)):
        seen = consents.read(bank, consent.reference, purpose, what)
    may = (state, bank, purpose, what) == ("active", BANK, "loan", "grade")
    assert (seen is not None) is may
    if may:
        assert seen == consent
    [record] = storage.database()["bank_access"].find()
    assert (record["allowed"], record["bank_id"], record["what"]) == (may, bank, what)
    # Another bank's reading of a reference it was never given tells nobody whose it is.
    assert record.get("resident") == (ANNA if bank == BANK else None)


def test_a_consent_is_live_to_the_millisecond_before_its_end() -> None:
    consent = grant(days=1)
    assert consent.status_at(consent.expires_at - MS) == "active"
    assert consent.status_at(consent.expires_at) == "expired"


def test_withdrawal_works_on_the_next_read_and_keeps_its_first_time() -> None:
    consent = grant()
    assert consents.read(BANK, consent.reference, "loan", "grade") is not None
    assert consents.withdraw(ANNA, consent.id)
    assert consents.read(BANK, consent.reference, "loan", "grade") is None
    first = consents.get(ANNA, consent.id)
    assert first is not None
    assert first.status_at(clock.now()) == "withdrawn"
    with clock.travel(DAY):
        assert consents.withdraw(ANNA, consent.id)
    assert consents.get(ANNA, consent.id) == first
    assert [allowed for *_, allowed, _ in log()] == [False, True]


def test_nobody_withdraws_or_sees_the_consent_of_another() -> None:
    consent = grant()
    assert not consents.withdraw(BO, consent.id)
    assert consents.get(BO, consent.id) is None
    assert not consents.withdraw(ANNA, "con_nothing")
    assert consents.of_resident(BO, before=None, limit=9) == []
    assert consents.read(BANK, consent.reference, "loan", "grade") is not None


def test_every_read_is_recorded_with_what_it_was_allowed_to_see_newest_first() -> None:
    consent = grant(fields=("grade", "margin"))
    for purpose, what in (("loan", "grade"), ("loan", "report"), ("card", "grade")):
        consents.read(BANK, consent.reference, purpose, what)
    assert log() == [
        (BANK, "card", "grade", False, ()),
        (BANK, "loan", "report", False, ()),
        (BANK, "loan", "grade", True, ("grade", "margin")),
    ]
    assert log(BO) == []
    pages = [one.id for one in consents.access_log(ANNA, before=None, limit=2)]
    rest = consents.access_log(ANNA, before=pages[-1], limit=2)
    assert [one.what for one in rest] == ["grade"]


def test_an_unknown_reference_is_recorded_without_a_resident_and_shown_to_none() -> None:
    assert consents.read(BANK, "ref_unknown", "loan", "grade") is None
    [record] = storage.database()["bank_access"].find()
    assert "resident" not in record
    assert (record["reference"], record["allowed"]) == ("ref_unknown", False)
    assert log() == log(BO) == []


def test_the_read_is_on_record_before_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the record cannot be written, the bank gets nothing."""
    consent = grant()

    def away() -> None:
        raise ConnectionError("the store is away")

    monkeypatch.setattr(consents, "_accesses", away)
    with pytest.raises(ConnectionError):
        consents.read(BANK, consent.reference, "loan", "grade")


def test_references_are_new_for_each_consent_so_that_banks_cannot_join_lists() -> None:
    granted = [grant(), grant(), grant(bank=OTHER_BANK)]
    assert len({one.reference for one in granted}) == 3
    assert all(ANNA not in one.reference for one in granted)
    listed = consents.of_resident(ANNA, before=None, limit=9)
    assert [one.id for one in listed] == [one.id for one in reversed(granted)]
    older = consents.of_resident(ANNA, before=listed[0].id, limit=1)
    assert older == [listed[1]]


def test_a_renewed_consent_has_its_own_life() -> None:
    old, new = grant(), grant()
    consents.withdraw(ANNA, old.id)
    assert consents.read(BANK, old.reference, "loan", "grade") is None
    assert consents.read(BANK, new.reference, "loan", "grade") is not None


def test_the_text_somebody_agreed_to_stays_readable() -> None:
    consent = grant()
    [text] = [one for one in consent_texts.TEXTS
              if (one.kind, one.version) == (consent_texts.BANK, consent.text_version)]  # fmt: skip
    assert text.zh
    assert text.en
