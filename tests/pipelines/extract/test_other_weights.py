"""A worker that has other weights than the driver's says so before its first unit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.engines.settings import RunSettings
from pipelines.extract.options import Options
from pipelines.extract.stage import plan
from pipelines.jobs.unit_worker import make_worker
from schemas.errors import UserError
from tests.support.pictures import save_scenes
from tests.support.watching import EXTRACTOR


def test_other_weights_are_refused(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    save_scenes(photos, ["0"])
    options = Options(images=str(photos), out=f"{tmp_path}/store", extractor=EXTRACTOR)
    job, _ = plan(options, RunSettings())
    make_worker(job)
    extractor = {**job.recipe["extractor"], "weights_sha256": "ab" * 32}
    other = replace(job, recipe={**job.recipe, "extractor": extractor})
    with pytest.raises(UserError, match=r"has other weights of the extractor .*abababababab"):
        make_worker(other)
