"""Describing in a worker: what ends it, what a child process says, and how much memory what waits
may take.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.extract import batches as describing
from pipelines.extract.batches import batched, isolated
from pipelines.extract.describer import Describer
from pipelines.extract.isolated import Isolated
from pipelines.sources.item import Item, read_location
from rrt_core.images import Image
from schemas.errors import Unreachable, UserError
from schemas.image_list import ImageReference
from tests.support.pictures import picture
from tests.support.watching import EXTRACTOR
from tests.tiny_extractor import TinyExtractor

ROOT = Path(__file__).resolve().parents[3]
HERE = "tests.pipelines.extract.test_describing"
OPTIONS: dict[str, Any] = {
    "extractor": EXTRACTOR,
    "extractor_option": {},
    "max_pixels": 10**8,
    "min_side": 10,
    "decoders": 2,
    "image_seconds": 60.0,
    "locals": "all",
}
MEGABYTE = 1_000_000


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def item(name: str, data: bytes | None = None, location: bytes = b"") -> Item:
    return Item(ImageReference(f"s/{name}", "s", location), data)


class Refused(TinyExtractor):
    """Says on a picture what a user has to mend, or that a place does not answer."""

    def __init__(self, remote: bool = False) -> None:
        super().__init__()
        self.remote = remote

    def _one(self, image: Image) -> Any:
        raise (
            Unreachable("s3://b/k: it failed 8 times")
            if self.remote
            else UserError("give another model")
        )


@pytest.mark.parametrize("remote", [True, False])
def test_an_outage_fails_no_image_in_the_child(remote: bool) -> None:
    options = {**OPTIONS, "extractor": f"{HERE}:Refused", "extractor_option": {"remote": remote}}
    with pytest.raises(UserError, match="8 times" if remote else "another model") as told:
        list(isolated(options, 1, [item("a.png", png(0))]))
    assert type(told.value) is (Unreachable if remote else UserError)


def test_a_place_that_cannot_be_opened_is_said_by_the_child() -> None:
    with pytest.raises(UserError, match="nosuch"):
        list(isolated(OPTIONS, 1, [item("k.jpg", location=b"nosuch://bucket/k.jpg")]))


def test_a_mistake_in_the_extractors_options_is_said_by_the_child() -> None:
    with (
        pytest.raises(UserError, match="no option 'colour'"),
        Isolated({**OPTIONS, "extractor_option": {"colour": 1}}, 1) as child,
    ):
        child.describe(item("a.png", png(0)))


def test_a_folder_called_like_an_image_leaves_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(OSError, match="no regular file"):
            read_location(os.fsencode(tmp_path / "folder.jpg"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_that_cannot_be_decoded_are_let_go() -> None:
    """Forty files of an archive, one batch: each comes when the one before was looked at, and the
    peak is a few.
    """
    looked_at = threading.Semaphore()

    class Telling(Describer):
        def decoded(self, item: Item, reserve: Any = None) -> Any:
            found = super().decoded(item, reserve)
            looked_at.release()
            return found

    def large() -> Iterator[Item]:
        for number in range(40):
            looked_at.acquire()
            yield item(f"{number}.jpg", bytes(5 * MEGABYTE))

    describer = Telling(OPTIONS)
    describer.extractor.batch = 40
    tracemalloc.start()
    try:
        failed = [one.failure for one in batched(describer, large())]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(failed) == 40 and all(failed)
    assert peak < 8 * 5 * MEGABYTE


def test_files_that_wait_to_be_decoded_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describing, "AHEAD_BYTES", 50 * MEGABYTE)
    monkeypatch.setattr(describing, "USUAL_BYTES", MEGABYTE)
    gate = threading.Event()

    class Waiting(Describer):
        def decoded(self, item: Item, reserve: Any = None) -> Any:
            gate.wait()
            return super().decoded(item, reserve)

    files = (item(f"{number}.jpg", bytes(15 * MEGABYTE)) for number in range(8))
    with ThreadPoolExecutor(2) as threads:
        ahead = describing._Ahead(Waiting(OPTIONS), files, threads, 8)
        ahead._fill()
        submitted = len(ahead.queue)
        gate.set()
        assert (
            submitted == 4
        )  # 3 x 16 MB, and what they leave is room for a picture, so that one more is asked for
        assert [len(ahead.take(5)), len(ahead.take(5))] == [5, 3]


def test_the_same_bytes_ahead_and_alone(tmp_path: Path) -> None:
    """Images of an archive and of a folder, in batches and one by one."""
    (tmp_path / "b.png").write_bytes(png(9))
    items = [
        *(item(f"{n}.png", png(n)) for n in range(7)),
        item("b.png", location=os.fsencode(tmp_path / "b.png")),
    ]
    describer = Describer(OPTIONS)
    together = list(batched(describer, items))
    for one, alone in zip(together, map(describer.describe_alone, items), strict=True):
        assert one.description is not None and alone.description is not None
        assert (one.row.bytes, one.row.sha256) == (alone.row.bytes, alone.row.sha256)
        for name, values in vars(one.description).items():
            assert np.array_equal(values, getattr(alone.description, name))


def test_an_image_has_its_own_time_whatever_the_others_do() -> None:
    """While a thread decodes without end, those of the other thread come to their end all the
    time.
    """
    code = f"""
import time
from {HERE} import OPTIONS, Describer, batched, item, png

class Endless(Describer):
    def decoded(self, item, reserve=None):
        time.sleep(3600 if "endless" in item.reference.record_id else 0.4)
        return super().decoded(item, reserve)

describer = Endless({{**OPTIONS, "image_seconds": 1.0}})
names = ["endless.png", *(f"{{n}}.png" for n in range(100))]
describer.extractor.batch = 50
list(batched(describer, (item(name, png(0)) for name in names)))
"""
    environment = {**os.environ, "PYTHONPATH": "."}
    command = [sys.executable, "-c", code]
    # One image's time, and the start; the batch's would be minutes.
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=90
    )
    assert ended.returncode == 1 and "Timeout (0:00:0" in ended.stderr, ended.stderr
