"""Generated damage of image files: pixels or a DecodeError, soon, in little memory, and never a
byte of memory that nobody wrote.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrt_core.images import DecodeError, decode
from tests.support.hostile import accepted, inputs
from tests.support.image_files import valid_files, with_sound_checksums

ROOT = Path(__file__).resolve().parents[2]
FILES = valid_files()
MOST_GROWTH = 1_100_000_000  # bytes, beside what the process holds anyhow
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF)

names = st.sampled_from(sorted(FILES))
places = st.floats(0, 1, exclude_max=True)
flips = st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)
fields = st.lists(
    st.tuples(places, st.sampled_from((2, 4)), st.sampled_from(EXTREMES)), min_size=1, max_size=3
)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """The whole process never grows by more than a picture may take."""
    before = psutil.Process().memory_info().rss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert after == peak or after - before < MOST_GROWTH


def decodes(data: bytes) -> bool:
    def read() -> None:
        image = decode(data, "r")
        assert image.pixels.shape == (image.height, image.width, 3)
        assert image.pixels.dtype == np.uint8

    return accepted(read, DecodeError)


@inputs(60)
@given(names, flips, st.booleans())
def test_flipped_bytes(name: str, changes: list[tuple[float, int]], repaired: bool) -> None:
    data = bytearray(FILES[name])
    for place, value in changes:
        data[int(place * len(data))] = value
    decodes(with_sound_checksums(bytes(data)) if repaired else bytes(data))


@inputs(60)
@given(names, fields)
def test_changed_header_fields(name: str, changes: list[tuple[float, int, int]]) -> None:
    data = bytearray(FILES[name])
    for place, size, value in changes:
        start = int(place * min(len(data), 160))
        data[start : start + size] = bytes([value]) * size
    decodes(with_sound_checksums(bytes(data)))


@inputs(60)
@given(names, places, places)
def test_cuts(name: str, place: float, length: float) -> None:
    data = FILES[name]
    start = int(place * len(data))
    decodes(data[:start])
    decodes(data[:start] + data[start + 1 + int(length * 60) :])


@inputs(60)
@given(names, names, places, places, st.integers(1, 200))
def test_spliced_chunks(name: str, other: str, at: float, source: float, length: int) -> None:
    data, more = FILES[name], FILES[other]
    place, start = int(at * len(data)), int(source * len(more))
    decodes(with_sound_checksums(data[:place] + more[start : start + length] + data[place:]))


PROGRAM = """
import hashlib, random, sys
from rrt_core.images import DecodeError, decode
from tests.support.image_files import valid_files

generator = random.Random(5)
for name, data in sorted(valid_files().items()):
    for number in range(int(sys.argv[1])):
        damaged = bytearray(data[: generator.randrange(1, len(data))] if number % 3 == 2 else data)
        for _ in range(generator.randrange(1, 4)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            said = hashlib.sha256(decode(bytes(damaged), "r").pixels.tobytes()).hexdigest()
        except DecodeError as error:
            said = error.error_class
        print(name, number, said)
"""
PLAIN = """
import io
from PIL import Image
from tests.support.image_files import valid_files

data = bytearray(valid_files()["group4"])
start = Image.open(io.BytesIO(bytes(data))).tag_v2[273][0]
data[start + 40 : start + 43] = bytes.fromhex("001001")  # an end of the block
image = Image.open(io.BytesIO(bytes(data)))
print(image.tobytes().hex())
"""


def said_under(poison: int, program: str, *arguments: str) -> str:
    """What a program says where the allocator fills memory with a value before it gives it out."""
    environment = {**os.environ, "MALLOC_PERTURB_": str(poison), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


def test_no_pixel_depends_on_memory_that_nobody_wrote() -> None:
    if said_under(85, PLAIN) == said_under(170, PLAIN):
        pytest.skip("this C library does not fill memory for MALLOC_PERTURB_")
    said = said_under(85, PROGRAM, "12")
    assert said == said_under(170, PROGRAM, "12")
    assert len(said.splitlines()) == 12 * len(FILES) and " unreadable" in said


@pytest.mark.parametrize("name", sorted(name for name in FILES if "separate" not in name))
def test_the_files_themselves_are_good(name: str) -> None:
    assert decodes(FILES[name])
