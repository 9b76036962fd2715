"""The process that watches the drop folder: `python -m api.watcher`, or `tanhui watch DIR`.

Without the queue the jobs wait for the sweep; without the store the files wait in their folder.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from celery import Celery
from kombu.exceptions import OperationalError

from accounting import storage, vault
from api import logs, queues
from api.config import Config, ConfigError
from integrations.drop_folder import Watcher

RUN_JOB = "tanhui.run_job"

log = logging.getLogger(__name__)


def watch(config: Config) -> None:
    """Watch until SIGINT or SIGTERM; a file that is being taken is taken to its end."""
    if config.drop_folder is None:
        raise ConfigError("set TANHUI_DROP_FOLDER to the folder that partners write into")
    vault.configure(config.secret)
    storage.connect(config.mongodb_uri)
    try:
        with _asked_to_stop() as asked:
            Watcher(config.drop_folder, _telling(queues.make(config))).run(asked)
    finally:
        storage.disconnect()


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    asked = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _telling(celery: Celery) -> Callable[[str], None]:
    def tell(job_id: str) -> None:
        try:
            celery.send_task(RUN_JOB, (job_id,), retry=False)
        except OperationalError as error:
            log.warning("the queue is away, the sweep will find %s: %s", job_id, error)

    return tell


def main() -> None:
    config = Config.from_env(os.environ)
    logs.configure(config.log_level)
    watch(config)


if __name__ == "__main__":
    main()
