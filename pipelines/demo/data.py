"""Makes the demo's image folder: queries, gallery and ground truth, out of photographs that
packages ship.

    FOLDER/ about.json          parameters, package versions, levels; written first: what the folder
            is
            images/gallery/0000.jpg ...   in an order that tells nothing      images/queries/000.jpg
                                          ...
            ground_truth.json   names below images/, boxes of the queries, easy, hard, junk
            README.txt   done   written last

Each picture depends on the seed and its own number only, and is written under a temporary name,
then renamed: a killed run goes on where it ended and gives the same bytes.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipelines.demo.photographs import Material, load_material, package_versions
from pipelines.engines.processes import die_with_parent
from rrt_core.synthetic.rendering import (
    LEVELS,
    Level,
    RenderedView,
    render_clutter,
    render_view,
    view_rng,
)
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import GroundTruth, QueryTruth, save_ground_truth

DEMO_REVISION = 1  # raised by hand when other bytes come out of the same parameters
CHUNK = 16  # pictures handed to a process at once

MILD, MEDIUM, HARD = LEVELS["mild"], LEVELS["medium"], LEVELS["hard"]
DEMO_LEVELS: dict[str, tuple[Level, ...]] = {
    # a query's photograph was taken of the thing: large, whole, nothing before it
    "query": (replace(MILD, cover=(0.3, 0.6), cut=(-1.0, 0.0)),),
    "easy": (MILD, replace(MEDIUM, cover=(0.25, 0.6))),
    # poses of the hard level under the light of the medium one: at full hardness a net's global
    # descriptor finds next to nothing (mean average precision 0.03, against 0.7 for easy);
    # shortlists would be noise
    "hard": (
        replace(
            MEDIUM,
            cover=(0.17, 0.42),
            roll=40,
            tilt=55,
            warp=(0.02, 0.06),
            cut=(-0.3, 0.3),
            hide=(-0.1, 0.35),
            clutter=(1, 3),
        ),
    ),
    # too poor to count either way: a speck, or next to all of it hidden or beyond the border
    "junk": (
        replace(HARD, cover=(0.005, 0.015), cut=(-1.0, 0.0), hide=(0.0, 0.3), defocus=(1.0, 2.0)),
        replace(HARD, cut=(0.3, 0.6), hide=(0.35, 0.6)),
    ),
    "look_alike": (MEDIUM, HARD),
    "clutter": (MEDIUM, HARD),
}


@dataclass(frozen=True)
class Counts:
    """How large a demo is.

    A gallery has instances * (easy + hard + junk) + look_alikes + clutter images.
    """

    instances: int = 64
    easy: int = 6
    hard: int = 6
    junk: int = 3
    look_alikes: int = 400
    clutter: int = 200

    @property
    def gallery(self) -> int:
        """Number of gallery images."""
        return (
            self.instances * (self.easy + self.hard + self.junk) + self.look_alikes + self.clutter
        )


@dataclass(frozen=True)
class Picture:
    """One picture to be rendered: its kind (a key of DEMO_LEVELS), instance, number among its kind,
    name.
    """

    kind: str
    instance: int
    view: int
    name: str  # below images/


def make_demo(
    folder: str | os.PathLike[str],
    seed: int = 0,
    *,
    counts: Counts | None = None,
    size: int = 360,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Makes, completes or recognises the demo's folder and returns its path.

    Args:
        seed: >= 0; the same seed, counts and size give the same bytes.
        counts: how many instances, views and distractors; by default 64 queries and 1,560 gallery
            images.
        size: longest side of the pictures, px, at least 64.
        processes: how many render at once; by default one a core. Callers that are scripts need the
            usual ``if __name__ == "__main__"``, as worker processes are spawned.
        progress: called with (pictures done, all pictures), in the calling thread.

    Raises:
        UserError: the folder holds something else, or a demo of other parameters; a package with
            photographs is missing; a parameter is out of range.
    """
    counts = counts or Counts()
    if seed < 0 or size < 64 or counts.instances < 1 or min(asdict(counts).values()) < 0:
        raise UserError(
            "The demo needs a seed >= 0, a size >= 64, one instance or more, no negative counts."
        )
    root = Path(folder)
    about = {"demo": DEMO_REVISION, "seed": seed, "size": size, "counts": asdict(counts)}
    if _is_finished(root, about):
        return root
    about["levels"] = {
        kind: [asdict(level) for level in levels] for kind, levels in DEMO_LEVELS.items()
    }
    about["photographs"] = package_versions()
    material = load_material(counts.instances, seed)
    about["instances"] = list(material.names)
    _begin(root, about)

    pictures = plan_pictures(counts, seed)
    boxes = _render_all(
        root, pictures, material, seed, size, processes or os.cpu_count() or 1, progress
    )
    truth = _ground_truth(pictures, counts, boxes)
    temporary = root / "ground_truth.json.tmp"
    save_ground_truth(truth, str(temporary))
    os.replace(temporary, root / "ground_truth.json")
    for left_over in (root / "images").rglob(".*.tmp"):  # of a run that was killed
        left_over.unlink(missing_ok=True)
    _write(root / "README.txt", _readme(about, counts).encode())
    _write(root / "done", b"")
    return root


def plan_pictures(counts: Counts, seed: int) -> list[Picture]:
    """All pictures: the queries, then the gallery by place, shuffled so that a name tells
    nothing.
    """
    kinds = [
        (kind, instance, view)
        for instance in range(counts.instances)
        for kind, number in (("easy", counts.easy), ("hard", counts.hard), ("junk", counts.junk))
        for view in range(number)
    ]
    kinds += [("look_alike", 0, view) for view in range(counts.look_alikes)]
    kinds += [("clutter", 0, view) for view in range(counts.clutter)]
    order = np.random.default_rng((seed, len(kinds))).permutation(len(kinds))
    queries = [
        Picture("query", number, 0, f"queries/{number:03}.jpg")
        for number in range(counts.instances)
    ]
    gallery = [(*kinds[int(which)], f"gallery/{place:04}.jpg") for place, which in enumerate(order)]
    return queries + [Picture(kind, instance, view, name) for kind, instance, view, name in gallery]


def render_picture(picture: Picture, material: Material, seed: int, size: int) -> RenderedView:
    """The view that a picture of the plan shows: drawn again until it is what its kind promises."""
    kind_number = list(DEMO_LEVELS).index(picture.kind)
    rng = view_rng(seed, picture.instance * len(DEMO_LEVELS) + kind_number, picture.view)
    levels = DEMO_LEVELS[picture.kind]
    level = levels[picture.view % len(levels)]
    backgrounds = material.backgrounds
    background = backgrounds[int(rng.integers(len(backgrounds)))]
    if picture.kind == "clutter":
        return render_clutter(background, rng, level, size=size, clutter=backgrounds)
    if picture.kind == "look_alike":
        region = material.look_alikes[picture.view % len(material.look_alikes)]
        return render_view(region, background, rng, level, size=size, clutter=backgrounds)
    region = material.instances[picture.instance]
    second = material.second[picture.instance]
    if second is not None and picture.kind in ("easy", "hard") and picture.view % 4 >= 2:
        region = second
    for _ in range(50):
        view = render_view(region, background, rng, level, size=size, clutter=backgrounds)
        if _keeps_promise(picture.kind, view):
            return view
    raise RuntimeError(
        f"no {picture.kind} view of instance {picture.instance} came out in 50 tries"
    )


def _keeps_promise(kind: str, view: RenderedView) -> bool:
    """Whether a view may be labelled so: easy is plain to see, hard can be told, junk is not fair
    to ask.
    """
    if kind == "query":
        return view.visible > 0.97
    if kind == "easy":
        return view.visible > 0.65
    if kind == "hard":
        return view.visible > 0.4 and view.cover > 0.03
    return 0 < view.visible < 0.3 or 0 < view.cover < 0.015


# ------------------------------------------------------------------------------- rendering the plan

_WORK: dict[str, Any] = {}  # what a worker process was started with


def _start_worker(parent: int, material: Material, root: str, seed: int, size: int) -> None:
    die_with_parent(parent)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent ends us quietly
    cv2.setNumThreads(1)
    _WORK.update(material=material, root=Path(root), seed=seed, size=size)


def _work(pictures: list[Picture]) -> list[tuple[str, tuple[int, int, int, int]]]:
    return [_make(picture, **_WORK) for picture in pictures]


def _make(
    picture: Picture, material: Material, root: Path, seed: int, size: int
) -> tuple[str, tuple[int, int, int, int]]:
    """Renders and writes one picture; returns its name and the object's box."""
    view = render_picture(picture, material, seed, size)
    _write(root / "images" / picture.name, view.jpeg())
    return picture.name, view.box


def _render_all(
    root: Path,
    pictures: list[Picture],
    material: Material,
    seed: int,
    size: int,
    processes: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, tuple[int, int, int, int]]:
    """Writes what is not there yet; returns the boxes of the queries by name."""
    # queries are rendered in any case: their boxes are not on the disk before the end
    missing = [p for p in pictures if p.kind == "query" or not _is_whole(root / "images" / p.name)]
    boxes: dict[str, tuple[int, int, int, int]] = {}
    done = len(pictures) - len(missing)
    if progress:
        progress(done, len(pictures))
    for finished in _results(missing, material, root, seed, size, min(processes, len(missing))):
        boxes.update(finished)
        done += len(finished)
        if progress:
            progress(done, len(pictures))
    return boxes


def _results(
    pictures: list[Picture], material: Material, root: Path, seed: int, size: int, processes: int
) -> Iterator[list[tuple[str, tuple[int, int, int, int]]]]:
    """What `_work` gives, chunk by chunk, in any order."""
    chunks = [pictures[first : first + CHUNK] for first in range(0, len(pictures), CHUNK)]
    if processes == 1 or len(chunks) == 1:
        for chunk in chunks:
            yield [_make(picture, material, root, seed, size) for picture in chunk]
        return
    start = (os.getpid(), material, str(root), seed, size)
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start_worker, start)
    try:
        for future in as_completed([pool.submit(_work, chunk) for chunk in chunks]):
            yield future.result()
    finally:
        pool.shutdown(
            wait=True, cancel_futures=True
        )  # at most the chunks in hand: a fraction of a second


# --------------------------------------------------------------------------------------- the folder


def _is_finished(root: Path, about: dict[str, Any]) -> bool:
    """Whether the folder is done with these parameters.

    Raises UserError where it is something else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "about.json").read_text(encoding="utf-8"))
        given = {key: found[key] for key in about}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{root} is not empty and holds no demo; name an empty or a new folder."
        ) from None
    for key, value in about.items():
        if given[key] != value:
            made = f"{key} = {given[key]}, not {value}"
            raise UserError(f"{root} holds a demo made with {made}; name another folder.")
    return (root / "done").exists()


def _begin(root: Path, about: dict[str, Any]) -> None:
    """Writes about.json, or checks that a folder that was begun was begun with the very same."""
    content = json.dumps(about, indent=1) + "\n"
    place = root / "about.json"
    if place.exists():
        if place.read_text(encoding="utf-8") != content:
            raise UserError(
                f"{root} was begun with other versions of packages; delete it and start again."
            )
        return
    for name in ("gallery", "queries"):
        (root / "images" / name).mkdir(parents=True, exist_ok=True)
    _write(place, content.encode())


def _write(place: Path, data: bytes) -> None:
    """A whole file or none: written beside its name and renamed."""
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, place)


def _is_whole(place: Path) -> bool:
    """Whether the JPEG is there and ends as a JPEG does (a power cut may leave a renamed file
    empty).
    """
    try:
        with place.open("rb") as file:
            file.seek(-2, os.SEEK_END)
            return file.read() == b"\xff\xd9"
    except OSError:
        return False


def _ground_truth(
    pictures: list[Picture], counts: Counts, boxes: dict[str, tuple[int, int, int, int]]
) -> GroundTruth:
    gallery = [picture for picture in pictures if picture.kind != "query"]
    lists: dict[tuple[int, str], list[int]] = {}
    for position, picture in enumerate(gallery):
        lists.setdefault((picture.instance, picture.kind), []).append(position)
    queries = []
    for picture in pictures[: counts.instances]:
        x, y, w, h = boxes[picture.name]
        box = (float(x), float(y), float(w), float(h))
        by_kind = (
            tuple(lists.get((picture.instance, kind), ())) for kind in ("easy", "hard", "junk")
        )
        queries.append(QueryTruth(picture.name, box, *by_kind))
    return GroundTruth("rrt-demo", tuple(picture.name for picture in gallery), tuple(queries))


def _readme(about: dict[str, Any], counts: Counts) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in about["photographs"].items())
    title = f"{counts.instances} queries, {counts.gallery} gallery images, seed {about['seed']}"
    return f"""RRT Pipelines demo: {title}.

Synthetic views of regions cut from photographs that come with {packages}.
images/queries    one picture of each instance; its box is in ground_truth.json
images/gallery    easy, hard and junk views of the instances, look-alikes cut beside them, clutter; shuffled
ground_truth.json which gallery images show which query's instance
about.json        the parameters, the renderer's levels and the places that the instances were cut from

The pictures are made for trying things out; their difficulty is that of a renderer, not of the world.
"""  # noqa: E501
