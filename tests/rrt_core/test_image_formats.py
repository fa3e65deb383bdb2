"""The table of formats: what it says of bytes and suffixes is what decodes here."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from PIL import Image

from rrt_core.image_formats import (
    FORMATS,
    HEAD_BYTES,
    advice,
    decodable_suffixes,
    format_of,
    looks_like_image,
)

WRITTEN_BY_PILLOW = [one.name for one in FORMATS if one.name != "HEIF"]
# taken for images from the start: no folder may lose one
OLD_SUFFIXES = "jpg jpeg jpe jfif png webp gif bmp dib tif tiff ppm pgm pbm jp2 avif"


def written(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "HEIF":
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.from_pillow(Image.new("RGB", (32, 24), "red")).save(buffer)
    else:
        Image.new("RGB", (32, 24), "red").save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [one.name for one in FORMATS])
def test_each_format_is_known_by_its_first_bytes(kind: str) -> None:
    data = written(kind)
    assert looks_like_image(data) == looks_like_image(data[:HEAD_BYTES]) == kind
    assert looks_like_image(data[:1]) == ""


def test_the_suffixes_are_those_that_pillow_knows_for_the_formats() -> None:
    """But `.pfm`, whose pixels are of no agreed range."""
    registered = Image.registered_extensions()
    ours = {*WRITTEN_BY_PILLOW, "MPO"}
    named = {suffix for suffix, kind in registered.items() if kind in ours} - {".pfm"}
    heif = {suffix for one in FORMATS if one.name == "HEIF" for suffix in one.suffixes}
    assert decodable_suffixes() - heif == named
    assert decodable_suffixes() >= {f".{name}" for name in OLD_SUFFIXES.split()}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"Python is not a picture",
        b"BMW and others",
        b"MM",
        b"P6",
        b"\0\0\0\x18ftypmp42",
        bytes(64),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"RIFF1234WAVE",
    ],
)
def test_what_is_no_image_is_not_taken_for_one(data: bytes) -> None:
    assert looks_like_image(data) == "" and format_of(data) is None


def test_advice_is_for_images_that_do_not_decode() -> None:
    assert all(advice(suffix) == "" for suffix in (*decodable_suffixes(), ".txt", "", ".", ".JPG"))
    assert advice(".NEF") == advice(".cr2") == "convert the raw photographs to JPEG"
    assert advice(".psd") == advice(".svg") == advice(".jxl") == "convert to JPEG or PNG"


def test_without_the_package_heif_is_known_but_does_not_decode() -> None:
    program = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from rrt_core.image_formats import advice, decodable_suffixes, format_of\n"
        "from rrt_core.image_formats import looks_like_image\n"
        "head = bytes.fromhex('0000001c') + b'ftypheic' + bytes(4) + b'mif1heic'\n"
        "assert format_of(head).name == 'HEIF' and looks_like_image(head) == ''\n"
        "assert '.heic' not in decodable_suffixes()\n"
        "print(advice('.heic'))"
    )
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.stdout == "install RRT_EXTRAS=heif\n", said.stderr
