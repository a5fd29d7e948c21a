"""Which side of a picture is up, as its camera has noted it in EXIF. Pixels are turned by it, as
viewers, annotation tools and OpenCV do.
"""

from __future__ import annotations

import struct

from PIL import Image

_TAG, _SHORT = 0x0112, 3
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turn_upright(picture: Image.Image) -> tuple[Image.Image, int]:
    """A loaded picture as it is to be seen, and its orientation: 2 to 8, or 1 if it was upright.

    A TIFF has been turned by Pillow when it was loaded, which is what its own tag means: it is 1.
    """
    turned = 1 if picture.format == "TIFF" else read_orientation(picture.info.get("exif", b""))
    return (picture, 1) if turned == 1 else (picture.transpose(_TURNS[turned]), turned)


def read_orientation(exif: bytes) -> int:
    """What the first directory of EXIF says, 1 to 8; 1 if it does not, or is damaged.

    Read by hand: the pixels that are cached must not depend on how a version of Pillow bears with
    damaged metadata, or with other notes of an orientation (XMP), which OpenCV does not look at.
    """
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    if not order:
        return 1
    try:
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, first)
        for number in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", data, first + 2 + 12 * number)
            if tag == _TAG:
                return value if kind == _SHORT and value in _TURNS else 1
    except struct.error:  # it ends too early
        pass
    return 1
