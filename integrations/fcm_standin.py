"""A stand-in for Firebase Cloud Messaging on loopback, for the demo and the tests.

It speaks the part of HTTP v1 that sending uses, with the error bodies of the real service, and
remembers what it was sent. Run it with `python -m integrations.fcm_standin --port 9199`:

* `POST /v1/projects/{project}/messages:send`: the answer depends on the start of the token, see
  `BY_TOKEN`; any other token is a living device.
* `GET /_received`: every message since the start, oldest first.
* `POST /_faults`: `[{"status": 503, "error_code": "UNAVAILABLE", "retry_after_s": 2, "times": 3}]`
  are answered to the next messages, whatever their token.
"""

import json
import random
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

import click

HOST = "127.0.0.1"
RECEIVED_MAX = 200_000
BODY_BYTES_MAX = 1_000_000
FAULT_TIMES_MAX = 10_000
SEND_PATH = re.compile(r"/v1/projects/([^/]+)/messages:send")
FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
NOT_FOUND = {"error": {"code": 404, "message": "Not found.", "status": "NOT_FOUND"}}
BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
STATUS_OF = {
    "INVALID_ARGUMENT": "INVALID_ARGUMENT",
    "UNREGISTERED": "NOT_FOUND",
    "SENDER_ID_MISMATCH": "PERMISSION_DENIED",
    "QUOTA_EXCEEDED": "RESOURCE_EXHAUSTED",
    "UNAVAILABLE": "UNAVAILABLE",
    "INTERNAL": "INTERNAL",
    "THIRD_PARTY_AUTH_ERROR": "UNAUTHENTICATED",
}


@dataclass(frozen=True)
class Fault:
    """One refusal. `wait_s` passes before the answer, to run into timeouts."""

    status: int
    error_code: str
    message: str = "The stand-in was told to refuse this."
    retry_after_s: int | None = None
    wait_s: float = 0
    field: str | None = None

    def body(self) -> dict[str, Any]:
        details: list[dict[str, Any]] = [{"@type": FCM_ERROR, "errorCode": self.error_code}]
        if self.field is not None:
            blame = {"field": self.field, "description": self.message}
            details.append({"@type": BAD_REQUEST, "fieldViolations": [blame]})
        error = {
            "code": self.status,
            "message": self.message,
            "status": STATUS_OF.get(self.error_code, self.error_code),
            "details": details,
        }
        return {"error": error}


BY_TOKEN = {
    "dead-": Fault(404, "UNREGISTERED", "Requested entity was not found."),
    "alien-": Fault(403, "SENDER_ID_MISMATCH", "SenderId mismatch"),
    "odd-": Fault(
        400,
        "INVALID_ARGUMENT",
        "The registration token is not a valid FCM registration token",
    ),
    "slow-": Fault(429, "QUOTA_EXCEEDED", "Quota exceeded.", retry_after_s=7),
    "down-": Fault(503, "UNAVAILABLE", "The service is currently unavailable."),
}


@dataclass(frozen=True)
class Received:
    at: str
    project: str
    status: int
    message: dict[str, Any]
    validate_only: bool = False


class FcmStandin(ThreadingHTTPServer):
    """The server; `running()` is the way to use it inside a process."""

    daemon_threads = True
    # A chunk of messages arrives on that many connections in the same instant.
    request_queue_size = 256

    def __init__(self, port: int = 0) -> None:
        super().__init__((HOST, port), _Handler)
        self.url = f"http://{HOST}:{self.server_address[1]}"
        self._received: deque[Received] = deque(maxlen=RECEIVED_MAX)
        self._faults: deque[Fault] = deque()
        # Faults that befall a share of what would go well, as the seed has it.
        self.mishaps: tuple[tuple[float, Fault], ...] = ()
        self.rng = random.Random(0)
        self._lock = threading.Lock()

    def server_bind(self) -> None:
        # HTTPServer would look the host name up, which can take seconds without a resolver.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that was killed in the middle is no fault of ours; anything else is said."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def received(self) -> list[Received]:
        with self._lock:
            return list(self._received)

    def fail_next(self, fault: Fault, times: int = 1) -> None:
        assert 0 < times <= FAULT_TIMES_MAX, times
        with self._lock:
            self._faults.extend([fault] * times)

    def judge(self, project: str, sent: Any) -> Fault | str:
        """Remember a message; return its name, or what is wrong."""
        message = sent.get("message") if isinstance(sent, dict) else None
        if not isinstance(message, dict):
            message = {}
        token = message.get("token")
        if not isinstance(token, str) or not token:
            field = "message.token"
            return Fault(
                400,
                "INVALID_ARGUMENT",
                "Recipient of the message is not set.",
                field=field,
            )
        with self._lock:
            scripted = self._faults.popleft() if self._faults else None
            prefix = next((start for start in BY_TOKEN if token.startswith(start)), None)
            fault = scripted or (BY_TOKEN[prefix] if prefix else self._mishap())
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            checked = bool(sent.get("validate_only"))
            status = fault.status if fault else 200
            self._received.append(Received(at, project, status, message, checked))
            return fault or f"projects/{project}/messages/{time.time_ns():x}-{len(self._received)}"

    def _mishap(self) -> Fault | None:
        drawn = self.rng.random()
        for share, fault in self.mishaps:
            if drawn < share:
                return fault
            drawn -= share
        return None

    @contextmanager
    def running(self) -> Iterator["FcmStandin"]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FcmStandin

    def do_GET(self) -> None:
        if self.path == "/_received":
            self._answer(200, [vars(one) for one in self.server.received])
        else:
            self._answer(404, NOT_FOUND)

    def do_POST(self) -> None:
        sent = self._read()
        path = SEND_PATH.fullmatch(self.path)
        if isinstance(sent, Fault):
            self._refuse(sent)
        elif self.path == "/_faults":
            for fault in sent:
                self.server.fail_next(times=fault.pop("times", 1), fault=Fault(**fault))
            self._answer(200, {})
        elif path is None:
            self._answer(404, NOT_FOUND)
        elif isinstance(verdict := self.server.judge(path[1], sent), Fault):
            self._refuse(verdict)
        else:
            self._answer(200, {"name": verdict})

    def _read(self) -> Any:
        """The JSON of the body, or the fault that answers what is not JSON."""
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= BODY_BYTES_MAX:
            self.close_connection = True
            return Fault(400, "INVALID_ARGUMENT", "A body of a sane length, please.")
        try:
            return json.loads(self.rfile.read(length))
        except ValueError:
            return Fault(400, "INVALID_ARGUMENT", "Invalid JSON payload received.")

    def _refuse(self, fault: Fault) -> None:
        time.sleep(fault.wait_s)
        self._answer(fault.status, fault.body(), fault.retry_after_s)

    def _answer(self, status: int, content: Any, retry_after_s: int | None = None) -> None:
        body = json.dumps(content, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(body)))
        if retry_after_s is not None:
            self.send_header("Retry-After", str(retry_after_s))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: what arrived is at `/_received`."""


@click.command()
@click.option("--port", default=9199, show_default=True)
def main(port: int) -> None:
    """Run the stand-in until it is stopped."""
    with FcmStandin(port) as server:
        click.echo(f"FCM stand-in on {server.url}")
        server.serve_forever()


if __name__ == "__main__":
    main()
