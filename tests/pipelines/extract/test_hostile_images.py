"""`extract` on a folder of all that a crawl brings: good images come out right, bad ones are rows
with a reason.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from pipelines.engines.local import pool
from pipelines.engines.settings import RunSettings
from pipelines.extract.isolated import Crashed, Isolated
from pipelines.extract.options import Options
from pipelines.extract.stage import run
from pipelines.sources.item import Item
from pipelines.storage.place import open_place
from pipelines.stores.gallery import Gallery
from pipelines.stores.locals import LocalsReader
from pipelines.stores.store import Store
from rrt_core import images
from rrt_core.extractors import Description
from schemas.image_list import ImageReference, decode_name, split_record_id
from tests.support.pictures import picture
from tests.support.stored import failure_rows
from tests.support.watching import EXTRACTOR, Running
from tests.tiny_extractor import TinyExtractor

ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def header_of_a_bomb() -> bytes:
    """A PNG of 20,000 x 20,000 pixels whose pixels nobody needs to write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def rotated() -> tuple[bytes, Image.Image]:
    """A JPEG that lies on its side and says so, and how it is to be seen."""
    upright = picture(1, 96, 64)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    return encoded(stored, "JPEG", quality=95, exif=exif), upright


def animation() -> bytes:
    """A GIF of three frames; the first counts."""
    frames = [picture(seed).quantize(64) for seed in (2, 3, 4)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def sixteen_bits() -> tuple[bytes, np.ndarray]:
    """A 16-bit grey PNG, and its 8-bit greys."""
    values = np.add.outer(np.arange(64) * 900, np.arange(96) * 90).clip(0, 65535).astype(np.uint16)
    return encoded(Image.fromarray(values), "PNG"), np.repeat(
        ((values.astype(int) + 128) // 257)[..., None], 3, 2
    )


GOOD_NAMES: dict[bytes, bytes] = {
    b"plain.png": encoded(picture(5), "PNG"),
    b"cmyk.jpg": encoded(picture(6).convert("CMYK"), "JPEG", quality=95),
    b"palette.png": encoded(picture(7).quantize(32), "PNG"),
    b"animated.gif": animation(),
    b"rotated.jpg": rotated()[0],
    b"sixteen.png": sixteen_bits()[0],
    b"a name, with 'quotes\" and  spaces.png": encoded(picture(8), "PNG"),
    b"line\nbreak\ttab.png": encoded(picture(9), "PNG"),
    "Straße 山 🗼.png".encode(): encoded(picture(10), "PNG"),
    b"latin1-\xe9t\xe9.png": encoded(picture(11), "PNG"),
    b"chain::file#fragment%20?query*.png": encoded(picture(12), "PNG"),
    b"sub folder/zip:/inner.PNG": encoded(picture(13), "PNG"),
}
BAD: dict[bytes, tuple[bytes, str]] = {
    b"truncated.jpg": (encoded(picture(14, 400, 300), "JPEG")[:3000], "truncated"),
    b"empty.jpg": (b"", "empty"),
    b"text.jpg": (b"this is not a picture\n" * 20, "unreadable"),
    b"one pixel.png": (encoded(Image.new("RGB", (1, 1)), "PNG"), "too_small"),
    b"bomb.png": (header_of_a_bomb(), "too_large"),
    b"kills-the-process.png": (encoded(picture(15), "PNG"), "crashed"),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; besides the images it holds what is to be passed over or cannot be read."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, data in {**GOOD_NAMES, **{name: data for name, (data, _) in BAD.items()}}.items():
        path = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(data)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(GOOD_NAMES[b"plain.png"])
    (folder / "sub folder/loop").symlink_to(folder)
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.fixture(scope="module")
def store(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store that the command line makes of it, with a few images a part."""
    folder = tmp_path_factory.mktemp("made")
    arguments = ["extract", "--images", str(hostile), "--out", f"{folder}/store", "--source", "s"]
    arguments += ["--extractor", EXTRACTOR, "--rows-per-part", "6", "--workers", "2"]
    running = Running(arguments, {"RRT_TEST_CRASH_ON": "kills-the-process"}, folder)
    assert running.end() == 0, running.text
    assert "Traceback" not in running.text
    return Store(f"{folder}/store")


def rows_of(store: Store) -> dict[bytes, tuple[int, Any]]:
    """File name -> (global row id, row as a dict)."""
    import pyarrow.parquet as pq

    found = {}
    for part in store.parts:
        table = pq.read_table(io.BytesIO(store.place.read(part.globals.name)))
        read = store.read_global(part)
        for number, row in enumerate(
            table.select(["record_id", "width", "height", "status", "bytes"]).to_pylist()
        ):
            source, name, box = split_record_id(row["record_id"])
            assert (source, box) == ("s", None)
            row["descriptor"] = read.descriptors[number]
            found[decode_name(name)] = (int(store.row_ids(part, np.array([number]))[0]), row)
    return found


def test_every_image_is_a_row_and_every_bad_one_has_its_reason(store: Store) -> None:
    rows = rows_of(store)
    unreadable = {b"dangling.png", b"pipe.png"}
    assert set(rows) == {*GOOD_NAMES, *BAD, *unreadable}
    good = {name for name, (_, row) in rows.items() if row["status"] == "ok"}
    assert good == set(GOOD_NAMES)
    counts = store.manifest.counts
    assert (counts.inputs, counts.succeeded, counts.failed) == (
        len(rows),
        len(good),
        len(rows) - len(good),
    )
    failures = failure_rows(
        store.place, [part.failures.name for part in store.parts if part.failures]
    )
    classes = {decode_name(split_record_id(row.record_id)[1]): row.error_class for row in failures}
    assert classes == {
        **{name: kind for name, (_, kind) in BAD.items()},
        **dict.fromkeys(unreadable, "unreadable"),
    }
    assert all(len(row.reason) > 10 for row in failures)
    for name in classes:
        assert not rows[name][1]["descriptor"].any(), "a failed row has zeros for a descriptor"


def truth_of(name: bytes) -> np.ndarray:
    """The pixels as they are to be seen, decoded here by other means where the format is a trap."""
    if name == b"rotated.jpg":
        stored = np.asarray(Image.open(io.BytesIO(GOOD_NAMES[name])))
        return np.rot90(stored, -1)
    if name == b"sixteen.png":
        return sixteen_bits()[1].astype(np.uint8)
    return np.asarray(Image.open(io.BytesIO(GOOD_NAMES[name])).convert("RGB"))


def described(name: bytes) -> Description:
    """What the plain extractor says of the picture."""
    pixels = np.ascontiguousarray(truth_of(name))
    answer = TinyExtractor().describe(
        [images.Image("x", pixels, pixels.shape[1], pixels.shape[0])]
    )[0]
    assert isinstance(answer, Description)
    return answer


@pytest.mark.parametrize("name", sorted(GOOD_NAMES))
def test_good_images_are_described_upright_and_right(name: bytes, store: Store) -> None:
    row_id, row = rows_of(store)[name]
    wanted = described(name)
    assert (row["width"], row["height"]) == truth_of(name).shape[1::-1]
    assert row["bytes"] == len(GOOD_NAMES[name])
    assert np.array_equal(row["descriptor"], wanted.global_descriptor.astype(np.float16))
    found = LocalsReader(Gallery([store])).read(np.array([row_id]), row["descriptor"][None], 500)[0]
    assert np.array_equal(
        found.descriptors, wanted.descriptors.astype(np.float16).astype(np.float32)
    )
    assert np.array_equal(found.xy, wanted.xy) and np.array_equal(found.strength, wanted.strength)


def test_the_rotated_image_is_seen_as_its_upright_self() -> None:
    seen, meant = truth_of(b"rotated.jpg").astype(int), np.asarray(rotated()[1]).astype(int)
    assert seen.shape == meant.shape and np.abs(seen - meant).mean() < 6


def descriptors_of(url: str) -> dict[str, list[bytes]]:
    """Record id -> bytes of the global and of each local dataset."""
    store = Store(url)
    found = {}
    for part in store.parts:
        read = store.read_global(part)
        assert part.locals is not None
        with h5py.File(io.BytesIO(store.place.read(part.locals.name))) as file:
            offsets = file["offset"][:]
            for place, row in enumerate(file["row"][:]):
                span = slice(offsets[place], offsets[place + 1])
                pieces = [
                    file[name][span].tobytes() for name in ("descriptor", "xy", "scale", "strength")
                ]
                found[read.record_ids[row]] = [read.descriptors[row].tobytes(), *pieces]
    return found


def same_bytes_in_any_company(folder: Path, out: Path, **options: Any) -> None:
    """An image described alone, in mid-batch and in another part gives the same bytes."""
    made: list[dict[str, list[bytes]]] = []
    for rows in (1, 3, 30):
        url = str(out / f"rows-{rows}")
        run(
            Options(images=str(folder), out=url, rows_per_part=rows, **options),
            RunSettings(workers=2),
        )
        made.append(descriptors_of(url))
    assert len(made[0]) == len(list(folder.iterdir()))
    assert made[0] == made[1] == made[2]


@pytest.fixture
def no_workers_left() -> Any:
    """Workers are ended after the test."""
    yield
    pool.close_pool()


def test_same_bytes_alone_in_a_batch_and_in_another_part(
    photographs: Path, tmp_path: Path, no_workers_left: Any
) -> None:
    same_bytes_in_any_company(photographs, tmp_path, extractor=EXTRACTOR)


WEIGHTS = (
    Path(__file__).resolve().parents[3] / "rrt_core/weights/efficientnet_whitening.safetensors"
)


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.exists(), reason="the whitening weights are missing")
def test_same_bytes_of_the_real_network(tmp_path: Path, no_workers_left: Any) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, size in enumerate([(160, 120), (120, 160), (160, 120), (200, 90), (160, 120)]):
        picture(number, *size).save(folder / f"{number}.png")
    options = {"sizes": [128, 96], "max_locals": 20}
    same_bytes_in_any_company(folder, tmp_path, extractor="efficientnet", extractor_option=options)


class FailsOn(TinyExtractor):
    """Raises on dark pictures, as a bug in a network's code would."""

    def _one(self, image: images.Image) -> Description:
        if image.pixels.max() == 0:
            raise ZeroDivisionError("a picture without light")
        return super()._one(image)


def test_an_extractor_that_raises_on_one_image_costs_that_image_alone(
    tmp_path: Path, no_workers_left: Any
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        picture(number).save(folder / f"{number}.png")
    Image.new("RGB", (50, 50)).save(folder / "dark.png")
    options = Options(
        images=str(folder),
        out=str(tmp_path / "store"),
        extractor="tests.pipelines.extract.test_hostile_images:FailsOn",
    )
    counts = run(options, RunSettings(workers=1)).counts
    assert (counts.succeeded, counts.failed) == (4, 1)
    store = Store(options.out)
    assert store.parts[0].failures
    row = failure_rows(open_place(options.out), [store.parts[0].failures.name])[0]
    assert row.error_class == "error" and "ZeroDivisionError: a picture without light" in row.reason


def test_an_image_that_never_ends_is_given_up(hostile: Path) -> None:
    """In the child that describes one by one; afterwards the next image finds a new child."""
    options = {
        "extractor": EXTRACTOR,
        "extractor_option": {"seconds": 60},
        "max_pixels": 10_000,
        "min_side": 10,
    }
    location = os.path.join(os.fsencode(hostile), b"plain.png")
    with Isolated(options, 1, seconds=0.5) as child:
        with pytest.raises(Crashed, match=r"no answer for 0\.5 seconds"):
            child.describe(Item(ImageReference("s/plain.png", "s", location)))
        child.seconds = 60.0
        empty = ImageReference("s/empty.jpg", "s", location.replace(b"plain.png", b"empty.jpg"))
        described = child.describe(Item(empty))
        assert described.failure is not None and described.failure.error_class == "empty"
