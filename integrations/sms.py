"""Text messages to phones: the operator's own gateway, or the server log where there is none."""

import logging
from typing import Protocol

import requests

from accounting.errors import Unavailable

CONNECT_S_MAX, READ_S_MAX = 3, 5

logger = logging.getLogger(__name__)


class Texter(Protocol):
    def send(self, phone: str, text: str) -> None:
        """Hand one text over. Raises `Unavailable` when it cannot be handed over."""


class HttpTexter:
    """POSTs `{phone, text}` as JSON to the gateway; any 2xx means taken.

    Never sends twice: a gateway that was slow to answer may have sent the text.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def send(self, phone: str, text: str) -> None:
        try:
            answer = requests.post(
                self._url,
                json={"phone": phone, "text": text},
                timeout=(CONNECT_S_MAX, READ_S_MAX),
                # requests would follow a redirect with a GET, and so lose the text.
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise Unavailable("the SMS provider", retry_after=60) from error
        if not 200 <= answer.status_code < 300:
            # The status alone: a gateway may echo the text, and the log must not hold codes.
            logger.warning("the SMS provider answered %s", answer.status_code)
            raise Unavailable("the SMS provider", retry_after=60)


class LogTexter:
    """Writes the text to the server log: for a server without a provider, read by its operator."""

    def send(self, phone: str, text: str) -> None:
        logger.warning("no SMS provider is set up; text for …%s: %s", phone[-4:], text)
