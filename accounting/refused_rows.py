"""The rows a job could not take, each with what was wrong with it."""

from collections.abc import Iterator
from typing import Any

import mongoengine as me
from pymongo.collection import Collection

from accounting import storage


@storage.indexed
class JobErrorDocument(me.Document):
    """One row a job could not take, with what was wrong; the input is kept encrypted."""

    job = me.StringField(required=True)
    row = me.IntField(required=True)
    code = me.StringField(required=True)
    message = me.DictField()
    input_sealed = me.BinaryField()

    meta = {
        "collection": "job_errors",
        "auto_create_index": False,
        "indexes": [{"fields": ["job", "row"], "unique": True}],
    }


def _rows() -> "Collection[storage.Doc]":
    return storage.strong(JobErrorDocument._get_collection())


def note(rows: list[dict[str, Any]]) -> None:
    """Keep refused rows; a row noted before is kept once."""
    storage.insert_new(_rows(), rows)


def of_job(job_id: str) -> Iterator[dict[str, Any]]:
    """The refused rows of a job, in the order of its file."""
    yield from _rows().find({"job": job_id}, {"_id": 0}).sort("row", 1)
