"""Image files of every kind that a test can generate, and what their pixels should come out as."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tifffile
from PIL import Image

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # PNG's colour types
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), PALETTE: (1, 2, 4, 8)}
PASSES = [
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
]


def samples(height: int, width: int, channels: int, depth: int, seed: int = 0) -> np.ndarray:
    """Random samples [H, W, C] of a depth: uint8 up to 8 bits, else uint16."""
    kind = np.uint8 if depth <= 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 1 << depth, (height, width, channels), kind)


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    length, checksum = struct.pack(">I", len(body)), struct.pack(">I", zlib.crc32(name + body))
    return length + name + body + checksum


def _packed(rows: np.ndarray, depth: int) -> bytes:
    """Rows [H, W, C] with PNG's filter byte 0 each."""
    lines = []
    for row in rows.reshape(len(rows), -1):
        if depth < 8:
            bits = (row[:, None] >> np.arange(depth - 1, -1, -1)) & 1
            line = np.packbits(bits.astype(np.uint8).ravel()).tobytes()
        else:
            line = row.astype(">u2" if depth == 16 else np.uint8).tobytes()
        lines.append(b"\0" + line)
    return b"".join(lines)


def png(
    pixels: np.ndarray,
    depth: int,
    colour: int,
    *,
    interlaced: bool = False,
    before: bytes = b"",
    behind: bytes = b"",
) -> bytes:
    """A PNG of samples [H, W, C]; chunks before and behind its pixels."""
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    if interlaced:
        parts = (pixels[y::down, x::across] for x, y, across, down in PASSES)
        body = b"".join(_packed(part, depth) for part in parts if part.size)
    else:
        body = _packed(pixels, depth)
    packed = chunk(b"IDAT", zlib.compress(body))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + before + packed + behind + chunk(b"IEND", b"")


def over_white(colours: np.ndarray, alpha: np.ndarray, most: int) -> np.ndarray:
    """Exact levels 0..255, as floats [H, W, 3], of samples 0..most over white."""
    share = alpha.astype(float) / most
    shown = (colours / most * share + (1 - share)) * 255
    return np.broadcast_to(shown, (*shown.shape[:2], 3))


def pngs() -> Iterator[tuple[str, bytes, np.ndarray]]:
    """Name, bytes and exact levels of PNGs of all depths, types, interlace and transparency."""
    palette = samples(1, 256, 3, 8, 7)[0]
    for colour in CHANNELS:
        for depth in DEPTHS.get(colour, (8, 16)):
            for interlaced in (False, True):
                for clear in (False, True) if colour in (GREY, RGB, PALETTE) else (False,):
                    pixels = samples(13, 21, CHANNELS[colour], depth, depth)
                    most, before = (1 << depth) - 1, b""
                    alpha = np.full((13, 21, 1), most)
                    if colour == PALETTE:
                        before = chunk(b"PLTE", palette[: 1 << depth].tobytes())
                        if clear:
                            before += chunk(b"tRNS", b"\0")
                            alpha = np.where(pixels == 0, 0, 255)
                        colours, most = palette[pixels[..., 0]], 255
                        alpha = alpha if clear else np.full((13, 21, 1), 255)
                    else:
                        colours = pixels[..., : 3 if colour in (RGB, RGB_ALPHA) else 1]
                        if colour in (GREY_ALPHA, RGB_ALPHA):
                            alpha = pixels[..., -1:]
                        elif clear:
                            one = pixels[3, 4]
                            before = chunk(b"tRNS", one.astype(">u2").tobytes())
                            alpha = np.where((pixels == one).all(2, keepdims=True), 0, most)
                    name = f"png-{colour}-{depth}-{'i' if interlaced else 'p'}-{clear}"
                    data = png(pixels, depth, colour, interlaced=interlaced, before=before)
                    yield name, data, over_white(colours, alpha, most)


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    """A TIFF by tifffile."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def tiffs() -> Iterator[tuple[str, bytes, np.ndarray | None]]:
    """Name, bytes and exact levels of TIFFs; None for levels where no range is agreed."""
    for kind in ("u1", "u2", "i1", "i2", "u4", "f2", "f4", "f8", "bool"):
        for channels in (1, 2, 3, 4):
            for planar in ("contig", "separate"):
                for tile in (None, (16, 32)):
                    for order in "<>":
                        for packing in (None, "zlib"):
                            made = _tiff(kind, channels, planar, tile, order, packing)
                            if made is not None:
                                yield made


def _tiff(
    kind: str, channels: int, planar: str, tile: Any, order: str, packing: str | None
) -> tuple[str, bytes, np.ndarray | None] | None:
    if (channels == 1 and planar == "separate") or (kind == "bool" and channels > 1):
        return None
    pixels = samples(37, 45, channels, 16, channels)
    dtype = np.dtype(kind)
    pixels = pixels > 30_000 if kind == "bool" else (pixels >> (8 * (dtype.itemsize == 1)))
    pixels = (pixels // 2 if kind == "f2" else pixels).astype(dtype)
    stored = pixels[..., 0] if channels == 1 else pixels
    stored = np.moveaxis(stored, 2, 0) if planar == "separate" else stored
    options: dict[str, Any] = {"tile": tile, "byteorder": order, "compression": packing}
    options["photometric"] = "rgb" if channels > 2 else "minisblack"
    if channels > 1:
        options["planarconfig"] = planar
    if channels in (2, 4):
        options["extrasamples"] = ["unassalpha"]
    try:
        data = tiff(stored, rowsperstrip=None if tile else 11, **options)
    except (ValueError, TypeError):
        return None

    exact = None
    if kind in ("u1", "u2", "bool"):
        most = {"u1": 255, "u2": 65535, "bool": 1}[kind]
        opaque = np.full((37, 45, 1), most)
        alpha = pixels[..., -1:] if channels in (2, 4) else opaque
        exact = over_white(pixels[..., : 3 if channels > 2 else 1], alpha, most)
    name = f"tiff-{kind}-{channels}-{planar}-{'tiles' if tile else 'strips'}-{order}-{packing}"
    return name, data, exact


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A file by Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(height: int = 37, width: int = 45) -> Image.Image:
    """Slow gradients, which lossy codecs keep."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 5 % 256, y * 6 % 256, (x + y) % 256], 2).astype(np.uint8))


COMPRESSIONS = ("packbits", "tiff_lzw", "tiff_adobe_deflate", "lzma", "zstd")
FAX = ("tiff_ccitt", "group3", "group4")


def valid_files() -> dict[str, bytes]:
    """Small files of every format, and of the kinds that are decoded in ways of their own."""
    image, other = smooth(), smooth().rotate(90)
    files = {
        " ".join([kind, *options, str(options.get("compression", ""))]): saved(
            image, kind, **options
        )
        for kind, options in (
            ("JPEG", {}),
            ("JPEG", {"progressive": True}),
            ("MPO", {"save_all": True, "append_images": [other]}),
            ("PNG", {}),
            ("PNG", {"save_all": True, "append_images": [other]}),
            ("WEBP", {}),
            ("WEBP", {"lossless": True}),
            ("WEBP", {"save_all": True, "append_images": [other]}),
            ("GIF", {"save_all": True, "append_images": [other]}),
            ("BMP", {}),
            ("DIB", {}),
            ("PPM", {}),
            ("JPEG2000", {}),
            ("AVIF", {}),
            ("TIFF", {}),
            ("TIFF", {"compression": "jpeg"}),
            *(("TIFF", {"compression": name}) for name in COMPRESSIONS),
        )
    }
    files |= {name: saved(image.convert("1"), "TIFF", compression=name) for name in FAX}
    files["four inks"] = saved(image.convert("CMYK"), "JPEG")
    files["palette"] = saved(image.quantize(16), "BMP")
    files["YCbCr"] = saved(image.convert("YCbCr"), "TIFF", compression="tiff_lzw")
    files["plain PPM"] = b"P3 20 20 255 " + b"12 " * 1200
    files |= {name: data for name, data, _ in list(pngs())[::6]}
    files |= {name: data for name, data, exact in list(tiffs())[::9] if exact is not None}
    heif = io.BytesIO()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.from_pillow(image).save(heif)
        files["HEIF"] = heif.getvalue()
    return files


def with_sound_checksums(data: bytes) -> bytes:
    """A PNG whose chunks' checksums are made to hold again; other bytes as they are."""
    if not data.startswith(b"\x89PNG"):
        return data
    whole, place = [data[:8]], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if place + 12 + length > len(data):
            break
        name = data[place + 4 : place + 8]
        whole.append(chunk(name, data[place + 8 : place + 8 + length]))
        place += 12 + length
    return b"".join([*whole, data[place:]])
