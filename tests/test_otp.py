"""One-time passwords against a real Redis, also when many guess at once and when it is away."""

import contextlib
import http.server
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from accounting import vault
from accounting.errors import DomainError, RateLimited, Unavailable
from integrations import otp
from integrations.otp import InvalidCode, OtpLimits
from integrations.servers import redis_server
from integrations.sms import HttpTexter, LogTexter

PHONE, OTHER_PHONE, ADDRESS = "+8613800138000", "+8613900139000", "192.0.2.7"
MANY = OtpLimits(per_phone=("1000 per minute",), per_address="1000 per minute")


class Outbox:
    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def send(self, phone: str, text: str) -> None:
        self.texts.append((phone, text))


@contextlib.contextmanager
def redis_in(folder: Path) -> Iterator[str]:
    (folder / "log").mkdir(exist_ok=True)
    with redis_server(folder) as server:
        yield server.url


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_in(tmp_path_factory.mktemp("otp")) as url:
        yield url


@pytest.fixture(params=[False, True], ids=["bytes", "text"])
def redis(server: str, request: pytest.FixtureRequest) -> Iterator[Redis]:
    with contextlib.closing(Redis.from_url(server, decode_responses=request.param)) as client:
        client.flushall()
        yield client


@pytest.fixture(autouse=True)
def secret() -> None:
    vault.configure(bytes(range(32)))


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


def ask(redis: Redis, phone: str = PHONE, limits: OtpLimits = MANY) -> str:
    return otp.request(redis, Outbox(), phone, ADDRESS, limits=limits).code


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06d}"


def test_a_code_is_texted_and_signs_in_once(redis: Redis, outbox: Outbox) -> None:
    issued = otp.request(redis, outbox, PHONE, ADDRESS, limits=OtpLimits())
    assert len(issued.code) == 6
    assert issued.code.isdigit()
    assert issued.expires_in == 300
    assert outbox.texts == [
        (PHONE, f"【碳惠】验证码 {issued.code}，5 分钟内有效。请勿告诉他人。"),
    ]
    otp.check(redis, PHONE, issued.code)
    with pytest.raises(InvalidCode):
        otp.check(redis, PHONE, issued.code)


def test_the_text_speaks_english_on_request(redis: Redis, outbox: Outbox) -> None:
    otp.request(redis, outbox, PHONE, ADDRESS, limits=MANY, language="en")
    assert "Your code is" in outbox.texts[0][1]


def test_a_code_lives_five_minutes_and_is_gone_with_its_tries(redis: Redis) -> None:
    code = ask(redis)
    [key] = redis.keys("otp:*")
    assert 295 < redis.ttl(key) <= 300
    otp_check_refused(redis, wrong(code))
    assert 295 < redis.ttl(key) <= 300, "a try must not make the code live longer"
    redis.delete(key)  # What Redis does after five minutes.
    otp_check_refused(redis, code)


def otp_check_refused(redis: Redis, code: str) -> None:
    with pytest.raises(InvalidCode) as caught:
        otp.check(redis, PHONE, code)
    assert caught.value.code == "invalid_code"


@pytest.mark.parametrize("code", ["", "000", "12345６", "x" * 10_000, "\x00", "1 OR 1=1"])
def test_anything_but_the_code_is_a_wrong_code(redis: Redis, code: str) -> None:
    ask(redis)
    otp_check_refused(redis, code)


def test_a_code_is_for_its_phone(redis: Redis) -> None:
    code = ask(redis)
    ask(redis, OTHER_PHONE)
    with pytest.raises(InvalidCode):
        otp.check(redis, OTHER_PHONE, code)


def test_nothing_in_redis_shows_a_phone_or_a_code(redis: Redis) -> None:
    code = ask(redis)
    kept = json.dumps([[str(key), str(redis.hgetall(key))] for key in redis.keys("otp:*")])
    assert code not in kept
    assert PHONE[3:] not in kept


def test_the_sixth_try_is_refused_even_when_it_is_right(redis: Redis) -> None:
    code = ask(redis)
    for _ in range(5):
        otp_check_refused(redis, wrong(code))
    with pytest.raises(RateLimited) as caught:
        otp.check(redis, PHONE, code)
    assert 0 < caught.value.facts["retry_after"] <= 300


def test_a_new_code_replaces_the_old_one_and_its_tries(redis: Redis) -> None:
    old = ask(redis)
    for _ in range(5):
        otp_check_refused(redis, wrong(old))
    new = ask(redis)
    if new != old:
        otp_check_refused(redis, old)
    otp.check(redis, PHONE, new)


def test_of_many_guesses_at_once_five_are_looked_at(redis: Redis) -> None:
    code = ask(redis)
    barrier = threading.Barrier(16)

    def guess(_: int) -> str:
        barrier.wait()
        try:
            otp.check(redis, PHONE, wrong(code))
        except DomainError as refused:
            return refused.code
        return "signed in"

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(guess, range(16)))
    assert sorted(answers) == ["invalid_code"] * 5 + ["rate_limited"] * 11


def test_of_four_right_answers_at_once_one_signs_in(redis: Redis) -> None:
    for _ in range(20):
        code = ask(redis)
        barrier = threading.Barrier(4)

        def sign_in(_: int, code: str = code, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                otp.check(redis, PHONE, code)
            except InvalidCode:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(sign_in, range(4))) == 1


def test_one_code_a_minute(redis: Redis, outbox: Outbox) -> None:
    otp.request(redis, outbox, PHONE, ADDRESS, limits=OtpLimits())
    with pytest.raises(RateLimited) as caught:
        otp.request(redis, outbox, PHONE, ADDRESS, limits=OtpLimits())
    assert 50 <= caught.value.facts["retry_after"] <= 60
    assert len(outbox.texts) == 1
    otp.request(redis, outbox, OTHER_PHONE, ADDRESS, limits=OtpLimits())


def test_five_codes_an_hour(redis: Redis) -> None:
    hourly = OtpLimits(per_phone=("5 per hour",))
    for _ in range(5):
        ask(redis, limits=hourly)
    with pytest.raises(RateLimited) as caught:
        ask(redis, limits=hourly)
    assert 3500 <= caught.value.facts["retry_after"] <= 3600


def test_an_address_has_a_limit_of_its_own(redis: Redis) -> None:
    few = OtpLimits(per_phone=MANY.per_phone, per_address="3 per hour")
    for number in range(3):
        ask(redis, f"+861370000000{number}", few)
    with pytest.raises(RateLimited):
        ask(redis, "+8613700000009", few)
    otp.request(redis, Outbox(), "+8613700000009", "192.0.2.8", limits=few)


def test_without_redis_nobody_signs_in_and_nothing_is_texted(
    tmp_path: Path, outbox: Outbox
) -> None:
    with redis_in(tmp_path) as url:
        redis = Redis.from_url(url, retry=None)
    with contextlib.closing(redis):
        with pytest.raises(Unavailable):
            otp.request(redis, outbox, PHONE, ADDRESS, limits=OtpLimits())
        with pytest.raises(Unavailable):
            otp.check(redis, PHONE, "123456")
    assert outbox.texts == []


# --- Texters --------------------------------------------------------------------------------------


class Gateway(http.server.BaseHTTPRequestHandler):
    status = 200
    taken: list[Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.taken.append(json.loads(body))
        self.send_response(self.status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[tuple[str, type[Gateway]]]:
    class Fresh(Gateway):
        taken: list[Any] = []

    with http.server.HTTPServer(("127.0.0.1", 0), Fresh) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/sms", Fresh
        server.shutdown()
        thread.join()


def test_the_gateway_gets_phone_and_text(gateway: tuple[str, type[Gateway]]) -> None:
    url, handler = gateway
    HttpTexter(url).send(PHONE, "你好")
    assert handler.taken == [{"phone": PHONE, "text": "你好"}]


@pytest.mark.parametrize("status", [302, 400, 500, 503])
def test_a_gateway_that_refuses_is_asked_once(
    gateway: tuple[str, type[Gateway]], status: int
) -> None:
    url, handler = gateway
    handler.status = status
    with pytest.raises(Unavailable):
        HttpTexter(url).send(PHONE, "你好")
    assert len(handler.taken) == 1


def test_a_gateway_that_is_away_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        HttpTexter("http://127.0.0.1:9/sms").send(PHONE, "你好")


def test_without_a_provider_the_text_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        LogTexter().send(PHONE, "code 123456")
    assert "code 123456" in caplog.text
    assert PHONE not in caplog.text
