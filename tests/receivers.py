"""A webhook receiver on a real socket: keeps what it gets, and answers as it is told."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Event = dict[str, Any]


@dataclass
class Receiver:
    """`got` is every request in the order of arrival; `answers` gives each its status."""

    url: str = ""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    taken: list[Event] = field(default_factory=list)
    answers: Callable[[Event], int] = lambda _: 204
    headers: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, headers: dict[str, str], body: bytes) -> int:
        event = json.loads(body)
        with self.lock:
            self.got.append((headers, body))
            status = self.answers(event)
            if status < 300:
                self.taken.append(event)
            return status

    def once(self) -> list[Event]:
        """What a receiver keeps that drops ids it has taken before, in order."""
        return list({event["id"]: event for event in reversed(self.taken)}.values())[::-1]


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    there = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = there.take({name.lower(): text for name, text in self.headers.items()}, body)
            self.send_response(status)
            for name, text in there.headers.items():
                self.send_header(name, text)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Keep the test output quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    there.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield there
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
