"""The Firebase app of this city: push, phone sign-in and app attestation.

firebase-admin has no setting for where messages go or how often a refused one is sent again, so
`_bound_messaging` sets both on the service object of this one app; the tests in
`tests/test_push_port.py` fail when a new version moves them.
"""

import functools
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import firebase_admin
from firebase_admin import App, app_check, auth, credentials, messaging
from google.auth.credentials import AnonymousCredentials
from jwt import PyJWKClientConnectionError, PyJWKClientError, PyJWKSetError
from requests.adapters import HTTPAdapter

from accounting.errors import Unauthenticated, Unavailable

STANDIN_PROJECT = "tanhui-demo"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
EMULATOR_ENV = "FIREBASE_AUTH_EMULATOR_HOST"
TIMEOUT_S = 10
# The most messages sent at once: firebase-admin starts a thread for each.
CONNECTIONS_MAX = 50


@dataclass(frozen=True)
class FirebaseSettings:
    """`fcm_url` is a stand-in on loopback; `google_credentials` a service account key file."""

    fcm_url: str | None = None
    google_credentials: str | None = None


@functools.cache
def client(settings: FirebaseSettings) -> App | None:
    """The app for these settings, made on the first call; None without a project to talk to.

    Raises ValueError or OSError, in words for the operator, when the settings cannot work.
    """
    options = {"httpTimeout": TIMEOUT_S}
    if settings.fcm_url is not None:
        if urlsplit(settings.fcm_url).hostname not in LOOPBACK:
            raise ValueError(f"the FCM stand-in must be on loopback, not {settings.fcm_url}")
        credential = AnonymousCredentials()  # type: ignore[no-untyped-call]
        name, project = settings.fcm_url, {"projectId": STANDIN_PROJECT}
    elif settings.google_credentials is not None:
        if os.environ.get(EMULATOR_ENV):
            raise ValueError(f"{EMULATOR_ENV} makes unsigned tokens valid: unset it")
        credential = credentials.Certificate(settings.google_credentials)
        name, project = settings.google_credentials, {}
    else:
        return None
    app = firebase_admin.initialize_app(credential, options | project, name=f"tanhui {name}")
    _bound_messaging(app, settings.fcm_url)
    return app


def verify_id_token(app: App | None, token: str) -> dict[str, Any]:
    """The claims of a Firebase ID token, among them `uid` and perhaps `phone_number`.

    Raises `Unauthenticated`; `Unavailable` when Google's certificates cannot be fetched.
    """
    # Without a project of our own no token can be for us, and the stand-in's name may be
    # somebody's real project; the auth emulator is how the tests sign in.
    if app is None or (_is_standin(app) and not os.environ.get(EMULATOR_ENV)):
        raise Unauthenticated()
    try:
        claims: dict[str, Any] = auth.verify_id_token(token, app=app)
    except auth.CertificateFetchError as error:
        raise Unavailable("Firebase", retry_after=30) from error
    except (ValueError, auth.InvalidIdTokenError) as error:
        raise Unauthenticated() from error
    return claims


def verify_app_check(app: App | None, token: str) -> bool:
    """Whether an App Check token is of an app of this project.

    Raises `Unavailable` when Google's keys cannot be fetched: the phone should send again rather
    than have its reading counted as unattested.
    """
    if app is None or _is_standin(app):
        return False
    try:
        # PyJWKClient would wait 30 s for Google's keys, and the phone with it.
        app_check._get_app_check_service(app)._jwks_client.timeout = TIMEOUT_S
        app_check.verify_token(token, app=app)
    except (PyJWKClientConnectionError, PyJWKSetError) as error:
        raise Unavailable("Firebase", retry_after=30) from error
    except (ValueError, PyJWKClientError):
        return False
    return True


def _is_standin(app: App) -> bool:
    return isinstance(app.credential.get_credential(), AnonymousCredentials)


def _bound_messaging(app: App, fcm_url: str | None) -> None:
    """Send each message once, within the timeout, to Google or to the stand-in.

    The library would repeat on 500 and 503 and sleep out a `Retry-After` of any length, in the
    worker's thread. Our ledger retries, at its own pace, and knows about it.
    """
    service = messaging._get_messaging_service(app)
    once = HTTPAdapter(pool_maxsize=CONNECTIONS_MAX, max_retries=0)
    session = service._client.session
    session._refresh_timeout = TIMEOUT_S  # Of the access token; it would be two minutes.
    # The longest matching prefix wins, so every prefix the library has mounted is replaced.
    for prefix in list(session.adapters):
        session.mount(prefix, once)
    if fcm_url is not None:
        path = urlsplit(service._fcm_url).path
        service._fcm_url = fcm_url.rstrip("/") + path
        session.trust_env = False  # A proxy of the environment does not lead to our loopback.
