"""Steps around the grade: everybody's grade, consent, the bank's signed reads, withdrawal."""

import base64
import json
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from accounting import clock
from api.demo.city import City, Person
from api.demo.client import StepFailed, expect
from api.demo.inputs import Row
from integrations import jws, signatures
from integrations.signatures import SignedRequest

PURPOSE = "green_credit"
OTHER_PURPOSE = "marketing"
GRADES = ("deep", "mid", "light", "unrated")
FIELDS = ["grade", "margin", "coverage"]
CONSENT_DAYS = 90
OURS = ("iss", "iat", "aud")


def grade(city: City) -> str:
    """Everybody's grade is what their months of activity add up to."""

    def ask(person: Person) -> Row:
        found: Row = city.client.get("/v1/me/grade", headers=person.headers)
        return found

    people = list(city.people.values())
    found = dict(zip([one.who for one in people], city.each(ask, people), strict=True))
    if not city.record.get("totals"):
        for wanted in GRADES:
            for who in city.day.who(wanted):
                counted = f"{found[who]['counted_kg']} kg"
                expect(f"grade of resident {who} ({counted})", wanted, found[who]["grade"])
    city.tables["grades"] = Counter(one["grade"] for one in found.values())
    return ", ".join(f"{city.tables['grades'][name]} {name}" for name in GRADES)


def consent_and_query(city: City) -> str:
    """Residents consent, the bank reads signed grades; withdrawn means gone on the next read."""
    bank = _Bank(city)
    graded = [city.people[city.day.who(name)[0]] for name in GRADES]
    consents = [_consent(city, person) for person in graded]
    references = [one["reference"] for one in consents]
    leaving, consent = graded[0], consents[0]
    before = len(_reads(city, leaving, consent["reference"]))

    answer = bank.read(references[0])
    bank.check(answer)
    refused = bank.read(references[0], purpose=OTHER_PURPOSE, expecting=404)
    expect("another purpose", "no_grade_available", refused["code"])
    unsigned = bank.read(references[0], signed=False, expecting=401)
    expect("a read without signature", "invalid_signature", unsigned["code"])
    results = bank.query([*references, "ref_unknown"])
    expect("batch", [200] * len(references) + [404], [one["status_code"] for one in results])
    for person, result in zip(graded, results, strict=False):
        bank.check(result["grade"])
        mine = city.client.get("/v1/me/grade", headers=person.headers)
        expect(f"grade of resident {person.who}", mine["grade"], result["grade"]["grade"])

    path = f"/v1/me/consents/{consent['id']}"
    city.client.call("DELETE", path, headers=leaving.headers, expecting=204)
    gone = bank.read(references[0], expecting=404)
    expect("after withdrawal", "no_grade_available", gone["code"])
    log = _reads(city, leaving, consent["reference"])[: -before or None]
    # Newest first; a read without a signature never reached anybody's grade.
    wanted = [(PURPOSE, False), (PURPOSE, True), (OTHER_PURPOSE, False), (PURPOSE, True)]
    got = [(one["purpose"], one["allowed"]) for one in log]
    if not city.client.sent_again:
        expect("access log", wanted, got)
    elif not set(wanted) <= set(got):
        raise StepFailed("access log", wanted, got)
    city.tables["bank"] = len(references)
    return (
        f"{len(references)} grades read under consent and verified offline; refused: another "
        f"purpose, no signature, after withdrawal; the log shows all {len(got)} reads"
    )


def _consent(city: City, person: Person) -> Row:
    """The live consent of a resident for this bank and purpose, given now if there is none."""
    bank_id = city.credentials["bank"]["bank_id"]
    given = city.client.pages("/v1/me/consents", person.headers)
    for one in given:
        if (one["bank_id"], one["purpose"], one["status"]) == (bank_id, PURPOSE, "active"):
            live: Row = one
            return live
    last = clock.city_day(clock.now()) + timedelta(days=CONSENT_DAYS)
    wanted = {
        "bank_id": bank_id,
        "purpose": PURPOSE,
        "fields": FIELDS,
        "expires_at": clock.start_of(last).isoformat(),
    }
    key = f"demo-consent-{len(given) + 1}"
    headers = {**person.headers, "Idempotency-Key": key}
    consent: Row = city.client.post("/v1/me/consents", wanted, headers=headers, expecting=201)
    return consent


def _reads(city: City, person: Person, reference: str) -> list[Row]:
    rows = city.client.pages("/v1/me/access-log", person.headers)
    return [row for row in rows if row["reference"] == reference]


class _Bank:
    """The bank's side: token, signed requests, and a copy of our public keys."""

    def __init__(self, city: City) -> None:
        self._city = city
        self._known = city.credentials["bank"]
        self._token = city.client.bearer(self._known)
        self._jwks = city.client.get("/.well-known/jwks.json")

    def read(
        self,
        reference: str,
        *,
        purpose: str = PURPOSE,
        signed: bool = True,
        expecting: int = 200,
    ) -> Row:
        path = f"/v1/bank/grades/{reference}?{urlencode({'purpose': purpose})}"
        found: Row = self._city.client.call(
            "GET",
            path,
            headers=self._token,
            sign=(lambda: self._signature("GET", path, b"")) if signed else None,
            expecting=expecting,
        ).json()
        return found

    def query(self, references: list[str]) -> list[Row]:
        path = "/v1/bank/grades/query"
        body = json.dumps({"purpose": PURPOSE, "references": references}).encode()
        answer: Row = self._city.client.call(
            "POST",
            path,
            data=body,
            headers={**self._token, "Content-Type": "application/json"},
            sign=lambda: self._signature("POST", path, body),
        ).json()
        results: list[Row] = answer["results"]
        return results

    def check(self, answer: Row) -> None:
        """What a bank keeps: the JWS verifies with the published keys and says the same."""
        payload = jws.verify(answer["jws"], self._jwks, self._known["bank_id"])
        said = {name: value for name, value in payload.items() if name not in OURS}
        shown: dict[str, Any] = {name: value for name, value in answer.items() if name != "jws"}
        expect("signed answer", shown, said)

    def _signature(self, method: str, path: str, body: bytes) -> Mapping[str, str]:
        # The address the bank was given, whatever this client connects to.
        target = self._city.credentials["base_url"] + path
        return signatures.sign(
            SignedRequest(method, target, {}, body),
            key_id=self._known["key_id"],
            algorithm="hmac-sha256",
            material=base64.b64decode(self._known["hmac_key_b64"]),
            now=clock.now(),
        )
