"""The demo's folder: same bytes twice, consistent ground truth, resumption, honest refusals."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipelines.demo import photographs as demo_photographs
from pipelines.demo.data import DEMO_LEVELS, Counts, make_demo, plan_pictures, render_picture
from pipelines.demo.photographs import (
    STEREO_LEFT,
    Material,
    load_material,
    package_versions,
    stereo_source,
)
from pipelines.engines.local import pool
from pipelines.engines.settings import RunSettings
from pipelines.verify.verify import verify
from rrt_core.synthetic.instances import overlap
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import load_ground_truth
from tests.support.watching import wait_for

pytest.importorskip("skimage")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


SMALL = Counts(instances=4, easy=3, hard=2, junk=2, look_alikes=6, clutter=4)


BOOKKEEPING = ("plan", "done", "manifest.json", "parts.parquet")  # with places, hosts and times


def digests(root: Path) -> dict[str, str]:
    files = {
        str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()
    }
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if name.split("/")[0] not in BOOKKEEPING
    }


def made(folder: Path, seed: int = 3, workers: int = 1, **more: Any) -> Path:
    settings = RunSettings(workers=workers, overwrite=more.pop("overwrite", False))
    return make_demo(str(folder), settings, seed, **{"counts": SMALL, "size": 160, **more})


@pytest.fixture(scope="module", autouse=True)
def end_of_the_workers() -> Iterator[None]:
    """The workers stay for the tests of this module."""
    yield
    pool.close_pool()


@pytest.fixture(scope="module")
def material() -> Material:
    return load_material(64, 0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("demo") / "a", workers=2)


def test_the_same_seed_gives_the_same_bytes_in_one_process_or_two(
    demo: Path, tmp_path: Path
) -> None:
    other = made(tmp_path / "b")
    assert digests(other) == digests(demo) and verify(str(other))[0].problems == []
    assert "images/queries/000.jpg" in digests(demo) and "ground_truth.json" in digests(demo)


PROGRAM = """
import sys
from pipelines.demo.data import Counts, make_demo
from pipelines.engines.settings import RunSettings
counts = Counts(instances=4, easy=3, hard=2, junk=2, look_alikes=6, clutter=4)
make_demo(sys.argv[1], RunSettings(workers=1), 3, counts=counts, size=160)
"""


def test_a_half_made_folder_is_completed_to_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    running = subprocess.Popen([sys.executable, "-c", PROGRAM, str(out)], env=environment)
    wait_for(lambda: any(out.glob("done/*.json")), "the first pictures")
    running.kill()
    running.wait()
    assert not (out / "manifest.json").exists()
    done = {path: path.stat().st_mtime_ns for path in out.glob("done/*.json")}

    made(out)
    assert digests(out) == digests(demo)
    assert {path: path.stat().st_mtime_ns for path in done} == done

    damaged = min((out / "images/gallery").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-100])  # what a power cut may leave
    made(out)
    assert digests(out) == digests(demo)


def test_a_finished_folder_is_recognised_at_once_and_guarded(demo: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    assert made(demo) == demo
    assert time.monotonic() - start < 0.1
    with pytest.raises(UserError, match="seed was 3, is now 4"):
        made(demo, 4)
    with pytest.raises(UserError, match=r"counts\.clutter was 4, is now 200"):
        made(demo, counts=None)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files of something else"):
        made(tmp_path)
    with pytest.raises(UserError, match="at least one|one instance"):
        made(tmp_path / "c", counts=Counts(instances=0))


def test_a_folder_of_the_form_before_is_recognised(demo: Path, tmp_path: Path) -> None:
    """Older versions had no plan, and an empty file "done"."""
    for name in digests(demo):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((demo / name).read_bytes())
    (tmp_path / "done").touch()
    before = digests(tmp_path)
    assert made(tmp_path) == tmp_path and digests(tmp_path) == before
    with pytest.raises(UserError, match="seed = 3, not 4; name another folder"):
        made(tmp_path, 4)

    (tmp_path / "done").unlink()  # one that was killed is made anew, of the same bytes
    made(tmp_path)
    assert digests(tmp_path) == digests(demo)


def test_ground_truth_is_consistent(demo: Path) -> None:
    truth = load_ground_truth(str(demo / "ground_truth.json"))
    on_disk = sorted(
        str(path.relative_to(demo / "images")) for path in (demo / "images").rglob("*.jpg")
    )
    assert sorted([*truth.gallery, *(query.name for query in truth.queries)]) == on_disk
    assert len(truth.gallery) == SMALL.gallery and len(truth.queries) == 4 and truth.levels
    listed: list[int] = []
    for query in truth.queries:
        assert (len(query.easy), len(query.hard), len(query.junk)) == (3, 2, 2)
        listed += [*query.easy, *query.hard, *query.junk]
        image = cv2.imread(str(demo / "images" / query.name))
        assert image is not None and query.box is not None and max(image.shape) == 160
        x, y, w, h = query.box
        assert (
            x >= 0
            and y >= 0
            and x + w <= image.shape[1]
            and y + h <= image.shape[0]
            and min(w, h) > 30
        )
    assert len(set(listed)) == len(listed) and max(listed) < len(truth.gallery)
    names = truth.gallery_positions(
        f"gallery/{position:04}.jpg" for position in range(SMALL.gallery)
    )
    assert len(names) == SMALL.gallery


def test_about_says_what_made_it(demo: Path) -> None:
    about = json.loads((demo / "about.json").read_text())
    assert (
        about["seed"] == 3
        and about["photographs"] == package_versions()
        and len(about["instances"]) == 4
    )
    assert set(about["levels"]) == set(DEMO_LEVELS)
    assert "scikit-image" in (demo / "README.txt").read_text()


def test_the_whole_demo_is_large_enough_and_does_not_leak() -> None:
    counts = Counts()
    assert counts.instances >= 60 and counts.gallery >= 1500
    pictures = plan_pictures(counts, 0)
    assert (
        len({picture.name for picture in pictures})
        == len(pictures)
        == counts.gallery + counts.instances
    )
    easy = [
        place
        for place, picture in enumerate(pictures[counts.instances :])
        if picture.kind == "easy"
    ]
    assert abs(np.mean(easy) - counts.gallery / 2) < 0.06 * counts.gallery


def test_instances_are_distinct_and_backgrounds_show_none_of_them(material: Material) -> None:
    assert (
        len(material.instances) == 64
        and len(material.look_alikes) > 60
        and len(set(material.names)) == 64
    )
    places = [name.rsplit("#", 1) for name in material.names]
    boxes = [(photo, tuple(int(n) for n in box.split(","))) for photo, box in places]
    for number, (photo, box) in enumerate(boxes):
        for other_photo, other in boxes[:number]:
            assert photo != other_photo or overlap(box, other) <= 0.02  # type: ignore[arg-type]


def test_kinds_keep_their_promise(material: Material) -> None:
    pictures = [p for p in plan_pictures(Counts(), 0) if p.instance < 6]
    visible: dict[str, list[float]] = {}
    for picture in pictures:
        if picture.kind in ("query", "easy", "hard", "junk"):
            view = render_picture(picture, material, 0, 200)
            visible.setdefault(picture.kind, []).append(view.visible * view.cover)
    mean = {kind: float(np.mean(values)) for kind, values in visible.items()}
    assert mean["query"] > mean["hard"] > 3 * mean["junk"] and mean["easy"] > 1.5 * mean["hard"]


def test_second_stereo_views_show_the_same_thing(material: Material) -> None:
    pairs = [
        (region, second)
        for region, second, name in zip(
            material.instances, material.second, material.names, strict=True
        )
        if STEREO_LEFT in name
    ]
    assert sum(second is not None for _, second in pairs) >= 3
    assert all(
        second is None
        for second, name in zip(material.second, material.names, strict=True)
        if STEREO_LEFT not in name
    )
    for region, second in pairs:
        if second is not None:
            colour = [cv2.mean(part.pixels, part.mask)[:3] for part in (region, second)]
            assert np.abs(np.subtract(*colour)).max() < 25


def test_near_things_hide_far_ones_in_the_other_picture() -> None:
    disparity = np.full((1, 10), np.inf, np.float32)
    disparity[0, 4], disparity[0, 6], disparity[0, 2] = 1, 3, 5
    source = stereo_source(disparity)
    assert source[0, 3] == 6 and np.count_nonzero(source >= 0) == 1


def test_a_missing_package_and_too_few_photographs_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match="not 1000: ask for fewer"):
        load_material(1000, 0)

    def absent(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(demo_photographs.importlib.metadata, "version", absent)
    with pytest.raises(UserError, match="pip install scikit-image"):
        package_versions()
