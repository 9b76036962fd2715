"""Partners' files: durable before the answer, read in chunks, resumed after a kill, row by row."""

import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from faults import scenarios
from faults.crew import KILLED, Crew, Death

from accounting import book, clock, jobs, links, refused_rows, storage, vault
from accounting.errors import DomainError
from accounting.jobs import Job
from footprint import activities
from integrations import feeds, imports
from integrations.feeds import CSV, NDJSON, FeedRow, FileRefused, Unreadable
from integrations.imports import RowResult
from points.wallet import consistent

in_the_store = pytest.mark.usefixtures("app")

ANNA, PARTNER, CARD = "res_anna", "bus", "card-1"
CHUNK = 20
# Beyond the LEASE of a job, its worker is taken for dead.
LEASE_OVER = jobs.LEASE + timedelta(seconds=1)


def city(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=clock.CITY).astimezone(UTC)


NOW = city("2026-05-20 12:00")


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with clock.travel(NOW - clock.now()):
        yield


# Reading.


def read(
    content: str | bytes,
    media_type: str = NDJSON,
    *,
    gzipped: bool = False,
    encoding: str = feeds.UTF_8,
) -> list[FeedRow]:
    data = content.encode() if isinstance(content, str) else content
    return list(
        feeds.rows(
            io.BytesIO(data),
            media_type=media_type,
            gzipped=gzipped,
            size=len(data),
            encoding=encoding,
        )
    )


def test_each_line_of_ndjson_is_a_row_with_exact_numbers() -> None:
    rows = read('{"quantity": 5.2, "n": 1}\r\n\n  \n{"quantity": 0.1}')
    assert rows == [{"quantity": Decimal("5.2"), "n": 1}, {"quantity": Decimal("0.1")}]


def test_a_byte_order_mark_is_no_part_of_the_first_row() -> None:
    bom = b"\xef\xbb\xbf"
    assert read(bom + b'{"a": 1}\n{"a": 2}') == [{"a": 1}, {"a": 2}]
    assert read(bom + b"external_id,behaviour\nc,bus_km\n", CSV) == [
        {"external_id": "c", "behaviour": "bus_km"}
    ]


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[1, 2]",
        "5",
        "null",
        '"text"',
        '{"a": 1',
        '{"a": 1}}',
        "[" * 60_000,
        "9" * 5_000,
    ],
)
def test_a_line_that_is_no_object_is_named_and_the_rest_goes_on(line: str) -> None:
    rows = read(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    assert rows == [{"a": 1}, Unreadable(line[:500], "not a JSON object"), {"a": 2}]


def test_a_csv_names_its_columns_and_what_is_no_field_is_an_attribute() -> None:
    text = (
        "external_id,behaviour,quantity,occurred_at,amount_fen,trip,line\n"
        'c-1,bus_km,5.20,2026-05-20T08:00:00+08:00,,true,"1, north"\n'
        "\n"
        "c-2,mobile_pay_offline,1,2026-05-20T08:00:00+08:00,100,,\n"
    )
    assert read(text, CSV) == [
        {
            "external_id": "c-1",
            "behaviour": "bus_km",
            "quantity": Decimal("5.20"),
            "occurred_at": "2026-05-20T08:00:00+08:00",
            "attributes": {"trip": True, "line": "1, north"},
        },
        {
            "external_id": "c-2",
            "behaviour": "mobile_pay_offline",
            "quantity": 1,
            "occurred_at": "2026-05-20T08:00:00+08:00",
            "attributes": {"amount_fen": 100},
        },
    ]


@pytest.mark.parametrize(
    ("cell", "value"),
    [("5", 5), ("5.0", Decimal("5.0")), ("1e3", Decimal("1e3")), ("五", "五"), ("true", "true")],
)
def test_a_cell_is_a_number_only_where_a_number_belongs(cell: str, value: object) -> None:
    assert read(f"quantity\n{cell}\n", CSV) == [{"quantity": value}]
    assert read(f"external_id\n{cell}\n", CSV) == [{"external_id": cell}]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a", "has more or fewer cells than the header"),
        ("a,1,2", "has more or fewer cells than the header"),
        ('"a"b,1', "not CSV: ',' expected after '\"'"),
        ('"a,1', "not CSV: unexpected end of data"),
        ("a\rb,1", "not CSV: new-line character seen in unquoted field"),
    ],
)
def test_a_broken_line_of_a_csv_spoils_no_neighbour(line: str, why: str) -> None:
    first, broken, last = read(f"external_id,quantity\nx,1\n{line}\ny,2\n", CSV)
    assert (first, last) == (
        {"external_id": "x", "quantity": 1},
        {"external_id": "y", "quantity": 2},
    )
    assert isinstance(broken, Unreadable)
    assert broken.text == line
    assert broken.why.startswith(why)


@pytest.mark.parametrize(
    ("line", "text", "why"),
    [
        ("家,1".encode("gb18030"), "\ufffd\ufffd,1", "not UTF-8"),
        (b"x" * 10_000_000, "x" * 500, "longer than 65536 bytes"),
    ],
)
def test_a_line_that_is_too_long_or_not_utf8_spoils_no_neighbour(
    line: bytes, text: str, why: str
) -> None:
    rows = read(b'{"a": 1}\n' + line + b'\n{"a": 2}\n' + line)
    assert rows == [{"a": 1}, Unreadable(text, why), {"a": 2}, Unreadable(text, why)]
    rows = read(b"external_id\nx\n" + line + b"\ny\n", CSV)
    assert rows == [{"external_id": "x"}, Unreadable(text, why), {"external_id": "y"}]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"a": "x\\u0000y"}', "holds a NUL character"),
        ('{"a": "x\0y"}', "holds a NUL character"),
        ('{"a": {"b": ["\\u0000"]}}', "holds a NUL character"),
        ('{"\\u0000": 1}', "holds a NUL character"),
        ('{"a": "\\ud83d"}', "holds half of a surrogate pair"),
        ('{"a": "\\ude00\\ud83d"}', "holds half of a surrogate pair"),
        ('{"\\udfff": 1}', "holds half of a surrogate pair"),
        ('{"a": 1, "b": 2, "a": 1}', "names a key twice: 'a'"),
        ('{"a": {"b": 1, "b": 2}}', "names a key twice: 'b'"),
        ('{"a": 1, "\\u0061": 2}', "names a key twice: 'a'"),
        ('{"\\ud800": 1, "\\ud800": 2}', "names a key twice: '\\ud800'"),
    ],
)
def test_a_row_nobody_can_keep_or_read_one_way_says_why(line: str, why: str) -> None:
    rows = read(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    assert rows == [{"a": 1}, Unreadable(line, why), {"a": 2}]


def test_a_whole_surrogate_pair_and_a_written_escape_are_text() -> None:
    assert read('{"a": "\\ud83d\\ude00"}\n{"a": "\\\\u0000"}\n{"a": {"b": 1}, "b": 1}') == [
        {"a": "😀"},
        {"a": "\\u0000"},
        {"a": {"b": 1}, "b": 1},
    ]


def test_nul_in_a_csv_spoils_no_neighbour() -> None:
    assert read("external_id\nx\na\0b\ny\n", CSV) == [
        {"external_id": "x"},
        Unreadable("a\0b", "holds a NUL character"),
        {"external_id": "y"},
    ]
    why = "the header of the CSV cannot be read: holds a NUL character"
    assert refused(b"external\0id\nx\n", CSV) == why


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_csv_in_gb18030_says_the_same_as_in_utf8(mark: str) -> None:
    """With letters of one, two and four bytes, and one whose second byte is a backslash."""
    text = f"{mark}external_id,line\r\n乘客,福永线\r\nc,珅㐂😀\r\n"
    assert text.encode("gb18030") != text.encode()
    rows = read(text.encode("gb18030"), CSV, encoding=feeds.GB18030)
    assert rows == [
        {"external_id": "乘客", "attributes": {"line": "福永线"}},
        {"external_id": "c", "attributes": {"line": "珅㐂😀"}},
    ]
    assert rows == read(text, CSV)


@pytest.mark.parametrize(
    "cell",
    [
        b"\xff",  # No byte of GB18030,
        "乘".encode("gb18030")[:1],  # the first half of a character before the line feed,
        "😀".encode("gb18030")[:3],  # three bytes of four,
        b"\x80",
    ],
)
def test_a_wrong_byte_in_gb18030_is_one_bad_row(cell: bytes) -> None:
    data = "external_id\n乘\n".encode("gb18030") + cell + "\n客\n".encode("gb18030")
    first, broken, last = read(data, CSV, encoding=feeds.GB18030)
    assert (first, last) == ({"external_id": "乘"}, {"external_id": "客"})
    assert isinstance(broken, Unreadable)
    assert broken.why == "not GB18030"


def test_a_file_marked_as_utf8_is_not_read_as_gb18030() -> None:
    with pytest.raises(FileRefused, match="declared as GB18030, but marked as UTF-8"):
        read("\ufeff乘客\n1\n", CSV, encoding=feeds.GB18030)


@pytest.mark.parametrize("content", ["", "\n\n", "external_id,quantity\n"])
def test_an_empty_file_has_no_rows(content: str) -> None:
    assert read(content, CSV) == []
    if "," not in content:
        assert read(content) == []


def refused(content: bytes, media_type: str = NDJSON, *, gzipped: bool = False) -> str:
    with pytest.raises(FileRefused) as why:
        read(content, media_type, gzipped=gzipped)
    return str(why.value)


def test_a_file_that_cannot_be_read_as_a_whole_is_refused_in_words() -> None:
    gb18030 = "用户,活动\nc,bus_km\n".encode("gb18030")
    assert refused(gb18030, CSV) == "the header of the CSV cannot be read: not UTF-8"
    long = b"a" * 70_000 + b",b\n1,2\n"
    assert refused(long, CSV) == "the header of the CSV cannot be read: longer than 65536 bytes"
    assert refused(b'"a"b,c\n1,2\n', CSV).startswith("the header of the CSV cannot be read")
    assert refused(b"a,b,a\n1,2,3\n", CSV) == "the header of the CSV names a column twice"


def test_a_gzip_file_is_unpacked_on_the_way() -> None:
    assert read(gzip.compress(b'{"a": 1}\n{"a": 2}\n'), gzipped=True) == [{"a": 1}, {"a": 2}]


def test_a_damaged_gzip_file_is_refused_wherever_the_damage_is() -> None:
    lines = b"".join(b'{"n": %d}\n' % number for number in range(5_000))
    whole = gzip.compress(lines, mtime=0)
    assert "damaged" in refused(b"plain text\n", gzipped=True)
    assert "damaged" in refused(whole[: len(whole) // 2], gzipped=True)
    for place in range(12, len(whole), 1_009):
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        with pytest.raises(FileRefused):
            read(bytes(broken), gzipped=True)


def test_a_gzip_bomb_is_refused_before_it_is_unpacked() -> None:
    lines = b'{"a": 1}\n' * 200_000
    bomb = gzip.compress(lines)
    assert len(bomb) * feeds.GZIP_RATIO_MAX < len(lines)
    assert refused(bomb, gzipped=True) == "the file unpacks to far more than its size"
    one_line = gzip.compress(b"x" * 10_000_000)
    assert refused(one_line, gzipped=True) == "the file unpacks to far more than its size"


# Jobs.


def row(number: int, **changed: Any) -> dict[str, Any]:
    """A bus ride of 2 km; a card has six of them a day."""
    day, place = divmod(number, 6)
    at = NOW - timedelta(days=day + 1, hours=place)
    made = {
        "external_id": CARD,
        "behaviour": "bus_km",
        "quantity": "2",
        "occurred_at": at.isoformat(),
        "source_event_id": f"e-{number}",
    }
    return {**made, **changed}


def ndjson(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in rows).encode()


def store(content: bytes, media_type: str = NDJSON, *, gzipped: bool = False) -> Job:
    return imports.store(
        "activities", PARTNER, io.BytesIO(content), media_type=media_type, gzipped=gzipped
    )


def run(job: Job) -> Job:
    done = imports.run(job.id, scenarios.bus_rows)
    assert done is not None
    return done


def counts(job: Job) -> dict[str, int]:
    return {name: count for name, count in job.counts.items() if count}


@in_the_store
def test_a_file_is_taken_in_and_counted_by_outcome() -> None:
    links.link(ANNA, PARTNER, CARD)
    rows = [row(number) for number in range(14)]
    rows += [
        row(20, external_id="card-unknown"),
        row(21, quantity="999"),
        row(0),
        row(0, quantity="3"),
    ]
    job = store(ndjson(rows) + b"not json\n")
    assert (job.state, job.progress, counts(job)) == ("queued", 0, {})
    done = run(job)
    assert (done.state, done.total, done.done) == ("done", 19, 19)
    assert counts(done) == {
        "pending": 6,  # Of yesterday,
        "credited": 8,  # and of the days before: mature after 48 hours.
        "parked": 1,
        "rejected": 3,  # Implausible, in conflict with e-0, and not JSON.
        "duplicate": 1,
    }
    noted = [(one["row"], one["code"]) for one in refused_rows.of_job(job.id)]
    assert noted == [
        (16, "implausible_quantity"),  # Kept as a rejected activity, and told as the others are.
        (18, "source_event_conflict"),
        (19, "malformed_row"),
    ]
    assert imports.run(job.id, scenarios.bus_rows) is None


@in_the_store
def test_what_was_refused_is_kept_sealed_with_a_text_in_both_languages() -> None:
    job = store(b"secret-card-77 is not json\n")
    run(job)
    [noted] = list(refused_rows.of_job(job.id))
    assert noted["message"].keys() == {"zh", "en"}
    assert "secret-card-77" not in repr(noted)
    assert vault.decrypt(noted["input_sealed"], "job-error") == "secret-card-77 is not json"


@in_the_store
def test_the_same_file_twice_is_all_duplicates() -> None:
    links.link(ANNA, PARTNER, CARD)
    content = ndjson([row(number) for number in range(10)])
    run(store(content))
    before = book.head(ANNA)
    assert counts(run(store(content))) == {"duplicate": 10}
    assert book.head(ANNA) == before


@in_the_store
def test_ndjson_csv_and_their_gzip_say_the_same() -> None:
    links.link(ANNA, PARTNER, CARD)
    rows = [row(number) for number in range(8)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    as_csv = b"\xef\xbb\xbf" + text.getvalue().encode()
    first = run(store(ndjson(rows)))
    # Six of yesterday, and two of the day before that are mature on arrival.
    assert counts(first) == {"pending": 6, "credited": 2}
    for job in (
        store(as_csv, CSV),
        store(gzip.compress(as_csv), CSV, gzipped=True),
        store(gzip.compress(ndjson(rows)), gzipped=True),
    ):
        assert counts(run(job)) == {"duplicate": 8}


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "CHUNK_ROWS", CHUNK)


@in_the_store
@pytest.mark.usefixtures("_small_chunks")
def test_a_file_that_cannot_be_read_on_fails_in_words_and_keeps_what_was_taken() -> None:
    links.link(ANNA, PARTNER, CARD)
    # Cut off before the checksum: what came through until there was whole.
    content = gzip.compress(ndjson([row(number) for number in range(CHUNK)]))[:-8]
    failed = run(store(content, gzipped=True))
    assert failed.state == "failed"
    assert failed.failure is not None
    assert failed.failure.code == "file_refused"
    assert failed.failure.en.startswith("the gzip data is damaged")
    assert failed.failure.zh.startswith("gzip 数据已损坏")
    assert (failed.done, sum(failed.counts.values())) == (CHUNK, CHUNK)
    assert imports.run(failed.id, scenarios.bus_rows) is None


@in_the_store
def test_a_file_beyond_the_limit_is_refused_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(imports, "FILE_BYTES_MAX", 1_000)
    with pytest.raises(imports.FileTooLarge):
        store(b"x" * 1_001)
    for name in ("feed_files.files", "feed_files.chunks", "jobs"):
        assert storage.database()[name].count_documents({}) == 0
    assert store(b"x" * 1_000).state == "queued"


class CutOff(io.BytesIO):
    """A sender who goes away in the middle."""

    def read(self, size: int | None = -1, /) -> bytes:
        if block := super().read(size):
            return block
        raise ConnectionError("the sender went away")


@in_the_store
def test_a_sender_who_goes_away_leaves_nothing_behind() -> None:
    with pytest.raises(ConnectionError):
        imports.store("a", PARTNER, CutOff(bytes(3_000_000)), media_type=NDJSON, gzipped=False)
    for name in ("feed_files.files", "feed_files.chunks", "jobs"):
        assert storage.database()[name].count_documents({}) == 0


# Interrupted.

ROWS, CARDS = CHUNK * 2 + 10, 10


def a_file_of_many_cards() -> Job:
    """Rides of ten cards, each card on one day after the other: no cap bites."""
    for card in range(CARDS):
        links.link(f"res_{card}", PARTNER, f"card-{card}")
    rides = []
    for number in range(ROWS):
        day, card = divmod(number, CARDS)
        event = {"external_id": f"card-{card}", "source_event_id": f"e-{number}"}
        rides.append(row(6 * day) | event)
    return store(ndjson(rides))


@in_the_store
@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize(
    "death",
    [
        Death("integrations.imports:_take_chunk", "before", 1),
        Death("integrations.imports:_take_chunk", "after", 1),
        Death("accounting.jobs:advance", "after", 1),
        Death("accounting.book:post_many", "after", 2),
        Death("accounting.jobs:advance", "before", 3),
        Death("accounting.jobs:finish", "before", 1),
    ],
    ids=str,
)
def test_a_worker_killed_in_the_middle_is_followed_by_one_that_goes_on(
    crew: Crew, death: Death
) -> None:
    job = a_file_of_many_cards()
    assert crew.run("run_import", death, job_id=job.id, chunk_rows=CHUNK) == KILLED
    assert imports.run(job.id, scenarios.bus_rows) is None, "its lease is not over"
    assert jobs.waiting(clock.now()) == []
    with clock.travel(LEASE_OVER):
        assert jobs.waiting(clock.now()) == [job.id]
        done = run(job)
    assert (done.state, done.done, done.total) == ("done", ROWS, ROWS)
    assert sum(done.counts.values()) == ROWS
    # Every row has one entry, whoever took it in.
    earned = storage.database()["entries"].count_documents({"kind": "earn"})
    assert earned == ROWS
    brought = activities.by_ids(activities.of_job(job.id, after="", limit=2 * ROWS))
    assert [one.state for one in brought] == ["settled"] * ROWS
    assert list(refused_rows.of_job(job.id)) == []
    assert book.verify(checks=[consistent]).problem is None


@in_the_store
@pytest.mark.usefixtures("_small_chunks")
def test_a_failure_inside_a_chunk_leaves_the_job_to_be_taken_up_again() -> None:
    links.link(ANNA, PARTNER, CARD)
    job = store(ndjson([row(number) for number in range(CHUNK + 5)]))
    calls = 0

    def fails_on_the_second(job: Job, raw: Sequence[dict[str, Any]]) -> list[RowResult]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ConnectionError("the store went away")
        return scenarios.bus_rows(job, raw)

    with pytest.raises(ConnectionError):
        imports.run(job.id, fails_on_the_second)
    half = jobs.get(job.id)
    assert half is not None
    assert (half.state, half.done) == ("running", CHUNK)
    assert 0 < half.progress < 100
    with clock.travel(LEASE_OVER):
        done = run(job)
    assert (done.done, done.counts["duplicate"]) == (CHUNK + 5, 0)


@in_the_store
def test_refused_rows_of_a_chunk_taken_twice_are_noted_once() -> None:
    class Refused(DomainError):
        code = "behaviour_not_allowed"

    job = store(ndjson([row(1), row(2)]))

    def refuse(_job: Job, raw: Sequence[dict[str, Any]]) -> list[RowResult]:
        return [RowResult("rejected", Refused())] * len(raw)

    taken = jobs.take(job.id)
    assert taken is not None
    numbered = [(1, row(1)), (2, row(2))]
    imports._take_chunk(taken, numbered, dict(taken.counts), refuse)
    with clock.travel(LEASE_OVER):
        done = imports.run(job.id, refuse)
    assert done is not None
    assert counts(done) == {"rejected": 2}
    assert [one["row"] for one in refused_rows.of_job(job.id)] == [1, 2]


@in_the_store
def test_one_of_two_workers_gets_a_job_and_a_finished_one_is_nobodys() -> None:
    job = store(b"")
    first, second = jobs.take(job.id), jobs.take(job.id)
    assert first is not None
    assert second is None
    jobs.finish(first, 0)
    with clock.travel(LEASE_OVER):
        assert jobs.take(job.id) is None
        assert jobs.waiting(clock.now()) == []
    assert jobs.take("job_nothing") is None
    assert jobs.get("job_nothing") is None


@in_the_store
def test_a_worker_that_was_overtaken_stops() -> None:
    """It slept past its lease; another went on from the same row, and only one of them counts."""
    job = store(ndjson([row(number) for number in range(3)]))
    slow = jobs.take(job.id)
    assert slow is not None
    with clock.travel(LEASE_OVER):
        fast = jobs.take(job.id)
        assert fast is not None
        assert jobs.advance(fast, 200, 1_000, {"credited": 200})
        assert not jobs.advance(slow, 200, 1_000, {"duplicate": 200})
    now = jobs.get(job.id)
    assert now is not None
    assert (now.done, now.counts) == (200, {"credited": 200})


@in_the_store
def test_a_job_that_fails_at_the_same_rows_again_and_again_is_given_up() -> None:
    data = io.BytesIO(b'{"a": 1}\n')
    job = imports.store("activities", PARTNER, data, media_type=NDJSON, gzipped=False)

    def broken(_job: Job, _rows: Sequence[dict[str, Any]]) -> list[RowResult]:
        raise RuntimeError("a bug in one row")

    for number in range(jobs.TRIES_MAX):
        with clock.travel(LEASE_OVER * number):
            with pytest.raises(RuntimeError, match="a bug in one row"):
                imports.run(job.id, broken)
            assert imports.run(job.id, broken) is None, "the lease of this try still runs"
    with clock.travel(LEASE_OVER * jobs.TRIES_MAX):
        assert imports.run(job.id, broken) is None
    ended = jobs.get(job.id)
    assert ended is not None
    assert (ended.state, ended.failure) == (
        jobs.FAILED,
        jobs.Failure(
            "gave_up",
            "It stopped 5 times after row 0. Tell us the job id.",
            "处理到第 0 行后已中断 5 次，请把任务编号告知我们。",
        ),
    )
