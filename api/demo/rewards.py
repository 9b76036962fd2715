"""Steps at the till: points become vouchers, a merchant scans them once."""

from typing import Any

from api.demo.city import City, Person
from api.demo.client import StepFailed, expect
from api.demo.inputs import Row

# Of those with enough points, how many redeem, and how many of these use their voucher.
REDEEM_MAX, USE_MAX = 12, 8
KEY = "Idempotency-Key"


def redeem(city: City) -> str:
    """Residents redeem the cheapest reward; the same key again is the same redemption."""
    rewards = city.client.get("/v1/rewards")["items"]
    reward = min(rewards, key=lambda one: one["price_points"])
    price = reward["price_points"]
    buyers = [city.people[who] for who in city.day.who("deep") + city.day.who("mid")][:REDEEM_MAX]
    done = city.each(lambda person: _redeem_once(city, person, reward["id"], price), buyers)
    city.tables["redemptions"] = dict(zip([person.who for person in buyers], done, strict=True))
    _check_same_key(city, buyers[0], rewards, reward["id"])
    poor = city.person("watcher")
    _check_poor(city, poor, reward["id"])
    _check_cancelled(city, buyers[-1], reward["id"], price)
    return f"{len(done)} x “{reward['title']}” for {price} points, one too poor, one given back"


def _redeem_once(city: City, person: Person, reward_id: str, price: int) -> Row:
    before = _points(city, person)
    answer = _ask(city, person, reward_id, "1")
    redemption: Row = answer.json()
    expect("price", price, redemption["points"])
    after = _points(city, person)
    again = _ask(city, person, reward_id, "1")
    expect("replayed redemption", "true", again.headers.get("Idempotency-Replayed"))
    expect("replayed redemption", redemption, again.json())
    replayed = answer.headers.get("Idempotency-Replayed") == "true"
    if not city.repeated and not replayed and not city.client.sent_again:
        spent = (before["available"] - after["available"], after["spent"] - before["spent"])
        expect(f"points of resident {person.who}", (price, price), spent)
    return redemption


def _ask(city: City, person: Person, reward_id: str, name: str) -> Any:
    return city.client.call(
        "POST",
        "/v1/redemptions",
        json={"reward_id": reward_id},
        headers={**person.headers, KEY: f"demo-redemption-{name}"},
        expecting=201,
    )


def _points(city: City, person: Person) -> Row:
    found: Row = city.client.get("/v1/me/points", headers=person.headers)
    return found


def _check_same_key(city: City, person: Person, rewards: list[Row], reward_id: str) -> None:
    other = next(one["id"] for one in rewards if one["id"] != reward_id)
    answer = city.client.post(
        "/v1/redemptions",
        {"reward_id": other},
        headers={**person.headers, KEY: "demo-redemption-1"},
        expecting=422,
    )
    expect("a used key for something else", "idempotency_key_reused", answer["code"])
    answer = city.client.post(
        "/v1/redemptions", {"reward_id": other}, headers=person.headers, expecting=422
    )
    expect("a redemption without a key", "validation_failed", answer["code"])


def _check_poor(city: City, person: Person, reward_id: str) -> None:
    answer = city.client.post(
        "/v1/redemptions",
        {"reward_id": reward_id},
        headers={**person.headers, KEY: "demo-redemption-poor"},
        expecting=409,
    )
    expect("too few points", "insufficient_points", answer["code"])


def _check_cancelled(city: City, person: Person, reward_id: str, price: int) -> None:
    """An unused voucher goes back, and the points with it."""
    before = _points(city, person)
    redemption = _ask(city, person, reward_id, "cancelled").json()
    path = f"/v1/redemptions/{redemption['id']}/cancel"
    answer = city.client.post(path, {}, headers=person.headers)
    expect("given back", "cancelled", answer["status"])
    expect("its voucher", ["cancelled"], [one["status"] for one in answer["vouchers"]])
    expect("points after giving back", before["available"], _points(city, person)["available"])
    expect("price given back", price, answer["points"])


def scan(city: City) -> str:
    """The merchant looks vouchers up and scans them: once each, whoever scans again."""
    till = city.client.bearer(city.credentials["merchant"])
    store = city.credentials["merchant"]["store_id"]
    used = 0
    for who, redemption in list(city.tables["redemptions"].items())[:USE_MAX]:
        person = city.people[who]
        path = f"/v1/redemptions/{redemption['id']}"
        # A fresh QR: the one in the first answer has died since.
        voucher = city.client.get(path, headers=person.headers)["vouchers"][0]
        in_hand = {"code": voucher["code"].lower()}
        found = city.client.post("/v1/merchant/vouchers/lookup", in_hand, headers=till)
        expect(
            "looked up", (voucher["id"], voucher["status"]), (found["voucher_id"], found["status"])
        )
        # A terminal reads the QR or, on every other voucher, somebody types the code.
        held = in_hand if who % 2 else {"qr_payload": voucher["qr_payload"]}
        ask = {**held, "store_id": store, "terminal_ref": f"till-1-{who}"}
        first = _scan(city, till, ask, 200)
        expect("scanned voucher", (voucher["id"], "used"), (first["voucher_id"], first["status"]))
        expect("the same scan again", first, _scan(city, till, ask, 200))
        second = _scan(city, till, {**ask, "terminal_ref": f"till-2-{who}"}, 409)
        expect("another till", "voucher_used", second["code"])
        used += 1
        city.tick(used, USE_MAX)
    if not used:
        raise StepFailed("vouchers", f"{USE_MAX} scanned", 0)
    forged = {"qr_payload": "tanhui:forged", "store_id": store, "terminal_ref": "till-3"}
    answer = _scan(city, till, forged, (404, 422))
    city.tables["vouchers_used"] = used
    return f"{used} vouchers used, each second scan refused; a forged QR is {answer['code']}"


def _scan(city: City, till: dict[str, str], ask: Row, expecting: int | tuple[int, ...]) -> Row:
    path = "/v1/merchant/vouchers/redeem"
    found: Row = city.client.post(path, ask, headers=till, expecting=expecting)
    return found
