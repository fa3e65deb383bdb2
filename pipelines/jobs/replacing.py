"""--overwrite: a new output is made beside the old one, and put in its place once it is whole.

It is made in OUT/next, an output folder of the same form. Only when its manifest stands is
OUT/next/swap.json written, which lists what goes and what comes; from then on any command finishes
the swap before it does anything else. Until then the old output is as it was. In mid-swap there is
no manifest, so that nobody takes a mixture for an output.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import accumulate

import pyarrow as pa

from pipelines.jobs.existing_output import (
    BESIDE_SCHEMA,
    is_beside,
    is_ours,
    readable_manifest,
    refuse_foreign,
)
from pipelines.jobs.manifests import parts_of
from pipelines.jobs.plan import planned_units, read_plan
from pipelines.storage.local import ABSENT, is_temporary
from pipelines.storage.place import URL, open_place
from pipelines.storage.protocol import Place
from schemas.errors import Unreachable, UserError
from schemas.inside import check_inside, read_strictly
from schemas.layout import (
    BESIDE_NAME,
    JOB_NAME,
    LAYERS,
    NEXT,
    PIECES,
    PLAN_FILES,
    PLAN_FOLDER,
    SWAP_NAME,
    TRANSIENT,
    is_layout_name,
    retry_number,
)
from schemas.manifest import MANIFEST_NAME, PARTS_NAME, FileEntry, Marker, read_record
from schemas.plan import Job

SWAP_SCHEMA = "rrt-swap/1"
_DAMAGED = (OSError, ValueError, KeyError, TypeError, pa.ArrowException, UserError)


@dataclass(frozen=True)
class Swap:
    """What goes and what comes, by names below the old output's folder.

    last: the file by which the output is finished: it goes first and comes last.
    remove: files of the old output. folders: whole ones, of TRANSIENT and NEXT.
    move: files of the new output, in their order.
    plain: SHA-256 of files of the old output that are called as this software calls none.
    """

    last: str
    remove: list[str]
    folders: list[str]
    move: list[str]
    plain: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (self.last, *self.remove, *self.folders, *self.move, *self.plain):
            check_inside(name)

        for name in self.folders:
            if name.rpartition("/")[2] not in (*TRANSIENT, NEXT):
                raise ValueError(f"{name!r} is no folder of what is under way")


# ------------------------------------------------------------------------- making the new output


def place_for(place: Place, overwrite: bool, inputs: Iterable[str]) -> Place:
    """Where an output is to be made: in its folder, or beside the old one that it replaces.

    inputs: paths or URLs of what the command reads.

    Writes nothing. Raises UserError where the folder holds files of something else, or is an
    input itself.
    """
    refuse_foreign(place)
    if not overwrite or not is_ours(place):
        return place

    for url in inputs:
        read = url if URL.match(url) else os.path.abspath(os.path.expanduser(url))
        if read.rstrip("/") == place.url:
            raise UserError(
                f"{place.url} is an input of this command, which --overwrite would remove; give "
                f"another place"
            )

    _refuse_links(place, [f"{NEXT}/{BESIDE_NAME}"])
    return place.below(NEXT)


def begin_beside(new: Place, job: Job) -> None:
    """Make the folder of a new output, or go on in it where it was begun for the same job.

    Raises UserError where it holds files of something else.
    """
    if is_beside(new):
        if _is_of(new, job):
            return
        new.empty()
    elif any(not _is_begun(entry.name) for entry in new.entries("")):  # hidden ones, too
        raise UserError(
            f"{new.url} holds files of something else, and is where --overwrite makes the new "
            f"output; move them away"
        )
    new.write(BESIDE_NAME, (json.dumps({"schema": BESIDE_SCHEMA}) + "\n").encode())


def _is_begun(name: str) -> bool:
    """Whether it is what a kill leaves of the first file in the folder of a new output."""
    return name.startswith(f"{BESIDE_NAME}.") and is_temporary(name)


def _is_of(new: Place, job: Job) -> bool:
    """Whether what was begun is of the job: of its recipe, and cut into its units."""
    try:
        planned = read_plan(new)
        return planned is None or (
            planned.recipe_hash == job.recipe_hash
            and [unit.slice for unit in planned.units] == [unit.slice for unit in job.units]
        )
    except Unreachable:  # it may be of the job: what it holds is not removed
        raise
    except UserError:
        return False


def at(job: Job, new: Place) -> Job:
    """The job as its workers see it while it fills another folder than its own."""
    settings = dict(job.settings)
    if settings.get("out") == job.output:
        settings["out"] = new.url
    return replace(job, output=new.url, settings=settings)


def back(job: Job) -> tuple[Place, Job]:
    """The inverse of `at`: the output's own folder, and the job as it is there."""
    url = job.output.removesuffix(f"/{NEXT}")
    settings = dict(job.settings)
    if settings.get("out") == job.output:
        settings["out"] = url
    return open_place(url), replace(job, output=url, settings=settings)


# ------------------------------------------------------------------------------------ the swap


def swap_in(
    place: Place, job: Job | None, own: Sequence[str] = (), last: str = MANIFEST_NAME
) -> None:
    """Put the finished output in OUT/next in the place of the old one.

    Args:
        job: as it is in its own folder; None where the output has no plan.
        own: further files of such an output, with fixed names; a folder's ends with a slash, and
            stands for all that is in it.
        last: the file by which the output is finished.
    """
    new = place.below(NEXT)
    if job is not None:
        new.write(JOB_NAME, job.to_json().encode())

    move = _named(new, own) - _fixed(own) - {last}
    move |= {name for name in _fixed(own) - {last} if new.exists(name)}
    move |= {f"{PLAN_FOLDER}/{name}" for name in new.names(PLAN_FOLDER)}
    move = {name for name in move if not is_temporary(name)}
    plain = _plain_files(place, own)
    remove = _named(place, own) - move - {last} - plain.keys()
    swap = Swap(
        last=last,
        remove=sorted(remove),
        folders=_folders(place),
        move=sorted(move, key=_when_moved),
        plain={name: digest for name, digest in sorted(plain.items()) if name not in move},
    )
    new.write(SWAP_NAME, (json.dumps({"schema": SWAP_SCHEMA, **asdict(swap)}) + "\n").encode())
    finish_swap(place)


def finish_begun(url: str) -> None:
    """Finish a swap that an earlier command began at a place, where there is one."""
    place = open_place(url)
    if place.exists(f"{NEXT}/{SWAP_NAME}"):
        with place.alone():
            finish_swap(place)


def finish_swap(place: Place) -> None:
    """Finish a swap that was begun; nothing happens where there is none. Raises UserError."""
    new = place.below(NEXT)
    swap = _read_swap(new)
    if swap is None:
        return

    names = (*swap.move, swap.last)
    _refuse_links(place, [*(f"{NEXT}/{name}" for name in names), *names])
    if new.exists(swap.last):
        place.remove(swap.last)
        _remove(place, swap)
        for name in (*swap.move, swap.last):
            place.move(f"{NEXT}/{name}", name)

    new.empty()
    place.remove_empty_folder(NEXT)


def _read_swap(new: Place) -> Swap | None:
    try:
        return read_strictly(read_record(new.read_record(SWAP_NAME), SWAP_SCHEMA), Swap)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (IsADirectoryError, ValueError) as error:
        raise UserError(
            f"{new.url}/{SWAP_NAME} is damaged ({error}); move the folder away and give the "
            f"command again, with --overwrite"
        ) from error


def _remove(place: Place, swap: Swap) -> None:
    """Remove the old output's files, and the folders that are empty without them.

    What bookkeeping names may be its owner's, where it came from a stranger: only a file that could
    be called so by this software is removed, or that is just the one that was written.
    """
    for name in (*swap.remove, *swap.plain):
        whole = swap.plain.get(name)
        if _link_above(place, name) or not (is_layout_name(name) or whole):
            continue

        with contextlib.suppress(*ABSENT, IsADirectoryError):  # a folder is no file of ours
            if whole is None or sha256(place.read(name)).hexdigest() == whole:
                place.remove(name)
    for name in swap.folders:
        if not _link_above(place, name):
            place.remove_folder(name)

    above: set[str] = set()
    for name in (*swap.remove, *swap.plain, *swap.folders):
        while name := name.rpartition("/")[0]:
            above.add(name)
    for folder in sorted(above, reverse=True):
        if not _link_above(place, folder):
            place.remove_empty_folder(folder)


def _link_above(place: Place, name: str) -> str:
    """The first of the folders above a file that is a link, or "": the output may be a stranger's,
    and a link may lead out of it.
    """
    folders = accumulate(name.split("/")[:-1], "{}/{}".format)
    return next((folder for folder in folders if place.is_link(folder)), "")


def _refuse_links(place: Place, names: Sequence[str]) -> None:
    """Raise UserError where a file that is to be moved or written lies behind a link."""
    for name in names:
        if link := _link_above(place, name):
            raise UserError(
                f"{place.url}/{link} is a link to a folder elsewhere, behind which nothing is "
                f"removed or written: put the folder itself in its place, then give the command "
                f"again"
            )


def _when_moved(name: str) -> tuple[int, str]:
    """Data first, then what names it."""
    folder = name.partition("/")[0]
    return {PIECES: 1, "done": 2, PARTS_NAME: 3, PLAN_FOLDER: 4}.get(folder, 0), name


# --------------------------------------------------------------------------- what an output names


def _fixed(own: Sequence[str]) -> set[str]:
    """Names of files that do not depend on what is in the output."""
    return {MANIFEST_NAME, PARTS_NAME, *PLAN_FILES, *(one for one in own if one[-1] != "/")}


def _named(place: Place, own: Sequence[str]) -> set[str]:
    """The files below an output that its plan, markers, manifest or parts table name, or that have
    a fixed name.
    """
    names = _fixed(own)
    for folder in own:
        if folder.endswith("/"):
            names.update(_below(place, folder.rstrip("/")))

    planned = [f"{PLAN_FOLDER}/{name}" for name in place.names(PLAN_FOLDER)]
    names.update(name for name in planned if retry_number(name))
    for folder in ("", PLAN_FOLDER, "done", PIECES):
        names.update(_join(folder, name) for name in place.names(folder) if is_temporary(name))

    units, listed = _units_and_files(place)
    names |= listed or set()
    for folder in ("done", PIECES):
        for name in place.names(folder):
            unit = name.partition(".")[0]
            if listed is not None and unit in units:
                names.add(f"{folder}/{name}")
                continue

            marker = _read_marker(place, f"{folder}/{name}")
            if marker is not None:
                names |= {f"{folder}/{name}", *(entry.name for entry in marker.files)}

    for layer in _layers(place):
        names.update(f"{layer}/{name}" for name in _named(place.below(layer), ()))
    return names


def _read_marker(place: Place, name: str) -> Marker | None:
    with contextlib.suppress(OSError, ValueError):
        return Marker.from_bytes(place.read_record(name))
    return None


def _units_and_files(place: Place) -> tuple[set[str], set[str] | None]:
    """Units of a finished output, and all its files; no files where its parts table is damaged."""
    manifest = readable_manifest(place)
    with contextlib.suppress(*_DAMAGED):
        parts = parts_of(place, manifest) if manifest is not None else None
        if parts is not None:
            units = {unit.name for unit in planned_units(place)} | {unit for unit, _ in parts}
            return units, {entry.name for _, entry in parts}
    return set(), None


def _plain_files(place: Place, own: Sequence[str]) -> dict[str, str]:
    """Files of an output of names that could be anybody's, with their SHA-256.

    They are those that its markers or parts table name so, such as the pictures of the demo, and
    what is in the `own` folders.
    """
    manifest = readable_manifest(place)
    entries: list[FileEntry] = []
    with contextlib.suppress(*_DAMAGED):
        parts = parts_of(place, manifest) if manifest is not None else None
        entries += [entry for _, entry in parts or ()]

    for name in place.names("done"):
        marker = _read_marker(place, f"done/{name}")
        entries += marker.files if marker else ()

    plain = {entry.name: entry.sha256 for entry in entries}
    for folder in own:
        for name in _below(place, folder.rstrip("/")) if folder.endswith("/") else ():
            plain[name] = sha256(place.read(name)).hexdigest()
    for layer in _layers(place):
        inner = _plain_files(place.below(layer), ())
        plain.update({f"{layer}/{name}": digest for name, digest in inner.items()})

    return {name: digest for name, digest in plain.items() if not is_layout_name(name)}


def _folders(place: Place) -> list[str]:
    """Folders of what was under way in the old output, and in its layers."""
    folders = [*TRANSIENT]
    for layer in _layers(place):
        folders += [f"{layer}/{name}" for name in TRANSIENT]
        if is_beside(place.below(f"{layer}/{NEXT}")):
            folders.append(f"{layer}/{NEXT}")
    return folders


def _layers(place: Place) -> list[str]:
    """The layers of local descriptors, which go with the content that they were made for."""
    layers = [f"{LAYERS}/{name}" for name in place.folders(LAYERS)]
    return [layer for layer in layers if is_ours(place.below(layer))]


def _below(place: Place, folder: str) -> Iterable[str]:
    """All files below a folder; none behind a link, which may lead out or back to it."""
    if place.is_link(folder):
        return
    for name in place.names(folder):
        yield _join(folder, name)
    for name in place.folders(folder):
        yield from _below(place, _join(folder, name))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
