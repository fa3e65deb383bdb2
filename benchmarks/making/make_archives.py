"""Make many different images out of real photographs, in tar.gz archives.

    python benchmarks/making/make_archives.py --out DIR
        [--images 20000] [--archives 20] [--longest 320] [--processes 2]

Photographs are those of $RRT_TEST_DATA/photos and products. Each image is a new JPEG: one
photograph's random crop of half to all of its sides, perhaps flipped, its longer side scaled to
--longest, of quality 80 to 95; all by --seed and the image's number alone, so that the bytes of an
archive are the same wherever and however often it is made (with one version of Pillow and zlib).
DIR/images.{1..20}.tar.gz hold jpg/<archive>/<number>.jpg; DIR/images.txt lists the names. No two
images have the same bytes, unless chance repeats itself; many show the same thing.
"""

from __future__ import annotations

import argparse
import gzip
import io
import itertools
import multiprocessing
import os
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures

DATA = Path(os.environ.get("RRT_TEST_DATA", ROOT.parent / "shared"))
SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Made:
    """One archive to make."""

    path: Path
    number: int
    first: int
    images: int
    longest: int
    seed: int


def names(archive: Made) -> list[str]:
    """Names of an archive's images."""
    return [
        f"jpg/{archive.number}/{image:07}.jpg"
        for image in range(archive.first, archive.first + archive.images)
    ]


def photographs() -> list[Path]:
    """The photographs that images are made of, in a fixed order."""
    folders = (DATA / "photos", DATA / "products")
    return sorted(
        path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES
    )


def make_image(files: list[Path], seed: int, number: int, longest: int) -> bytes:
    """The JPEG of one image."""
    chance = np.random.default_rng([seed, number])
    with Image.open(files[chance.integers(len(files))]) as opened:
        opened.draft("RGB", (2 * longest, 2 * longest))  # larger ones are decoded at a fraction
        photograph = opened.convert("RGB")
    width, height = (max(1, round(side * chance.uniform(0.5, 1.0))) for side in photograph.size)
    left, top = (
        chance.integers(photograph.width - width + 1),
        chance.integers(photograph.height - height + 1),
    )
    scale = longest / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = photograph.resize(
        size, Image.Resampling.BILINEAR, (left, top, left + width, top + height)
    )
    if chance.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=int(chance.integers(80, 96)))
    return encoded.getvalue()


def make_archive(archive: Made) -> int:
    """Write one archive, under its name only when it is whole; returns its size in bytes."""
    files = photographs()
    temporary = archive.path.with_name(archive.path.name + ".tmp")
    with (
        open(temporary, "wb") as file,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, number in zip(
            names(archive), range(archive.first, archive.first + archive.images), strict=True
        ):
            data = make_image(files, archive.seed, number, archive.longest)
            about = tarfile.TarInfo(name)  # owner, mode and time are fixed
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    temporary.replace(archive.path)
    return archive.path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--archives", type=int, default=20)
    parser.add_argument("--longest", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if not 1 <= options.archives <= options.images or options.longest < 1:
        raise SystemExit("--archives must be 1 to --images, --longest at least 1.")
    if not photographs():
        raise SystemExit(
            f"No .jpg or .png in {DATA}/photos and products: name their folder by RRT_TEST_DATA."
        )
    options.out.mkdir(parents=True, exist_ok=True)
    bounds = [options.images * number // options.archives for number in range(options.archives + 1)]
    planned = [
        Made(
            options.out / f"images.{n}.tar.gz", n, first, end - first, options.longest, options.seed
        )
        for n, (first, end) in enumerate(itertools.pairwise(bounds), 1)
    ]
    (options.out / "images.txt").write_text(
        "".join(f"{name}\n" for made in planned for name in names(made))
    )
    begun, size = time.monotonic(), 0
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for done, number_of_bytes in enumerate(pool.imap(make_archive, planned), 1):
            size += number_of_bytes
            print(
                f"\r{done} of {len(planned)} archives, {bounds[done]:,} images, "
                f"{size / 1e6:,.0f} MB, {time.monotonic() - begun:.0f} s",
                end="",
                flush=True,
            )
    print()
    print_figures(
        {
            "archives": len(planned),
            "images": options.images,
            "megabytes": size / 1e6,
            "seconds": time.monotonic() - begun,
        }
    )


if __name__ == "__main__":
    main()
