"""Pictures for the tests of photos, each unlike the others."""

from io import BytesIO
from itertools import count

from PIL import ExifTags, Image

_shades = count(1)
ODOMETER_M = "Odometer of a Quzhou taxi"


def picture(kind: str = "JPEG", size: tuple[int, int] = (64, 48), mode: str = "RGB") -> bytes:
    """A small picture of a colour no other has."""
    shade = next(_shades)
    # In steps that JPEG does not round away.
    colour = (shade * 8 % 256, shade // 32 * 8 % 256, 128)
    return saved(Image.new("RGB", size, colour).convert(mode), kind)


def telling_picture() -> bytes:
    """A picture 64 wide and 48 high, on its side, that tells where and with what it was taken."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = ODOMETER_M
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {ExifTags.GPS.GPSLatitudeRef: "N", ExifTags.GPS.GPSLatitude: (28.0, 56.0, 9.0)}
    )
    return saved(Image.new("RGB", (64, 48), "navy"), "JPEG", exif=exif, comment=b"plate H1")


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
