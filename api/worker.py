"""The entry of `celery -A api.worker`: a worker, wired like the API."""

import os
from typing import Any

from celery.signals import celeryd_init

from accounting import storage, vault
from api import garbage, logs, queues, tasks
from api.config import Config
from footprint import policy_versions, versions

config = Config.from_env(os.environ)
vault.configure(config.secret)
storage.connect(config.mongodb_uri)
versions.register.install()
policy_versions.register.install()
logs.configure(config.log_level)
celery = tasks.make_celery(config)
garbage.settle()

# How far files and city-wide jobs step back behind requests, pushes and sweeps.
BULK_NICE = 10


@celeryd_init.connect
def step_back(options: dict[str, Any], **_: Any) -> None:
    """Let whoever waits for an answer go first: bulk work takes the processor nobody else wants."""
    if queues.BULK in (options.get("queues") or ()):
        os.nice(BULK_NICE)
