"""The clients: what they send, what was acknowledged, and what they gave up."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import requests

from accounting import clock
from api.demo.client import NO_ANSWER, Client

KEY = "Idempotency-Key"
ATTESTED = {"X-Firebase-AppCheck": "demo"}
RESIDENTS, STOCK, PRICE, FACE_FEN = 12, 20_000, 100, 100
RICH_DAYS, RICH_KG = 6, 20
ENOUGH = 409
"""A refusal that is an answer: too poor, used already, cancelled already."""
RENEW_S = 600.0
# One in so many is sent once and never again.
GIVE_UP_ONE_IN = 10
ONCE_S = 20.0
DAYS_BACK_MAX = 25


@dataclass
class Ledger:
    """What the stack said it did. Shared by all clients."""

    activities: dict[str, str] = field(default_factory=dict)
    """Activity id by the event id it was reported with."""
    redemptions: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Resident and quantity by redemption id."""
    cancelled: set[str] = field(default_factory=set)
    scanned: set[str] = field(default_factory=set)
    """Vouchers that were taken."""
    given_up: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Answers that contradict an earlier one."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def acknowledge(self, event_id: str, activity_id: str) -> None:
        with self.lock:
            before = self.activities.setdefault(event_id, activity_id)
        if before != activity_id:
            self.wrong.append(f"{event_id} was {before} and then {activity_id}")


@dataclass
class Voucher:
    id: str
    code: str
    redemption_id: str


class Session:
    """A caller whose token is renewed before it ends."""

    def __init__(self, sign_in: Callable[[], Mapping[str, str]]) -> None:
        self._sign_in = sign_in
        self._headers: Mapping[str, str] = {}
        self._since_s = -RENEW_S

    def headers(self) -> Mapping[str, str]:
        if time.monotonic() - self._since_s >= RENEW_S:
            self._headers = self._sign_in()
            self._since_s = time.monotonic()
        return self._headers


class Load:
    """Twelve residents, a partner and a till on one stack, until they are told to stop."""

    def __init__(self, base_url: str, credentials: Mapping[str, Any], seed: int, run: str) -> None:
        self.client = Client(base_url)
        self.ledger = Ledger()
        self.residents = [one["resident_id"] for one in credentials["residents"][:RESIDENTS]]
        self.reward_id = ""
        self._credentials = credentials
        self._seed = seed
        self._run = run
        self._stop = threading.Event()
        self._lives = [Life(self, number) for number in range(RESIDENTS)]

    def prepare(self) -> None:
        """A reward with stock, everybody signed in, cards that are linked, and points to spend."""
        operator = self.client.bearer(self._credentials["operator"])
        reward = {
            "title": {"zh": "折磨测试券", "en": "Torture voucher"},
            "merchant_id": self._credentials["merchant"]["merchant_id"],
            "price_points": PRICE,
            "face_value_fen": FACE_FEN,
            "stock": STOCK,
            "voucher_valid_days": 30,
        }
        key = {KEY: f"torture-{self._run}"}
        made = self.client.post(
            "/v1/operator/rewards", reward, headers={**operator, **key}, expecting=201
        )
        self.reward_id = made["id"]
        with ThreadPoolExecutor(RESIDENTS) as pool:
            list(pool.map(Life.begin, self._lives))

    @contextmanager
    def running(self) -> Iterator[list["Future[None]"]]:
        """Everybody writes until the context ends; then each finishes what it has begun."""
        with ThreadPoolExecutor(RESIDENTS) as pool:
            try:
                yield [pool.submit(life.live) for life in self._lives]
            finally:
                self._stop.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def credentials(self, who: str) -> Mapping[str, str]:
        found: Mapping[str, str] = self._credentials[who]
        return found

    def phone(self, number: int) -> str:
        return str(self._credentials["residents"][number]["phone"])

    def rng(self, number: int) -> random.Random:
        return random.Random(f"{self._seed}/{number}")

    def name(self, number: int, count: int) -> str:
        """A key that no other run on the same data has."""
        return f"{self._run}-{number}-{count}"


class Life:
    """One resident, with the partner that reports for their card and a till for their vouchers."""

    def __init__(self, load: Load, number: int) -> None:
        self._load, self._client, self._ledger = load, load.client, load.ledger
        self._number, self._rng, self._count = number, load.rng(number), 0
        self._resident = load.residents[number]
        self._card = f"torture-{self._resident}"
        self._me = Session(self._sign_in)
        self._partner = Session(lambda: self._client.bearer(load.credentials("data_partner")))
        self._till = Session(lambda: self._client.bearer(load.credentials("merchant")))
        self._vouchers: list[Voucher] = []
        self._sent: list[dict[str, Any]] = []
        self._refresh: str | None = None

    def live(self) -> None:
        """Do one thing after the other, chosen by chance, until told to stop."""
        acts = (self._report, self._batch, self._feed, self._redeem, self._cancel, self._scan)
        while not self._load.stopped:
            self._rng.choices((*acts, self._again), (8, 2, 3, 5, 2, 4, 2))[0]()

    def begin(self) -> None:
        """Link a card, and have a partner report enough for it to go shopping."""
        link = {
            "partner_id": self._load.credentials("data_partner")["partner_id"],
            "external_id": self._card,
        }
        # 409 when an earlier run on the same data has linked it.
        self._call("/v1/me/links", link, self._me, expecting=(201, ENOUGH))
        rows = [
            self._row("recycle_kg", RICH_KG, timedelta(days=2 + ago)) for ago in range(RICH_DAYS)
        ]
        self._take(self._call("/v1/feeds/activities", {"activities": rows}, self._partner))

    # What they do.

    def _report(self) -> None:
        ride = self._ride()
        if self._rng.randrange(GIVE_UP_ONE_IN) == 0:
            self._once("/v1/activities", ride, {**self._me.headers(), **ATTESTED})
            return
        answer = self._call("/v1/activities", ride, self._me, ATTESTED, expecting=(200, 201))
        self._sent.append(ride)
        self._acknowledged("activity", answer.json())

    def _batch(self) -> None:
        rides = [self._ride() for _ in range(self._rng.randint(2, 8))]
        answer = self._call("/v1/activities/batch", {"activities": rides}, self._me, ATTESTED)
        self._take(answer)

    def _feed(self) -> None:
        rows = [
            self._row("bus_km", self._rng.randint(1, 9), self._some_time_ago())
            for _ in range(self._rng.randint(2, 20))
        ]
        self._take(self._call("/v1/feeds/activities", {"activities": rows}, self._partner))

    def _redeem(self) -> None:
        quantity = self._rng.randint(1, 3)
        key = {KEY: self._next()}
        wanted = {"reward_id": self._load.reward_id, "quantity": quantity}
        if self._rng.randrange(GIVE_UP_ONE_IN) == 0:
            self._once("/v1/redemptions", wanted, {**self._me.headers(), **key})
            return
        answer = self._call("/v1/redemptions", wanted, self._me, key, expecting=(201, ENOUGH))
        if answer.status_code == ENOUGH:
            return
        redemption = answer.json()
        self._ledger.redemptions[redemption["id"]] = (self._resident, quantity)
        self._ledger.answered["redemption"] += 1
        self._vouchers += [
            Voucher(one["id"], one["code"], redemption["id"]) for one in redemption["vouchers"]
        ]

    def _cancel(self) -> None:
        if not self._vouchers:
            return
        redemption_id = self._rng.choice(self._vouchers).redemption_id
        path = f"/v1/redemptions/{redemption_id}/cancel"
        answer = self._call(path, None, self._me, expecting=(200, ENOUGH))
        if answer.status_code == 200:
            self._ledger.cancelled.add(redemption_id)
            self._ledger.answered["cancellation"] += 1
            self._vouchers = [one for one in self._vouchers if one.redemption_id != redemption_id]

    def _scan(self) -> None:
        if not self._vouchers:
            return
        voucher = self._vouchers.pop(self._rng.randrange(len(self._vouchers)))
        scan = {
            "code": voucher.code,
            "store_id": self._load.credentials("merchant")["store_id"],
            "terminal_ref": self._next(),
        }
        path = "/v1/merchant/vouchers/redeem"
        answer = self._call(path, scan, self._till, expecting=(200, ENOUGH))
        if answer.status_code == 200:
            self._ledger.scanned.add(voucher.id)
            self._ledger.answered["scan"] += 1
        else:
            self._ledger.wrong.append(f"voucher {voucher.id} was refused: {answer.text}")

    def _again(self) -> None:
        """The same event once more: the same activity, and nothing new."""
        if not self._sent:
            return
        ride = self._rng.choice(self._sent)
        self._acknowledged("repeat", self._call("/v1/activities", ride, self._me, ATTESTED).json())

    # How.

    def _ride(self) -> dict[str, Any]:
        return {
            "behaviour": "bike_km",
            "quantity": self._rng.randint(1, 5),
            "occurred_at": (clock.now() - self._some_time_ago()).isoformat(),
            "source_event_id": self._next(),
            "evidence": {"kind": "sensor", "recorder": "gps"},
        }

    def _row(self, behaviour: str, quantity: int, ago: timedelta) -> dict[str, Any]:
        return {
            "external_id": self._card,
            "behaviour": behaviour,
            "quantity": quantity,
            "occurred_at": (clock.now() - ago).isoformat(),
            "source_event_id": self._next(),
        }

    def _some_time_ago(self) -> timedelta:
        return timedelta(minutes=self._rng.randint(10, DAYS_BACK_MAX * 24 * 60))

    def _next(self) -> str:
        self._count += 1
        return self._load.name(self._number, self._count)

    def _once(self, path: str, body: Any, headers: Mapping[str, str]) -> None:
        """Send, and never ask what became of it unless the answer comes."""
        try:
            answer = requests.post(
                self._client.base_url + path, json=body, headers=headers, timeout=ONCE_S
            )
            answered = answer.status_code in (200, 201)
        except NO_ANSWER:
            answered = False
        if not answered:
            self._ledger.given_up[path] += 1
        elif path == "/v1/activities":
            self._acknowledged("activity", answer.json())
        else:
            self._ledger.redemptions[answer.json()["id"]] = (self._resident, body["quantity"])
            self._ledger.answered["redemption"] += 1

    def _take(self, answer: requests.Response) -> None:
        for result in answer.json()["results"]:
            if result["status_code"] in (200, 201):
                self._acknowledged("row", result["activity"])
            else:
                self._ledger.wrong.append(f"a row was refused: {result}")

    def _acknowledged(self, what: str, activity: Mapping[str, Any]) -> None:
        self._ledger.acknowledge(f"{self._resident}/{activity['source_event_id']}", activity["id"])
        self._ledger.answered[what] += 1

    def _call(
        self,
        path: str,
        body: Any,
        who: Session,
        more: Mapping[str, str] | None = None,
        *,
        expecting: int | tuple[int, ...] = 200,
    ) -> requests.Response:
        headers = {**who.headers(), **(more or {})}
        return self._client.call("POST", path, json=body, headers=headers, expecting=expecting)

    def _sign_in(self) -> Mapping[str, str]:
        tokens = None
        if self._refresh is not None:
            answer = self._client.call(
                "POST",
                "/v1/auth/refresh",
                json={"refresh_token": self._refresh},
                expecting=(200, 401),
            )
            # A rotation whose answer a kill swallowed has ended the session: by code again.
            tokens = answer.json() if answer.status_code == 200 else None
        while tokens is None:
            # Five codes an hour end this; a code whose answer a kill swallowed is used up as well.
            phone = self._load.phone(self._number)
            code = self._client.post("/v1/auth/otp", {"phone": phone}, expecting=202)["debug_code"]
            answer = self._client.call(
                "POST", "/v1/auth/token", json={"phone": phone, "code": code}, expecting=(200, 401)
            )
            tokens = answer.json() if answer.status_code == 200 else None
        self._refresh = tokens["refresh_token"]
        return {"Authorization": f"Bearer {tokens['access_token']}"}
