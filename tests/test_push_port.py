"""The real Firebase client against the stand-in, over a real socket."""

import base64
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import firebase_admin
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from accounting import clock
from accounting.errors import Unauthenticated
from integrations import firebase
from integrations.fcm_standin import Fault, FcmStandin
from integrations.firebase import FirebaseSettings
from integrations.push import (
    ByPlatform,
    FirebasePusher,
    MessageClass,
    Outcome,
    PushMessage,
    PushResult,
)
from integrations.push_file import FilePusher

DATA = {"notification_id": "ntf_1", "type": "milestone", "deep_link": "tanhui://milestones/1"}


@contextlib.contextmanager
def app_for(settings: FirebaseSettings) -> Iterator[firebase_admin.App]:
    app = firebase.client(settings)
    assert app is not None
    try:
        yield app
    finally:
        firebase_admin.delete_app(app)
        firebase.client.cache_clear()


@pytest.fixture
def standin() -> Iterator[FcmStandin]:
    with FcmStandin().running() as server:
        yield server


@pytest.fixture
def google(standin: FcmStandin) -> Iterator[firebase_admin.App]:
    with app_for(FirebaseSettings(fcm_url=standin.url)) as app:
        yield app


@pytest.fixture
def pusher(google: firebase_admin.App) -> FirebasePusher:
    return FirebasePusher(google)


def message(token: str = "device-1", **changes: Any) -> PushMessage:
    fields: dict[str, Any] = {"title": "里程碑", "body": "你已减排 10 kg", "data": DATA}
    return PushMessage(token, **{**fields, **changes})


def test_a_message_arrives_as_fcm_expects_it(pusher: FirebasePusher, standin: FcmStandin) -> None:
    [result] = pusher.send([message(collapse_key="grade")])
    assert result.outcome is Outcome.SENT
    assert result.message_id is not None
    assert result.message_id.startswith("projects/tanhui-demo/messages/")
    [received] = standin.received
    assert received.project == "tanhui-demo"
    assert received.message == {
        "token": "device-1",
        "notification": {"title": "里程碑", "body": "你已减排 10 kg"},
        "data": DATA,
        "android": {
            "collapse_key": "grade",
            "priority": "high",
            # A second one takes the place of the first on the phone.
            "notification": {"tag": DATA["notification_id"]},
        },
        "apns": {"headers": {"apns-priority": "10", "apns-collapse-id": "grade"}},
    }


def test_marketing_does_not_wake_the_phone(pusher: FirebasePusher, standin: FcmStandin) -> None:
    pusher.send([message(message_class=MessageClass.MARKETING)])
    assert standin.received[0].message["android"]["priority"] == "normal"
    assert standin.received[0].message["apns"] == {"headers": {"apns-priority": "5"}}


@pytest.mark.parametrize(
    ("token", "outcome", "retry_after_s"),
    [
        ("dead-1", Outcome.RETIRE, None),
        ("alien-1", Outcome.RETIRE, None),
        ("odd-1", Outcome.RETIRE, None),
        ("slow-1", Outcome.RETRY, 7),
        ("down-1", Outcome.RETRY, None),
    ],
)
def test_each_refusal_has_its_consequence(
    pusher: FirebasePusher, token: str, outcome: Outcome, retry_after_s: int | None
) -> None:
    [result] = pusher.send([message(token)])
    assert (result.outcome, result.retry_after_s) == (outcome, retry_after_s)
    assert result.reason


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Fault(500, "INTERNAL"), Outcome.RETRY),
        (Fault(502, "UNKNOWN"), Outcome.RETRY),
        (Fault(400, "INVALID_ARGUMENT", "Message too big."), Outcome.FAILED),
        (Fault(400, "INVALID_ARGUMENT", "Bad.", field="message.token"), Outcome.RETIRE),
        (Fault(400, "INVALID_ARGUMENT", "Bad.", field="message.data"), Outcome.FAILED),
        # No FCM error code: the project or the path is wrong, not the token.
        (Fault(404, "NOT_FOUND"), Outcome.FAILED),
        (Fault(403, "PERMISSION_DENIED"), Outcome.FAILED),
    ],
)
def test_our_own_mistakes_do_not_retire_devices(
    pusher: FirebasePusher, standin: FcmStandin, fault: Fault, outcome: Outcome
) -> None:
    standin.fail_next(fault)
    assert pusher.send([message()])[0].outcome is outcome


def test_a_chunk_without_an_access_token_is_tried_again(
    pusher: FirebasePusher, standin: FcmStandin
) -> None:
    standin.fail_next(Fault(401, "UNAUTHENTICATED"))  # Anonymous credentials cannot be renewed.
    results = pusher.send([message("device-1"), message("device-2")])
    assert [result.outcome for result in results] == [Outcome.RETRY] * 2


def test_every_message_gets_its_own_answer_in_order(
    pusher: FirebasePusher, standin: FcmStandin
) -> None:
    tokens = [("dead-", "slow-", "device-")[number % 3] + str(number) for number in range(500)]
    results = pusher.send([message(token) for token in tokens])
    expected = {"dead-": Outcome.RETIRE, "slow-": Outcome.RETRY, "device-": Outcome.SENT}
    assert [result.outcome for result in results] == [
        expected[token.rstrip("0123456789")] for token in tokens
    ]
    assert sorted(one.message["token"] for one in standin.received) == sorted(tokens)


def test_nothing_to_send_is_not_an_error(pusher: FirebasePusher, standin: FcmStandin) -> None:
    assert pusher.send([]) == []
    assert standin.received == []


@pytest.mark.parametrize("bad", [{"token": ""}, {"data": {"n": 1}}, {"title": 5}])
def test_an_unfit_message_does_not_hold_up_the_others(
    pusher: FirebasePusher, standin: FcmStandin, bad: dict[str, Any]
) -> None:
    results = pusher.send([message("device-1"), message(**bad), message("device-2")])
    outcomes = [result.outcome for result in results]
    assert outcomes == [Outcome.SENT, Outcome.FAILED, Outcome.SENT]
    assert len(standin.received) == 2


def test_the_library_neither_repeats_nor_sleeps(
    pusher: FirebasePusher, standin: FcmStandin, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    sleep = time.sleep

    def asleep(seconds: float) -> None:
        # Other threads of this process may sleep: MongoDB's client looks at its servers.
        who = str(sys._getframe(1).f_globals["__name__"]).partition(".")[0]
        if who in ("firebase_admin", "google", "requests", "urllib3", "integrations"):
            slept.append(seconds)
        else:
            sleep(seconds)

    monkeypatch.setattr(time, "sleep", asleep)
    standin.fail_next(Fault(503, "UNAVAILABLE", retry_after_s=5))
    standin.fail_next(Fault(429, "QUOTA_EXCEEDED", retry_after_s=6))
    results = [pusher.send([message()])[0] for _ in range(2)]
    assert [result.retry_after_s for result in results] == [5, 6]
    assert len(standin.received) == 2
    assert sum(slept) == 0


def test_a_provider_that_is_away_is_asked_for_one_chunk_only(
    pusher: FirebasePusher, standin: FcmStandin
) -> None:
    results = pusher.send([message(f"slow-{number}") for number in range(200)])
    assert len(standin.received) == 50
    assert results[-1] == PushResult(Outcome.RETRY, retry_after_s=7, reason="not tried")
    assert {result.outcome for result in results} == {Outcome.RETRY}
    assert len(results) == 200


def test_a_timeout_and_a_refused_connection_are_tried_again_later(
    google: firebase_admin.App, standin: FcmStandin
) -> None:
    google._services["_messaging"]._client._timeout = 0.2
    standin.fail_next(Fault(200, "NONE", wait_s=0.6))
    assert FirebasePusher(google).send([message()])[0].outcome is Outcome.RETRY

    with socket.socket() as taken:  # Bound, but nobody listens.
        taken.bind(("127.0.0.1", 0))
        with app_for(
            FirebaseSettings(fcm_url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        ) as away:
            assert FirebasePusher(away).send([message()])[0].outcome is Outcome.RETRY


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(
    pusher: FirebasePusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert pusher.send([message()])[0].outcome is Outcome.SENT


def test_the_stand_in_runs_in_a_process_of_its_own() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "integrations.fcm_standin", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            fault = {"status": 503, "error_code": "UNAVAILABLE", "retry_after_s": 2, "times": 1}
            requests.post(f"{url}/_faults", json=[fault], timeout=60).raise_for_status()
            with app_for(FirebaseSettings(fcm_url=url)) as app:
                results = [FirebasePusher(app).send([message()])[0] for _ in range(2)]
            assert [result.outcome for result in results] == [Outcome.RETRY, Outcome.SENT]
            received = requests.get(f"{url}/_received", timeout=60).json()
            assert [one["status"] for one in received] == [503, 200]
            assert received[1]["message"]["data"]["notification_id"] == "ntf_1"
        finally:
            process.terminate()


# --- Settings, ID tokens, App Check ---------------------------------------------------------------


def test_without_a_project_there_is_no_client() -> None:
    assert firebase.client(FirebaseSettings()) is None
    with pytest.raises(Unauthenticated):
        firebase.verify_id_token(None, "token")
    assert firebase.verify_app_check(None, "token") is False


def test_the_stand_in_must_be_on_loopback() -> None:
    with pytest.raises(ValueError, match="loopback"):
        firebase.client(FirebaseSettings(fcm_url="http://192.0.2.1:9199"))


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    private = rsa.generate_private_key(65537, 2048)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    path = tmp_path / "key.json"
    account = {
        "type": "service_account",
        "project_id": "city-project",
        "private_key_id": "1",
        "private_key": pem,
        "client_email": "tanhui@city-project.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    path.write_text(json.dumps(account))
    return str(path)


def test_with_real_credentials_messages_go_to_google_once(key_file: str) -> None:
    with app_for(FirebaseSettings(google_credentials=key_file)) as app:
        service = app._services["_messaging"]
        assert service._fcm_url == (
            "https://fcm.googleapis.com/v1/projects/city-project/messages:send"
        )
        adapter = service._client.session.get_adapter(service._fcm_url)
        assert adapter.max_retries.total == 0
        assert service._client.timeout == firebase.TIMEOUT_S


def test_the_emulator_and_real_credentials_do_not_go_together(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIREBASE_AUTH_EMULATOR_HOST", "127.0.0.1:9099")
    with pytest.raises(ValueError, match="unsigned"):
        firebase.client(FirebaseSettings(google_credentials=key_file))


def test_a_key_file_that_is_missing_is_named() -> None:
    with pytest.raises(OSError, match="no-such-file"):
        firebase.client(FirebaseSettings(google_credentials="/no-such-file.json"))


def unsigned(claims: dict[str, Any]) -> str:
    parts = [{"alg": "none", "typ": "JWT"}, claims]
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts]
    return b".".join([*coded, b""]).decode()


CLAIMS = {
    "iss": "https://securetoken.google.com/tanhui-demo",
    "aud": "tanhui-demo",
    "sub": "uid-1",
    "phone_number": "+8613800138000",
}


def test_an_emulator_token_gives_its_claims_in_tests(
    google: firebase_admin.App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIREBASE_AUTH_EMULATOR_HOST", "127.0.0.1:9099")
    claims = firebase.verify_id_token(google, unsigned(CLAIMS))
    assert (claims["uid"], claims["phone_number"]) == ("uid-1", "+8613800138000")
    for token in ["", "x", "a.b.c", "W10.W10.", "e30.e30.", unsigned({**CLAIMS, "aud": "other"})]:
        with pytest.raises(Unauthenticated):
            firebase.verify_id_token(google, token)


def test_without_the_emulator_the_stand_in_project_signs_nobody_in(
    google: firebase_admin.App,
) -> None:
    with pytest.raises(Unauthenticated):
        firebase.verify_id_token(google, unsigned(CLAIMS))
    assert firebase.verify_app_check(google, unsigned(CLAIMS)) is False


def test_a_real_project_refuses_unsigned_and_malformed_tokens(key_file: str) -> None:
    claims = {
        **CLAIMS,
        "iss": "https://securetoken.google.com/city-project",
        "aud": "city-project",
    }
    with app_for(FirebaseSettings(google_credentials=key_file)) as app:
        for token in ["", "x", "W10.W10.", unsigned(claims)]:
            with pytest.raises(Unauthenticated):
                firebase.verify_id_token(app, token)
        for token in ["", "x", "W10.W10.", "a.b.c"]:
            assert firebase.verify_app_check(app, token) is False


def test_a_dry_run_is_checked_and_delivers_nothing(
    google: firebase_admin.App, standin: FcmStandin
) -> None:
    results = FirebasePusher(google, dry_run=True).send([message("phone"), message("dead-1")])
    assert [(one.outcome, one.reason) for one in results] == [
        (Outcome.SENT, "dry run"),
        (Outcome.RETIRE, "Requested entity was not found."),
    ]
    assert [one.validate_only for one in standin.received] == [True, True]


def test_a_city_without_firebase_has_its_pushes_in_a_file(tmp_path: Path) -> None:
    pusher = FilePusher(tmp_path / "pushes")
    with clock.stand(datetime(2026, 5, 20, 16, 30, tzinfo=UTC)):  # Half past midnight in the city.
        sent = pusher.send([message("one"), message("two")])
        pusher.send([message("three", platform="harmony")])
    assert [one.outcome for one in sent] == [Outcome.SENT] * 2
    [file] = (tmp_path / "pushes").iterdir()
    assert file.name == "pushes-2026-05-21.ndjson"
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [(one["token"], one["platform"]) for one in lines] == [
        ("one", "android"),
        ("two", "android"),
        ("three", "harmony"),
    ]
    assert lines[0]["data"] == DATA
    assert lines[0]["title"] == "里程碑"


def test_eight_workers_do_not_mix_their_lines(tmp_path: Path) -> None:
    pusher = FilePusher(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        batches = [[message(f"{n}-{m}") for m in range(100)] for n in range(8)]
        list(pool.map(pusher.send, batches))
    [file] = tmp_path.iterdir()
    tokens = [json.loads(line)["token"] for line in file.read_text("utf-8").splitlines()]
    assert sorted(tokens) == sorted(f"{n}-{m}" for n in range(8) for m in range(100))


def test_a_folder_that_is_gone_is_tried_again(tmp_path: Path) -> None:
    pusher = FilePusher(tmp_path / "pushes")
    (tmp_path / "pushes").rmdir()
    [result] = pusher.send([message()])
    assert result.outcome is Outcome.RETRY


def test_each_platform_goes_to_its_own_provider_and_answers_keep_their_order(
    pusher: FirebasePusher, standin: FcmStandin, tmp_path: Path
) -> None:
    both = ByPlatform(pusher, {"harmony": FilePusher(tmp_path)})
    results = both.send(
        [message("dead-1"), message("h", platform="harmony"), message("i", platform="ios")]
    )
    assert [one.outcome for one in results] == [Outcome.RETIRE, Outcome.SENT, Outcome.SENT]
    assert sorted(one.message["token"] for one in standin.received) == ["dead-1", "i"]
    [file] = tmp_path.iterdir()
    assert json.loads(file.read_text("utf-8"))["token"] == "h"
