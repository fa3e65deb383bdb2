"""What travels to Spark's executors: this software, and the user's own modules, as one archive.

A wheel given to `addPyFile` is ignored without a word, and a zip on Python's path hides the weights
that lie beside the modules. So an archive is unpacked by Spark, and put on the path by the task.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pipelines
from schemas.errors import UserError
from schemas.plan import Job

OWN = ("pipelines", "rrt_core", "schemas")
MOST_BYTES = 256 * 1024 * 1024  # of a user's package
_CLASS = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*):[A-Za-z_]\w*")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # so that equal files make equal archives


def root_of_packages() -> str:
    """The folder that holds this software's packages."""
    return os.path.dirname(os.path.abspath(pipelines.__path__[0]))


def users_packages(job: Job) -> dict[str, Path]:
    """The user's own packages and modules that a job names: top-level name -> file or folder.

    Those that are installed are expected in the executors' Python, as all dependencies are.
    """
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    found: dict[str, Path] = {}
    for value in job.settings.values():
        match = _CLASS.fullmatch(value) if isinstance(value, str) else None
        name = match[1].partition(".")[0] if match else ""
        if not name or name in (*OWN, *sys.builtin_module_names):
            continue
        path = _place_of(name)
        if path is not None and not any(path.is_relative_to(folder) for folder in installed):
            found[name] = path
    return found


def _place_of(name: str) -> Path | None:
    """The file of a top-level module, or the folder of a package."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin and os.path.exists(spec.origin) else None


def write_archive(folder: str, job: Job) -> str:
    """Write the archive into a folder; gives its path. Its name says what it holds."""
    entries = {name: Path(root_of_packages()) / name for name in OWN} | users_packages(job)
    files = sorted(_files(entries), key=lambda file: file[0])
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())

    archive = os.path.join(folder, f"rrt-{digest.hexdigest()[:12]}.zip")
    if not os.path.exists(archive):
        with zipfile.ZipFile(f"{archive}.tmp", "w", zipfile.ZIP_STORED) as out:
            for name, path in files:
                out.writestr(zipfile.ZipInfo(name, _EPOCH), path.read_bytes())
        os.replace(f"{archive}.tmp", archive)
    return archive


def _files(entries: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    """(name in the archive, path) of all files."""
    for name, path in entries.items():
        if path.is_file():
            yield path.name, path
            continue

        total = 0
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(set(folders) - {"__pycache__", ".git"})
            for file in files:
                there = Path(folder) / file
                total += there.stat().st_size
                yield f"{name}/{there.relative_to(path).as_posix()}", there
        if name not in OWN and total > MOST_BYTES:
            raise UserError(
                f"{path}: the package {name} has {total:,} bytes, more than is sent to executors "
                f"({MOST_BYTES:,}); give what is needed of it by --py-files, or install it there"
            )
