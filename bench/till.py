"""How long a till waits: look-up and scan of a voucher, next to bare views that write the same.

    python -m bench.till [--scans 200]

The bare views find the voucher by its code and write what a scan writes (the voucher, an entry, a
move, the voucher again) with the same concerns, and check nothing. Both go through Flask in this
process, in turns, without a network between.
"""

import argparse
import itertools
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

from flask import Flask, jsonify, request

from accounting import book, clients, clock, storage, tokens
from accounting.book import Ask, Decision, Head
from accounting.clients import Kind
from api.app import create_app
from api.config import Config
from bench.side_by_side import fresh_store, in_turns, out, table
from integrations.servers import redis_server
from points.wallet import Wallet
from rewards import catalogue, merchants, redemptions, vouchers
from rewards.redemptions import QUANTITY_MAX

SECRET = bytes(range(32))
BUYER_POINTS = 1_000_000


def bought(merchant_id: str, count: int) -> list[str]:
    """The codes of vouchers, each resident's twenty."""
    reward = catalogue.add_reward(
        merchant_id=merchant_id,
        title={"zh": "券", "en": "Ticket"},
        description={},
        price_points=1,
        face_value_fen=100,
        stock=count + QUANTITY_MAX,
        voucher_valid_days=30,
        funder="city",
    )

    def decide(head: Head, now: Any) -> Decision:
        wallet = Wallet.load(head.after)
        wallet.earn(BUYER_POINTS, "city", over=now, maturity=timedelta(0))
        wallet.advance(now)
        return Decision(tuple(wallet.lines), {"wallet": wallet.dump()})

    codes: list[str] = []
    while len(codes) < count:
        resident = f"res_{len(codes)}"
        book.post(Ask(resident, "earn", "earn", "f", clock.now()), decide)
        done = redemptions.redeem(resident, "k", reward.id, QUANTITY_MAX)
        codes += [vouchers.code_of(one.id) for one in vouchers.of_redemption(done.id)]
    return codes[:count]


def bare(app: Flask) -> None:
    """Views that read and write what a look-up and a scan do, and nothing else."""
    base = storage.database()
    names = ("vouchers", "entries", "till_moves")
    held, entries, moves = (storage.strong(base[f"bare_{name}"]) for name in names)
    for name in names:
        copy = base[f"bare_{name}"]
        copy.insert_many(base[name].find()) if base[name].find_one() else None
        for index in base[name].index_information().values():
            kept = ("unique", "sparse", "partialFilterExpression")
            copy.create_index(index["key"], **{one: index[one] for one in kept if one in index})
    numbers = itertools.count(1)

    @app.post("/bare/lookup")
    def lookup() -> Any:
        found = held.find_one({"code_hash": vouchers._code_hash(request.json["code"])})
        return jsonify(voucher_id=found["_id"])

    @app.post("/bare/redeem")
    def redeem() -> Any:
        found = held.find_one({"code_hash": vouchers._code_hash(request.json["code"])})
        number, now = next(numbers), clock.now()
        scan = {"store_id": "s", "terminal_ref": str(number), "used_at": now, "refunded_at": None}
        held.update_one(
            {"_id": found["_id"]},
            {"$set": {"status": "used", "unbooked_since": now}, "$push": {"scans": scan}},
        )
        last = entries.find_one({"account": found["resident"]}, sort=[("seq", -1)])
        entries.insert_one(last | {"_id": f"bare/{number}", "seq": last["seq"] + 1})
        moves.insert_one({"_id": str(number), "merchant_id": found["merchant_id"], "fen": 100})
        held.update_one({"_id": found["_id"]}, {"$unset": {"unbooked_since": ""}})
        return jsonify(voucher_id=found["_id"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=200)
    scans = parser.parse_args().scans
    with TemporaryDirectory(prefix="bench-") as name, fresh_store() as uri:
        folder = Path(name)
        (folder / "log").mkdir()
        with redis_server(folder) as queue:
            config = Config(
                mongodb_uri=uri, redis_url=queue.url, secret=SECRET,
                public_url="http://localhost", data_dir=folder, log_level="ERROR",
            )  # fmt: skip
            storage.disconnect()
            measure(create_app(config), scans)


def measure(app: Flask, scans: int) -> None:
    merchant = merchants.add({"zh": "店", "en": "Shop"}, [{"name": "1", "address": "1"}])
    codes = bought(merchant.id, scans)
    bare(app)
    client, _ = clients.create_client(Kind.MERCHANT, "till", subject_id=merchant.id)
    token, _ = tokens.issue_client_token(client, frozenset(client.scopes))
    http, headers = app.test_client(), {"Authorization": f"Bearer {token}"}
    store_id = merchant.stores[0].store_id

    def post(path: str, body: dict[str, Any]) -> Callable[[], object]:
        def send() -> None:
            answer = http.post(path, json=body, headers=headers)
            assert answer.status_code == 200, answer.text

        return send

    def scan(place: int, code: str) -> dict[str, Any]:
        return {"code": code, "store_id": store_id, "terminal_ref": f"t{place}"}

    ours = "/v1/merchant/vouchers"
    took = in_turns(
        [post(f"{ours}/lookup", {"code": code}) for code in codes],
        [post("/bare/lookup", {"code": code}) for code in codes],
        [post(f"{ours}/redeem", scan(place, code)) for place, code in enumerate(codes)],
        [post("/bare/redeem", {"code": code}) for code in codes],
    )
    shown = table(f"a till waits, ms, {scans} vouchers", "what", "p50", "p99", "bare p50", "ratio")
    for what, ms, least in (("look-up", took[0], took[1]), ("scan", took[2], took[3])):
        cuts, bare_cuts = quantiles(ms, n=100), quantiles(least, n=100)
        shown.add_row(
            what,
            f"{cuts[49] * 1_000:.1f}",
            f"{cuts[98] * 1_000:.1f}",
            f"{bare_cuts[49] * 1_000:.1f}",
            f"{cuts[49] / bare_cuts[49]:.2f}",
        )
    out.print(shown)


if __name__ == "__main__":
    main()
