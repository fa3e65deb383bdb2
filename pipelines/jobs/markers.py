"""Markers of finished units: where they lie, when they are valid, what versions they record."""

from __future__ import annotations

import contextlib
import platform
from functools import cache
from importlib import metadata

from pipelines.storage.protocol import Place
from rrt_core.processor import vector_units
from schemas.manifest import Marker
from schemas.plan import Job, Unit

PACKAGES = (
    "apache-beam",
    "torch",
    "numpy",
    "pyarrow",
    "h5py",
    "pillow",
    "opencv-python-headless",
    "faiss-cpu",
    "openvino",
)


def marker_name(unit: Unit) -> str:
    """Where a unit's marker lies."""
    return f"done/{unit.name}.json"


def read_marker(place: Place, job: Job, unit: Unit, name: str = "") -> Marker | None:
    """The unit's marker (`name`: one of its pieces') where it is valid.

    It is where it can be read, is of this recipe and slice, and its files are in place.
    """
    try:
        marker = Marker.from_bytes(place.read_record(name or marker_name(unit)))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError):
        return None

    if marker is None or marker.recipe != job.recipe_hash or marker.slice != unit.slice:
        return None
    if any(place.size(entry.name) != entry.bytes for entry in marker.files):
        return None
    return marker


@cache
def software_versions() -> dict[str, str]:
    """Versions of what can change bytes, with the Python, the CPU type and its vector units."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    if vector_units():
        versions["vector units"] = vector_units()
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
