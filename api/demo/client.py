"""Calls to the stack as an app, a partner or a bank makes them: bounded retries, same keys.

Every call of the demo is safe to repeat, so a lost connection or a busy answer is simply sent
again. That is what lets it play on while a process of the stack is killed and started again.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import requests

RETRY_FOR_S = 150.0
ATTEMPTS_MAX = 200
CONNECT_S, ANSWER_S = 5.0, 90.0
PAUSE_S = 0.5
BUSY = ("account_busy", "request_in_progress")
NO_ANSWER = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)

Json = Any


class StepFailed(Exception):
    """Something came out otherwise than the input says. The message names what and both sides."""

    def __init__(self, what: str, expected: object, got: object) -> None:
        super().__init__(f"{what}: expected {expected}, got {got}")


def expect(what: str, expected: object, got: object) -> None:
    """Raise `StepFailed` unless both are equal."""
    if expected != got:
        raise StepFailed(what, expected, got)


class Client:
    """HTTP calls to one stack, from several threads. `sent_again` counts the retries."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url.rstrip("/")
        self.sent_again = 0
        self._local = threading.local()
        self._lock = threading.Lock()

    def call(
        self,
        method: str,
        path: str,
        *,
        expecting: int | tuple[int, ...] = 200,
        sign: Callable[[], Mapping[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
        **body: Any,
    ) -> requests.Response:
        """Send until there is an answer; raises `StepFailed` if it has another status.

        `sign` gives headers that must be fresh on each try. `body` is what requests takes: json,
        data, auth, params.
        """
        wanted = (expecting,) if isinstance(expecting, int) else expecting
        what = f"{method} {path}"
        deadline = time.monotonic() + RETRY_FOR_S
        failure: object = "no answer"
        for _ in range(ATTEMPTS_MAX):
            pause_s = PAUSE_S
            try:
                fresh = {**(headers or {}), **(sign() if sign else {})}
                response = self._session().request(
                    method,
                    path if path.startswith("http") else self.base_url + path,
                    headers=fresh,
                    timeout=(CONNECT_S, ANSWER_S),
                    **body,
                )
            except NO_ANSWER as error:
                failure = f"no answer ({type(error).__name__})"
            else:
                # Busy is no answer, also where the same status would be one.
                passes = _passes(response)
                if response.status_code in wanted and not passes:
                    return response
                failure = _told(response)
                if not passes:
                    break
                pause_s = max(float(response.headers.get("Retry-After", 0)), PAUSE_S)
            if time.monotonic() + pause_s > deadline:
                break
            with self._lock:
                self.sent_again += 1
            time.sleep(pause_s)
        raise StepFailed(what, " or ".join(map(str, wanted)), failure)

    def get(self, path: str, **rest: Any) -> Json:
        return self.call("GET", path, **rest).json()

    def post(self, path: str, json: Json, **rest: Any) -> Json:
        return self.call("POST", path, json=json, **rest).json()

    def pages(self, path: str, headers: Mapping[str, str], pages_max: int = 1_000) -> list[Json]:
        """All items of a list."""
        found: list[Json] = []
        cursor: str | None = None
        for _ in range(pages_max):
            params = {"limit": 100, **({"cursor": cursor} if cursor else {})}
            page = self.get(path, headers=headers, params=params)
            found += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return found
        raise StepFailed(f"GET {path}", f"an end within {pages_max} pages", "yet another cursor")

    def bearer(self, credentials: Mapping[str, str]) -> dict[str, str]:
        """The header of a machine client."""
        answer = self.call(
            "POST",
            "/v1/oauth/token",
            data={"grant_type": "client_credentials"},
            auth=(credentials["client_id"], credentials["client_secret"]),
        )
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}

    def _session(self) -> requests.Session:
        # A session may not be shared by threads.
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            # A proxy of the environment does not lead to our loopback.
            self._local.session.trust_env = False
            self._local.session.headers["Accept-Language"] = "en"
        session: requests.Session = self._local.session
        return session


def _passes(response: requests.Response) -> bool:
    """Whether the same call may do better a little later."""
    if response.status_code in (429, 502, 503, 504):
        return True
    return response.status_code == 409 and _code(response) in BUSY


def _code(response: requests.Response) -> str:
    try:
        return str(response.json().get("code", ""))
    except (ValueError, AttributeError):
        return ""


def _told(response: requests.Response) -> str:
    text = " ".join(response.text.split())
    return f"{response.status_code} {_code(response)} {text[:300]}".strip()
