"""Decoding: every kind of file of a crawl comes out as the expected upright RGB, or as a named
reason.
"""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image as PillowImage

from rrt_core.images import DecodeError, Image, decode

ORIENTATION = 0x0112


@pytest.fixture(autouse=True)
def _no_warning_surfaces():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def scene(height: int = 24, width: int = 36) -> np.ndarray:
    """Four quarters of plain colours, so that lossy codecs stay near and every turn shows."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (220, 30, 40)
    pixels[: height // 2, width // 2 :] = (30, 200, 60)
    pixels[height // 2 :, : width // 2] = (20, 40, 210)
    pixels[height // 2 :, width // 2 :] = (240, 220, 50)
    return pixels


def saved(image: PillowImage.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_16_bits(samples: np.ndarray) -> bytes:
    """A PNG of 16-bit RGB, which Pillow can read but not write."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def refused(
    data: bytes, box: tuple[float, float, float, float] | None = None, **limits: int
) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(data, "r", box, **limits)
    assert caught.value.reason and "\n" not in caught.value.reason
    return caught.value


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("PPM", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 12),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 12),
        ("JPEG2000", {"irreversible": False}, 1),
    ],
)
def test_formats(kind: str, options: dict[str, object], tolerance: int) -> None:
    image = decode(saved(PillowImage.fromarray(scene()), kind, **options), "a/b.jpg")
    assert isinstance(image, Image) and image.record_id == "a/b.jpg"
    assert (
        image.pixels.dtype == np.uint8
        and image.pixels.flags.c_contiguous
        and image.pixels.flags.writeable
    )
    assert (image.width, image.height, image.origin, image.resize_factor) == (
        36,
        24,
        (0.0, 0.0),
        1.0,
    )
    assert np.abs(image.pixels.astype(int) - scene()).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    # What the camera stored, made from the upright scene by the inverse of each turn (EXIF 2.3, tag
    # 274).
    upright = scene()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = PillowImage.Exif()
    exif[ORIENTATION] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = saved(PillowImage.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    image = decode(data, "r")
    assert (image.width, image.height) == (36, 24)
    assert np.abs(image.pixels.astype(int) - upright).max() <= 12


def test_broken_exif_is_ignored() -> None:
    data = saved(
        PillowImage.fromarray(scene()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage"
    )
    assert decode(data, "r").pixels.shape == (24, 36, 3)


def test_cmyk_jpeg_and_tiff() -> None:
    # Pillow writes JPEGs of four inks as Adobe does, inverted; TIFF holds them as they are.
    cmyk = PillowImage.fromarray(scene()).convert("CMYK")
    for data, tolerance in (
        (saved(cmyk, "JPEG", quality=97, subsampling=0), 8),
        (saved(cmyk, "TIFF"), 0),
    ):
        assert np.abs(decode(data, "r").pixels.astype(int) - scene()).max() <= tolerance


def test_grey_of_16_bits_is_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 24 * 36).reshape(24, 36).astype(np.uint16)
    expected = np.round(values / 257.0)
    for kind in ("PNG", "TIFF", "PPM"):
        got = decode(saved(PillowImage.fromarray(values), kind), "r").pixels
        assert np.abs(got.astype(int) - expected[..., None]).max() <= 1
        assert got.max() == 255 and got.min() == 0


def test_rgb_of_16_bits() -> None:
    samples = scene().astype(np.uint16) * 257
    assert np.abs(decode(png_of_16_bits(samples), "r").pixels.astype(int) - scene()).max() <= 1


def test_pixels_of_32_bits_are_refused() -> None:
    for mode in ("F", "I"):
        assert refused(saved(PillowImage.new(mode, (20, 20)), "TIFF")).error_class == "unsupported"


def test_transparency_lies_over_white() -> None:
    colours = np.concatenate([scene(), np.full((24, 36, 1), 255, np.uint8)], axis=2)
    colours[:, :10, 3] = 0
    colours[:, 10:20, 3] = 128
    alpha = colours[..., 3:].astype(float) / 255
    expected = scene() * alpha + 255 * (1 - alpha)
    got = decode(saved(PillowImage.fromarray(colours, "RGBA"), "PNG"), "r").pixels
    assert np.abs(got - expected).max() <= 1

    grey = np.stack([scene()[..., 0], colours[..., 3]], axis=2)
    got = decode(saved(PillowImage.fromarray(grey, "LA"), "PNG"), "r").pixels
    assert np.abs(got - (grey[..., :1] * alpha + 255 * (1 - alpha))).max() <= 1


def test_palettes() -> None:
    palette = PillowImage.fromarray(scene()).quantize(4)
    assert np.abs(decode(saved(palette, "PNG"), "r").pixels.astype(int) - scene()).max() <= 2
    clear = palette.getpixel((0, 0))
    for transparency in (clear, bytes(0 if index == clear else 255 for index in range(4))):
        got = decode(saved(palette, "PNG", transparency=transparency), "r").pixels
        assert (got[:12, :18] == 255).all() and np.abs(
            got[12:].astype(int) - scene()[12:]
        ).max() <= 2


def test_bilevel_and_grey() -> None:
    grey = PillowImage.fromarray(scene()[..., 0])
    assert (decode(saved(grey, "PNG"), "r").pixels == scene()[..., :1]).all()
    bilevel = grey.point(lambda value: 255 * (value > 100)).convert("1")
    assert (
        decode(saved(bilevel, "TIFF"), "r").pixels == np.where(scene()[..., :1] > 100, 255, 0)
    ).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind: str) -> None:
    first, second = PillowImage.fromarray(scene()), PillowImage.new("RGB", (36, 24), (0, 0, 0))
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    data = saved(first, kind, save_all=True, append_images=[second], duration=100, **options)
    assert np.abs(decode(data, "r").pixels.astype(int) - scene()).max() <= 2


def test_box_is_rounded_and_clipped() -> None:
    data = saved(PillowImage.fromarray(scene()), "PNG")
    image = decode(data, "r", (3.4, 2.6, 20.2, 15.0))
    assert image.origin == (3.0, 3.0) and (image.width, image.height) == (36, 24)
    assert (image.pixels == scene()[3:18, 3:24]).all()  # corners 3.4, 2.6, 23.6, 17.6
    assert image.resize_factor == pytest.approx(21 / 36)
    clipped = decode(data, "r", (-5, 10, 1000, 1000))
    assert (
        clipped.origin == (0.0, 10.0)
        and (clipped.pixels == scene()[10:]).all()
        and clipped.resize_factor == 1.0
    )


def test_box_counts_in_the_upright_picture() -> None:
    exif = PillowImage.Exif()
    exif[ORIENTATION] = 6
    data = saved(
        PillowImage.fromarray(np.ascontiguousarray(np.rot90(scene(), 1))), "PNG", exif=exif
    )
    assert (decode(data, "r", (20, 0, 16, 12)).pixels == scene()[:12, 20:]).all()


@pytest.mark.parametrize(
    "box", [(40, 0, 10, 10), (5, 5, 0, 10), (5, 5, -3, 10), (float("nan"), 0, 9, 9)]
)
def test_boxes_without_pixels(box: tuple[float, float, float, float]) -> None:
    assert refused(saved(PillowImage.fromarray(scene()), "PNG"), box).error_class == "bad_box"


def test_sizes_are_limited_by_the_header_alone() -> None:
    ok = saved(PillowImage.fromarray(scene()), "PNG")
    assert refused(ok, max_pixels=24 * 36 - 1).error_class == "too_large"
    assert decode(ok, "r", max_pixels=24 * 36).width == 36
    # A header that promises 60,000 x 60,000 pixels and no pixel behind it: decoding would need 10
    # GB.
    for side in (60_000, 12_000):
        bomb = bytearray(ok)
        bomb[16:24] = struct.pack(">II", side, side)
        bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
        assert refused(bytes(bomb)).error_class == "too_large"


def test_small_pictures_and_boxes() -> None:
    assert refused(saved(PillowImage.new("RGB", (100, 9)), "PNG")).error_class == "too_small"
    assert decode(saved(PillowImage.new("RGB", (100, 10)), "PNG"), "r").height == 10
    assert decode(saved(PillowImage.new("RGB", (1, 1)), "PNG"), "r", min_side=1).width == 1
    assert "box" in refused(saved(PillowImage.fromarray(scene()), "PNG"), (0, 0, 5, 20)).reason


def test_what_is_no_image() -> None:
    assert refused(b"").error_class == "empty"
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n"
    for data in (b"\0", b"<html>not found</html>", postscript, bytes(5000)):
        assert refused(data).error_class == "unreadable"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_and_damaged_files(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = saved(PillowImage.fromarray(noise), kind)
    classes = {
        refused(data[:length]).error_class for length in (len(data) // 2, len(data) * 9 // 10)
    }
    assert classes <= {"truncated", "unreadable"}
    if kind in ("JPEG", "PNG", "BMP"):
        assert classes == {"truncated"}
    generator = np.random.default_rng(1)
    for _ in range(60):  # whatever the bytes: an image or a DecodeError, never anything else
        damaged = bytearray(data)
        for place in generator.integers(0, min(len(data), 400), 4):
            damaged[place] = generator.integers(0, 256)
        try:
            decode(bytes(damaged), "r", max_pixels=1_000_000, largest_side=8)
        except DecodeError as error:
            assert error.error_class


# Decoding at a half, a quarter, an eighth


def smooth(height: int, width: int) -> np.ndarray:
    """Slow waves of colour: nothing that a codec or a reduction could lose."""
    y, x = np.mgrid[:height, :width] * (2 * np.pi / 150)
    return np.stack(
        [128 + 100 * np.sin(x), 128 + 100 * np.cos(y), 128 + 80 * np.sin(x + y)], 2
    ).astype(np.uint8)


@pytest.mark.parametrize(
    ("width", "height", "largest_side", "reduction"),
    [
        (448, 300, 224, 1),
        (895, 300, 224, 2),  # 448 columns: just enough
        (893, 300, 224, 1),
        (300, 1000, 224, 2),
        (1801, 1203, 224, 4),
        (1801, 1203, 100, 8),
        (1801, 7, 100, 4),  # a row must remain
        (1801, 1203, 2000, 1),
    ],
)
def test_jpegs_are_decoded_smaller(
    width: int, height: int, largest_side: int, reduction: int
) -> None:
    data = saved(PillowImage.fromarray(smooth(height, width)), "JPEG", quality=95)
    got = decode(data, "r", largest_side=largest_side, min_side=5)
    assert (got.width, got.height, got.origin, got.resize_factor) == (
        width,
        height,
        (0.0, 0.0),
        1.0,
    )
    assert (got.reduction, got.crop_size) == (reduction, (width, height))
    expected = PillowImage.open(io.BytesIO(data))
    if reduction > 1:
        expected.draft("RGB", (width // reduction, height // reduction))
    assert (got.pixels == np.asarray(expected)).all() and got.pixels.flags.c_contiguous
    assert got.span == (got.pixels.shape[1] * reduction, got.pixels.shape[0] * reduction)
    assert max(got.pixels.shape) >= min(2 * largest_side, width, height)
    full = decode(data, "r", min_side=5)
    assert (full.reduction, full.span) == (1, (width, height))
    assert (
        full.pixels.tobytes()
        == decode(data, "r", None, min_side=5, largest_side=None).pixels.tobytes()
    )


def test_only_whole_jpegs_are_decoded_smaller() -> None:
    picture = PillowImage.fromarray(smooth(800, 1000))
    for kind in ("PNG", "WEBP", "TIFF", "BMP"):
        assert decode(saved(picture, kind), "r", largest_side=50).reduction == 1
    box = decode(saved(picture, "JPEG"), "r", (100, 200, 300, 400), largest_side=50)
    assert (box.reduction, box.pixels.shape, box.crop_size, box.span) == (
        1,
        (400, 300, 3),
        (300, 400),
        (300, 400),
    )
    same = decode(saved(picture, "JPEG"), "r", (100, 200, 300, 400))
    assert (box.pixels == same.pixels).all() and box.origin == same.origin == (100.0, 200.0)


@pytest.mark.parametrize("kind", ["progressive", "grey", "inks", "two pictures"])
def test_every_kind_of_jpeg_is_decoded_smaller(kind: str) -> None:
    picture = PillowImage.fromarray(smooth(801, 1003))
    if kind == "grey":
        picture = picture.convert("L")
    data = {
        "progressive": lambda: saved(picture, "JPEG", progressive=True),
        "grey": lambda: saved(picture, "JPEG"),
        "inks": lambda: saved(picture.convert("CMYK"), "JPEG"),
        "two pictures": lambda: saved(picture, "MPO", save_all=True, append_images=[picture]),
    }[kind]()
    got = decode(data, "r", largest_side=100)
    assert (got.reduction, got.pixels.shape) == (4, (201, 251, 3))
    shrunk = np.asarray(
        picture.convert("RGB").resize((250, 200), PillowImage.Resampling.BOX, (0, 0, 1000, 800))
    )
    assert np.abs(got.pixels[:200, :250].astype(int) - shrunk).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_places_in_a_smaller_picture_that_was_turned(orientation: int) -> None:
    # Bright squares near the corners and in the middle; the sides are no multiples of the
    # reduction.
    width, height = 1003, 805
    squares = [(40, 40), (950, 44), (44, 750), (950, 752), (500, 400)]
    upright = np.full((height, width, 3), 20, np.uint8)
    for x, y in squares:
        upright[y - 16 : y + 16, x - 16 : x + 16] = 240
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL.Image.Transpose
    stored = PillowImage.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(PillowImage.Transpose(inverse[orientation]))
    exif = PillowImage.Exif()
    exif[ORIENTATION] = orientation
    got = decode(saved(stored, "JPEG", quality=95, exif=exif), "r", largest_side=60)
    assert (got.width, got.height, got.reduction, got.crop_size) == (
        width,
        height,
        8,
        (width, height),
    )
    rows, columns = got.pixels.shape[:2]
    assert (rows, columns) == (101, 126)
    weight = got.pixels[..., 0].astype(float) - 20
    for x, y in squares:
        middle = ((x - got.origin[0]) / 8, (y - got.origin[1]) / 8)
        across, down = np.arange(columns) + 0.5, np.arange(rows) + 0.5
        near = weight * (np.abs(across - middle[0]) < 5) * (np.abs(down - middle[1]) < 5)[:, None]
        found_x = got.origin[0] + (near.sum(0) @ across) / near.sum() * got.span[0] / columns
        found_y = got.origin[1] + (near.sum(1) @ down) / near.sum() * got.span[1] / rows
        assert abs(found_x - x) < 0.5 and abs(found_y - y) < 0.5


def test_limits_count_in_original_pixels() -> None:
    data = saved(PillowImage.fromarray(smooth(600, 1000)), "JPEG")
    assert refused(data, max_pixels=600_000 - 1, largest_side=20).error_class == "too_large"
    assert decode(data, "r", max_pixels=600_000, largest_side=20).reduction == 8
    assert decode(data, "r", min_side=600, largest_side=20).pixels.shape == (75, 125, 3)
    assert refused(data, min_side=601, largest_side=20).error_class == "too_small"
    assert refused(data[: len(data) // 2], largest_side=20).error_class == "truncated"


def test_decode_error_survives_processes() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("why", "unreadable")))
    assert (error.reason, error.error_class, str(error)) == ("why", "unreadable", "why")
