"""What a command does where its output stands already: skip it, go on, refuse, or replace it.

A folder is ours by a plan, manifest, parts table or marker that can be read: names alone prove
nothing, since anybody may have a folder "plan".
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.jobs.errors import read_error
from pipelines.jobs.manifests import is_whole, read_manifest
from pipelines.jobs.plan import read_plan, refuse_other_recipe
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from schemas.errors import Damaged, Unreachable, UserError
from schemas.inside import read_json
from schemas.layout import (
    ABOUT_NAME,
    BESIDE_NAME,
    EXPORT_NAME,
    JOB_NAME,
    LEASE_FOLDER,
    NEXT,
    PLAN_FOLDER,
    PLAN_NAME,
)
from schemas.manifest import MANIFEST_NAME, PARTS, PARTS_NAME, Manifest, Marker
from schemas.plan import Job

BESIDE_SCHEMA = "rrt-overwrite/1"


# What is written while units are under way, by names that nobody else gives.
LITTER = re.compile(
    r"attempts/[^/]+\.[0-9a-f]{12}\.json(\.progress(\.tmp)?)?|scratch/[^/]+\.[0-9a-f]{12}/.+"
    r"|lease/(driver\.json|probe-[0-9a-f]{12})"
    r"|([^/]+/)*[^/]+\.[0-9a-f]{12}\.(tmp|parquet|h5|faiss)",
    re.DOTALL,
)

# File -> keys that it holds where it is ours: a name alone proves nothing.
PROOFS = {
    PLAN_NAME: ("recipe", "recipe_hash", "units"),
    JOB_NAME: ("recipe", "worker", "stage"),
    MANIFEST_NAME: ("recipe", "recipe_hash", "schema"),
    EXPORT_NAME: ("schema", "content", "locals"),
    ABOUT_NAME: ("demo", "seed", "levels"),
}


def is_ours(place: Place) -> bool:
    """Whether a folder is an output of this software, finished or not."""
    for name, keys in PROOFS.items():
        if _read_json(place, name).keys() >= {*keys}:
            return True

    if is_beside(place.below(NEXT)) or _has_parts_table(place):
        return True

    markers = (name for name in place.names("done") if name.endswith(".json"))
    return any(_is_marker(place, f"done/{name}") for name in markers)


def _is_marker(place: Place, name: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return Marker.from_bytes(place.read_record(name)) is not None
    return False


def is_beside(place: Place) -> bool:
    """Whether a folder is one in which --overwrite makes a new output beside the old one."""
    return _read_json(place, BESIDE_NAME).get("schema") == BESIDE_SCHEMA


def _read_json(place: Place, name: str) -> dict[str, object]:
    """A JSON mapping, or an empty one for whatever is none."""
    with contextlib.suppress(OSError, ValueError):
        value = read_json(place.read_record(name))
        if isinstance(value, dict):
            return value
    return {}


def _has_parts_table(place: Place) -> bool:
    with contextlib.suppress(OSError, pa.ArrowException):
        return pq.read_schema(BytesIO(place.read(PARTS_NAME))).names == PARTS.names
    return False


def refuse_foreign(place: Place) -> None:
    """Raise UserError where a folder holds what is not ours; one that is empty is anybody's.

    An entry "plan" or "lease" alone may be what a kill at the very start has left: nothing of it
    is removed.
    """
    foreign = place.has_files(besides=(PLAN_FOLDER, LEASE_FOLDER))
    if foreign and not (is_ours(place) or _is_litter(place)):
        raise UserError(f"{place.url} holds files of something else; give an empty or a new folder")


def _is_litter(place: Place) -> bool:
    """Whether a folder holds nothing but what workers leave where it was removed under them."""
    if not place.local:
        return False

    for above, folders, names in os.walk(place.root):
        if any(os.path.islink(os.path.join(above, name)) for name in folders):
            return False
        for name in names:
            path = os.path.relpath(os.path.join(above, name), place.root)
            of_unit = re.fullmatch(r"errors/([^/]+)\.json", path)
            if not (read_error(place, of_unit[1]) if of_unit else LITTER.fullmatch(path)):
                return False

    return True


def readable_manifest(place: Place) -> Manifest | None:
    """The folder's manifest, or None where it is absent or damaged: it is made again."""
    try:
        return read_manifest(place)
    except Unreachable:
        raise
    except UserError:
        return None


def recipe_at(url: str) -> dict[str, Any]:
    """The recipe by which the output in a folder was made, or begun; empty where there is none.

    A damaged plan is reported where it is read to be gone on with.
    """
    place = open_place(url)
    if (made := readable_manifest(place)) is not None:
        return made.recipe

    with contextlib.suppress(Damaged):
        if (begun := read_plan(place)) is not None:
            return begun.recipe
    return {}


def refuse_other(place: Place, job: Job, overwrite: bool) -> None:
    """Raise UserError where the run would: another recipe's output, or something else, is there."""
    if overwrite:
        refuse_foreign(place)
        return

    manifest = read_manifest(place)
    planned = read_plan(place) if manifest is None else None
    if manifest is not None:
        refuse_other_recipe(place, job, manifest.recipe)
    elif planned is not None:
        refuse_other_recipe(place, job, planned.recipe)
    else:
        refuse_foreign(place)


def made_before(place: Place, job: Job) -> Manifest | None:
    """The manifest of the same recipe where all its files are there with their sizes, else None.

    Raises UserError where another recipe's output is there.
    """
    manifest = readable_manifest(place)
    if manifest is None:
        return None

    refuse_other_recipe(place, job, manifest.recipe)
    return manifest if is_whole(place, manifest) else None


def say_made(title: str, place: Place, manifest: Manifest | None = None) -> None:
    """Say in a line that nothing needs to be done."""
    when = ""
    if manifest is not None:
        when = f" ({manifest.made_at.replace('T', ' ').replace('+00:00', ' UTC')})"
    print(f"{title}  already made{when}: {place.url}", file=sys.stderr)
