"""Logs as JSON lines, each with the id of the request it belongs to.

A line of a request names the endpoint, never the query or the body: both hold personal data.
"""

import logging
import sys
import time
import uuid

from flask import Flask, Response, g, has_request_context, request
from pythonjsonlogger.json import JsonFormatter

HEADER = "X-Request-ID"
REQUEST_ID_CHARS_MAX = 128
QUIET_ENDPOINTS = frozenset({"system.healthz", "system.readyz", "system.metrics"})

logger = logging.getLogger("tanhui.request")


class RequestContext(logging.Filter):
    """Adds the request id to every record made while answering a request."""

    def filter(self, record: logging.LogRecord) -> bool:
        if has_request_context() and "request_id" in g:
            record.request_id = g.request_id
        return True


class JsonLines(logging.StreamHandler):  # type: ignore[type-arg]
    """Our one handler; its class tells whether logging was set up before."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.addFilter(RequestContext())
        self.setFormatter(
            JsonFormatter(
                "%(levelname)s %(name)s %(message)s",
                rename_fields={"levelname": "level", "name": "logger"},
                timestamp="at",
                json_ensure_ascii=False,
            )
        )


def configure(level: str) -> None:
    """Send the logs of this process to stderr as JSON; once, however often it is called."""
    root = logging.getLogger()
    root.setLevel(level)
    if not any(isinstance(handler, JsonLines) for handler in root.handlers):
        root.addHandler(JsonLines())


def begin() -> None:
    """Before everything else: the request id that was sent, if it is sane, else a new one."""
    sent = request.headers.get(HEADER, "")
    sane = 1 <= len(sent) <= REQUEST_ID_CHARS_MAX and sent.isascii() and sent.isprintable()
    g.request_id = sent if sane else uuid.uuid4().hex
    g.began_at_s = time.perf_counter()


def end(response: Response) -> Response:
    """After everything else: echo the id, and one line for the request."""
    response.headers[HEADER] = g.request_id
    if request.endpoint not in QUIET_ENDPOINTS:
        sender = g.get("caller")
        logger.info(
            "%s %s %s",
            request.method,
            request.url_rule or "(no such address)",
            response.status_code,
            extra={
                "method": request.method,
                "endpoint": request.endpoint,
                "status": response.status_code,
                "duration_ms": round((time.perf_counter() - g.began_at_s) * 1000, 1),
                "caller": sender.key if sender else None,
            },
        )
    return response


def register(app: Flask) -> None:
    """Register first: what runs before this has no request id."""
    app.before_request(begin)
    app.after_request(end)
