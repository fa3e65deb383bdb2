"""Describing in a worker: what ends it, what a child process says, and how much memory what waits
may take.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.extract import batches as describing
from pipelines.extract import isolated as child_process
from pipelines.extract.batches import batched, isolated
from pipelines.extract.describer import Describer
from pipelines.extract.isolated import Isolated, KilledBySystem
from pipelines.extract.memory import DECODED, Budget
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


class KilledAtFirst(TinyExtractor):
    """Killed from outside, as by a system without memory, as often as a file says."""

    def __init__(self, left: str) -> None:
        super().__init__()
        self.left = Path(left)

    def _one(self, image: Image) -> Any:
        times = int(self.left.read_text())
        if times:
            self.left.write_text(str(times - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._one(image)


@pytest.mark.parametrize("times", [2, 3, 100])
def test_an_image_is_not_failed_for_a_kill_from_outside(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "PAUSES", (0.0, 0.0, 0.0))
    left = tmp_path / "left"
    left.write_text(str(times))
    options = {
        **OPTIONS,
        "extractor": f"{HERE}:KilledAtFirst",
        "extractor_option": {"left": str(left)},
    }
    if times == 100:
        with pytest.raises(KilledBySystem, match="s/a.png alone was ended by SIGKILL 4 times"):
            list(isolated(options, 1, [item("a.png", png(0))]))
    else:
        (described,) = isolated(options, 1, [item("a.png", png(0))])
        assert described.failure is None


def test_fewer_images_are_held_after_a_kill() -> None:
    decoded, described = 0, 0
    ahead = []

    class Counting(Describer):
        def decoded(self, item: Item, reserve: Any = None) -> Any:
            nonlocal decoded
            decoded += 1
            ahead.append(decoded - described)
            return super().decoded(item, reserve)

        def describe(self, items: Any, images: Any) -> Any:
            nonlocal described
            described += len(items)
            return super().describe(items, images)

    for killed, most in ((0, 64), (1, 16), (2, 2)):
        describer, decoded, described = Counting(OPTIONS), 0, 0
        describer.extractor.batch = 16
        ahead.clear()
        rows = list(batched(describer, (item(f"{n}.png", png(0)) for n in range(40)), killed))
        assert len(rows) == 40 and not any(row.failure for row in rows)
        assert max(ahead) <= most


def test_images_take_their_memory_in_turn() -> None:
    budget = Budget(100)
    order: list[int] = []

    def taker(turn: int, size: int) -> None:
        budget.take(turn, DECODED, size)
        order.append(turn)
        budget.settle(turn, size)

    sizes = [60, 60, 10, 500, 20]
    for turn in range(len(sizes)):
        budget.begin(turn)
    with ThreadPoolExecutor(5) as threads:
        work = [threads.submit(taker, *one) for one in reversed(list(enumerate(sizes)))]
        for turn in range(len(sizes)):
            deadline = time.monotonic() + 10
            while turn not in order and time.monotonic() < deadline:
                time.sleep(0.001)
            assert budget.held <= max(100, sizes[turn] + 60)
            budget.let_go(turn)
        for one in work:
            one.result()
    assert order == [0, 1, 2, 3, 4] and budget.held == 0


def test_threads_that_wait_for_room_end_with_an_exception() -> None:
    """The first image of three raises while the others wait: the command ends."""

    class Raises(Describer):
        def describe(self, items: Any, images: Any) -> Any:
            raise ZeroDivisionError

    describer = Raises({**OPTIONS, "decoders": 3})
    describer.extractor.batch = 1
    with pytest.raises(ZeroDivisionError):
        list(batched(describer, (item(f"{n}.png", png(0)) for n in range(9))))


def test_large_images_are_held_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describing, "AHEAD_BYTES", 3 * MEGABYTE)
    monkeypatch.setattr(describing, "USUAL_BYTES", 1000)
    buffer = io.BytesIO()
    picture(3, 600, 500).save(buffer, "PNG")
    describer = Describer({**OPTIONS, "decoders": 4})
    describer.extractor.batch = 8
    files = (item(f"{n}.png", buffer.getvalue()) for n in range(12))
    budgets: list[int] = []
    take = Budget.take

    def noted(self: Budget, turn: int, step: int, more: int) -> None:
        take(self, turn, step, more)
        budgets.append(self.held)

    monkeypatch.setattr(Budget, "take", noted)
    rows = list(batched(describer, files))
    assert [row.row.record_id for row in rows] == [f"s/{n}.png" for n in range(12)]
    assert max(budgets) <= 3 * MEGABYTE
