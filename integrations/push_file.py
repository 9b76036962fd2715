"""Push without Firebase: messages as lines of a file, for a gateway of the city's own to carry.

One file a city day, one JSON object a line, only ever appended to. The lines of a batch are on disk
before they count as sent.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

from accounting import clock
from integrations.push import Outcome, PushMessage, PushResult


class FilePusher:
    def __init__(self, folder: Path) -> None:
        """Raises OSError when the folder cannot be made."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def send(self, messages: list[PushMessage]) -> list[PushResult]:
        now = clock.now()
        file = self._folder / f"pushes-{clock.city_day(now)}.ndjson"
        lines = "".join(
            json.dumps({"at": now.isoformat(), **asdict(one)}, ensure_ascii=False) + "\n"
            for one in messages
        )
        try:
            # One write in append mode, so lines of several workers do not mix.
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                content = lines.encode()
                if os.write(descriptor, content) < len(content):
                    raise OSError(f"{file} took only a part: is the disk full?")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            return [PushResult(Outcome.RETRY, reason=str(error))] * len(messages)
        return [PushResult(Outcome.SENT)] * len(messages)
