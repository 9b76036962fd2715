"""The application: wires configuration, store, Redis and views. Importing it does nothing."""

from datetime import timedelta

from flask import Flask, Response
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from werkzeug.middleware.proxy_fix import ProxyFix

from accounting import clock, storage, tokens, vault
from accounting.clients import Kind
from accounting.errors import Unavailable
from api import limits, logs, problems, security, tasks
from api.config import Config
from api.metrics import Metrics
from api.numbers import ExactJSON
from api.openapi import Api
from api.views import BLUEPRINTS
from footprint import policy_versions, versions
from integrations import firebase, sms
from integrations.firebase import FirebaseSettings
from integrations.signatures import AGE_S_MAX, NonceStore

REDIS_CONNECT_S = 0.5
REDIS_ANSWER_S = 2.0
_AWAY: tuple[type[Exception], ...] = (Unavailable, *problems.AWAY)


def create_app(config: Config) -> Flask:
    """The HTTP application of one process.

    MongoDB and Redis need not be there yet: their absence shows in `/readyz` and as 503 answers.
    Raises `LookupError` if a view does not say who may call it.
    """
    vault.configure(config.secret)
    storage.connect(config.mongodb_uri)
    versions.register.install()
    policy_versions.register.install()
    logs.configure(config.log_level)

    # No static folder and no automatic OPTIONS: only what is declared below answers.
    app = Flask("api", static_folder=None)
    app.json = ExactJSON(app)
    app.request_class = limits.Request
    app.config.update(MAX_CONTENT_LENGTH=security.BODY_MAX, PROVIDE_AUTOMATIC_OPTIONS=False)
    app.url_map.merge_slashes = False

    redis = connect_redis(config.redis_url)
    metrics = Metrics()
    nonces = NonceStore(redis)
    app.extensions.update(
        config=config,
        redis=redis,
        nonces=nonces,
        metrics=metrics,
        limits=limits.Limits(
            redis.connection_pool, demo=config.demo, bank_reads=config.bank_reads_per_minute
        ),
        texter=sms.HttpTexter(config.sms_url) if config.sms_url else sms.LogTexter(),
        firebase=firebase.client(FirebaseSettings(config.fcm_url, config.google_credentials)),
        celery=tasks.make_celery(config),
    )
    # Flask runs what follows an answer in reverse: the log line comes last and sees all headers.
    logs.register(app)
    metrics.register(app)
    app.after_request(limits.add_headers)
    app.after_request(limits.drain)
    app.after_request(_keep_private)
    problems.register(app)

    api = Api(app)
    for blueprint in BLUEPRINTS:
        api.register_blueprint(blueprint)
    security.check_doors(app)
    app.extensions["openapi"] = api.spec
    _begin_nonces(app, nonces)
    if config.proxies:
        # Limits count the sender as our own proxies name them; what a sender adds is ignored.
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=config.proxies, x_proto=0, x_host=0
        )
    return app


def connect_redis(url: str) -> "Redis":
    """A client that gives up fast; a connection that died in the pool is tried once more."""
    pool = ConnectionPool.from_url(
        url,
        socket_connect_timeout=REDIS_CONNECT_S,
        socket_timeout=REDIS_ANSWER_S,
        decode_responses=True,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )
    return Redis(connection_pool=pool)


def _keep_private(response: Response) -> Response:
    """Answers are about people: nothing in between keeps them, unless the view says otherwise."""
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    return response


def _begin_nonces(app: Flask, nonces: NonceStore) -> None:
    """Tell the nonce store when it began; without Redis that happens at the first signature."""
    try:
        now = clock.now()
        # Where no bank can have called, no nonce can have been forgotten: the first need not wait.
        called = tokens.any_held(Kind.BANK)
        nonces.begin(now if called else now - timedelta(seconds=2 * AGE_S_MAX))
    except _AWAY as error:
        app.logger.warning("the nonce store did not begin: %s", error)
