"""Images that a chat request carries: data: URLs in, RGB pictures out. Bounded before anything is decoded."""

from __future__ import annotations

import base64
import binascii
import io
import struct

from PIL import Image, ImageOps, UnidentifiedImageError

from local_models.workers.errors import ApiError
from local_models.workers.fields import shown

MAX_IMAGE_BYTES = 12 * 1024 * 1024
MAX_IMAGE_PIXELS = 24_000_000
MAX_ASPECT_RATIO = 100
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# What Pillow raises for damaged files, from its readers' own checks and from the parsing under them.
DAMAGED = (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


def decode_data_url(url: str, param: str) -> Image.Image:
    """The first frame, upright, RGB, transparent parts white. Raises ApiError naming `param`."""
    raw = _payload(url, param)
    try:
        picture = Image.open(io.BytesIO(raw), formats=FORMATS)
        _check_size(picture, param)
        picture.load()
        return _flattened(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(str(error), param) from error
    except DAMAGED as error:
        raise _bad(f"The image is damaged or of an unknown kind ({error}); send {', '.join(FORMATS)}.", param) from error


def _payload(url: str, param: str) -> bytes:
    scheme, _, rest = url.partition(":")
    if scheme.lower() != "data" or not rest:
        raise _bad(
            f"The image URL {shown(url, 60)} is not a data: URL, and this worker fetches nothing; the gateway does that."
            " Send the image itself as 'data:image/png;base64,…'.",
            param,
            code="unsupported_image_url",
        )
    head, comma, encoded = rest.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise _bad("The data: URL is not base64; send 'data:image/png;base64,' and then the encoded file.", param)
    if len(encoded) * 3 // 4 > MAX_IMAGE_BYTES + 2:
        raise _bad(
            f"The image has {len(encoded) * 3 // 4} bytes and the limit is {MAX_IMAGE_BYTES}; send a smaller file.",
            param,
            code="image_too_large",
        )
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad(f"The data: URL's base64 is broken ({error}); encode the file again.", param) from error


def _check_size(picture: Image.Image, param: str) -> None:
    width, height = picture.size
    if width * height > MAX_IMAGE_PIXELS:
        raise _too_many_pixels(f"{width}x{height}", param)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise _bad(f"The image is {width}x{height}; one side may be at most {MAX_ASPECT_RATIO} times the other. Crop it.", param)


def _flattened(picture: Image.Image) -> Image.Image:
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _too_many_pixels(size: str, param: str) -> ApiError:
    return _bad(f"The image is too large ({size}); the limit is {MAX_IMAGE_PIXELS} pixels. Scale it down.", param, code="image_too_large")


def _bad(message: str, param: str, code: str = "invalid_image") -> ApiError:
    return ApiError(message, param=param, code=code)
