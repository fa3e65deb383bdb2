"""The result of `tune`: which (lambda, gamma, k) is best on a validation set.

A JSON file, with what made it:

    {"schema", "best": {"lambda", "gamma", "k"}, "metric", "queries",
     "values": {"best" | "reranked" | "global": {"mean", "medium", "hard", ...}},       measures in
     [0, 1] "grid": {"lambda": [...], "gamma": [...], "k": [...], "values": [k][lambda][gamma]},
     "recipe": what decides skip or refuse, "inputs": {"scores" | "queries" | "ground_truth":
     {"url", "content"}}, "reranker": identity of what made the scores, "extractor": likewise, null
     where its store is gone}

`reranked` is lambda = 0 over the run's own shortlist, `global` is lambda = 1. The contents in
`inputs` keep the result from being used on the set that it was tuned on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from schemas.errors import UserError
from schemas.inside import read_json

TUNED_SCHEMA = "rrt-tuned/1"


@dataclass(frozen=True)
class Tuned:
    """A tuned ensemble; the fields are those of the file."""

    best: dict[str, float]
    metric: str
    queries: int
    values: dict[str, dict[str, float]]
    grid: dict[str, Any]
    recipe: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    reranker: dict[str, Any]
    extractor: dict[str, Any] | None

    def to_bytes(self) -> bytes:
        """UTF-8 JSON: a line a field, so that a person finds the best at the top."""
        record = {"schema": TUNED_SCHEMA, **asdict(self)}
        lines = ",\n".join(
            f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()
        )
        return f"{{\n{lines}\n}}\n".encode()

    @staticmethod
    def from_bytes(data: bytes, where: str) -> Tuned:
        """The result that a file holds. Raises UserError, naming `where`, for anything else."""
        try:
            record = read_json(data)
            schema = record.pop("schema")
            if schema != TUNED_SCHEMA:
                raise UserError(
                    f"{where}: its schema is {schema!r}, this software reads {TUNED_SCHEMA!r}; "
                    "tune again"
                )
            tuned = Tuned(**record)
            best = {"lambda": float(tuned.best["lambda"]), "gamma": float(tuned.best["gamma"])}
            contents = [
                tuned.inputs[name]["content"] for name in ("scores", "queries", "ground_truth")
            ]
            if not all(isinstance(content, str) for content in contents) or not isinstance(
                tuned.reranker, dict
            ):
                raise TypeError
            return Tuned(**{**record, "best": {**best, "k": int(tuned.best["k"])}})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{where} is no result of 'tune'; give a file that 'tune' wrote"
            ) from None
