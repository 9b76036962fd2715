"""The push port: hand messages to devices, and say for each what became of it."""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from firebase_admin import App, exceptions, messaging
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from integrations.firebase import CONNECTIONS_MAX

MESSAGES_MAX = 500
# The library starts a thread for each message of a call.
CHUNK = CONNECTIONS_MAX
BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"

logger = logging.getLogger(__name__)


class MessageClass(StrEnum):
    SERVICE = "service"
    MARKETING = "marketing"


class Outcome(StrEnum):
    SENT = "sent"
    RETIRE = "retire"  # The token is dead: never use it again.
    RETRY = "retry"
    FAILED = "failed"  # The same message would be refused again.


@dataclass(frozen=True)
class PushMessage:
    """One message to one device. `data` is what the app reads, `notification_id` among it.

    Of messages with one `collapse_key` (64 bytes at most) a sleeping phone gets the last.
    """

    token: str
    title: str
    body: str
    data: Mapping[str, str]
    collapse_key: str | None = None
    message_class: MessageClass = MessageClass.SERVICE
    platform: str = "android"


@dataclass(frozen=True)
class PushResult:
    """`retry_after_s` only where the provider named a time; `reason` is for the ledger and log."""

    outcome: Outcome
    message_id: str | None = None
    retry_after_s: int | None = None
    reason: str | None = None


class Pusher(Protocol):
    def send(self, messages: list[PushMessage]) -> list[PushResult]:
        """Results in the order of the messages (at most `MESSAGES_MAX`); does not raise for them.

        A result may be lost, or say retry for a message that arrived: the app drops a second one
        with the same `notification_id`.
        """


class ByPlatform:
    """Several providers behind one port: the platforms named go to their own, the rest to one.

    This is where another vendor's channel (HMS, JPush) is put in.
    """

    def __init__(self, rest: Pusher, own: Mapping[str, Pusher]) -> None:
        self._rest, self._own = rest, own

    def send(self, messages: list[PushMessage]) -> list[PushResult]:
        results: dict[int, PushResult] = {}
        for pusher in {id(one): one for one in (self._rest, *self._own.values())}.values():
            places = [
                place
                for place, message in enumerate(messages)
                if self._own.get(message.platform, self._rest) is pusher
            ]
            if places:
                sent = pusher.send([messages[place] for place in places])
                results |= dict(zip(places, sent, strict=True))
        return [results[place] for place in range(len(messages))]


class FirebasePusher:
    """Firebase Cloud Messaging, a chunk of messages at a time.

    With `dry_run` Firebase checks each message and its token, and delivers nothing.
    """

    def __init__(self, app: App, *, dry_run: bool = False) -> None:
        self._app, self._dry_run = app, dry_run

    def send(self, messages: list[PushMessage]) -> list[PushResult]:
        assert len(messages) <= MESSAGES_MAX, len(messages)
        results: list[PushResult] = []
        for chunk in _chunks(messages):
            answers = self._send_chunk(chunk)
            results += answers
            if all(answer.outcome is Outcome.RETRY for answer in answers):
                # The provider is away or wants a rest: do not wait for it once per chunk.
                wait_s = max((answer.retry_after_s or 0 for answer in answers), default=0)
                put_off = PushResult(
                    Outcome.RETRY, retry_after_s=wait_s or None, reason="not tried"
                )
                results += [put_off] * (len(messages) - len(results))
                break
        return results

    def _send_chunk(self, chunk: list[PushMessage]) -> list[PushResult]:
        results: list[PushResult | None] = []
        good: list[messaging.Message] = []
        for message in chunk:
            try:
                good.append(_encoded(message))
                results.append(None)
            except ValueError as error:  # One unfit message must not hold up the others.
                results.append(PushResult(Outcome.FAILED, reason=str(error)))
        sent = iter(self._send_good(good) if good else [])
        return [result if result is not None else next(sent) for result in results]

    def _send_good(self, good: list[messaging.Message]) -> list[PushResult]:
        try:
            batch = messaging.send_each(good, dry_run=self._dry_run, app=self._app)
        except exceptions.FirebaseError as error:
            # Not an answer to one message: no access token, no thread, an answer that is not JSON.
            logger.warning("push: a chunk of %d was not sent: %s", len(good), error)
            return [PushResult(Outcome.RETRY, reason=str(error))] * len(good)
        results = [_judge(answer) for answer in batch.responses]
        if self._dry_run:
            return [replace(one, reason=one.reason or "dry run") for one in results]
        return results


def _chunks(messages: list[PushMessage]) -> Iterator[list[PushMessage]]:
    for start in range(0, len(messages), CHUNK):
        yield messages[start : start + CHUNK]


def _encoded(message: PushMessage) -> messaging.Message:
    """The library's message. Raises ValueError when it cannot be encoded."""
    urgent = message.message_class is MessageClass.SERVICE
    apns_headers = {"apns-priority": "10" if urgent else "5"}
    if message.collapse_key is not None:
        apns_headers["apns-collapse-id"] = message.collapse_key
    encoded = messaging.Message(
        data=dict(message.data),
        notification=messaging.Notification(title=message.title, body=message.body),
        android=messaging.AndroidConfig(
            collapse_key=message.collapse_key,
            priority="high" if urgent else "normal",
            # One that arrives twice takes the place of the first in the drawer.
            notification=messaging.AndroidNotification(tag=message.data.get("notification_id")),
        ),
        apns=messaging.APNSConfig(headers=apns_headers),
    )
    # The `token` argument is deprecated for `fid`, but a registration token is not an installation
    # id and FCM still takes it; the attribute is the same field.
    encoded.token = message.token
    str(encoded)  # Encodes, and so finds what `send_each` would refuse the whole chunk for.
    return encoded


def _judge(answer: messaging.SendResponse) -> PushResult:
    if answer.success:
        return PushResult(Outcome.SENT, message_id=answer.message_id)
    error = answer.exception
    if error is None:
        return PushResult(Outcome.RETRY, reason="an answer without a message name")
    reason, response = str(error), error.http_response
    dead = (messaging.UnregisteredError, messaging.SenderIdMismatchError)
    if isinstance(error, dead) or _blames_token(error):
        return PushResult(Outcome.RETIRE, reason=reason)
    if response is None:  # A timeout or a lost connection.
        return PushResult(Outcome.RETRY, reason=reason)
    if response.status_code == 429 or response.status_code >= 500:
        wait_s = _retry_after_s(response.headers.get("Retry-After"))
        return PushResult(Outcome.RETRY, retry_after_s=wait_s, reason=reason)
    # Also 401 and 403, and a 404 that does not name the token: our own set-up is wrong, and taking
    # it for dead tokens would retire every device.
    logger.error("push refused: %s", reason)
    return PushResult(Outcome.FAILED, reason=reason)


def _blames_token(error: exceptions.FirebaseError) -> bool:
    """FCM answers the same 400 for a malformed token and for a malformed message."""
    if not isinstance(error, exceptions.InvalidArgumentError) or error.http_response is None:
        return False
    if "not a valid FCM registration token" in str(error):
        return True
    try:
        answer = error.http_response.json()
    except ValueError:
        return False
    details = answer.get("error", {}).get("details", []) if isinstance(answer, dict) else []
    violations = (
        violation
        for detail in details
        if detail.get("@type") == BAD_REQUEST
        for violation in detail.get("fieldViolations", [])
    )
    return any(violation.get("field") == "message.token" for violation in violations)


def _retry_after_s(header: str | None) -> int | None:
    """Seconds or an HTTP date, as whole seconds from now; urllib3 caps it at six hours."""
    if header is None:
        return None
    try:
        return max(math.ceil(Retry().parse_retry_after(header)), 0)
    except InvalidHeader:
        return None
