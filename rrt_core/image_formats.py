"""Which image formats decode here, by what they are recognised, and what helps with the others.

One table for all that asks: the reader of folders and archives, the decoder, the documentation.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

from PIL import features

HEAD_BYTES = 64  # of a file, from which its format is known

_HEIF_EXTRA = "install RRT_EXTRAS=heif"
_CONVERT = "convert to JPEG or PNG"


@dataclass(frozen=True)
class Format:
    """An image format.

    name      as Pillow names it
    suffixes  of its files, lower case
    begins    what the first bytes of a file look like
    needs     feature of Pillow, or package (`package:NAME`), without which it does not decode
    help      what to do where it does not
    """

    name: str
    suffixes: tuple[str, ...]
    begins: re.Pattern[bytes]
    needs: str = ""
    help: str = _CONVERT

    @property
    def decodes(self) -> bool:
        """Whether it decodes in this environment."""
        return _has(self.needs)


@cache
def _has(needs: str) -> bool:
    kind, _, package = needs.partition(":")
    if kind == "package":
        return find_spec(package) is not None
    return not needs or bool(features.check(needs))


def _format(name: str, suffixes: str, begins: bytes, needs: str = "", help: str = "") -> Format:
    pattern = re.compile(begins, re.DOTALL)
    return Format(name, tuple(f".{s}" for s in suffixes.split()), pattern, needs, help or _CONVERT)


def _brands(*brands: bytes) -> bytes:
    """Files of ISO boxes: the main brand, else one of the first compatible ones."""
    one_of = b"|".join(brands)
    return rb"[\0-\xff]{4}ftyp(?:(?:%b)|mif1.{4}(?:.{4})*?(?:%b))" % (one_of, one_of)


# Raster formats with a signature alone: Pillow would hand EPS to an external interpreter, and
# guesses wildly at formats that have none. DIB, which has none, is known by its whole header.
FORMATS = (
    _format("JPEG", "jpg jpeg jpe jfif mpo", rb"\xff\xd8\xff", "jpg"),
    _format("PNG", "png apng", rb"\x89PNG\r\n\x1a\n", "zlib"),
    _format("WEBP", "webp", rb"RIFF.{4}WEBP", "webp"),
    _format("GIF", "gif", rb"GIF8[79]a"),
    _format("BMP", "bmp", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    _format(
        "DIB",
        "dib",
        rb"\x0c\0\0\0.{4}\x01\0[\x01\x04\x08\x18]\0"
        rb"|[\x28\x34\x38\x40\x6c\x7c]\0\0\0.{8}\x01\0[\x01\x04\x08\x10\x18\x20]\0[\0-\x06]\0\0\0",
    ),
    _format("TIFF", "tif tiff", rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]|II\0\x2a|MM\x2a\0"),
    _format("PPM", "ppm pgm pbm pnm", rb"P(?:[1-6y]|0CMYK|0RGBA)[ \t\r\n\f\v]"),
    _format(
        "JPEG2000",
        "jp2 j2k j2c jpc jpf jpx",
        rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
        "jpg_2000",
    ),
    _format("AVIF", "avif avifs", _brands(b"avif", b"avis"), "avif"),
    _format(
        "HEIF",
        "heic heif heics heifs hif",
        _brands(b"hei[cxms]", b"hev[cxms]") + rb"|[\0-\xff]{4}ftyp(?:mif1|msf1)",
        "package:pillow_heif",
        _HEIF_EXTRA,
    ),
)

# Images, or what photographers keep beside them, that nothing here decodes.
_OTHERS = {
    "convert the raw photographs to JPEG": (
        "3fr arw cr2 cr3 crw dcr dng erf fff iiq k25 kdc mef mos mrw nef nrw orf pef raf raw rw2 "
        "rwl sr2 srf srw x3f"
    ),
    _CONVERT: (
        "bpg cur dds djvu emf eps exr fits flif hdr ico icns jls jxl jxr pcd pcx pdf pfm pict psb "
        "psd qoi ras sgi svg svgz tga wdp wmf xbm xcf xpm"
    ),
}


def known_formats() -> tuple[str, ...]:
    """Names of the formats that decode here."""
    return tuple(one.name for one in FORMATS if one.decodes)


@cache
def decodable_suffixes() -> frozenset[str]:
    """Suffixes of files that decode here, such as `.jpg`, lower case."""
    return frozenset(suffix for one in FORMATS if one.decodes for suffix in one.suffixes)


def has_image_suffix(name: str) -> bool:
    """Whether a file's name ends as those of images that decode here."""
    return os.path.splitext(name)[1].lower() in decodable_suffixes()


def format_of(first_bytes: bytes) -> Format | None:
    """The format that a file's first bytes (HEAD_BYTES or more) announce; also one that does not
    decode here.
    """
    head = first_bytes[:HEAD_BYTES]
    return next((one for one in FORMATS if one.begins.match(head)), None)


def looks_like_image(first_bytes: bytes) -> str:
    """The format that a file's first bytes (HEAD_BYTES or more) announce; "" for none that decodes
    here.
    """
    found = format_of(first_bytes)
    return found.name if found is not None and found.decodes else ""


def advice(suffix: str) -> str:
    """What makes files of a suffix fit to be described.

    "" where they decode here as they are, and where no image format has the suffix.
    """
    suffix = suffix.lower()
    for one in FORMATS:
        if suffix in one.suffixes:
            return "" if one.decodes else one.help
    return next((fix for fix, names in _OTHERS.items() if suffix[1:] in names.split()), "")
