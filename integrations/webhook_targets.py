"""Where a webhook may go: one POST to a public address, and to nothing inside.

The name is resolved once for each try, every address it has is checked, and the connection is made
to the address that was checked, so a name that answers otherwise a moment later gains nothing.
Redirects are not followed. A try has an end, however slowly the other side answers.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from accounting.errors import ValidationFailed

CONNECT_S = 5.0
ANSWER_S = 10.0
TRY_S = 15.0
ADDRESSES_MAX = 16
RETRY_AFTER_S_MAX = 24 * 3_600
# Ways to name an IPv4 address in IPv6: what is inside would not be seen.
_WRAPPED = tuple(
    IPv6Network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)

# As `socket.getaddrinfo`.
Resolver = Callable[..., Any]


class Refused(Exception):
    """The target may not be reached from here; the text says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart. `path` has the query."""

    host: str
    port: int
    path: str
    tls: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one try: a status, or an error without one."""

    status: int | None
    error: str | None = None
    retry_after_s: int | None = None
    took_ms: int = 0

    @property
    def ok(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def check(url: str, *, loopback: bool, resolve: Resolver = socket.getaddrinfo) -> None:
    """Raise `ValidationFailed` unless the URL may be a webhook's; see `target_of`, `addresses`."""
    try:
        addresses(target_of(url, loopback=loopback), loopback=loopback, resolve=resolve)
    except Refused as why:
        raise ValidationFailed(
            "/url", f"Not an address for a webhook: {why}.", f"该地址不能用作 Webhook：{why}。"
        ) from None


def target_of(url: str, *, loopback: bool) -> Target:
    """Take a URL apart; raises `Refused`. Plain HTTP only where loopback is allowed."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise Refused("it cannot be read") from None
    if parts.scheme not in ("https", "http"):
        raise Refused("it must begin with https://")
    if parts.username is not None or parts.password is not None:
        raise Refused("it must not name a user")
    if not url.isascii() or not url.isprintable() or " " in url or "#" in url or not host:
        raise Refused("it cannot be read")
    tls = parts.scheme == "https"
    if not tls and not loopback:
        raise Refused("it must begin with https://")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(host, (443 if tls else 80) if port is None else port, path, tls)


def addresses(target: Target, *, loopback: bool, resolve: Resolver) -> list[str]:
    """Every address of the target, all of them allowed; raises `Refused`."""
    try:
        found = resolve(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Refused("its name is not known") from None
    # Without the zone of a link-local address.
    known = list(dict.fromkeys(str(row[4][0]).partition("%")[0] for row in found))
    if not known or len(known) > ADDRESSES_MAX:
        raise Refused("its name is not known")
    for text in known:
        address = ip_address(text)
        if loopback and _plain(address).is_loopback:
            continue
        if not target.tls:
            raise Refused("it must begin with https://")
        if not is_public(address):
            raise Refused("it leads into a private network")
    return known


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is one of the open internet."""
    plain = _plain(address)
    if isinstance(plain, IPv6Address) and (
        plain.is_site_local or any(plain in network for network in _WRAPPED)
    ):
        return False
    return plain.is_global and not plain.is_multicast and not plain.is_reserved


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    loopback: bool,
    resolve: Resolver = socket.getaddrinfo,
) -> Answer:
    """One try; never raises. The body of the answer is not read."""
    began_s = time.monotonic()

    def answer(status: int | None, error: str | None = None, retry_after: str = "") -> Answer:
        took_ms = int((time.monotonic() - began_s) * 1_000)
        return Answer(status, error, _seconds(retry_after), took_ms)

    try:
        target = target_of(url, loopback=loopback)
        known = addresses(target, loopback=loopback, resolve=resolve)
    except Refused as why:
        return answer(None, f"refused: {why}")
    connection = _connection(target, known[0])
    late = threading.Event()
    # Each read may take its time, and so a slow answer for ever: the whole try has an end too.
    end = threading.Timer(TRY_S, _cut, (connection, late))
    end.daemon = True
    end.start()
    try:
        connection.request(
            "POST", target.path, body, {**headers, "Host": _host_of(target)}, preload_content=False
        )
        connection.sock.settimeout(ANSWER_S)
        response = connection.getresponse()
        error = None if 200 <= response.status < 300 else f"answered {response.status}"
        return answer(response.status, error, response.headers.get("Retry-After", ""))
    except (HTTPError, HTTPException, OSError, ValueError) as problem:
        return answer(None, "timed out" if late.is_set() else _said(problem))
    finally:
        end.cancel()
        connection.close()


def _connection(target: Target, address: str) -> HTTPConnection:
    """To the very address that was checked; the certificate must be that of the name."""
    if not target.tls:
        return HTTPConnection(address, target.port, timeout=CONNECT_S)
    return HTTPSConnection(
        address,
        target.port,
        timeout=CONNECT_S,
        ssl_context=ssl.create_default_context(),
        server_hostname=target.host,
    )


def _cut(connection: HTTPConnection, late: threading.Event) -> None:
    late.set()
    open_ = connection.sock
    if open_ is not None:
        with contextlib.suppress(OSError):
            open_.shutdown(socket.SHUT_RDWR)


def _host_of(target: Target) -> str:
    host = f"[{target.host}]" if ":" in target.host else target.host
    return host if target.port == (443 if target.tls else 80) else f"{host}:{target.port}"


def _said(problem: Exception) -> str:
    """A word for the log of the webhook's owner, without our addresses."""
    if isinstance(problem, TimeoutError) or "timed out" in str(problem):
        return "timed out"
    if isinstance(problem, ssl.SSLError) or "CERTIFICATE" in str(problem):
        return "its certificate is not accepted"
    if isinstance(problem, ConnectionRefusedError) or "refused" in str(problem):
        return "connection refused"
    return f"failed: {type(problem).__name__}"


def _seconds(retry_after: str) -> int | None:
    """`Retry-After` in seconds, from seconds or a date; None without one that can be read."""
    if retry_after.isdecimal() and len(retry_after) < 10:
        return min(int(retry_after), RETRY_AFTER_S_MAX)
    try:
        wait = parsedate_to_datetime(retry_after) - datetime.now(UTC)
    except (ValueError, TypeError):
        return None
    return min(max(int(wait.total_seconds()), 0), RETRY_AFTER_S_MAX)
