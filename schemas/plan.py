"""Units and jobs: what is planned, and what every worker reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.inside import check_inside, check_unit_name
from schemas.manifest import canonical_json, recipe_hash, sha256_text


@dataclass(frozen=True)
class Unit:
    """A piece of work: its name (also of its marker), what it must know (small JSON), how many
    inputs.

    Some keys of a payload speak to the driver: "open" (inputs are not known before; "bytes" tells
        how large it is,
    "rows" how many inputs a piece has), "last" (it waits for all other units) and "again" (its
    inputs failed in an earlier unit and are not counted twice).
    """

    name: str
    payload: dict[str, Any]
    inputs: int

    def __post_init__(self) -> None:
        check_unit_name(self.name)
        if again := self.payload.get(
            "again"
        ):  # the table of the images that are described once more
            check_inside(again)

    @property
    def slice(self) -> str:
        """Identity of the unit's slice of the plan."""
        return sha256_text(canonical_json([self.name, self.payload, self.inputs]))


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
        value["units"] = [unit.__dict__ for unit in units]
        return json.dumps(value)

    @staticmethod
    def from_json(text: str) -> Job:
        """The inverse of `to_json`."""
        value = json.loads(text)
        value["units"] = tuple(Unit(**unit) for unit in value["units"])
        return Job(**value)
