"""The worker of the demo's pictures: renders the queries, or a run of the gallery."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.demo.data import (
    CHUNK,
    QUERIES,
    Counts,
    Picture,
    ground_truth_of,
    plan_pictures,
    readme_of,
    render_picture,
)
from pipelines.demo.photographs import load_material
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.unit_worker import UnitWorker
from schemas.ground_truth.ground_truth import save_ground_truth
from schemas.layout import ABOUT_NAME
from schemas.manifest import Counts as Counted
from schemas.plan import GalleryPictures, Job, Unit


class RenderPictures(UnitWorker):
    """Renders pictures under their plain names; the queries come with the files about them."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        recipe = job.recipe
        self.seed, self.size, self.counts = (
            recipe["seed"],
            recipe["size"],
            Counts(**recipe["counts"]),
        )
        self.pictures = plan_pictures(self.counts, self.seed)
        self.material = load_material(self.counts.instances, self.seed)

    def do(self, unit: Unit, attempt: Attempt) -> Counted:
        """Render the unit's pictures and hand them over."""
        queries = self.counts.instances
        if unit.name == QUERIES:
            boxes = self._render(self.pictures[:queries], attempt)
            self._write_about(boxes, attempt)
        else:
            first = queries + unit.of(GalleryPictures).gallery
            self._render(self.pictures[first : first + CHUNK], attempt)
        return Counted(unit.inputs, unit.inputs)

    def _render(
        self, pictures: list[Picture], attempt: Attempt
    ) -> dict[str, tuple[int, int, int, int]]:
        """Hand over pictures; gives the box of each one's object."""
        boxes = {}
        for number, picture in enumerate(pictures):
            view = render_picture(picture, self.material, self.seed, self.size)
            path = attempt.path(f"{number}.jpg")
            Path(path).write_bytes(view.jpeg())
            attempt.add(path, f"images/{picture.name}", 1, plain_name=True)
            boxes[picture.name] = view.box
            attempt.report(number + 1)
        return boxes

    def _write_about(self, boxes: dict[str, tuple[int, int, int, int]], attempt: Attempt) -> None:
        recipe = {**self.job.recipe, "instances": list(self.material.names)}
        texts = {
            ABOUT_NAME: json.dumps(recipe, indent=1) + "\n",
            "README.txt": readme_of(recipe, self.counts),
        }
        for name, text in texts.items():
            Path(attempt.path(name)).write_text(text, encoding="utf-8")
        truth = ground_truth_of(self.pictures, self.counts, boxes)
        save_ground_truth(truth, attempt.path("ground_truth.json"))
        for name in (*texts, "ground_truth.json"):
            attempt.add(attempt.path(name), name, 1, plain_name=True)
