"""Photos as evidence: the picture alone, upright and bounded, encrypted, until a person decided.

Nothing a camera writes beside the picture is kept: no position, no device, no comment. An activity
reported with a photo, of a behaviour that accepts class C, waits as `awaiting_review`; its first
photo opens the review.
"""

import hashlib
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from io import BytesIO

import mongoengine as me
from PIL import Image, ImageOps
from pymongo.collection import Collection
from pymongo.errors import DuplicateKeyError

from accounting import clock, storage, vault
from accounting.errors import AccountBusy, DomainError
from accounting.ids import new_id
from footprint import methodology, reviews
from footprint.activities import Activity

CLASS = "C"
AWAITING, NOT_ACCEPTED = "awaiting_review", "photo_not_accepted"
PHOTOS_MAX = 6
BYTES_MAX = 5_000_000
# What the cameras of phones make by default, with room above.
PIXELS_MAX = 25_000_000
SIDE_MAX = 2_048
QUALITY = 85
# Long enough for an appeal against the decision.
KEPT = timedelta(days=90)
_PURPOSE = "photo"
# Decoding the largest picture takes about 200 MB; more at once would wait for the processor anyway.
_decoding = threading.BoundedSemaphore(2)
# Pillow would first warn and only then refuse; ours is checked before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None


class PhotoUnreadable(DomainError):
    code = "photo_unreadable"
    en = "This is not a readable JPEG or PNG of at most 25 megapixels."
    zh = "无法读取图片：请上传不超过 2500 万像素的 JPEG 或 PNG。"


class PhotosNotWanted(DomainError):
    code = "photos_not_wanted"
    en = "This activity does not wait for photos."
    zh = "该活动无需上传照片。"


class TooManyPhotos(DomainError):
    """Facts: most."""

    code = "too_many_photos"
    en = "An activity takes at most {most} photos."
    zh = "每个活动最多上传 {most} 张照片。"


@storage.indexed
class PhotoDocument(me.Document):
    id = me.StringField(primary_key=True)
    activity = me.StringField(required=True)
    number = me.IntField(required=True)
    digest = me.StringField(required=True)
    uploaded_at = me.DateTimeField(required=True)
    taken_at = me.DateTimeField()
    width = me.IntField(required=True)
    height = me.IntField(required=True)
    sealed = me.BinaryField(required=True)
    expires_at = me.DateTimeField()

    meta = {
        "collection": "photos",
        "auto_create_index": False,
        "indexes": [
            # The number bounds how many there are, whoever uploads at the same time.
            {"fields": ["activity", "number"], "unique": True},
            {"fields": ["activity", "digest"], "unique": True},
            {"fields": ["digest"]},
            {"fields": ["expires_at"], "expireAfterSeconds": 0},
        ],
    }


@dataclass(frozen=True, slots=True)
class Photo:
    """One stored photo, without its picture. `taken_at` is the uploader's word."""

    id: str
    activity: str
    number: int
    digest: str
    uploaded_at: datetime
    taken_at: datetime | None
    width: int
    height: int

    @property
    def at(self) -> datetime:
        """When it was taken as far as we know."""
        return self.taken_at or self.uploaded_at


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and nothing else: JPEG, upright, width and height in pixels."""

    jpeg: bytes
    width: int
    height: int


def _collection() -> "Collection[storage.Doc]":
    return storage.strong(PhotoDocument._get_collection())


def awaiting(fact: Activity) -> Activity:
    """The fact as it waits for its photos, where its behaviour accepts a reviewed photo."""
    behaviour = methodology.version(fact.methodology).behaviours[fact.behaviour]
    if CLASS not in behaviour.accepts or fact.reasons != ("evidence_not_accepted",):
        return fact
    return replace(fact, reasons=(AWAITING,))


def add(activity: Activity, upload: bytes, taken_at: datetime | None) -> tuple[Photo, bool]:
    """Store one photo of an activity; returns it and whether it was new.

    The same bytes again give the first photo. Raises `PhotosNotWanted`, `PhotoUnreadable`,
    `TooManyPhotos`, and `AccountBusy` after a bounded number of lost races.
    """
    digest = hashlib.sha256(upload).hexdigest()
    waits = AWAITING in activity.reasons
    picture: Picture | None = None
    for _ in range(2 * PHOTOS_MAX):
        held = of_activity(activity.id)
        same = next((photo for photo in held if photo.digest == digest), None)
        if same is None and not waits:
            raise PhotosNotWanted()
        if same is None and len(held) >= PHOTOS_MAX:
            raise TooManyPhotos(most=PHOTOS_MAX)
        if same is not None:
            # Also when it is there already: a crash may have come between the two writes.
            if waits:
                reviews.ask(reviews.PHOTOS, activity.id, (activity.resident,))
            return same, False
        picture = picture or cleaned(upload)
        photo = _insert(activity, digest, taken_at, picture, number=len(held) + 1)
        if photo is not None:
            reviews.ask(reviews.PHOTOS, activity.id, (activity.resident,))
            return photo, True
    raise AccountBusy(retry_after=1)


def cleaned(upload: bytes) -> Picture:
    """The picture alone: decoded, turned upright, made smaller, encoded anew as JPEG.

    Raises `PhotoUnreadable`.
    """
    with _decoding:
        try:
            return _cleaned(upload)
        # A broken file shows in any of these, depending on where it is broken.
        except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error) as error:
            raise PhotoUnreadable() from error


def _cleaned(upload: bytes) -> Picture:
    with Image.open(BytesIO(upload), formats=("JPEG", "PNG")) as image:
        if image.width * image.height > PIXELS_MAX:
            raise PhotoUnreadable()
        # For JPEG this also decodes at a fraction of the size.
        image.thumbnail((SIDE_MAX, SIDE_MAX))
        upright = ImageOps.exif_transpose(image).convert("RGBA")
    # A new image: what the file said beside its pixels (comment, profile) does not come along.
    bare = Image.new("RGB", upright.size, "white")
    bare.paste(upright, mask=upright)
    encoded = BytesIO()
    bare.save(encoded, "JPEG", quality=QUALITY)
    return Picture(encoded.getvalue(), bare.width, bare.height)


def _insert(
    activity: Activity, digest: str, taken_at: datetime | None, picture: Picture, number: int
) -> Photo | None:
    """Store a photo under its number; None if somebody took the number or stored the same."""
    photo = Photo(
        id=new_id("pho"),
        activity=activity.id,
        number=number,
        digest=digest,
        uploaded_at=clock.now(),
        taken_at=taken_at,
        width=picture.width,
        height=picture.height,
    )
    fields = {name: getattr(photo, name) for name in Photo.__slots__ if name != "id"}
    sealed = vault.seal(picture.jpeg, _PURPOSE)
    try:
        _collection().insert_one({"_id": photo.id, **fields, "sealed": sealed})
    except DuplicateKeyError:
        return None
    return photo


def of_activity(activity_id: str) -> list[Photo]:
    """The photos of an activity in the order they arrived."""
    found = _collection().find({"activity": activity_id}, {"sealed": 0}).sort("number", 1)
    return [_photo(document) for document in found]


def of_activities(activity_ids: Sequence[str]) -> list[Photo]:
    """What is known of the photos of several activities, without the pictures."""
    found = _collection().find({"activity": {"$in": list(activity_ids)}}, {"sealed": 0})
    return [_photo(document) for document in found]


def jpeg(activity_id: str, photo_id: str) -> bytes | None:
    """The picture of one photo of an activity; None if there is no such photo."""
    found = _collection().find_one({"_id": photo_id, "activity": activity_id}, {"sealed": 1})
    return vault.unseal(found["sealed"], _PURPOSE) if found else None


def used_elsewhere(photo: Photo) -> int:
    """How many other activities hold the very same file."""
    wanted = {"digest": photo.digest, "activity": {"$ne": photo.activity}}
    return _collection().count_documents(wanted)


def hours_apart(held: list[Photo]) -> int:
    """Whole hours between the first and the last of some photos."""
    times = [photo.at for photo in held]
    return (max(times) - min(times)) // timedelta(hours=1) if times else 0


def expire(activity_id: str, decided_at: datetime) -> None:
    """Let the photos of a decided activity go once nobody can need them; safe to repeat."""
    _collection().update_many(
        {"activity": activity_id}, {"$set": {"expires_at": decided_at + KEPT}}
    )


def forget(activity_ids: Sequence[str]) -> None:
    """Remove the photos of activities whose account is closed."""
    _collection().delete_many({"activity": {"$in": list(activity_ids)}})


def _photo(document: storage.Doc) -> Photo:
    fields = {name: document[name] for name in Photo.__slots__ if name != "id"}
    return Photo(id=document["_id"], **fields)
