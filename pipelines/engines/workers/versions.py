"""Versions of what a worker must have in common with its driver.

It needs Python's own library alone, so that a worker that lacks a package can say so.
"""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib import metadata, resources
from importlib.resources.abc import Traversable

SOFTWARE = "RRT Pipelines"  # a digest of its own files: a checkout has no version that changes
OWN = ("pipelines", "rrt_core", "schemas")
# Names that one library has as packages; the first that is there counts.
PACKAGES = {
    "torch": ("torch",),
    "numpy": ("numpy",),
    "h5py": ("h5py",),
    "faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12"),
    "pyarrow": ("pyarrow",),
}


@cache
def own_versions() -> dict[str, str]:
    """This process's: Python's major and minor version, our own files', each library's without
    what it was built for (+cpu, +cu126); "" where it is absent.
    """
    versions = {"Python": ".".join(platform.python_version_tuple()[:2]), SOFTWARE: _digest()}
    for name, packages in PACKAGES.items():
        versions[name] = next(filter(None, map(_version, packages)), "")
    return versions


def differing(wanted: dict[str, str], own: dict[str, str], host: str) -> str:
    """One sentence on what a worker at `host` has in other versions than its driver; or ""."""
    differences = [
        f"{name} {own.get(name) or 'not at all'} (the driver: {version or 'not at all'})"
        for name, version in wanted.items()
        if own.get(name, "") != version
    ]
    if not differences:
        return ""
    return (
        f"{host} has {', '.join(differences)}; workers need the driver's own versions: install "
        f"them there, or name a Python that has them"
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def _digest() -> str:
    total = hashlib.sha256()
    for package in OWN:
        for path, content in sorted(_sources(resources.files(package), package)):
            total.update(f"{path}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:12]


def _sources(folder: Traversable, name: str) -> list[tuple[str, bytes]]:
    found = []
    for entry in folder.iterdir():
        path = f"{name}/{entry.name}"
        if entry.name.endswith(".py"):
            found.append((path, entry.read_bytes()))
        elif entry.is_dir() and entry.name != "__pycache__":
            found += _sources(entry, path)
    return found
