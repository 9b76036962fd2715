"""The process that follows the book and keeps the summaries: `python -m api.follower`.

It also sees who has reached a milestone by their days: a first, a streak, a goal of the month.

It needs MongoDB alone, so the summaries go on while the queue is away. Two of them do no harm.
"""

import os
import signal
import threading
from types import FrameType

from accounting import storage, vault
from api import logs
from api.config import Config
from footprint import policy_versions, upkeep, versions
from points import milestones


def main() -> None:
    config = Config.from_env(os.environ)
    logs.configure(config.log_level)
    vault.configure(config.secret)
    asked = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    storage.connect(config.mongodb_uri)
    versions.register.install()
    policy_versions.register.install()
    upkeep.follow(asked.is_set, milestones.look, milestones.look_at)
    storage.disconnect()


if __name__ == "__main__":
    main()
