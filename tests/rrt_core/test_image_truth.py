"""Pixels against exact values and a second decoder: equal within half a level, or refused; never
other pixels in silence.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from rrt_core.decoding import ccitt
from rrt_core.images import DecodeError, decode
from tests.support.image_files import (
    COMPRESSIONS,
    FAX,
    GREY,
    GREY_ALPHA,
    RGB,
    chunk,
    png,
    pngs,
    samples,
    saved,
    smooth,
    tiffs,
    valid_files,
)

HALF = 0.5001
FASTEST = {"WEBP": {"method": 0}, "JPEG2000": {"irreversible": True}}


def reason(data: bytes) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(data, "r")
    return caught.value


def differs(data: bytes, exact: np.ndarray) -> float:
    pixels = decode(data, "r").pixels
    assert pixels.shape == exact.shape
    return float(np.abs(pixels - exact).max())


@pytest.mark.parametrize(
    ("name", "data", "exact"), [pytest.param(*one, id=one[0]) for one in pngs()]
)
def test_pngs_of_every_depth_type_interlace_and_transparency(
    name: str, data: bytes, exact: np.ndarray
) -> None:
    assert differs(data, exact) <= HALF


def test_tiffs_of_every_kind_are_right_or_refused() -> None:
    right, refused = set(), set()
    for name, data, exact in tiffs():
        kind = "-".join(name.split("-")[1:4])
        try:
            pixels = decode(data, "r").pixels
        except DecodeError as error:
            assert error.error_class == "unsupported", (name, error)
            refused.add(kind)
            continue
        assert exact is not None, f"{name}: its samples have no agreed range"
        assert np.abs(pixels - exact).max() <= HALF, name
        right.add(kind)
    assert not right & refused
    assert right == {
        *("bool-1-contig", "u1-1-contig", "u1-2-contig", "u1-3-contig", "u1-4-contig"),
        *("u1-3-separate", "u1-4-separate", "u2-1-contig", "u2-3-contig", "u2-4-contig"),
    }


@pytest.mark.parametrize("rows", [None, 7])
@pytest.mark.parametrize("compression", [*COMPRESSIONS, "raw"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "I;16"])
def test_compressed_tiffs(mode: str, compression: str, rows: int | None) -> None:
    if mode == "I;16":
        values = samples(37, 45, 1, 16)[..., 0]
        image, exact = Image.fromarray(values), np.repeat(values[..., None] / 257, 3, 2)
    else:
        image = smooth().quantize(16) if mode == "P" else smooth().convert(mode)
        exact = np.asarray(image.convert("RGB"))
    for tags in ({}, {317: 2}, {262: 0}):
        if (317 in tags and mode in ("1", "P", "I;16")) or (
            262 in tags and mode not in ("1", "L", "I;16")
        ):
            continue
        data = saved(image, "TIFF", compression=compression, tiffinfo={278: rows or 37, **tags})
        upside = 255 - exact if 262 in tags and mode == "I;16" else exact
        if mode == "YCbCr" and compression == "raw":
            assert reason(data).error_class == "unsupported"
        else:
            near = 1 if mode == "YCbCr" else HALF  # libtiff and Pillow round the colours apart
            assert differs(data, upside) <= near


@pytest.mark.parametrize("reverse", [1, 2])
@pytest.mark.parametrize("rows", [37, 7])
@pytest.mark.parametrize("name", FAX)
def test_fax_codes_are_followed_to_the_last_row(name: str, rows: int, reverse: int) -> None:
    noise = Image.fromarray(samples(37, 2700, 1, 1)[..., 0] > 0)
    for image in (noise, smooth(37, 2700).convert("1"), Image.new("1", (2700, 37), 1)):
        for two in (0, 1) if name == "group3" else (0,):
            tags = {278: rows, 266: reverse, **({292: two} if name == "group3" else {})}
            data = saved(image, "TIFF", compression=name, tiffinfo=tags)
            assert differs(data, np.asarray(image.convert("RGB"))) == 0


def test_damaged_fax_codes_are_found() -> None:
    data = saved(smooth(96, 128).convert("1"), "TIFF", compression="group4")
    tags = Image.open(io.BytesIO(data)).tag_v2
    start, size = tags[273][0], tags[279][0]
    strip = data[start : start + size]
    assert ccitt.whole_rows(strip, 128, 96, ccitt.GROUP_4, False) == 96
    assert ccitt.whole_rows(strip[: size // 2], 128, 96, ccitt.GROUP_4, False) < 60
    damaged = data[: start + 40] + bytes.fromhex("001001") + data[start + 43 :]
    error = reason(damaged)
    assert error.error_class == "unreadable" and "fax codes break off at row" in error.reason


@pytest.mark.parametrize("name", [name for name in valid_files() if not name.startswith("tiff-")])
def test_the_second_decoder_sees_the_same(name: str) -> None:
    """OpenCV, whose JPEGs differ by a level or two of rounding."""
    data = valid_files()[name]
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    seen = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if seen is None or "png-" in name or name == "four inks":  # it leaves transparency out
        pytest.skip("the second decoder does not read it")
    lossy = name.startswith(("JPEG", "MPO", "WEBP", "AVIF", "YCbCr", "TIFF compression jpeg"))
    assert differs(data, seen[..., ::-1]) <= (3 if lossy else HALF)


# What was wrong once


def test_a_colour_of_a_16_bit_png_is_transparent_only_where_all_its_bits_agree() -> None:
    pixels = np.full((12, 12, 1), 0x1234, np.uint16)
    pixels[6:] = 0x1235
    data = png(pixels, 16, GREY, before=chunk(b"tRNS", b"\x12\x34"))
    levels = decode(data, "r").pixels
    assert (levels[:6] == 255).all() and (levels[6:] == 18).all()


@pytest.mark.parametrize("colour", [RGB, GREY_ALPHA])
def test_deep_pngs_are_turned_as_they_say(colour: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = samples(12, 20, 3 if colour == RGB else 2, 16)
    block = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    flat = decode(png(pixels, 16, colour), "r").pixels
    turned = decode(png(pixels, 16, colour, behind=block), "r")
    assert (turned.width, turned.height) == (12, 20)
    assert (turned.pixels == np.rot90(flat, -1)).all()


@pytest.mark.parametrize("text", [b"zTXt", b"iCCP", b"tEXt", b"iTXt"])
def test_large_profiles_and_texts_of_a_png_are_left_out(text: bytes) -> None:
    bomb = {
        b"zTXt": b"Comment\0\0" + zlib.compress(bytes(5_000_000)),
        b"iCCP": b"profile\0\0" + zlib.compress(bytes(5_000_000)),
        b"tEXt": b"Comment\0" + b"a" * 3_000_000,
        b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"a" * 80_000_000),
    }[text]
    pixels = np.asarray(smooth())
    before = decode(png(pixels, 8, RGB, before=chunk(text, bomb)), "r").pixels
    behind = decode(png(pixels, 8, RGB, behind=chunk(text, bomb)), "r").pixels
    assert (before == pixels).all() and (behind == pixels).all()


def test_a_wrong_checksum_is_a_reason_only_where_pixels_depend_on_it() -> None:
    pixels = np.asarray(smooth())
    remark = bytearray(chunk(b"gAMA", b"\0\1\2\3"))
    remark[-1] ^= 1
    assert (decode(png(pixels, 8, RGB, before=bytes(remark)), "r").pixels == pixels).all()

    for name in (b"IHDR", b"IDAT"):
        data = bytearray(png(pixels, 8, RGB))
        place = data.index(name)
        length = int.from_bytes(data[place - 4 : place], "big")
        data[place + 4 + length] ^= 1
        error = reason(bytes(data))
        assert error.reason == (
            f"the PNG is damaged: the checksum of its {name.decode()} chunk is wrong"
        )


def test_a_jpeg_is_whole_without_its_end_and_cut_without_its_rows() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0, "quality": 95}):
        data = saved(smooth(96, 128), "JPEG", **options)
        assert data.endswith(b"\xff\xd9")
        assert (decode(data[:-2], "r").pixels == decode(data, "r").pixels).all()
    cut = data[: len(data) * 9 // 10]
    error = reason(cut)
    assert error.error_class == "truncated" and "of 96 rows are there" in error.reason
    rows = int(error.reason.split(": ")[1].split()[0])
    assert 60 < rows < 96
    there = decode(cut, "r", min_rows=0.5)
    assert (there.pixels[:rows] == decode(data, "r").pixels[:rows]).all()
    assert there.own_rows == rows / 96 and decode(data[:-2], "r").own_rows == 1
    assert reason(data[: len(data) // 30]).error_class in ("truncated", "unreadable")


def test_a_tile_counts_as_a_picture_does() -> None:
    """122 bytes that would take 2.2 GB."""
    entries = [
        (256, 3, 30),
        (257, 3, 30),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (322, 4, 47_000),
        (323, 4, 47_000),
        (324, 4, 100),
        (325, 4, 20),
    ]
    directory = b"".join(
        tag.to_bytes(2, "little")
        + kind.to_bytes(2, "little")
        + (1).to_bytes(4, "little")
        + value.to_bytes(4, "little")
        for tag, kind, value in entries
    )
    head = b"II*\0\x08\0\0\0" + len(entries).to_bytes(2, "little")
    error = reason(head + directory + bytes(4))
    assert error.error_class == "too_large" and "a tile of the TIFF" in error.reason


def test_formats_that_take_much_memory_are_limited_by_it() -> None:
    limits = {"max_pixels": 4_000_000, "largest_side": None}
    for kind, side in (("JPEG", 2000), ("WEBP", 1500), ("JPEG2000", 1600)):
        data = saved(Image.new("RGB", (side, side)), kind, **FASTEST.get(kind, {}))
        if kind == "JPEG":
            assert decode(data, "r", **limits).width == side
        with pytest.raises(DecodeError, match="pixels") as caught:
            decode(data, "r", max_pixels=side * side - 1)
        assert caught.value.error_class == "too_large"
    costly = saved(Image.new("RGB", (2000, 2000)), "WEBP", method=0)
    with pytest.raises(DecodeError, match="decoding that WEBP takes 0.1 GB") as caught:
        decode(costly, "r", **limits)
    assert caught.value.error_class == "too_large"


def test_the_reader_is_asked_before_a_pixel_is_decoded() -> None:
    asked: list[int] = []
    decode(saved(smooth(), "PNG"), "r", reserve=asked.append)
    assert len(asked) == 1 and asked[0] >= 7 * 37 * 45


def test_heif() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(smooth(64, 96)).save(buffer, quality=95)
    image = decode(buffer.getvalue(), "r")
    assert (image.width, image.height) == (96, 64)
    assert np.abs(image.pixels.astype(int) - np.asarray(smooth(64, 96))).mean() < 6


# The cases that were reported


@pytest.fixture
def case(shared_data: Callable[[str], Path]) -> Callable[[str], bytes]:
    return lambda name: shared_data(f"cases/img-{name}").read_bytes()


def gradient() -> np.ndarray:
    y, x = np.mgrid[:96, :128]
    return np.stack([2 * x % 256, 2 * y % 256, (x + y) % 256], 2)


def test_reported_pictures_that_are_good(case: Callable[[str], bytes]) -> None:
    assert (decode(case("dib/gradient.dib"), "r").pixels == gradient()).all()
    assert (decode(case("png-large-icc/icc.png"), "r").pixels == gradient()).all()
    assert decode(case("png-badcrc/gama_crc.png"), "r").pixels.any()
    grey = decode(case("png16-trns/gray16_trns.png"), "r").pixels
    assert (grey[: len(grey) // 2] == 255).all() and (grey[-1] < 255).any()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = Image.open(io.BytesIO(case("animated/a.webp"))).convert("RGB")
    assert (decode(case("animated/a.webp"), "r").pixels == np.asarray(first)).all()
    assert decode(case("jpeg-cut/no_eoi.jpg"), "r").height == 96
    assert decode(case("jpeg-cut/cut_10.jpg"), "r", min_rows=0.8).height == 96


def test_reported_pictures_that_are_not(case: Callable[[str], bytes]) -> None:
    for name in ("bad0", "bad1", "bad2"):
        assert reason(case(f"tiff-g4-damaged/{name}.tif")).error_class == "unreadable"
    assert decode(case("tiff-g4-damaged/good.tif"), "r").width
    signed = reason(case("tiff-int16/int16.tif"))
    assert signed.error_class == "unsupported" and "signed whole numbers of 16" in signed.reason
    assert "floating-point" in reason(case("tiff-int16/float01.tif")).reason
    assert "15 of 96 rows" in reason(case("jpeg-cut/cut_half.jpg")).reason
