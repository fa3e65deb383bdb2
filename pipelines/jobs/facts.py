"""What stages read of each other's manifests beside counts and contents: `facts`, of known types.

A manifest may come from a stranger. Facts that are not named here are for people.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, TypeVar

import msgspec

from schemas.inside import read_strictly
from schemas.manifest import Manifest

Count = Annotated[int, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(min_length=1)]


class StoreHint(msgspec.Struct, frozen=True):
    """A store of a gallery: known by its content; `url` is where it lay, which is a hint.

    Row ids of its part p begin at (base + p) * 4096.
    """

    url: Text
    content: Text
    base: Count

    @property
    def entry(self) -> dict[str, Any]:
        """The hint as it lies in facts and settings."""
        return {"url": self.url, "content": self.content, "base": self.base}


Stores = Annotated[tuple[StoreHint, ...], msgspec.Meta(min_length=1)]


class IndexFacts(msgspec.Struct, frozen=True):
    """Of the files that `search` opens."""

    key: str
    rows: Count
    stores: Stores


class ShortlistNotes(msgspec.Struct, frozen=True):
    """How many lists hold fewer than k candidates, and how many the shortest one holds."""

    short_lists: Count = 0
    least_candidates: Count | None = None


class ShortlistFacts(msgspec.Struct, frozen=True):
    """Of a shortlist: `k` candidates a query are kept of a gallery of so many rows.

    `nprobe` is None for an exact index. `notes` are the sums of its units' (schemas/manifest.py).
    """

    k: Count
    gallery_rows: Count
    truncated: bool
    stores: Stores
    index_key: str
    nprobe: int | None
    notes: ShortlistNotes = ShortlistNotes()

    @property
    def shortest(self) -> int:
        """Candidates of the shortest list."""
        return self.k if self.notes.least_candidates is None else self.notes.least_candidates

    @property
    def cut(self) -> bool:
        """Whether a list lacks images of the gallery."""
        return self.truncated or self.shortest < self.gallery_rows


class LabelledFacts(msgspec.Struct, frozen=True):
    """Of labelled places: the gallery that was counted."""

    stores: Stores


class RankingFacts(msgspec.Struct, frozen=True):
    """Of rankings: the protocols that they are of."""

    protocols: tuple[str, ...]


class RerankerFacts(msgspec.Struct, frozen=True):
    """What scored pairs."""

    name: str
    revision: int
    weights_sha256: str | None
    config: dict[str, Any]


class ScoresRecipe(msgspec.Struct, frozen=True):
    """Of scores: how many of a list were reranked, and by what."""

    part: ClassVar[str] = "recipe"
    shortlist: Annotated[int, msgspec.Meta(ge=1)]
    reranker: RerankerFacts


F = TypeVar("F", IndexFacts, ShortlistFacts, LabelledFacts, RankingFacts, ScoresRecipe)


def facts_of(manifest: Manifest, kind: type[F]) -> F:
    """The facts of a manifest, or its recipe. Raises ValueError with the place of what is wrong."""
    part = getattr(kind, "part", "facts")
    try:
        return read_strictly(getattr(manifest, part), kind)
    except ValueError as error:
        raise ValueError(f"{part}.{error}") from None


def stores_of(entries: object) -> tuple[StoreHint, ...]:
    """The stores that a job's settings name. Raises ValueError with the place of what is wrong."""
    return read_strictly(entries, tuple[StoreHint, ...])
