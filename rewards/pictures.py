"""Pictures of rewards: encoded anew, kept once by what they show, served as they are."""

import hashlib

import mongoengine as me
from bson import Binary
from pymongo.collection import Collection

from accounting import clock, storage
from footprint import photos
from rewards import catalogue


@storage.indexed
class PictureDocument(me.Document):
    """A JPEG under the SHA-256 of its bytes."""

    id = me.StringField(primary_key=True)
    jpeg = me.BinaryField(required=True)
    added_at = me.DateTimeField(required=True)

    meta = {"collection": "reward_pictures", "auto_create_index": False}


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(PictureDocument._get_collection())


def show(reward_id: str, upload: bytes) -> str:
    """Make an uploaded JPEG or PNG the picture of a reward; returns its digest.

    Raises `NotFound` and `PhotoUnreadable`.
    """
    catalogue.reward(reward_id)
    jpeg = photos.cleaned(upload).jpeg
    digest = hashlib.sha256(jpeg).hexdigest()
    row = {"jpeg": Binary(jpeg), "added_at": clock.now()}
    _collection().update_one({"_id": digest}, {"$setOnInsert": row}, upsert=True)
    catalogue.set_image(reward_id, digest)
    return digest


def jpeg(digest: str) -> bytes:
    found = _collection().find_one({"_id": digest}, {"jpeg": 1})
    assert found is not None, "pictures are never deleted"
    return bytes(found["jpeg"])
