"""Schemathesis over the whole OpenAPI document, in process, every door entered by its own caller.

Boundary values of every parameter, from one seed. CI adds random content with
`TANHUI_FUZZ_EXAMPLES`, the number of random requests per operation.
"""

import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
from callers import Caller, machine, partner, resident, signed
from flask import Flask
from schemathesis.engine import events, from_schema
from shop import open_shop

import api.app
from accounting.clients import Kind

EXAMPLES = int(os.environ.get("TANHUI_FUZZ_EXAMPLES", "0"))
SEED = 20260520

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
)
# What is wrong in these is refused one by one, inside an answer of 200 or by the job.
BATCHES = (
    "/v1/activities/batch",
    "/v1/feeds/activities",
    "/v1/feeds/activities/files",
    "/v1/feeds/bills",
    "/v1/feeds/bills/files",
    "/v1/merchant/vouchers/offline-scans",
    "/v1/plants/{plant_id}/readings",
    "/v1/plants/{plant_id}/readings/files",
)
CONFIG: dict[str, Any] = {
    "seed": SEED,
    "generation": {
        "max-examples": EXAMPLES or 1,
        "deterministic": True,
        "database": "none",
        "no-shrink": True,
        "with-security-parameters": False,
    },
    "phases": {
        "stateful": {"enabled": False},
        "fuzzing": {"enabled": EXAMPLES > 0},
        # Werkzeug refuses them all alike: two stand for all.
        "coverage": {"unexpected-methods": ["TRACE", "PUT"]},
    },
    "checks": {"enabled": False} | {name: {"enabled": True} for name in CHECKS},
    "operations": [
        {"include-path": path, "checks": {"negative_data_rejection": {"enabled": False}}}
        for path in BATCHES
    ],
}

Environ = dict[str, Any]
Wsgi = Callable[[Environ, Any], Iterable[bytes]]


@pytest.fixture
def demo(app: Flask, tmp_path: Any) -> Flask:
    """The demo, whose limits let one machine ask this often."""
    (tmp_path / "demo-credentials.json").write_text("{}")
    return api.app.create_app(replace(app.extensions["config"], demo=True, data_dir=tmp_path))


class Everybody:
    """One caller for every security scheme and scope of the document, and ids that exist."""

    def __init__(self, app: Flask) -> None:
        shop = open_shop(app)
        self.app = app
        self.resident = resident(app)
        self.bank = machine(app, Kind.BANK)
        self.by_scope: dict[str, Caller] = {
            "operator": shop.operator,
            "vouchers:redeem": shop.till,
            "statements:read": shop.till,
            "feeds:write": partner(app, carriers=["electricity", "gas", "water"]),
            "grades:read": self.bank,
            "terms:write": self.bank,
        }
        plant = shop.operator.post(
            "/v1/operator/plants",
            {"name": "一号厂", "uscc": "91330802MA2DH0000Y", "sector": "C3110"},
        ).get_json()
        self.plant_id = plant["plant_id"]
        gateway = machine(app, Kind.PLANT, self.plant_id)
        self.by_scope |= {"readings:write": gateway, "plant:read": gateway}
        self.ids = self._ids(shop.offer())
        self._turn = itertools.count()

    def _ids(self, reward_id: str) -> dict[str, str]:
        me, feed = self.resident, self.by_scope["feeds:write"]
        link = {"partner_id": feed.id, "external_id": "card-1"}
        row = {
            "external_id": "card-1", "behaviour": "bus_km", "quantity": 1,
            "occurred_at": "2026-01-01T00:00:00Z", "source_event_id": "tap-1",
        }  # fmt: skip
        consent = {
            "bank_id": self.bank.id, "purpose": "loan", "fields": ["grade"],
            "expires_at": "2030-01-01T00:00:00Z",
        }  # fmt: skip
        household = {"carrier": "electricity", "account_no": "1", "members": 2}
        made = {
            "link_id": me.post("/v1/me/links", link),
            "consent_id": me.post("/v1/me/consents", consent),
            "household_id": me.post("/v1/me/households", household),
            "device_id": me.post("/v1/me/devices", {"token": "t", "platform": "ios"}),
        }
        ids = {name: answer.get_json()["id"] for name, answer in made.items()}
        [result] = feed.post("/v1/feeds/activities", {"activities": [row]}).get_json()["results"]
        file = feed.post(
            "/v1/feeds/activities/files", data=b"{}", headers={"Content-Type": "text/csv"}
        )
        announced = {
            "file": "f.csv", "bytes": 2, "sha256": "0" * 64, "media_type": "text/csv",
        }  # fmt: skip
        upload = feed.post("/v1/feeds/activities/uploads", announced)
        return ids | {
            "feed": "activities",
            "upload_id": upload.get_json()["upload_id"],
            "activity_id": result["activity"]["id"],
            "source_event_id": "tap-1",
            "job_id": file.get_json()["job_id"],
            "reward_id": reward_id,
            "reference": made["consent_id"].get_json()["reference"],
            # Not the bank that signs here: its keys may be reset.
            "bank_id": machine(self.app, Kind.BANK).id,
            "partner_id": feed.id,
            "merchant_id": self.by_scope["vouchers:redeem"].id,
            "plant_id": self.plant_id,
        }

    def caller_for(self, operation: Any) -> Caller | None:
        """Who enters by the first way the document names; None where nobody need sign in."""
        way = (operation.definition.raw.get("security") or [{}])[0]
        if "resident" in way:
            # Signing out, or leaving, must not end the session of everybody else's requests.
            ends = operation.label in ("POST /v1/auth/logout", "DELETE /v1/me")
            return resident(self.app) if ends else self.resident
        if "signature" in way:
            return self.bank
        # Without a scope any party will do.
        return self.by_scope[next(iter(way["client"]), "feeds:write")] if "client" in way else None

    def prepare(self, case: Any) -> None:
        """Sign the request in, and let every second one name things that exist."""
        caller = self.caller_for(case.operation)
        if caller is not None:
            case.headers["Authorization"] = f"Bearer {caller.token}"
        if next(self._turn) % 2:
            for content in (case.path_parameters, case.body):
                if isinstance(content, dict):
                    content.update({name: self.ids[name] for name in content if name in self.ids})


def signing(app: Flask, bank: Caller) -> Wsgi:
    """The application behind a proxy that signs what the bank sends, as it goes over the wire."""

    def call(environ: Environ, start_response: Any) -> Iterable[bytes]:
        environ.setdefault("REMOTE_ADDR", "127.0.0.1")
        if environ.get("HTTP_AUTHORIZATION") == f"Bearer {bank.token}":
            assert bank.key is not None
            body = environ["wsgi.input"].read()
            environ["wsgi.input"] = io.BytesIO(body)
            uri = f"http://localhost{environ['RAW_URI']}"
            headers = signed(bank.key, environ["REQUEST_METHOD"], uri, body)
            for name, text in headers.items():
                environ[f"HTTP_{name.upper().replace('-', '_')}"] = text
        return app(environ, start_response)

    return call


def failures(happened: events.ScenarioFinished) -> Iterator[str]:
    for checks in happened.recorder.checks.values():
        for check in checks:
            if check.failure_info is not None:
                failure, code = check.failure_info.failure, check.failure_info.code_sample
                yield f"{happened.recorder.label}: {check.name}: {failure.message}\n{code}"


@pytest.mark.timeout(600 + 30 * EXAMPLES)
def test_every_operation_keeps_to_the_document_whatever_it_is_sent(demo: Flask) -> None:
    everybody = Everybody(demo)
    contract = schemathesis.openapi.from_wsgi(
        "/openapi.json", signing(demo, everybody.bank), config=schemathesis.Config.from_dict(CONFIG)
    )

    def before_call(context: Any, case: Any, kwargs: Any) -> None:
        everybody.prepare(case)

    schemathesis.hook(before_call)
    found: list[str] = []
    answers: dict[str, set[int]] = {}
    try:
        for happened in from_schema(contract).execute():
            assert not isinstance(happened, events.NonFatalError | events.FatalError), happened
            if isinstance(happened, events.ScenarioFinished):
                found += failures(happened)
                seen = answers.setdefault(happened.recorder.label, set())
                for exchange in happened.recorder.interactions.values():
                    if exchange.response is not None:
                        seen.add(exchange.response.status_code)
    finally:
        schemathesis.hooks.unregister(before_call)
    assert found == [], "\n\n".join(found)
    # Every operation was reached, and its door opened.
    operations = {operation.ok().label for operation in contract.get_all_operations()}
    assert answers.keys() >= operations
    shut = {label for label in operations if not answers[label] - {401, 403, 405}}
    assert shut == set()
