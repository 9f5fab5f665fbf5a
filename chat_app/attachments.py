"""Pictures a person attaches: checked, turned upright, made small enough to send."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from chat_app.catalog import ModelCard

FILE_TYPES = ["png", "jpg", "jpeg", "webp"]
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_FILES = 4
MAX_FILE_MB = 20
MAX_SIDE = 1024  # pixels; more costs tokens and adds little
MAX_PNG_BYTES = 1024 * 1024


class Refused(Exception):
    """Why a picture cannot be attached, for the person who tried."""


@dataclass(frozen=True)
class SmallImage:
    content: bytes
    media_type: str
    width: int
    height: int


def refusal(card: ModelCard, files: int) -> str | None:
    """The reason why this model cannot take that many pictures, None if it can."""
    if files and card.kind == "image":
        return f"{card.name} makes pictures from words and cannot take one in. Remove the attachment, or pick a chat model with vision."
    if files and card.sees is False:
        return f"{card.name} only reads text. Remove the attachment, or pick a model with vision."
    if files > MAX_FILES:
        return f"{files} pictures are too many for one message, the limit is {MAX_FILES}."
    return None


def shrink(content: bytes, name: str) -> SmallImage:
    """The picture with no side over MAX_SIDE, as PNG where that stays small, else as JPEG. Raises Refused."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            image = ImageOps.exif_transpose(opened)
            image.thumbnail((MAX_SIDE, MAX_SIDE))
            return _encode(image, keep_png=opened.format == "PNG")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(f"{name} cannot be read as a PNG, JPEG or WebP picture.") from error


def _encode(image: Image.Image, *, keep_png: bool) -> SmallImage:
    if keep_png or image.has_transparency_data:
        png = _bytes(image.convert("RGBA" if image.has_transparency_data else "RGB"), "PNG")
        if len(png) <= MAX_PNG_BYTES:
            return SmallImage(png, "image/png", *image.size)
    canvas = Image.new("RGB", image.size, "white")
    rgba = image.convert("RGBA")
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return SmallImage(_bytes(canvas, "JPEG"), "image/jpeg", *image.size)


def _bytes(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, quality=88)
    return buffer.getvalue()


def data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
