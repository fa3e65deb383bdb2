"""Markers of finished units: where they lie, when they are valid, what versions they record."""

from __future__ import annotations

import contextlib
import platform
from functools import cache
from importlib import metadata

from pipelines.storage.protocol import Place
from schemas.manifest import Counts, Marker
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
)


def marker_name(unit: Unit) -> str:
    """Where a unit's marker lies."""
    return f"done/{unit.name}.json"


def read_marker(place: Place, job: Job, unit: Unit) -> Marker | None:
    """The unit's marker where it is valid: readable, of this recipe and slice, its files in
    place.
    """
    return _valid_marker(place, job, unit, marker_name(unit))


def _valid_marker(place: Place, job: Job, unit: Unit, name: str) -> Marker | None:
    try:
        marker = Marker.from_bytes(place.read(name))
    except (FileNotFoundError, IsADirectoryError):
        return None
    if marker is None or marker.recipe != job.recipe_hash or marker.slice != unit.slice:
        return None
    if any(place.size(entry.name) != entry.bytes for entry in marker.files):
        return None
    return marker


def counted(unit: Unit, marker: Marker) -> Counts:
    """What a unit adds to its job's counts; one done "again" turns inputs that failed before into
    succeeded ones.
    """
    if unit.payload.get("again"):
        return Counts(0, marker.counts.succeeded, -marker.counts.succeeded)
    return marker.counts


@cache
def software_versions() -> dict[str, str]:
    """Versions of what can change bytes, with the Python and the CPU type."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
