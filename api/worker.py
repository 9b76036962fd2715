"""The entry of `celery -A api.worker`: a worker, wired like the API."""

import os

from accounting import storage, vault
from api import logs, tasks
from api.config import Config
from footprint import policy_versions, versions

config = Config.from_env(os.environ)
vault.configure(config.secret)
storage.connect(config.mongodb_uri)
versions.register.install()
policy_versions.register.install()
logs.configure(config.log_level)
celery = tasks.make_celery(config)
