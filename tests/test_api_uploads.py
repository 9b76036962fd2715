"""Signed uploads over HTTP: in parts, resumed where a line broke, checked before a row counts."""

import hashlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import gridfs
import pytest
from callers import Caller, check_documented, machine, partner, said
from faults.crew import KILLED, Crew, Death
from flask import Flask
from werkzeug.test import TestResponse

from accounting import clients, clock, storage, tokens
from accounting.clients import Kind
from accounting.errors import KeyReused
from api import feed_rows
from integrations import imports, mapping, partner_profiles, signed_urls, uploads
from integrations.manifests import Manifest

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
ROW: dict[str, Any] = {
    "external_id": "card-1",
    "behaviour": "bus_km",
    "quantity": 8,
    "occurred_at": "2026-05-20T08:00:00+08:00",
    "source_event_id": "tap-1",
}
RIDES = b"".join(
    json.dumps(ROW | {"source_event_id": f"tap-{number}"}).encode() + b"\n" for number in range(40)
)
PIECE = 1_000


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOON):
        yield


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "PIECE_BYTES", PIECE)


@pytest.fixture
def buses(app: Flask) -> Caller:
    return partner(app)


def announced(content: bytes = RIDES, **more: Any) -> dict[str, Any]:
    return {
        "file": "rides.ndjson",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "media_type": "application/x-ndjson",
    } | more


def begin(buses: Caller, content: bytes = RIDES, **more: Any) -> str:
    """The address, as a path, without the base that clients see."""
    answer = buses.post("/v1/feeds/activities/uploads", announced(content, **more))
    assert answer.status_code == 201, answer.text
    body = answer.get_json()
    assert (body["method"], body["max_bytes"]) == ("PUT", len(content))
    assert body["url"].startswith("http://localhost/v1/feeds/activities/uploads/upl_")
    parts = urlsplit(body["url"])
    return f"{parts.path}?{parts.query}"


def send(
    app: Flask, url: str, content: bytes, first: int | None = None, **environ: Any
) -> TestResponse:
    """Without a token, as whoever was given the address sends it."""
    headers = {"Content-Type": "application/octet-stream"}
    if first is not None:
        headers["Content-Range"] = f"bytes {first}-{first + len(content) - 1}/{len(RIDES)}"
    client = app.test_client()
    answer = client.put(url, data=content, headers=headers, environ_overrides=environ)
    check_documented(app, "PUT", url, answer)
    return answer


def state(app: Flask, url: str) -> dict[str, Any]:
    answer = app.test_client().get(url)
    check_documented(app, "GET", url, answer)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.get_json()
    return body


def bytes_of(job_id: str) -> bytes:
    [stored] = storage.database()["jobs"].find({"_id": job_id})
    bucket = gridfs.GridFSBucket(storage.database(), "feed_files")
    return bytes(bucket.open_download_stream(stored["arguments"]["file"]).read())


def left() -> tuple[int, int, int]:
    """Jobs, files and pieces in the store."""
    names = ("jobs", "feed_files.files", "feed_upload_pieces")
    jobs, files, pieces = (storage.database()[name].count_documents({}) for name in names)
    return jobs, files, pieces


# --- in one go, and in parts ----------------------------------------------------------------------


def test_a_file_sent_to_its_address_becomes_a_job(app: Flask, buses: Caller) -> None:
    content = RIDES + b"not json\n"
    url = begin(buses, content, rows=41, business_date="2026-05-20", sequence=3)
    answer = send(app, url, content)
    body = answer.get_json()
    assert (answer.status_code, body["state"]) == (202, "done")
    assert body["received_bytes"] == body["bytes"] == len(content)
    assert answer.headers["Location"] == f"/v1/jobs/{body['job_id']}"
    imports.run(body["job_id"], feed_rows.take_file_rows)
    job = buses.get(f"/v1/jobs/{body['job_id']}").get_json()
    # Nobody linked the card.
    assert (job["state"], job["parked"], job["rejected"]) == ("done", 40, 1)
    assert (job["file_name"], job["business_date"], job["sequence"]) == (
        "rides.ndjson", "2026-05-20", 3,
    )  # fmt: skip
    assert left() == (1, 1, 0)
    assert state(app, url)["job_id"] == body["job_id"]


def test_parts_come_in_order_and_the_last_one_queues_the_job(app: Flask, buses: Caller) -> None:
    url = begin(buses)
    for first in range(0, len(RIDES), 3_000):
        assert state(app, url)["received_bytes"] == first
        answer = send(app, url, RIDES[first : first + 3_000], first)
    assert answer.status_code == 202
    assert bytes_of(answer.get_json()["job_id"]) == RIDES


class Broken(io.BytesIO):
    """A line that breaks, as servers other than gunicorn tell of it."""

    def read(self, size: int | None = -1, /) -> bytes:
        if block := super().read(size):
            return block
        raise ConnectionResetError("the line broke")

    def readinto(self, buffer: Any, /) -> int:
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


@pytest.mark.parametrize("at", [1, PIECE - 1, PIECE, 2 * PIECE + 1])
@pytest.mark.parametrize("kind", [io.BytesIO, Broken])
def test_what_came_before_the_line_broke_is_kept(
    app: Flask, buses: Caller, kind: type[io.BytesIO], at: int
) -> None:
    url = begin(buses)
    cut = {"wsgi.input": kind(RIDES[:at]), "wsgi.input_terminated": True}
    client = app.test_client()
    answer = client.put(url, data=RIDES, environ_overrides=cut)
    assert answer.status_code == (200 if kind is io.BytesIO else 400)
    assert state(app, url)["received_bytes"] == at
    if kind is Broken:
        answer = send(app, url, RIDES[at:], at)
    else:  # Who does not ask begins again: what is here is read over.
        answer = send(app, url, RIDES)
    assert answer.status_code == 202
    assert bytes_of(answer.get_json()["job_id"]) == RIDES


def test_parts_behind_a_gap_and_bytes_beyond_the_end_are_refused(app: Flask, buses: Caller) -> None:
    url = begin(buses)
    assert said(send(app, url, b"x", 5)) == (409, "upload_gap")
    assert said(send(app, url, RIDES + b"x")) == (422, "upload_too_long")
    for wrong in ("bytes 0-", "lines 0-1/9", f"bytes 0-1/{len(RIDES) + 1}", "bytes */9"):
        answer = app.test_client().put(url, data=b"x", headers={"Content-Range": wrong})
        assert said(answer) == (400, "malformed_request"), wrong
    packed = app.test_client().put(url, data=RIDES, headers={"Content-Encoding": "gzip"})
    assert said(packed) == (415, "unsupported_media_type")
    assert send(app, url, RIDES).status_code == 202


def test_many_who_send_the_same_file_at_once_make_one_job(app: Flask, buses: Caller) -> None:
    url = begin(buses)

    def try_once(_: int) -> TestResponse:
        with clock.stand(NOON):
            return app.test_client().put(url, data=RIDES)

    with ThreadPoolExecutor(6) as pool:
        answers = [said(answer) for answer in pool.map(try_once, range(6))]
    refused = {(409, "upload_busy"), (409, "upload_over")}
    assert {answer for answer in answers if answer[0] != 202} <= refused
    assert (202, "") in answers or send(app, url, RIDES).status_code == 202
    assert left() == (1, 1, 0)
    assert bytes_of(state(app, url)["job_id"]) == RIDES


DEATHS = [
    Death("integrations.imports:keep", "after"),
    Death("integrations.imports:queue", "after"),
    Death("integrations.deliveries:note", "after"),
    Death("integrations.uploads:_end", "after"),
]


@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_a_finish_that_was_killed_is_finished_by_the_next_try(
    app: Flask, buses: Caller, crew: Crew, death: Death
) -> None:
    url = begin(buses, sequence=1)
    upload_id = urlsplit(url).path.rpartition("/")[2]
    half = len(RIDES) // 2
    send(app, url, RIDES[:half], 0)
    upload = uploads.get(upload_id)
    assert upload is not None
    uploads.write(upload, half, io.BytesIO(RIDES[half:]))
    assert crew.run("finish_upload", death, upload_id=upload_id) == KILLED
    answer = send(app, url, RIDES)
    if death.at.endswith("_end"):
        assert said(answer) == (409, "upload_over")
    else:
        assert answer.status_code == 202
    assert storage.database()["jobs"].count_documents({}) == 1
    assert bytes_of(state(app, url)["job_id"]) == RIDES
    assert list(storage.database()["alarms"].find()) == []


# --- whose address it is --------------------------------------------------------------------------


def test_an_address_that_was_changed_is_refused(app: Flask, buses: Caller) -> None:
    url, other = begin(buses), begin(buses)
    path, _, signature = url.partition("?signature=")
    head, claims, seal = signature.split(".")
    flipped = claims[:-2] + ("A" if claims[-2] != "A" else "B") + claims[-1]
    # Of ours, but for another purpose.
    foreign = signed_urls.sign(
        "job-errors", signed_urls.read("upload", signature), NOON + uploads.LIFE
    )
    wrong = [
        f"{path}?signature={head}.{flipped}.{seal}",
        f"{path}?signature={head}.{claims}.{seal[:-4]}AAAA",
        f"{path}?signature={foreign}",
        f"{path}?signature=x",
        f"{other.partition('?')[0]}?signature={signature}",
        url.replace("/activities/", "/bills/"),
    ]
    for one in wrong:
        assert said(send(app, one, RIDES)) == (403, "url_not_accepted"), one
        assert said(app.test_client().get(one)) == (403, "url_not_accepted"), one
    assert said(send(app, path, RIDES)) == (422, "validation_failed")
    assert left() == (0, 0, 0)


def test_an_address_is_bound_to_what_was_announced(app: Flask, buses: Caller) -> None:
    url = begin(buses)
    change = {"$set": {"manifest.sha256": "0" * 64}}
    storage.database()["feed_uploads"].update_one({}, change)
    assert said(send(app, url, RIDES)) == (403, "url_not_accepted")


def test_an_address_ends_with_its_time_its_use_and_its_credentials(
    app: Flask, buses: Caller
) -> None:
    url, later = begin(buses), begin(buses)
    assert send(app, url, RIDES).status_code == 202
    assert said(send(app, url, RIDES)) == (409, "upload_over")
    with clock.stand(NOON + uploads.LIFE):
        assert said(send(app, later, RIDES)) == (403, "url_expired")
    [client] = clients.of_party(Kind.DATA, buses.id)
    tokens.disable_client(client)
    assert said(send(app, later, RIDES)) == (403, "url_not_accepted")
    assert left() == (1, 1, 0)


def test_the_same_request_again_gives_the_same_address(buses: Caller) -> None:
    first, again = (
        buses.post("/v1/feeds/activities/uploads", announced(), key="k1") for _ in range(2)
    )
    assert first.get_json() == again.get_json()
    assert again.headers["Idempotency-Replayed"] == "true"


def test_a_wish_is_for_one_file_for_ever(buses: Caller) -> None:
    """Whatever became of the answer to the first request."""
    how: dict[str, Any] = {"media_type": "application/x-ndjson", "gzipped": False}
    how |= {"encoding": "utf-8", "profile": None, "once": "ab" * 32}

    def wish(content: bytes, **said: Any) -> uploads.Upload:
        digest = hashlib.sha256(content).hexdigest()
        manifest = Manifest("rides.ndjson", len(content), digest, **said)
        return uploads.begin("activities", buses.id, "cli_1", manifest, **how)

    first = wish(RIDES, sums={"quantity": Decimal("320.0")})
    assert wish(RIDES, sums={"quantity": Decimal(320)}) == first
    for other in (wish, lambda content: wish(content, rows=40)):
        with pytest.raises(KeyReused):
            other(RIDES)


def test_an_announcement_must_make_sense(buses: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/v1/feeds/activities/uploads"
    for wrong in (
        {"bytes": 0},
        {"bytes": imports.FILE_BYTES_MAX + 1},
        {"sha256": "0" * 63},
        {"media_type": "text/plain"},
        {"encoding": "gb18030"},
        {"profile": "unknown"},
        {"rows": -1},
        {"sums": {"km": "3"}},
        {"business_date": "20260520"},
        {"more": 1},
    ):
        assert said(buses.post(path, announced(**wrong))) == (422, "validation_failed"), wrong
    assert said(buses.post("/v1/feeds/readings/uploads", announced())) == (404, "not_found")
    monkeypatch.setattr(uploads, "OPEN_MAX", 1)
    begin(buses)
    assert said(buses.post(path, announced())) == (409, "too_many_uploads")


# --- what was announced ---------------------------------------------------------------------------


def test_other_bytes_than_announced_are_dropped_and_may_come_right(
    app: Flask, buses: Caller
) -> None:
    url = begin(buses)
    assert said(send(app, url, bytes(len(RIDES)))) == (422, "manifest_mismatch")
    assert left() == (0, 0, 0)
    assert state(app, url)["received_bytes"] == 0
    assert send(app, url, RIDES).status_code == 202


def test_rows_and_sums_are_checked_before_the_first_row_is_taken(app: Flask, buses: Caller) -> None:
    """Forty rides of 8 km are 320 km."""
    for wrong in ({"rows": 41}, {"sums": {"quantity": 321}}):
        assert said(send(app, begin(buses, **wrong), RIDES)) == (422, "manifest_mismatch")
    assert left() == (0, 0, 0)
    assert send(app, begin(buses, rows=40, sums={"quantity": 320}), RIDES).status_code == 202


def test_a_profile_is_fixed_when_the_file_is_announced(app: Flask, buses: Caller) -> None:
    raw: dict[str, Any] = {
        "name": "rides", "kind": "activities", "encoding": "gb18030", "delimiter": "|",
        "fields": {
            "external_id": {"column": "卡号"}, "behaviour": {"constant": "bus_km"},
            "quantity": {"column": "公里"}, "occurred_at": {"column": "时间"},
            "source_event_id": {"column": "流水"},
        },
    }  # fmt: skip
    mapping.parse(raw)
    partner_profiles.add(buses.id, raw, reason="agreed", by="op")
    text = "卡号|公里|时间|流水\ncard-1|8|2026-05-20T08:00:00+08:00|tap-1\n".encode("gb18030")
    url = begin(buses, text, media_type="text/csv", profile="rides", sums={"公里": 8})
    partner_profiles.add(buses.id, raw | {"delimiter": ";"}, reason="new", by="op")
    job_id = send(app, url, text).get_json()["job_id"]
    done = imports.run(job_id, feed_rows.take_file_rows)
    assert done is not None
    assert (done.arguments["profile_version"], done.counts["parked"]) == (1, 1)


# --- what is left behind --------------------------------------------------------------------------


def test_an_abandoned_upload_is_cleared_and_a_whole_one_finished(app: Flask, buses: Caller) -> None:
    abandoned, whole = begin(buses), begin(buses)
    send(app, abandoned, RIDES[:2_500], 0)
    upload = uploads.get(urlsplit(whole).path.rpartition("/")[2])
    assert upload is not None
    uploads.write(upload, 0, io.BytesIO(RIDES))
    over = NOON + uploads.LIFE + uploads.CLEARED_AFTER
    assert uploads.sweep(over) == 0
    assert uploads.sweep(over + timedelta(seconds=1)) == 2
    assert left() == (1, 1, 0)
    assert state(app, whole)["state"] == "done"
    assert state(app, abandoned)["state"] == "dropped"
    assert said(send(app, abandoned, RIDES)) == (409, "upload_over")


def test_a_piece_that_comes_while_its_upload_is_cleared_is_not_left_behind(
    app: Flask, buses: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = begin(buses)
    upload = uploads.get(urlsplit(url).path.rpartition("/")[2])
    assert upload is not None
    named = uploads._name

    def cleared_before(upload_id: str, offset: int) -> str:
        # Between all that was asked before this piece is kept, and its keeping.
        if offset == 2 * PIECE:
            uploads.sweep(NOON + uploads.LIFE + 2 * uploads.CLEARED_AFTER)
        return named(upload_id, offset)

    monkeypatch.setattr(uploads, "_name", cleared_before)
    with pytest.raises(uploads.UploadOver):
        uploads.write(upload, 0, io.BytesIO(RIDES))
    assert left() == (0, 0, 0)


def test_a_posted_file_that_was_cut_off_is_no_file(app: Flask, buses: Caller) -> None:
    cut = {"wsgi.input": io.BytesIO(RIDES[:500]), "wsgi.input_terminated": True}
    kind = {"Content-Type": "application/x-ndjson"}
    path = "/v1/feeds/activities/files"
    for key in (None, "k1"):
        answer = buses.post(path, data=RIDES, headers=kind, environ_overrides=cut, key=key)
        assert said(answer) == (400, "malformed_request")
    assert left() == (0, 0, 0)
    assert buses.post(path, data=RIDES, headers=kind, key="k1").status_code == 202


# --- refused rows by address ----------------------------------------------------------------------


def test_refused_rows_can_be_fetched_by_an_address_for_an_hour(app: Flask, buses: Caller) -> None:
    job_id = send(app, begin(buses, b"not json\n"), b"not json\n").get_json()["job_id"]
    imports.run(job_id, feed_rows.take_file_rows)
    answer = buses.post(f"/v1/jobs/{job_id}/errors/link")
    assert answer.status_code == 201
    url = answer.get_json()["url"].removeprefix("http://localhost")
    found = app.test_client().get(url, headers={"Accept-Language": "en"})
    check_documented(app, "GET", url, found)
    assert found.headers["Content-Disposition"].startswith("attachment")
    [row] = [json.loads(line) for line in found.text.splitlines()]
    assert (row["row"], row["code"], row["input"]) == (1, "malformed_row", "not json")
    other = url.replace(job_id, "job_other")
    assert said(app.test_client().get(other)) == (403, "url_not_accepted")
    with clock.stand(NOON + timedelta(hours=1)):
        assert said(app.test_client().get(url)) == (403, "url_expired")
    foreign = machine(app, Kind.DATA).post(f"/v1/jobs/{job_id}/errors/link")
    assert said(foreign) == (404, "not_found")
    [client] = clients.of_party(Kind.DATA, buses.id)
    tokens.disable_client(client)
    assert said(app.test_client().get(url)) == (403, "url_not_accepted")
