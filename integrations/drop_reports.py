"""What a partner finds beside its file: how the job ended, the refused rows, why it was refused."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from accounting import clock, refused_rows, tables, vault
from accounting.errors import DomainError
from accounting.jobs import Job
from integrations import dropped
from integrations.dropped import Dropped
from integrations.folders import Folder

ERROR_COLUMNS: Final = ("row", "code", "message_zh", "message_en", "input")
ERRORS_TOGETHER = 1_000


def write_reason(aside: Folder, name: str, of: str, refusal: DomainError) -> None:
    """Why the file that was called `of` is not taken, beside where it will lie."""
    reason = {
        "file": of,
        "code": refusal.code,
        "zh": refusal.text("zh"),
        "en": refusal.text("en"),
        "at": clock.iso(clock.now()),
    }
    aside.write(f"{name}.reason.json", [_as_json(reason)])


def write_end(done: Folder, one: Dropped, job: Job) -> None:
    """The refused rows first: who sees the result finds them complete."""
    errors_name = f"{one.name}.errors.csv" if job.counts["rejected"] else None
    if errors_name is not None:
        done.write(errors_name, map(str.encode, _error_lines(job.id)))
    first = dropped.first_name(job.id)
    end = {
        "file": one.name,
        "job_id": job.id,
        "state": job.state,
        "failure": asdict(job.failure) if job.failure is not None else None,
        "total": job.total,
        "done": job.done,
        **job.counts,
        "errors_file": errors_name,
        "same_as": first if first != one.name else None,
        "finished_at": clock.iso(job.finished_at) if job.finished_at else None,
    }
    done.write(f"{one.name}.result.json", [_as_json(end)])


def _error_lines(job_id: str) -> Iterator[str]:
    yield tables.csv_text(ERROR_COLUMNS, [])
    together: list[tuple[Any, ...]] = []
    for row in refused_rows.of_job(job_id):
        sealed = vault.decrypt(row["input_sealed"], "job-error")
        message = row["message"]
        together.append((row["row"], row["code"], message["zh"], message["en"], sealed))
        if len(together) == ERRORS_TOGETHER:
            yield tables.csv_rows(together)
            together.clear()
    yield tables.csv_rows(together)


def _as_json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n"
