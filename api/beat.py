"""The entry of `celery -A api.beat`: the clock, which asks by name and needs no tasks."""

import os

from api import logs, queues
from api.config import Config

config = Config.from_env(os.environ)
logs.configure(config.log_level)
celery = queues.make(config)
