"""Pictures that are attached: made small, or refused with a reason."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from chat_app.attachments import MAX_FILES, MAX_SIDE, Refused, data_url, refusal, shrink
from chat_app.catalog import ModelCard


def file(form: str, size: tuple[int, int], mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, "red").save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "mode", "media_type"), [("PNG", "RGBA", "image/png"), ("JPEG", "RGB", "image/jpeg"), ("WEBP", "RGB", "image/jpeg")]
)
def test_a_large_picture_is_made_small(form: str, mode: str, media_type: str) -> None:
    small = shrink(file(form, (3000, 1500), mode), "x")
    assert (small.width, small.height, small.media_type) == (MAX_SIDE, MAX_SIDE // 2, media_type)
    with Image.open(io.BytesIO(small.content)) as image:
        assert image.size == (small.width, small.height)


def test_a_noisy_png_becomes_a_jpeg() -> None:
    buffer = io.BytesIO()
    Image.effect_noise((1200, 1200), 90).convert("RGB").save(buffer, "PNG")
    assert shrink(buffer.getvalue(), "noise.png").media_type == "image/jpeg"


@pytest.mark.parametrize("content", [b"", b"not a picture", file("GIF", (4, 4)), file("PNG", (400, 400))[:60]])
def test_what_is_no_picture_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(Refused, match=r"holiday\.png cannot be read"):
        shrink(content, "holiday.png")


def test_a_picture_too_large_to_unpack_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = file("PNG", (64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Refused):
        shrink(content, "bomb.png")


def test_who_may_be_given_pictures() -> None:
    seeing, reading, unknown = (ModelCard("m", input_modalities=given) for given in (("text", "image"), ("text",), None))
    assert refusal(seeing, 1) is None
    assert refusal(unknown, 1) is None
    assert refusal(reading, 0) is None
    assert "only reads text" in (refusal(reading, 1) or "")
    assert "makes pictures" in (refusal(ModelCard("m", "image"), 1) or "")
    assert str(MAX_FILES) in (refusal(seeing, MAX_FILES + 1) or "")


def test_a_data_url() -> None:
    assert data_url(b"abc", "image/png") == "data:image/png;base64,YWJj"
