"""The proof of the book: what was recorded cannot be changed or taken away without it showing."""

import hashlib
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import jwt
import pytest
from callers import Caller, machine, resident, said
from faults.crew import KILLED, Crew, Death
from flask import Flask
from lives import at, did, spent

from accounting import book, clock, jobs, merkle, proofs, storage, verifying, walks
from accounting.book.entries import digest
from accounting.clients import Kind
from accounting.proofs import BookNotProven, Proof
from accounting.verifying import Broken
from api import schedule, tasks
from api.bookkeeping import RULES
from api.config import Config
from points import crediting
from rewards import settlement

pytestmark = pytest.mark.usefixtures("app")

ANNA, BO, CAI = "res_anna", "res_bo", "res_cai"
EVERYBODY = [ANNA, BO, CAI]


@pytest.fixture(autouse=True)
def _noon() -> Iterator[None]:
    with at("2026-05-20 12:00"):
        yield


@pytest.fixture
def operator(app: Flask) -> Caller:
    return machine(app, Kind.OPERATOR)


def lives() -> None:
    """Three entries for each of three people."""
    for who in EVERYBODY:
        for day in (17, 18, 19):
            did(who, "bike_km", 4, f"2026-05-{day} 08:00", minutes=20)


def prove() -> Proof:
    job_id = proofs.queue("op").id
    job = proofs.run(job_id, RULES)
    assert job is not None
    proof = proofs.newest()
    assert proof is not None
    assert (proof.state == proofs.GREEN) == (job.state == jobs.DONE)
    return proof


def raw() -> Any:
    return storage.database()["entries"]


def chain(who: str) -> list[dict[str, Any]]:
    return list(raw().find({"account": who}).sort("seq", 1))


def put_back(documents: list[dict[str, Any]]) -> None:
    raw().delete_many({"account": documents[0]["account"]})
    raw().insert_many(documents)


def rehashed(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chain with every hash made to fit again, as a forger with the whole database would."""
    before = ""
    for document in documents:
        document["prev_hash"] = before
        document["hash"] = before = digest(document)
    return documents


# Trees.

# The vectors of the Certificate Transparency reference implementation.
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"]
INPUTS += ["606162636465666768696a6b6c6d6e6f"]
ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


@pytest.mark.parametrize(("count", "root"), ROOTS.items())
def test_roots_are_those_of_rfc_6962(count: int, root: str) -> None:
    leaves = [merkle.leaf(bytes.fromhex(text)) for text in INPUTS[:count]]
    assert merkle.root(leaves).hex() == root


def test_every_leaf_climbs_to_the_root_and_no_other_does() -> None:
    for count in range(1, 20):
        leaves = [merkle.leaf(bytes([number])) for number in range(count)]
        root = merkle.root(leaves)
        for place, leaf in enumerate(leaves):
            path = merkle.path(leaves, place)
            assert merkle.climb(leaf, path) == root
            assert merkle.climb(merkle.leaf(b"another"), path) != root
    assert merkle.root([]) == hashlib.sha256(b"").digest()


# Green.


def test_the_first_proof_covers_every_account_and_says_what_the_books_hold() -> None:
    lives()
    proof = prove()
    assert (proof.id, proof.state, proof.accounts, proof.entries) == (1, "green", 3, 9)
    # 4 km by bike are 194.8 g and 194 points, nine times; they mature at once or within days.
    assert sum(proof.balances[name] for name in proof.balances if "points/" in name) == 9 * 194
    assert proof.balances["co2e_mg/reduction"] == 9 * 194_800
    assert proof.previous is None


def test_a_proof_is_signed_and_names_the_one_before(app: Flask) -> None:
    lives()
    first, second = prove(), prove()
    keys = jwt.PyJWKSet.from_dict(app.test_client().get("/.well-known/jwks.json").get_json())
    key = next(
        one for one in keys.keys if one.key_id == jwt.get_unverified_header(second.jws)["kid"]
    )
    content = jwt.decode(second.jws, key, algorithms=["EdDSA"])
    assert content["number"] == 2
    assert content["root"] == second.root
    assert content["accounts"] == 3
    assert content["previous"] == hashlib.sha256(first.jws.encode()).hexdigest()


def test_quiet_accounts_cost_one_entry_each_and_no_new_page() -> None:
    lives()
    first = prove()
    pages = storage.database()["proof_pages"]
    assert pages.count_documents({}) == 1
    job_id = proofs.queue("op").id
    proofs.run(job_id, RULES)
    second = proofs.newest()
    assert second is not None
    assert second.root == first.root
    assert pages.count_documents({}) == 1
    # The second night reads the accounts of its thirtieth from the beginning, others from the leaf.
    whole = [who for who in EVERYBODY if proofs._night_of(who) == 1]
    job = walks.totals(job_id)
    assert job == {"accounts": 3, "entries": 3 + 2 * len(whole)}


def test_new_accounts_and_entries_come_into_the_next_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "STRETCH", 2)
    lives()
    first = prove()
    did("res_between_anna_and_bo", "bike_km", 1, "2026-05-20 08:00")
    did("a_plant", "bike_km", 1, "2026-05-20 08:00")
    did(CAI, "bike_km", 1, "2026-05-20 08:00")
    second = prove()
    assert (second.state, second.accounts, second.entries) == ("green", 5, 12)
    assert second.root != first.root
    assert prove().root == second.root


# Red.


def edit_an_entry() -> None:
    raw().update_one({"account": BO, "seq": 2}, {"$set": {"refs.quantity": "400"}})


def cut_the_tail() -> None:
    raw().delete_one({"account": BO, "seq": 3})


def take_out_the_middle() -> None:
    raw().delete_one({"account": BO, "seq": 2})


def swap_two() -> None:
    first, second, third = chain(BO)
    put_back([{**first, "seq": 2}, {**second, "seq": 1}, third])


def rewrite_the_chain() -> None:
    """A kilogram more in the first entry, with balances and every hash made to fit."""
    documents = chain(BO)
    for document in documents:
        document["after"]["balances"]["co2e_mg/reduction"] += 1_000_000
    for line in documents[0]["lines"]:
        line[2] += {"reduction": 1_000_000, "baseline:city": -1_000_000}.get(line[1], 0)
    put_back(rehashed(documents))


def rewrite_the_last_alone() -> None:
    documents = chain(BO)
    documents[-1]["refs"]["quantity"] = "400"
    put_back(rehashed(documents))


def take_an_account_away() -> None:
    raw().delete_many({"account": BO})


def take_the_last_account_away() -> None:
    raw().delete_many({"account": CAI})


TAMPERED = {
    edit_an_entry: "res_bo seq 2: its hash does not match its content",
    cut_the_tail: "res_bo seq 3: was proved, and is gone",
    take_out_the_middle: "res_bo seq 3: follows seq 1, so an entry is missing",
    swap_two: "res_bo seq 1: does not name the hash of the entry before it",
    rewrite_the_chain: "res_bo seq 3: is not the entry that was proved",
    rewrite_the_last_alone: "res_bo seq 3: is not the entry that was proved",
    take_an_account_away: "res_bo seq 3: was proved, and is gone with its account",
    take_the_last_account_away: "res_cai seq 3: was proved, and is gone with its account",
}


@pytest.mark.parametrize(("tamper", "problem"), TAMPERED.items())
def test_a_night_that_reads_the_account_whole_finds_it(
    monkeypatch: pytest.MonkeyPatch, tamper: Callable[[], None], problem: str
) -> None:
    lives()
    assert prove().state == "green"
    tamper()
    monkeypatch.setattr(proofs, "_night_of", lambda account: 1)
    # Lots are another fence; here the chain itself is to show.
    monkeypatch.setattr(sys.modules[__name__], "RULES", verifying.Rules())
    proof = prove()
    assert (proof.state, proof.root, proof.problem) == ("red", None, problem)
    with pytest.raises(BookNotProven) as refused:
        proofs.require_green()
    assert refused.value.facts == {"number": 2}
    [alarm] = storage.database()["alarms"].find({})
    assert (alarm["kind"], alarm["facts"]["problem"]) == ("book_not_proven", problem)


@pytest.mark.parametrize(
    "tamper", [one for one in TAMPERED if one not in (edit_an_entry, take_out_the_middle, swap_two)]
)
def test_every_other_night_finds_what_touches_the_proved_entry(
    monkeypatch: pytest.MonkeyPatch, tamper: Callable[[], None]
) -> None:
    lives()
    prove()
    tamper()
    monkeypatch.setattr(proofs, "_night_of", lambda account: 7)
    assert prove().problem is not None


def test_a_rewritten_chain_fits_in_itself_and_only_the_proof_shows_it() -> None:
    lives()
    proof = prove()
    rewrite_the_last_alone()
    assert book.verify(checks=RULES.checks).problem is None
    with pytest.raises(Broken, match="res_bo seq 3: is not the entry that was proved"):
        verifying.whole_book(RULES, proofs.proved)
    # An account that moved on after the forgery shows as well.
    did(BO, "bike_km", 1, "2026-05-20 08:00")
    assert prove().state == "red"
    assert proofs.newest("green") == proof


def test_a_book_put_right_is_green_again_and_red_nights_stay_listed() -> None:
    lives()
    prove()
    documents = chain(BO)
    cut_the_tail()
    assert prove().state == "red"
    put_back(documents)
    assert prove().state == "green"
    proofs.require_green()
    assert [one.state for one in proofs.listed(before=None, limit=9)] == ["green", "red", "green"]


def forge_page() -> None:
    storage.database()["proof_pages"].update_one({}, {"$set": {"leaves.1.1": 2}})


def forge_index() -> None:
    storage.database()["proofs"].update_one({}, {"$set": {"pages.0.1": "ab" * 32}})


def forge_signature() -> None:
    [row] = storage.database()["proofs"].find({})
    storage.database()["proofs"].update_one({}, {"$set": {"jws": row["jws"][:-6] + "AAAAAA"}})


@pytest.mark.parametrize("forge", [forge_page, forge_index, forge_signature])
def test_a_forged_proof_proves_nothing(forge: Callable[[], None]) -> None:
    lives()
    prove()
    forge()
    proof = prove()
    assert proof.state == "red"
    assert "is not what was signed" in (proof.problem or "")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"lifetime_mg": 1}, "its lifetime grams do not follow"),
        ({"caps.months.2026-05.bike_km": 1}, "its cap counters do not follow"),
        ({"caps.days.2026-05-19.bike_km.0": 0}, "its cap counters do not follow"),
        ({"wallet.earned": 1}, "earned points are not all"),
    ],
    ids=str,
)
def test_states_are_recomputed_from_the_entries(change: dict[str, Any], problem: str) -> None:
    lives()
    fields = {f"after.{name}": value for name, value in change.items()}
    raw().update_one({"account": BO, "seq": 3}, {"$set": fields})
    put_back(rehashed(chain(BO)))
    assert problem in (prove().problem or "")


def test_lives_of_every_kind_hold() -> None:
    """Rides merged, refused, capped and taken back, late days, spending, points of other months."""
    for who in EVERYBODY:
        told = [
            did(who, "bus_km", 10, "2026-05-18 08:00", minutes=30),
            did(who, "bike_km", 5, "2026-05-18 08:10", minutes=20, evidence="B"),
            did(who, "bus_km", 10, "2026-05-18 08:00", minutes=30, source="other"),
            did(who, "walk_steps", 5_000, "2026-05-19 20:00"),
            did(who, "walk_steps", 7_000, "2026-05-19 21:00"),
            did(who, "car_stop_day", 1, "2026-05-19 09:00", vehicle=who),
            did(who, "recycle_kg", 2, "2026-04-30 23:00"),
            *(did(who, "online_transfer", 1, f"2026-05-20 0{hour}:00") for hour in range(5)),
        ]
        crediting.reverse(told[0], reason="x", by="operator")
        crediting.reverse(told[3], reason="x", by="operator")
    with at("2026-06-03 12:00"):
        for who in EVERYBODY:
            did(who, "bus_km", 10, "2026-06-02 08:00", minutes=30)
            spent(who, 100)
    with at("2028-07-10 12:00"):
        did(ANNA, "bus_km", 10, "2028-07-09 08:00", minutes=30)
        assert prove().problem is None


# Cut off.


@pytest.mark.parametrize(
    "death",
    [
        Death("accounting.proofs:_draft", "before", 2),
        Death("accounting.proofs:_draft", "after", 1),
        Death("accounting.proofs:_add", "before"),
        Death("accounting.proofs:_add", "after"),
    ],
    ids=str,
)
def test_a_proof_that_was_cut_off_is_finished_once(crew: Crew, death: Death) -> None:
    lives()
    prove()
    did(BO, "bike_km", 1, "2026-05-20 08:00")
    job = proofs.queue("op")
    assert crew.run("prove", die=death, job_id=job.id, stretch=2) == KILLED
    # Somebody comes in before what was read already, and one moves on.
    did("a_plant", "bike_km", 1, "2026-05-20 08:00")
    did(ANNA, "bike_km", 1, "2026-05-20 08:00")
    crew.ahead += 2 * jobs.LEASE
    assert crew.run("prove", job_id=job.id, stretch=2) == {"value": "done"}
    assert [one.state for one in proofs.listed(before=None, limit=9)] == ["green", "green"]
    assert prove().accounts == 4


def test_a_check_of_the_book_goes_on_where_it_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "STRETCH", 1)
    lives()
    told: list[int] = []

    def tell(entries: int) -> None:
        told.append(entries)
        if entries == 6 and len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verifying.whole_book(RULES, proofs.proved, tell)
    assert verifying.whole_book(RULES, proofs.proved, tell).entries == 9
    assert told == [0, 3, 6, 6, 9]
    assert verifying.place() is None
    # What lies before the place where it was stopped is not looked at again, unless anew.
    told.clear()
    with pytest.raises(KeyboardInterrupt):
        verifying.whole_book(RULES, proofs.proved, tell)
    raw().update_one({"account": ANNA, "seq": 1}, {"$set": {"kind": "gift"}})
    with pytest.raises(Broken, match="res_anna seq 1"):
        verifying.whole_book(RULES, proofs.proved, anew=True)


def test_large_accounts_are_read_alone_and_small_ones_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lives()
    did(BO, "bike_km", 1, "2026-05-20 08:00")
    monkeypatch.setattr(verifying, "TOGETHER_MAX", 3)
    found = verifying.check(EVERYBODY, RULES)
    assert found.entries == 10
    assert [leaf.seq for leaf in found.leaves] == [3, 4, 3]


def test_the_command_exits_1_with_the_first_broken_entry(config: Config, tmp_path: Any) -> None:
    lives()
    prove()

    def verify(*more: str) -> tuple[int, str]:
        ended = subprocess.run(
            [sys.executable, "-m", "api.cli", "book", "verify", "--data-dir", str(tmp_path), *more],
            env=os.environ
            | {
                "MONGODB_URI": config.mongodb_uri,
                "REDIS_URL": config.redis_url,
                "TANHUI_SECRET": b64encode(config.secret).decode(),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return ended.returncode, ended.stdout + ended.stderr

    assert verify() == (0, "The book holds: 9 entries of 3 accounts.\n")
    cut_the_tail()
    problem = "tanhui: the book does not hold: res_bo seq 3: was proved, and is gone\n"
    assert verify() == (1, problem)
    assert verify("--account", BO) == (1, problem)


# Over HTTP.


def test_before_the_first_proof_there_is_none(app: Flask, operator: Caller) -> None:
    assert operator.get("/v1/operator/book/proof").get_json() == {"state": "none"}
    assert app.test_client().get("/v1/proofs").get_json() == {"items": [], "next_cursor": None}
    assert resident(app).get("/v1/me/proof").status_code == 404
    proofs.require_green()


def test_an_operator_has_the_book_proved_and_sees_what_does_not_hold(operator: Caller) -> None:
    lives()
    made = operator.post("/v1/operator/jobs", {"kind": "proof"}).get_json()
    tasks.run_job(made["job_id"])
    job = operator.get(f"/v1/jobs/{made['job_id']}").get_json()
    assert (job["kind"], job["state"], job["done"]) == ("proof", "done", 3)
    seen = operator.get("/v1/operator/book/proof").get_json()
    assert (seen["state"], seen["number"], seen["entries"], seen["problem"]) == (
        "green",
        1,
        9,
        None,
    )
    cut_the_tail()
    tasks.run_job(operator.post("/v1/operator/jobs", {"kind": "proof"}).get_json()["job_id"])
    seen = operator.get("/v1/operator/book/proof").get_json()
    assert (seen["state"], seen["problem"]) == ("red", "res_bo seq 3: was proved, and is gone")
    # Nothing is paid by a book that is not proved.
    assert said(operator.post("/v1/operator/jobs", {"kind": "settle"})) == (409, "book_not_proven")
    with pytest.raises(BookNotProven):
        settlement.ask(None, None, "op")


def test_proofs_are_open_paged_and_say_nothing_of_anybody(app: Flask) -> None:
    lives()
    for _ in range(2):
        prove()
    cut_the_tail()
    prove()
    first = app.test_client().get("/v1/proofs?limit=2").get_json()
    assert [(row["number"], row["state"]) for row in first["items"]] == [(3, "red"), (2, "green")]
    assert first["items"][0]["root"] is None
    rest = app.test_client().get(f"/v1/proofs?limit=2&cursor={first['next_cursor']}").get_json()
    assert [row["number"] for row in rest["items"]] == [1]
    assert rest["next_cursor"] is None
    assert "res_" not in str(first) + str(rest)


def test_a_resident_follows_their_account_to_the_signed_root(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proofs, "STRETCH", 2)
    lives()
    me = resident(app)
    did(me.id, "bike_km", 4, "2026-05-19 08:00", minutes=20)
    prove()
    seen = me.get("/v1/me/proof").get_json()
    head = book.head(me.id)
    assert seen["leaf"] == {"account": me.id, "seq": 1, "hash": head.hash}
    # As anybody would work it out, without our code.
    reached = hashlib.sha256(b"\x00" + f"{me.id}\n1\n{head.hash}".encode()).digest()
    for step in seen["path"]:
        other = bytes.fromhex(step["hash"])
        pair = other + reached if step["side"] == "left" else reached + other
        reached = hashlib.sha256(b"\x01" + pair).digest()
    signed = jwt.decode(seen["proof"]["jws"], options={"verify_signature": False})
    assert reached.hex() == seen["proof"]["root"] == signed["root"]


def test_tonight_there_is_one_proof_however_often_it_is_asked_for() -> None:
    lives()
    for _ in range(2):
        tasks.prove_the_book()
        tasks.keep_summaries()
    kinds = sorted(row["kind"] for row in storage.database()["jobs"].find({}))
    assert kinds == ["projections", "proof"]
    with clock.travel(timedelta(days=1)):
        tasks.prove_the_book()
    assert storage.database()["jobs"].count_documents({"kind": "proof"}) == 2
    assert {"prove the book", "bring summaries to the heads and check their sums"} <= set(
        schedule.SCHEDULE
    )
