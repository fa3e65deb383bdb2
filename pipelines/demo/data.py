"""The demo's image folder: queries, gallery, ground truth, out of photographs in packages.

    FOLDER/ images/gallery/0000.jpg ...   in an order that gives nothing away
            images/queries/000.jpg ...
            ground_truth.json   names below images/, boxes of the queries, easy, hard, junk
            about.json          parameters, package versions, levels, places of the instances
            README.txt

A job like any other, with its plan, markers and manifest: a killed run goes on where it ended. Each
picture depends on the seed and its own number only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.demo.photographs import Material, package_versions
from pipelines.engines.driver import run_job
from pipelines.engines.settings import RunSettings
from pipelines.jobs.existing_output import readable_manifest, say_made
from pipelines.jobs.manifests import is_whole
from pipelines.storage.place import Place, open_place
from rrt_core.synthetic.rendering import (
    LEVELS,
    Level,
    RenderedView,
    render_clutter,
    render_view,
    view_rng,
)
from schemas.errors import UserError
from schemas.ground_truth.ground_truth import GroundTruth, QueryTruth
from schemas.layout import ABOUT_NAME
from schemas.plan import GalleryPictures, Job, Unit, WholeJob

STAGE = "images"
QUERIES = (
    "queries"  # the unit of the queries and the files about them; the others are runs of CHUNK
)
DEMO_REVISION = 1  # raised by hand when other bytes come out of the same parameters
CHUNK = 16  # gallery pictures a unit

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
    folder: str,
    settings: RunSettings,
    seed: int = 0,
    *,
    counts: Counts | None = None,
    size: int = 360,
) -> Path:
    """Make, complete or recognise the demo's folder; gives its path.

    Args:
        seed: >= 0; the same seed, counts and size give the same bytes.
        counts: how many instances, views and distractors; by default 64 queries and 1,560 gallery
            images.
        size: longest side of the pictures, px, at least 64.

    Raises UserError where the folder holds something else, or a demo of other parameters, where a
    package with photographs is missing, or a parameter is out of range.
    """
    counts = counts or Counts()
    if seed < 0 or size < 64 or counts.instances < 1 or min(asdict(counts).values()) < 0:
        raise UserError(
            "The demo needs a seed >= 0, a size >= 64, one instance or more, no negative counts."
        )
    place = open_place(folder)
    parameters = {"demo": DEMO_REVISION, "seed": seed, "size": size, "counts": asdict(counts)}
    if not _is_made(place, parameters, settings.overwrite):
        run_job(_job(folder, parameters, counts), settings)
    return Path(place.root)


def _is_made(place: Place, parameters: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the folder is whole already, be it by other versions of the packages.

    Raises UserError for a demo of other parameters in the form of older versions, which had no
    plan.
    """
    if Path(place.root, "done").is_file():
        try:
            about = json.loads(place.read_record(ABOUT_NAME))
            made = {key: about[key] for key in parameters}
        except (OSError, ValueError, KeyError, TypeError):
            return False
        for key, value in parameters.items():
            if made[key] != value:
                text = f"{key} = {made[key]}, not {value}"
                raise UserError(f"{place.url} holds a demo made with {text}; name another folder.")
        say_made(f"{STAGE:<9}", place)
        return True

    manifest = None if overwrite else readable_manifest(place)
    if manifest is None or any(manifest.recipe.get(key) != parameters[key] for key in parameters):
        return False
    if is_whole(place, manifest):
        say_made(f"{STAGE:<9}", place, manifest)
        return True
    return False


def _job(folder: str, parameters: Mapping[str, Any], counts: Counts) -> Job:
    levels = {kind: [asdict(level) for level in levels] for kind, levels in DEMO_LEVELS.items()}
    gallery = [
        Unit(f"gallery-{first:05}", GalleryPictures(first), min(CHUNK, counts.gallery - first))
        for first in range(0, counts.gallery, CHUNK)
    ]
    return Job(
        stage=STAGE,
        output=folder,
        worker="demo/pictures",
        recipe={**parameters, "levels": levels, "photographs": package_versions()},
        inputs={},
        units=(Unit(QUERIES, WholeJob(), counts.instances), *gallery),
        facts={"kind": "demo"},
        noun="images",
    )


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


def ground_truth_of(
    pictures: list[Picture], counts: Counts, boxes: Mapping[str, tuple[int, int, int, int]]
) -> GroundTruth:
    """The truth of a plan's pictures. boxes: of the queries, by name: x, y, w, h in pixels."""
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


def readme_of(about: Mapping[str, Any], counts: Counts) -> str:
    """What the folder says of itself to a person."""
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
