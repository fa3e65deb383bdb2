"""Units and jobs: what is planned, and what every worker reads.

What a unit must do is its `work`, a struct of one kind. On disk, and where it is hashed, it is a
plain mapping, the *payload*: which keys it has says of which kind it is, and nothing else is
written, so that a plan of any version hashes to what it always did.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from schemas.errors import UserError
from schemas.inside import check_inside, check_unit_name, read_json, read_strictly
from schemas.manifest import Counts, canonical_json, recipe_hash, sha256_text

W = TypeVar("W", bound="Work")


class Work:
    """What a unit must do: the face that all kinds show to the driver."""

    __slots__ = ()

    @property
    def payload(self) -> dict[str, Any]:
        """The mapping that is hashed and lies in plan/plan.json."""
        return dict(msgspec.to_builtins(self))

    @property
    def open(self) -> bool:
        """Whether the number of inputs is not known before; then the unit's `inputs` are 0."""
        return False

    @property
    def last(self) -> bool:
        """Whether it waits for all other units."""
        return False

    @property
    def again(self) -> str:
        """The plan's table of the inputs that failed in earlier units and are done again; or ""."""
        return ""

    @property
    def size(self) -> int:
        """Bytes that an open unit reads; 0 where that is not known."""
        return 0

    @property
    def rows_a_piece(self) -> int:
        """Inputs of each piece that an open unit commits; 0 where it has no pieces."""
        return 0


class _Kind(msgspec.Struct, Work, frozen=True, forbid_unknown_fields=True):
    """A kind of this software: its fields are the payload's keys, no more and no fewer."""


class WholeJob(_Kind, frozen=True):
    """All of a job in one unit: there is nothing more to know."""


class ListedImages(_Kind, frozen=True):
    """A run of the plan's table of images, for `extract`; of what is imported, for `import`."""

    part: int  # number of the part that it fills
    start: int  # first row of the table
    ids: str  # hash of the record ids
    repeated: tuple[int, ...] | UnsetType = UNSET  # the first plans have none

    @property
    def repeated_rows(self) -> frozenset[int]:
        """Rows of the part whose record id stands earlier in the table already."""
        return frozenset() if self.repeated is UNSET else frozenset(self.repeated)


class ListedImagesAgain(ListedImages, frozen=True, kw_only=True):
    """Listed images that failed, of a table of their own."""

    again: str

    def __post_init__(self) -> None:
        check_inside(self.again)


class ArchivedImages(_Kind, frozen=True):
    """The images of an archive, which fills the parts `part`, `part + stride` ..."""

    archive: int  # row of plan/archives.parquet
    source: str
    name: str  # of the archive's file
    bytes: int  # of the archive
    prefix: str  # before its members' paths in record ids
    listed: bool  # whether only images that the source's list names are inputs
    part: int
    stride: int
    rows: int  # images a part
    open: bool

    @property
    def size(self) -> int:
        """Bytes of the archive."""
        return self.bytes

    @property
    def rows_a_piece(self) -> int:
        """Images a part."""
        return self.rows


class ArchivedImagesAgain(ArchivedImages, frozen=True, kw_only=True):
    """Images of an archive that failed; the plan's table `again` has their record ids."""

    again: str

    def __post_init__(self) -> None:
        check_inside(self.again)


class MissingImages(_Kind, frozen=True):
    """What image lists name and no archive holds, in the parts `part`, `part + stride` ..."""

    missing: str  # hash of the lists
    part: int
    stride: int
    open: bool
    last: bool


class IndexTraining(_Kind, frozen=True):
    """Training of an empty index."""

    rows: int  # globals to train on


class IndexFilling(_Kind, frozen=True):
    """Filling of a shard of an index."""

    parts: tuple[tuple[int, int], ...]  # (store, part number)


class IndexMerging(IndexFilling, frozen=True):
    """Merging of shards into a search file, or filling it with `parts` where there are none."""

    shards: tuple[int, ...]


class ShortlistBlock(_Kind, frozen=True):
    """A block of queries whose shortlists are made."""

    rows: tuple[tuple[int, int], ...]  # (place of the part in the store, row)


class Candidates(ShortlistBlock, frozen=True):
    """A block of queries, searched in one file of an index."""

    file: str

    def __post_init__(self) -> None:
        check_inside(self.file)


class ExactSearch(ShortlistBlock, frozen=True):
    """A block of queries, and a run of the gallery's parts in which they are searched exactly."""

    searched: tuple[tuple[int, int], ...]  # (store, part number)


class ExcludedRows(_Kind, frozen=True):
    """A run of a gallery's parts, whose rows are found that are left out of queries' lists."""

    excluding: tuple[tuple[int, int], ...]  # (store, part number)


class LabelledScores(_Kind, frozen=True):
    """A run of a gallery's parts, whose labelled images are found and scored."""

    scored: tuple[tuple[int, int], ...]  # (store, part number)


class LabelledCounts(_Kind, frozen=True):
    """A run of a gallery's parts, whose rows are counted that come before labelled images."""

    counted: tuple[tuple[int, int], ...]  # (store, part number)
    block: int  # of the queries of the ground truth


class LabelledPlaces(_Kind, frozen=True):
    """A block of the ground truth's queries, whose counts are summed."""

    placed: int  # number of the block


class Pairs(_Kind, frozen=True):
    """Queries of a file of shortlists, from the place `first` on, to be scored."""

    shortlist: str
    first: int

    def __post_init__(self) -> None:
        check_inside(self.shortlist)


class RankingPart(_Kind, frozen=True):
    """One protocol's ranking of a file of shortlists, replayed from files of scores."""

    protocol: str
    number: int
    shortlist: str
    scores: tuple[str, ...]

    def __post_init__(self) -> None:
        check_unit_name(self.protocol)  # a part of the name of a folder
        for name in (self.shortlist, *self.scores):
            check_inside(name)


class GalleryPictures(_Kind, frozen=True):
    """A run of the pictures of the demo's gallery."""

    gallery: int  # the first one's place in the gallery


class Unit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of work: its name (also of its marker), what must be done, how many inputs."""

    name: str
    work: Work = msgspec.field(name="payload")
    inputs: int

    def __post_init__(self) -> None:
        check_unit_name(self.name)

    @property
    def payload(self) -> dict[str, Any]:
        """The work as a mapping."""
        return self.work.payload

    @property
    def record(self) -> dict[str, Any]:
        """The unit as it lies on disk: {"name", "payload", "inputs"}."""
        return {"name": self.name, "payload": self.payload, "inputs": self.inputs}

    @property
    def slice(self) -> str:
        """Identity of the unit's slice of the plan."""
        return sha256_text(canonical_json([self.name, self.payload, self.inputs]))

    def of(self, kind: type[W]) -> W:
        """The work, of the kind that a worker does. Raises UserError where it is of another."""
        if not isinstance(self.work, kind):
            raise UserError(
                f"the unit {self.name} is {type(self.work).__name__}, and its job's worker does "
                f"{kind.__name__}: plan and job are not of one output"
            )
        return self.work

    def adds(self, counts: Counts) -> Counts:
        """What a finished unit adds to its job's counts: done again, failed inputs succeed."""
        if self.work.again:
            return Counts(0, counts.succeeded, -counts.succeeded)
        return counts

    @staticmethod
    def from_record(record: object) -> Unit:
        """The inverse of `record`. Raises ValueError with the place of what is wrong."""
        return read_strictly(record, Unit, _make_work)


class LocalsOfParts(_Kind, frozen=True):
    """Rows of a store's parts, all of one unit, that get local descriptors."""

    maker: Unit  # the unit of the store's plan that made the parts
    parts: tuple[tuple[int, tuple[int, ...]], ...]  # (part number, rows)


class OtherWork(msgspec.Struct, Work, frozen=True):
    """What a unit worker of an installed package does: a mapping of its own (small JSON).

    Its "open", "last" and "bytes" speak to the driver as those of our own kinds do. Raises
    ValueError for a key that makes it one of ours.
    """

    own: dict[str, Any]

    def __post_init__(self) -> None:
        if taken := sorted(self.own.keys() & {"again", *_KINDS}):
            raise ValueError(f"the key {taken[0]!r} belongs to units of this software")

    @property
    def payload(self) -> dict[str, Any]:
        """The mapping itself."""
        return dict(self.own)

    @property
    def open(self) -> bool:
        """As "open" says."""
        return bool(self.own.get("open"))

    @property
    def last(self) -> bool:
        """As "last" says."""
        return bool(self.own.get("last"))

    @property
    def size(self) -> int:
        """As "bytes" says."""
        return int(self.own.get("bytes", 0))


# The first of these keys that a payload has says of which kind it is.
_KINDS: dict[str, type[Work]] = {
    "archive": ArchivedImages,
    "excluding": ExcludedRows,
    "scored": LabelledScores,
    "counted": LabelledCounts,
    "placed": LabelledPlaces,
    "start": ListedImages,
    "missing": MissingImages,
    "maker": LocalsOfParts,
    "shards": IndexMerging,
    "parts": IndexFilling,
    "file": Candidates,
    "searched": ExactSearch,
    "protocol": RankingPart,
    "shortlist": Pairs,
    "rows": ShortlistBlock,
    "gallery": GalleryPictures,
}
_AGAIN: dict[type[Work], type[Work]] = {
    ArchivedImages: ArchivedImagesAgain,
    ListedImages: ListedImagesAgain,
}


def work_of(payload: object) -> Work:
    """The work of a payload. Raises ValueError, with the place of what is wrong."""
    if not isinstance(payload, dict):
        raise ValueError("expected a mapping")

    kind = next((kind for key, kind in _KINDS.items() if key in payload), None)
    if kind is None:
        return OtherWork(payload) if payload else WholeJob()
    if kind is ShortlistBlock and isinstance(payload["rows"], int):
        kind = IndexTraining
    if "again" in payload:
        kind = _AGAIN.get(kind, kind)

    try:
        return msgspec.convert(payload, kind, dec_hook=_make_work)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error  # so that the place of the unit comes before it


def _make_work(kind: type, value: Any) -> Work:
    """For msgspec, which cannot know the kinds."""
    assert kind is Work
    return work_of(value)


@dataclass(frozen=True)
class Plan:
    """What plan/plan.json holds."""

    recipe: dict[str, Any]
    recipe_hash: str = ""
    units: tuple[Unit, ...] = ()

    def to_bytes(self) -> bytes:
        """UTF-8 JSON."""
        units = [unit.record for unit in self.units]
        record = {"recipe": self.recipe, "recipe_hash": self.recipe_hash, "units": units}
        return (json.dumps(record, sort_keys=True, indent=1) + "\n").encode()

    @staticmethod
    def from_bytes(data: bytes) -> Plan:
        """The plan. Raises ValueError, with the place of what is wrong."""
        return read_strictly(read_json(data), Plan, _make_work)


@dataclass(frozen=True)
class Job:
    """One output folder to be filled.

    `recipe` and the content of `inputs` decide skip or refuse; `settings` are all other options
    (they never change bytes); `worker` is the name of a UnitWorker (pipelines/stages.py); `facts`
    go into the manifest.
    """

    stage: str
    output: str
    worker: str
    recipe: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    units: tuple[Unit, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    noun: str = "units"  # what `inputs` of the units counts, for progress: images, queries ...
    most_failed: str = ""  # N or P%: of more failed inputs the job is given up; "" never

    @property
    def identity(self) -> dict[str, Any]:
        """The recipe together with the content of the inputs."""
        contents = {name: entry["content"] for name, entry in self.inputs.items()}
        return {"stage": self.stage, "schema_version": 1, **self.recipe, "inputs": contents}

    @property
    def recipe_hash(self) -> str:
        """Hex SHA-256 of the identity."""
        return recipe_hash(self.identity)

    def to_json(self, units: Sequence[Unit] = ()) -> str:
        """The job with only the given units, for the worker processes."""
        value = {name: getattr(self, name) for name in self.__dataclass_fields__}
        value["units"] = [unit.record for unit in units]
        return json.dumps(value)

    @staticmethod
    def from_json(text: str) -> Job:
        """The inverse of `to_json`. Raises ValueError, with the place of what is wrong."""
        return read_strictly(read_json(text), Job, _make_work)
