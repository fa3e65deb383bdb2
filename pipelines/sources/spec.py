"""What a source is made of: as options or a file of sources name it."""

from __future__ import annotations

import glob
from dataclasses import dataclass

import yaml

from pipelines.sources.archives import is_archive, path_of
from pipelines.storage.place import open_place
from schemas.errors import UserError


@dataclass(frozen=True)
class SourceSpec:
    """Where the images are named.

    `images` is the folder that names are relative to, a glob of images, or archives.
    """

    images: str
    list: str = ""
    ground_truth: str = ""
    take: str = ""  # gallery | queries, of the ground truth
    source: str = ""  # the source's name in ids; "" is the folder's own

    @property
    def name(self) -> str:
        """The source's name: the folder's that holds the images, or the archives."""
        if self.source:
            return self.source
        folder = (
            path_of(self.images).rpartition("/")[0] if self.in_archives else _folder_of(self.images)
        )
        return open_place(folder).root.rstrip("/").rsplit("/", 1)[-1] or "images"

    @property
    def in_archives(self) -> bool:
        """Whether the images lie in archives."""
        return is_archive(self.images)


def read_input(path: str, what: str) -> bytes:
    """The whole file that an option names. Raises UserError where none can be read there."""
    try:
        return open_place(path).read("")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such {what}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: it is a folder; give the {what} itself") from None
    except (OSError, ValueError) as error:  # below a file, not allowed, no path at all
        raise UserError(
            f"{path}: no {what} can be read there: {getattr(error, 'strerror', None) or error}"
        ) from None


def read_sources(path: str) -> list[SourceSpec]:
    """The sources of a YAML file: a list of mappings with images, and name, list, ground_truth,
    take where wanted.

    Raises UserError.
    """
    try:
        content = yaml.safe_load(read_input(path, "file of sources"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: it is no valid YAML: {' '.join(str(error).split())}") from None
    listed = content.get("sources") if isinstance(content, dict) else content
    known = ("name", "images", "list", "ground_truth", "take")
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{path}: it must be a list of sources, each a mapping with 'images'")
    specs = []
    for number, entry in enumerate(listed, 1):
        unknown = sorted(set(map(str, entry)) - set(known)) if isinstance(entry, dict) else []
        if unknown:
            raise UserError(
                f"{path}: source {number} has an entry {unknown[0]!r}; known are {', '.join(known)}"
            )
        if not isinstance(entry, dict) or not entry.get("images"):
            raise UserError(f"{path}: source {number} must be a mapping with 'images'")
        wrong = next(
            (key for key in known if not isinstance(entry.get(key), str | int | float | None)), None
        )
        if wrong:
            raise UserError(
                f"{path}: source {number}: {wrong} is a {type(entry[wrong]).__name__}; it must be "
                f"one text"
            )
        images, names, truth, take, name = (
            str(entry.get(key) or "") for key in ("images", *known[2:], "name")
        )
        if "/" in name:
            raise UserError(
                f"{path}: source {number}: its name is {name!r}; the name of a source has no '/'"
            )
        specs.append(SourceSpec(images, names, truth, take, name))
    return specs


def check_sources(specs: list[SourceSpec]) -> None:
    """Raise UserError where sources cannot stand together."""
    names = [spec.name for spec in specs]
    for spec in specs:
        if "/" in spec.source:
            raise UserError(
                f"extract: --source is {spec.source!r}; the name of a source has no '/'"
            )
        refuse_unreadable_name("extract", spec.name)
        if spec.ground_truth and not spec.take:
            raise UserError(
                f"extract: the ground truth {spec.ground_truth} needs take: gallery or queries"
            )
        if spec.take and not spec.ground_truth:
            raise UserError(f"extract: {spec.images}: take: {spec.take} needs a ground truth")
        if spec.list and spec.ground_truth:
            raise UserError(
                f"extract: {spec.images}: --list and --ground-truth both name the images; give "
                f"one of them"
            )
        if spec.list and not spec.in_archives and _folder_of(spec.images) != spec.images:
            raise UserError(
                f"extract: {spec.images}: a list names images of a folder, not of a glob; give "
                f"the folder"
            )
        if spec.ground_truth and spec.in_archives:
            raise UserError(
                f"extract: {spec.images} are archives; a ground truth takes images from a folder"
            )
        if names.count(spec.name) > 1:
            raise UserError(
                f"extract: two sources are called {spec.name!r}; give each a name of its own"
            )


def refuse_unreadable_name(stage: str, name: str) -> None:
    """Raise UserError for the name of a source that no record can hold: a folder's need not be
    text.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{stage}: the source's name {name!r} is no UTF-8; give it another with --source"
        ) from None


def _folder_of(images: str) -> str:
    """The folder itself, or the part of a glob above its first wildcard; a folder may have brackets
    in its name.
    """
    if not glob.has_magic(images) or open_place(images).is_folder():
        return images
    pieces = images.split("/")
    first = 0
    while (
        not glob.has_magic(pieces[first]) or open_place("/".join(pieces[: first + 1])).is_folder()
    ):
        first += 1
        if first == len(pieces):  # no wildcard is left: what it names is a file, or is not there
            return images
    return "/".join(pieces[:first]) or ("/" if images.startswith("/") else ".")
