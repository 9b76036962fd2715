"""The drop folder: whole files only, one job each, nothing deleted, whoever dies in between.

Worked by hand: 8 km on the bus avoid 215.2 g and earn 215 points, 48 hours later.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from callers import Caller, machine, partner, resident
from faults.crew import KILLED, Crew, Death, job
from flask import Flask

from accounting import alarms, clients, clock, links, storage
from accounting.clients import Kind
from accounting.jobs import Job
from api import feed_rows
from integrations import drop_folder, dropped, imports, manifests, mapping, partner_profiles
from integrations.drop_folder import SETTLE, Watcher

NOON = datetime(2026, 5, 20, 4, tzinfo=UTC)
ROW = {
    "external_id": "card-1",
    "behaviour": "bus_km",
    "quantity": 8,
    "occurred_at": "2026-05-20T08:00:00+08:00",
    "source_event_id": "tap-1",
}
RIDES = json.dumps(ROW).encode() + b"\n"
PROFILE: dict[str, Any] = {
    "name": "rides",
    "kind": "activities",
    "encoding": "gb18030",
    "delimiter": "|",
    "fields": {
        "external_id": {"column": "卡号"},
        "behaviour": {"constant": "bus_km"},
        "quantity": {"column": "公里"},
        "occurred_at": {"column": "时间"},
        "source_event_id": {"column": "流水"},
    },
}


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.stand(NOON):
        yield


class Drop:
    """A folder with one partner's in it, and a watcher that remembers whom it told of what."""

    def __init__(self, root: Path, buses: Caller) -> None:
        self.root, self.buses = root, buses
        self.home = root / buses.id
        self.incoming = self.home / "activities"
        self.incoming.mkdir(parents=True)
        self.told: list[str] = []
        self.watcher = Watcher(root, self.told.append)

    def lay(self, name: str, content: bytes = RIDES, **manifest: Any) -> None:
        (self.incoming / name).write_bytes(content)
        if manifest:
            self.lay_manifest(name, content, **manifest)

    def lay_manifest(self, name: str, content: bytes, **manifest: Any) -> None:
        said = {
            "file": name.rpartition("/")[2],
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        (self.incoming / f"{name}.manifest.json").write_text(json.dumps(said | manifest))

    def look(self, later: timedelta = timedelta(0)) -> int:
        with clock.stand(clock.now() + later):
            return self.watcher.look()

    def look_until_still(self) -> int:
        """What is seen first, and again when it stood still."""
        return self.look() + self.look(SETTLE)

    def lies_in(self, what: str) -> list[str]:
        folder = self.home / what / "activities"
        return sorted(os.listdir(folder)) if folder.is_dir() else []

    def reason(self, name: str) -> dict[str, str]:
        read = self.home / "refused" / "activities" / f"{name}.reason.json"
        reason: dict[str, str] = json.loads(read.read_text())
        return reason

    def result(self, name: str) -> dict[str, Any]:
        read = self.home / "done" / "activities" / f"{name}.result.json"
        result: dict[str, Any] = json.loads(read.read_text())
        return result


@pytest.fixture
def drop(app: Flask, tmp_path: Path) -> Drop:
    return Drop(tmp_path / "drop", partner(app))


def work(job_id: str) -> Job:
    with clock.stand(clock.now() + timedelta(minutes=10)):  # Behind the look that queued it.
        done = imports.run(job_id, feed_rows.take_file_rows)
    assert done is not None
    return done


def jobs_there() -> list[dict[str, Any]]:
    return list(storage.database()["jobs"].find())


def sounded() -> list[tuple[str, str]]:
    return [(alarm.kind, alarm.subject) for alarm in alarms.newest(before=None, limit=20)]


# --- when a file is whole -----------------------------------------------------------------------


def test_a_file_is_taken_when_it_stood_still_and_its_end_is_laid_beside_it(
    app: Flask, drop: Drop
) -> None:
    links.link(resident(app).id, drop.buses.id, "card-1")
    drop.lay("rides.ndjson", RIDES + b"=not json\n")
    assert drop.look() == 0
    assert drop.look(SETTLE - timedelta(seconds=1)) == 0
    assert drop.look(SETTLE) == 1
    assert (drop.lies_in("done"), os.listdir(drop.incoming)) == (["rides.ndjson"], [])
    [job_id] = drop.told
    work(job_id)
    drop.look()
    result = drop.result("rides.ndjson")
    assert (result["job_id"], result["state"]) == (job_id, "done")
    assert (result["total"], result["pending"], result["rejected"]) == (2, 1, 1)
    assert (result["failure"], result["same_as"]) == (None, None)
    errors = drop.home / "done" / "activities" / result["errors_file"]
    [header, row] = csv.reader(errors.read_text("utf-8-sig").splitlines())
    assert header == ["row", "code", "message_zh", "message_en", "input"]
    # A cell that would begin a formula is quoted.
    assert (row[0], row[1], row[4]) == ("2", "malformed_row", "'=not json")
    before = errors.stat().st_mtime_ns
    drop.look()
    assert errors.stat().st_mtime_ns == before, "told once"


def test_a_file_that_grows_begins_to_wait_again(drop: Drop) -> None:
    drop.lay("rides.ndjson", RIDES[:20])
    drop.look()
    drop.lay("rides.ndjson")
    assert drop.look(SETTLE) == 0
    assert drop.look(2 * SETTLE) == 1


def test_names_of_what_is_not_whole_are_left_alone(drop: Drop) -> None:
    names = [".hidden.csv", "a.csv.part", "b.csv.tmp", "c.csv.filepart"]
    for name in names:
        drop.lay(name)
    assert drop.look_until_still() == 0
    assert sorted(os.listdir(drop.incoming)) == names
    assert jobs_there() == []


def test_with_its_manifest_a_file_is_taken_at_once(drop: Drop) -> None:
    drop.lay("rides.ndjson", rows=1, business_date="2026-05-20", sequence=1)
    assert drop.look() == 1
    assert drop.lies_in("done") == ["rides.ndjson", "rides.ndjson.manifest.json"]
    [stored] = jobs_there()
    told = {name: stored["arguments"][name] for name in ("file_name", "business_date", "sequence")}
    assert told == {
        "file_name": "rides.ndjson", "business_date": "2026-05-20", "sequence": 1
    }  # fmt: skip


def test_half_a_file_beside_its_manifest_waits_for_the_other_half(drop: Drop) -> None:
    drop.lay_manifest("rides.ndjson", RIDES)
    drop.lay("rides.ndjson", RIDES[:-1])
    assert drop.look() == 0
    # As long as it is, but not what it will be: some programs take the room first.
    drop.lay("rides.ndjson", RIDES[:-9] + bytes(9))
    assert drop.look() == 0
    drop.lay("rides.ndjson")
    assert drop.look() == 1
    assert len(jobs_there()) == 1
    assert storage.database()["feed_files.files"].count_documents({}) == 1


# --- what a manifest says -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"sha256": "0" * 64}, "sha256 is"),
        ({"bytes": 9}, "bytes is"),
        ({"rows": 2}, "rows is 1, the manifest says 2"),
        ({"sums": {"quantity": 9}}, "sums.quantity is 8, the manifest says 9"),
        ({"file": "other.ndjson"}, "file is rides.ndjson"),
    ],
)
def test_a_file_that_is_not_what_its_manifest_says_never_becomes_a_job(
    drop: Drop, manifest: dict[str, Any], said: str
) -> None:
    drop.lay("rides.ndjson", **manifest)
    assert drop.look_until_still() == 1
    reason = drop.reason("rides.ndjson")
    assert reason["code"] == "manifest_mismatch"
    assert said in reason["en"]
    assert reason["zh"].startswith("文件与清单不符")
    assert jobs_there() == []
    assert storage.database()["feed_files.chunks"].count_documents({}) == 0
    assert drop.lies_in("refused") == [
        "rides.ndjson", "rides.ndjson.manifest.json", "rides.ndjson.reason.json",
    ]  # fmt: skip
    assert (drop.home / "refused" / "activities" / "rides.ndjson").read_bytes() == RIDES


def test_a_profile_is_named_by_the_folder_or_by_the_manifest(drop: Drop) -> None:
    mapping.parse(PROFILE)
    partner_profiles.add(drop.buses.id, PROFILE, reason="agreed", by="op")
    text = "卡号|公里|时间|流水\ncard-1|8|2026-05-20T08:00:00+08:00|tap-1\n".encode("gb18030")
    (drop.incoming / "rides").mkdir()
    drop.lay("rides/one.txt", text, rows=1, sums={"公里": 8})
    drop.lay("two.csv", text, profile="rides")
    drop.lay("three.csv", text, profile="nobody's")
    assert drop.look() == 2
    assert [stored["arguments"]["profile"] for stored in jobs_there()] == ["rides", "rides"]
    ends = [work(job_id).counts for job_id in drop.told]
    # Nobody linked the card; the second file has the same ride.
    assert [(end["parked"], end["duplicate"]) for end in ends] == [(1, 0), (0, 1)]
    assert drop.look(SETTLE) == 1
    assert "no mapping profile" in drop.reason("three.csv")["en"]


def test_a_manifest_that_is_no_plain_file_refuses_its_file(drop: Drop, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.json"
    for name in ("linked.ndjson", "folder.ndjson"):
        drop.lay(name)
    (drop.incoming / "linked.ndjson.manifest.json").symlink_to(elsewhere)
    (drop.incoming / "folder.ndjson.manifest.json").mkdir()
    assert drop.look_until_still() == 2
    for name in ("linked.ndjson", "folder.ndjson"):
        assert drop.reason(name)["code"] == "manifest_invalid"
        assert f"{name}.manifest.json" in drop.lies_in("refused")
    assert jobs_there() == []


def test_a_gap_a_late_and_a_second_file_of_a_series_ring_an_alarm(drop: Drop) -> None:
    def lay(day: int, number: int) -> list[tuple[str, str]]:
        before = sounded()
        content = json.dumps(ROW | {"source_event_id": f"tap-{day}-{number}"}).encode()
        name = f"{day}-{number}.ndjson"
        drop.lay(name, content, business_date=f"2026-05-{day:02d}", sequence=number)
        assert drop.look() == 1
        return [one for one in sounded() if one not in before]

    series = f"{drop.buses.id}/activities/-"
    assert lay(10, 7) == []
    assert lay(11, 8) == []
    # 9 and 10 are missing.
    assert lay(14, 11) == [("feed_sequence_gap", f"{series}/#9")]
    [gap] = storage.database()["alarms"].find({"kind": "feed_sequence_gap"})
    assert (gap["facts"]["missing"], gap["facts"]["missing_count"]) == ([9, 10], 2)
    assert sorted(lay(12, 9)) == [
        ("feed_file_late", f"{series}/#9"),
        ("feed_file_late", f"{series}/2026-05-12"),
    ]
    assert lay(14, 12) == [("feed_file_replaced", f"{series}/2026-05-14")]
    assert lay(15, 12) == [("feed_file_replaced", f"{series}/#12")]


# --- once -----------------------------------------------------------------------------------------


def test_the_same_file_twice_is_one_job_and_both_stay(drop: Drop) -> None:
    drop.lay("rides.ndjson")
    assert drop.look_until_still() == 1
    work(drop.told[0])
    drop.lay("rides.ndjson")
    assert drop.look_until_still() == 1
    drop.look()
    assert len(jobs_there()) == 1
    assert drop.lies_in("done") == [
        "rides.ndjson", "rides.ndjson.result.json", "rides.ndjson~2", "rides.ndjson~2.result.json",
    ]  # fmt: skip
    again = drop.result("rides.ndjson~2")
    assert (again["same_as"], again["job_id"]) == ("rides.ndjson", drop.told[0])


def test_another_content_under_the_same_name_is_another_job(drop: Drop) -> None:
    for number in range(2):
        drop.lay("rides.ndjson", json.dumps(ROW | {"source_event_id": f"t{number}"}).encode())
        assert drop.look_until_still() == 1
    assert len(jobs_there()) == 2
    assert drop.lies_in("done") == ["rides.ndjson", "rides.ndjson~2"]


@pytest.mark.parametrize("step", ["check_rows", "note"])
@pytest.mark.parametrize("how", ["laid over it", "written into it"])
def test_a_file_that_comes_while_another_of_its_name_is_taken_is_taken_as_well(
    drop: Drop, monkeypatch: pytest.MonkeyPatch, step: str, how: str
) -> None:
    """Before the first became a job it is forgotten for the second, afterwards both are jobs."""
    second = json.dumps(ROW | {"source_event_id": "tap-2"}).encode() + b"\n"
    module: Any = manifests if step == "check_rows" else dropped
    real = getattr(module, step)

    def comes(*given: Any, **named: Any) -> None:
        real(*given, **named)
        monkeypatch.setattr(module, step, real)
        if how == "laid over it":
            (drop.incoming / ".new").write_bytes(second)
            (drop.incoming / ".new").rename(drop.incoming / "rides.ndjson")
        else:
            drop.lay("rides.ndjson", second)
        drop.lay_manifest("rides.ndjson", second, rows=1)
        os.utime(drop.incoming / "rides.ndjson", ns=(1, 1))

    monkeypatch.setattr(module, step, comes)
    drop.lay("rides.ndjson", rows=1)
    drop.look()
    assert sorted(os.listdir(drop.incoming)) == ["rides.ndjson", "rides.ndjson.manifest.json"]
    assert drop.look() == 1
    assert drop.lies_in("done") == ["rides.ndjson", "rides.ndjson.manifest.json"]
    assert (drop.home / "done" / "activities" / "rides.ndjson").read_bytes() == second
    taken = [hashlib.sha256(second).hexdigest()]
    if step == "note":
        taken.insert(0, hashlib.sha256(RIDES).hexdigest())
    assert [stored["arguments"]["sha256"] for stored in jobs_there()] == taken
    assert storage.database()["feed_files.files"].count_documents({}) == len(taken)


DEATHS = [
    Death("integrations.imports:keep", "after"),
    Death("integrations.imports:queue", "before"),
    Death("integrations.imports:queue", "after"),
    Death("integrations.deliveries:note", "after"),
    Death("integrations.dropped:note", "after"),
    Death("integrations.drop_folder:_move", "after"),
]


@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_a_watcher_killed_at_any_step_is_followed_by_one_that_finishes(
    drop: Drop, crew: Crew, death: Death
) -> None:
    drop.lay("rides.ndjson", sequence=1)
    assert crew.run("look_at_drop_folder", death, root=str(drop.root)) == KILLED
    assert drop.look() == 0, "its lease is not over"
    after = 2 * dropped.LEASE
    moved = drop.look(after)
    assert moved == (0 if death.at.endswith("_move") else 1)
    [stored] = jobs_there()
    assert drop.lies_in("done") == ["rides.ndjson", "rides.ndjson.manifest.json"]
    assert os.listdir(drop.incoming) == []
    work(stored["_id"])
    drop.look(after)
    assert drop.result("rides.ndjson")["parked"] == 1
    assert sounded() == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_half_refused_is_refused_with_its_reason(drop: Drop, crew: Crew, when: str) -> None:
    drop.lay("rides.xls")
    death = Death("integrations.drop_folder:_move", when)
    assert crew.run("look_at_drop_folder", death, root=str(drop.root)) == KILLED
    drop.look(dropped.LEASE * 2)
    drop.look(dropped.LEASE * 2 + SETTLE)
    assert drop.lies_in("refused") == ["rides.xls", "rides.xls.reason.json"]
    assert drop.reason("rides.xls")["code"] == "file_not_taken"


def test_two_watchers_who_both_hold_the_lease_make_one_job_a_file(drop: Drop, crew: Crew) -> None:
    """The second one's clock is so far ahead that the first one's lease is over for it."""
    names = [f"{number:02d}.ndjson" for number in range(12)]
    for name in names:
        drop.lay(name, json.dumps(ROW | {"source_event_id": name}).encode())
    shift_s = (NOON - datetime.now(UTC)).total_seconds()
    look = job("look_at_drop_folder", root=str(drop.root))
    ahead = {**look, "shift_s": shift_s + 120}
    ends = crew.wait(crew.start(look, ahead))
    assert all("value" in end for end in ends), ends
    drop.look(timedelta(minutes=5))
    drop.look(timedelta(minutes=5) + SETTLE)
    assert drop.lies_in("done") == names
    assert len(jobs_there()) == len(names)
    assert storage.database()["feed_files.files"].count_documents({}) == len(names)


# --- what else may lie there ----------------------------------------------------------------------


def test_links_are_never_followed(drop: Drop, tmp_path: Path) -> None:
    secret = tmp_path / "secret.ndjson"
    secret.write_bytes(RIDES)
    (drop.incoming / "link.ndjson").symlink_to(secret)
    (drop.incoming / "folder.ndjson").symlink_to(tmp_path)
    (drop.home / "bills").symlink_to(tmp_path)
    os.mkfifo(drop.incoming / "pipe.ndjson")
    assert drop.look_until_still() == 3
    assert jobs_there() == []
    aside = drop.home / "refused" / "activities"
    assert (aside / "link.ndjson").is_symlink()
    assert drop.reason("pipe.ndjson")["zh"] == "这不是普通文件。"
    assert secret.read_bytes() == RIDES
    assert sounded() == [("drop_folder_stuck", f"{drop.buses.id}/bills")]


def test_a_link_where_taken_files_go_is_not_followed_either(drop: Drop, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (drop.home / "done").symlink_to(elsewhere)
    drop.lay("rides.ndjson")
    assert drop.look_until_still() == 0
    assert os.listdir(elsewhere) == []
    assert (drop.incoming / "rides.ndjson").exists()
    assert sounded() == [("drop_folder_stuck", f"{drop.buses.id}/activities/rides.ndjson")]
    (drop.home / "done").unlink()
    assert drop.look(SETTLE * 2) == 1
    assert len(jobs_there()) == 1


def test_odd_names_are_put_aside_under_plain_ones(drop: Drop) -> None:
    names = [b"\xff.csv", b"two\nlines.csv", b"x" * 201 + b".csv", "衢州.pdf".encode(), b"none"]
    for name in names:
        with open(os.fsencode(drop.incoming) + b"/" + name, "wb") as file:
            file.write(RIDES)
    drop.lay("empty.csv", b"")
    drop.lay("衢州 巴士.ndjson")
    assert drop.look_until_still() == 7
    assert drop.lies_in("done") == ["衢州 巴士.ndjson"]
    refused = [name for name in drop.lies_in("refused") if not name.endswith(".reason.json")]
    assert refused == sorted(
        ["%FF.csv", "two%0Alines.csv", "x" * 200, "衢州.pdf", "none", "empty.csv"]
    )
    assert len(jobs_there()) == 1


def test_folders_of_nobody_are_left_and_told_of_once(drop: Drop) -> None:
    # Nobody, and a partner that a second operator has not approved yet.
    clients.create_client(Kind.DATA, "new", subject_id="ptn_new", asked_by="anna")
    for name in ("nobody", "ptn_new"):
        (drop.root / name / "activities").mkdir(parents=True)
        (drop.root / name / "activities" / "rides.ndjson").write_bytes(RIDES)
    (drop.root / "a file").touch()
    (drop.incoming / "no_profile").mkdir()
    (drop.incoming / "no_profile" / "rides.ndjson").write_bytes(RIDES)
    assert drop.look_until_still() == 0
    assert sorted(sounded()) == [
        ("drop_folder_unknown", f"{drop.buses.id}/activities/no_profile"),
        ("drop_folder_unknown", "nobody"),
        ("drop_folder_unknown", "ptn_new"),
    ]
    for name in ("nobody", "ptn_new"):
        assert os.listdir(drop.root / name) == ["activities"]


def test_a_partner_nobody_agreed_to_is_nobody_yet(drop: Drop) -> None:
    """As with its token: the second operator is asked before anything of it is taken."""
    client, _ = clients.create_client(
        Kind.DATA, "trams", subject_id="data_trams", policy={"every_behaviour": True}, asked_by="op"
    )
    (drop.root / "data_trams" / "activities").mkdir(parents=True)
    file = drop.root / "data_trams" / "activities" / "rides.ndjson"
    file.write_bytes(RIDES)
    assert drop.look_until_still() == 0
    assert (jobs_there(), file.exists()) == ([], True)
    assert sounded() == [("drop_folder_unknown", "data_trams")]
    clients.approve(client.client_id, by="other", alone=False)
    assert drop.look_until_still() == 1


def test_what_nobody_foresaw_of_one_file_holds_up_no_other_and_no_other_partner(
    app: Flask, drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [Drop(drop.root, partner(app)) for _ in range(2)]
    for one in others:
        one.lay("rides.ndjson")
    drop.lay("a.ndjson", rows=1)
    drop.lay("b.ndjson")

    def breaking(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(manifests, "check_rows", breaking)
    assert drop.look_until_still() == 3
    assert sorted(os.listdir(drop.incoming)) == ["a.ndjson", "a.ndjson.manifest.json"]
    stuck = ("drop_folder_stuck", f"{drop.buses.id}/activities/a.ndjson")
    assert stuck in sounded()

    monkeypatch.setattr(partner_profiles, "latest", breaking)
    for one in others:
        one.lay("more.ndjson", json.dumps(ROW | {"source_event_id": one.buses.id}).encode())
    (drop.home / "bills" / "rides").mkdir(parents=True)
    assert drop.look_until_still() == 2
    assert ("drop_folder_stuck", drop.buses.id) in sounded()


def test_a_name_of_no_text_beside_a_manifest_is_put_aside_like_others(drop: Drop) -> None:
    name = os.fsencode(drop.incoming) + b"/\xff.ndjson"
    manifest = {"file": "x", "bytes": len(RIDES), "sha256": "0" * 64}
    for ending, content in ((b"", RIDES), (b".manifest.json", json.dumps(manifest).encode())):
        with open(name + ending, "wb") as file:
            file.write(content)
    assert drop.look_until_still() == 1
    assert drop.reason("%FF.ndjson")["code"] == "manifest_mismatch"
    assert os.listdir(drop.incoming) == []


def test_a_file_that_cannot_be_read_holds_up_no_other(
    drop: Drop, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def opening(name: Any, *args: Any, **options: Any) -> int:
        if name == "a.ndjson":  # Tests may run as root, who may read everything.
            raise PermissionError(13, "Permission denied")
        return real(name, *args, **options)

    monkeypatch.setattr(os, "open", opening)
    drop.lay("a.ndjson")
    drop.lay("b.ndjson")
    assert drop.look_until_still() == 1
    assert os.listdir(drop.incoming) == ["a.ndjson"]
    assert sounded() == [("drop_folder_stuck", f"{drop.buses.id}/activities/a.ndjson")]


def test_a_result_that_could_not_be_written_is_written_later(drop: Drop) -> None:
    drop.lay("rides.ndjson")
    drop.look_until_still()
    work(drop.told[0])
    # What a full disk would do to it: the file cannot be made.
    in_the_way = drop.home / "done" / "activities" / ".tanhui-rides.ndjson.result.json"
    in_the_way.mkdir()
    drop.look()
    assert "rides.ndjson.result.json" not in drop.lies_in("done")
    subject = f"{drop.buses.id}/activities/rides.ndjson"
    assert sounded() == [("drop_report_unwritten", subject)]
    in_the_way.rmdir()
    os.mkfifo(in_the_way)  # Whoever opens it waits for a reader.
    drop.look()
    assert drop.result("rides.ndjson")["state"] == "done"


def test_the_end_of_a_job_that_went_on_is_told_once_more(app: Flask, drop: Drop) -> None:
    drop.lay("rides.ndjson")
    drop.look_until_still()
    operator, [job_id] = machine(app, Kind.OPERATOR), drop.told
    operator.post(f"/v1/operator/jobs/{job_id}/cancel", {"reason": "busy hour"})
    drop.look()
    assert drop.result("rides.ndjson")["state"] == "failed"
    assert operator.post(f"/v1/operator/jobs/{job_id}/resume").status_code == 202
    work(job_id)
    drop.look()
    result = drop.result("rides.ndjson")
    assert (result["state"], result["parked"], result["failure"]) == ("done", 1, None)


def test_a_manifest_whose_file_does_not_come_rings_an_alarm(drop: Drop) -> None:
    drop.lay_manifest("rides.ndjson", RIDES)
    drop.look()
    drop.look(drop_folder.MISSED_AFTER)
    assert sounded() == [("feed_file_missing", f"{drop.buses.id}/activities/rides.ndjson")]


def test_a_manifest_left_behind_follows_its_file(drop: Drop) -> None:
    """A watcher was killed between the two moves."""
    drop.lay("rides.ndjson")
    drop.look_until_still()
    drop.lay_manifest("rides.ndjson", RIDES)
    drop.look()
    drop.look(drop_folder.MISSED_AFTER)
    assert drop.lies_in("done") == ["rides.ndjson", "rides.ndjson.manifest.json"]
    assert sounded() == []
