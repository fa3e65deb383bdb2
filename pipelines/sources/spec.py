"""What a source is made of: as options or a file of sources name it."""

from __future__ import annotations

import glob
from dataclasses import dataclass

from pipelines.configurations import read_yaml
from pipelines.sources.archives import is_archive, path_of
from pipelines.storage.place import open_place
from schemas.errors import UserError

KEYS = ("name", "images", "list", "ground_truth", "take")  # of a source in a file of sources


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

        folder = path_of(self.images).rpartition("/")[0] if self.in_archives else self.folder
        return open_place(folder).root.rstrip("/").rsplit("/", 1)[-1] or "images"

    @property
    def in_archives(self) -> bool:
        """Whether the images lie in archives."""
        return is_archive(self.images)

    @property
    def folder(self) -> str:
        """The folder itself, or the part of a glob above its first wildcard.

        A folder may have brackets in its name.
        """
        if not glob.has_magic(self.images) or open_place(self.images).is_folder():
            return self.images

        pieces = self.images.split("/")
        for first, piece in enumerate(pieces):
            if glob.has_magic(piece) and not open_place("/".join(pieces[: first + 1])).is_folder():
                return "/".join(pieces[:first]) or ("/" if self.images.startswith("/") else ".")

        return self.images  # no wildcard is left: what it names is a file, or is not there

    @property
    def pattern(self) -> str:
        """The part of a glob below its folder; "" where it is none."""
        return self.images.removeprefix(self.folder).lstrip("/")


def read_sources(path: str) -> list[SourceSpec]:
    """The sources of a YAML file: a list of mappings with images, and the other KEYS where wanted.

    Raises UserError.
    """
    content = read_yaml(path, "file of sources")
    listed = content.get("sources") if isinstance(content, dict) else content
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{path}: it must be a list of sources, each a mapping with 'images'")

    return [_spec(entry, f"{path}: source {number}") for number, entry in enumerate(listed, 1)]


def _spec(entry: object, where: str) -> SourceSpec:
    fields = entry if isinstance(entry, dict) else {}
    for key in sorted(map(str, fields)):
        if key not in KEYS:
            raise UserError(f"{where} has an entry {key!r}; known are {', '.join(KEYS)}")
    if not fields.get("images"):
        raise UserError(f"{where} must be a mapping with 'images'")

    for key, value in fields.items():
        if not isinstance(value, str | int | float | None):
            kind = type(value).__name__
            raise UserError(f"{where}: {key} is a {kind}; it must be one text")

    texts = {key: str(fields.get(key) or "") for key in KEYS}
    check_source_name(where, texts["name"])
    return SourceSpec(source=texts.pop("name"), **texts)


def check_sources(specs: list[SourceSpec]) -> None:
    """Raise UserError where sources cannot stand together."""
    names = [spec.name for spec in specs]
    for spec in specs:
        check_source_name("extract", spec.name)
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
        if spec.list and not spec.in_archives and spec.folder != spec.images:
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


def check_source_name(where: str, name: str) -> None:
    """Raise UserError for a source's name that no record can hold: a folder's need not be text."""
    if "/" in name:
        raise UserError(f"{where}: the source's name is {name!r}; it must have no '/'")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: the source's name {name!r} is no UTF-8; give it another with --source"
        ) from None
