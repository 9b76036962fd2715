"""Gunicorn's own configuration, read before it forks: the rest is on its command line.

Importing the application once here, without building it, spares every worker the seconds it takes;
what opens connections happens in each worker, in `api.wsgi`.
"""

import json
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from flask import g
from gunicorn.http.errors import InvalidResponseHeader, InvalidResponseHeaderName, ParseException
from gunicorn.util import write_nonblock
from gunicorn.workers.gthread import ThreadWorker

import api.app  # noqa: F401
from api import garbage, problems
from api.metrics import MULTIPROCESS_DIR
from api.processes import SERVING

# The longest gunicorn allows: what is longer than a parameter may be is then refused by its field.
limit_request_line = 8190
_OURS = (InvalidResponseHeader, InvalidResponseHeaderName)
_ANSWER = """HTTP/1.1 400 Bad Request\r
Connection: close\r
Content-Type: {kind}\r
Content-Length: {size}\r
\r
"""


def post_worker_init(worker: Any) -> None:
    """Looking for garbage in what a process was started with takes time."""
    garbage.settle()
    if folder := os.environ.get(MULTIPROCESS_DIR):
        Path(folder, f"{SERVING}{worker.ppid}").touch()


class Worker(ThreadWorker):  # type: ignore[misc]
    """Answers what is not HTTP, and never reaches the application, like any other refusal."""

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        if not isinstance(exc, ParseException) or isinstance(exc, _OURS):
            super().handle_error(req, client, addr, exc)
            return
        self.log.warning("Invalid request from ip=%s: %s", addr[0] if addr else "", exc)
        refusal = problems.MalformedRequest(
            "The request line or a header cannot be read, or is too long.",
            "请求行或请求头无法解析，或超过长度限制。",
        )
        with self.wsgi.app_context():
            g.request_id = uuid.uuid4().hex
            body = json.dumps(problems.describe(refusal, "zh"), ensure_ascii=False).encode()
        head = _ANSWER.format(kind=problems.CONTENT_TYPE, size=len(body)).encode()
        with suppress(OSError):
            write_nonblock(client, head + body)
