"""Who may call what. Every view declares its callers with `door`; a view that does not, stops the
start-up (`check_doors`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from ipaddress import ip_address
from typing import Any

from flask import Flask, current_app, g, request

from accounting import clients, clock, tokens
from accounting.errors import Forbidden, Unauthenticated
from api import limits
from api.config import Config
from api.openapi import View, annotate
from integrations import signatures

BODY_MAX = 2_000_000
READINGS_BODY_MAX = 4_000_000
PROXY_HEADERS = ("X-Forwarded-For", "Forwarded", "X-Real-IP")


class Kind(StrEnum):
    """A kind of caller. The values of machine clients are those of `accounting.clients.Kind`."""

    OPEN = "open"  # Everybody, signed in or not.
    INTERNAL = "internal"  # Loopback and the configured networks.
    RESIDENT = "resident"
    DATA = "data"
    MERCHANT = "merchant"
    BANK = "bank"
    PLANT = "plant"
    OPERATOR = "operator"


OPEN, INTERNAL, RESIDENT = Kind.OPEN, Kind.INTERNAL, Kind.RESIDENT
DATA, MERCHANT, BANK, PLANT, OPERATOR = (
    Kind.DATA,
    Kind.MERCHANT,
    Kind.BANK,
    Kind.PLANT,
    Kind.OPERATOR,
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent this request.

    `id` is the party: resident, partner, merchant, bank or plant id; an operator's client id.
    `client_id` is None for residents, `session_id` is None for machines.
    """

    kind: Kind
    id: str
    scopes: frozenset[str] = frozenset()
    session_id: str | None = None
    client_id: str | None = None

    @property
    def key(self) -> str:
        """The name under which this caller's keys and rate limits are kept apart from others'."""
        return f"{self.kind}:{self.client_id or self.id}"

    def client(self) -> clients.Client:
        """The machine client's record, for its policy; read once a request."""
        assert self.client_id is not None, self.kind
        if "client" not in g:
            g.client = clients.get(self.client_id)
        return g.client  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Door:
    """What a view declared: who may call it, with which scope, and the bytes it may send.

    `area` is the part of the programme an operator must be trusted with; None takes all of it.
    `plant_scope` is what plants need where it is not what the others need.
    """

    kinds: frozenset[Kind]
    scope: str | None
    body_max: int
    area: str | None = None
    plant_scope: str | None = None

    def admits(self, caller: Caller) -> bool:
        if caller.kind not in self.kinds:
            return False
        if caller.kind is OPERATOR:
            return not caller.scopes.isdisjoint(self.operator_scopes)
        scope = self.plant_scope if caller.kind is PLANT and self.plant_scope else self.scope
        return caller.kind is RESIDENT or scope is None or scope in caller.scopes

    @property
    def operator_scopes(self) -> tuple[str, ...]:
        """The scopes of which an operator needs one."""
        return ("operator", *([f"operator:{self.area}"] if self.area else []))

    def security(self) -> list[dict[str, list[str]]] | None:
        """The door in OpenAPI: a list of alternatives, each a set of things needed together."""
        if self.kinds <= {OPEN, INTERNAL}:
            return None
        scopes = [self.scope] if self.scope else []
        ways: list[dict[str, list[str]]] = []
        if RESIDENT in self.kinds:
            ways.append({"resident": []})
        if BANK in self.kinds:
            ways.append({"client": scopes, "signature": []})
        if self.kinds & {DATA, MERCHANT, PLANT}:
            ways.append({"client": scopes})
        if self.plant_scope:
            ways.append({"client": [self.plant_scope]})
        if OPERATOR in self.kinds:
            ways += [{"client": [scope]} for scope in self.operator_scopes]
        return ways

    def refusals(self) -> tuple[str, ...]:
        if OPEN in self.kinds:
            return ()
        if INTERNAL in self.kinds:
            return ("forbidden",)
        signed = ("invalid_signature",) if BANK in self.kinds else ()
        return ("unauthenticated", "forbidden", *signed)


def door(
    *kinds: Kind,
    scope: str | None = None,
    area: str | None = None,
    body_max: int = BODY_MAX,
    plant_scope: str | None = None,
) -> Callable[[View], View]:
    """Declare who may call a view; the outermost decorator of the method.

    `scope` is what partners, merchants, banks and plants need. Operators need `operator`, or the
    scope of the door's `area`; with `operator` they may use every door that is the plants' own.
    `plant_scope` is for plants instead of `scope`, where others come in too. `body_max` in bytes.
    """
    admitted = frozenset(kinds) | ({OPERATOR} if set(kinds) == {PLANT} else frozenset())
    assert admitted, "a door admits somebody"
    assert admitted.isdisjoint({OPEN, INTERNAL}) or len(admitted) == 1, admitted
    assert scope is None or scope in clients.SCOPES, scope
    assert area is None or (area in clients.AREAS and OPERATOR in admitted), area
    assert plant_scope is None or plant_scope in clients.SCOPES, plant_scope
    declared = Door(admitted, scope, body_max, area, plant_scope)

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            request.max_content_length = declared.body_max
            _let_in(declared)
            return view(*args, **kwargs)

        guarded.door = (declared, guarded)  # type: ignore[attr-defined]
        return annotate(guarded, refusals=declared.refusals(), security=declared.security())

    return decorate


def caller() -> Caller:
    """Who sent this request; only behind a door that is not open."""
    found = g.get("caller")
    assert isinstance(found, Caller), "nobody is known behind an open door"
    return found


def resident() -> Caller:
    """The resident who sent this request, behind a door that is open to others as well.

    Raises `Unauthenticated`.
    """
    found = _identify()
    if found is None or found.kind is not RESIDENT:
        raise Unauthenticated
    return found


def doors(app: Flask) -> Iterator[tuple[str, str, Door | None]]:
    """Each (endpoint, method) of the URL map with its door; None where there is none outermost."""
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        view_class = getattr(view, "view_class", None)
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            target = view if view_class is None else getattr(view_class, method.lower(), None)
            declared, guarded = getattr(target, "door", (None, None))
            yield rule.endpoint, method, declared if guarded is target else None


def check_doors(app: Flask) -> None:
    """Deny by default: raise `LookupError` if any view forgot its door or hid it under others."""
    missing = [f"{method} {endpoint}" for endpoint, method, found in doors(app) if found is None]
    if missing:
        raise LookupError(f"@door must be the outermost decorator of: {', '.join(missing)}")


def bearer_token() -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _let_in(declared: Door) -> None:
    """Raise a refusal unless the door admits the sender of this request."""
    if INTERNAL in declared.kinds:
        if not _is_internal():
            raise Forbidden
        return
    if OPEN in declared.kinds:
        limits.count(None, request.remote_addr)
        return
    found = _identify(with_client=BANK in declared.kinds)
    if found is not None and found.kind is BANK and declared.admits(found):
        g.caller = found
        _check_signature(found)
        return
    limits.count(found, request.remote_addr)
    if found is None:
        raise Unauthenticated
    g.caller = found
    if not declared.admits(found):
        raise Forbidden


def _identify(*, with_client: bool = False) -> Caller | None:
    token = bearer_token()
    bearer = tokens.resolve(token, with_client=with_client) if token else None
    if bearer is None:
        return None
    if bearer.client is not None:
        g.client_record = bearer.client
    return Caller(
        kind=Kind(bearer.kind),
        id=bearer.subject_id,
        scopes=bearer.scopes,
        session_id=bearer.session_id,
        client_id=bearer.client_id,
    )


def _check_signature(bank: Caller) -> None:
    """Count a bank's request and refuse it unless its signature holds and its nonce is new.

    A signature that does not hold counts, and uses up no nonce. One that holds counts in the round
    trip that takes its nonce, and past the limit it takes none.
    """
    config: Config = current_app.extensions["config"]
    target = request.environ.get("RAW_URI") or request.full_path.removesuffix("?")
    signed = signatures.SignedRequest(
        method=request.method,
        target_uri=signatures.target_uri(config.public_url, target),
        headers=dict(request.headers),
        body=request.get_data(cache=True),
    )

    def find_key(key_id: str) -> signatures.BankKey | None:
        key = clients.key_of(g.client_record, key_id) if "client_record" in g else None
        if key is None:
            return None
        return signatures.BankKey(key.key_id, key.client_id, key.algorithm, key.material)

    now, counter = clock.now(), current_app.extensions["limits"]
    try:
        proven = signatures.proven(signed, find_key, now)
    except signatures.InvalidSignature:
        limits.count(bank, request.remote_addr)
        raise
    claimed = current_app.extensions["nonces"].claim(proven, now, counter.budget(bank))
    counter.counted(bank, claimed.used, claimed.left_s)
    claimed.check()


def _is_internal() -> bool:
    # Behind a proxy the peer is the proxy, not the sender: a relayed request is not internal.
    if any(name in request.headers for name in PROXY_HEADERS) or not request.remote_addr:
        return False
    try:
        address = ip_address(request.remote_addr)
    except ValueError:
        return False
    networks = current_app.extensions["config"].internal_networks
    return address.is_loopback or any(address in network for network in networks)
