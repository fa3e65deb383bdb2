"""What failed of a store, said at the end of the command that made it; all failed is no success."""

from __future__ import annotations

import sys

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.jobs.manifests import parts_of
from pipelines.storage.byte_sources import read_columns
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from pipelines.storage.tables import read_table
from schemas.errors import JobFailed
from schemas.failures import FAILURES
from schemas.manifest import Manifest

MOST_CLASSES = 12  # that get a line
MOST_TEXT = 300  # characters of an example


def end_with_failures(manifest: Manifest, url: str) -> None:
    """Say what failed of a finished store. Raises JobFailed where all of it did."""
    example = say_failures(manifest, url)
    if manifest.counts.inputs and not manifest.counts.succeeded:
        raise JobFailed(
            f"{manifest.stage}: all {manifest.counts.inputs:,} images failed; the first is "
            f"{example} ({open_place(url).url}/failures has all)"
        )


def say_failures(manifest: Manifest, url: str) -> str:
    """Print how many images failed, of which classes, with an example each; gives the first one."""
    counts = manifest.counts
    if not counts.failed:
        return ""

    rows = _failures(open_place(url), manifest)
    classes = pc.value_counts(rows.column("error_class")).to_pylist()
    classes.sort(key=lambda one: (-one["counts"], one["values"]))
    print(
        f"{manifest.stage:<9}  {counts.failed:,} of {counts.inputs:,} images failed:",
        file=sys.stderr,
    )
    examples = []
    for one in classes[:MOST_CLASSES]:
        row = rows.filter(pc.equal(rows.column("error_class"), one["values"])).slice(0, 1)
        (example,) = row.to_pylist()
        text = f"{example['record_id']}: {example['reason']}"
        examples.append(text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} ...")
        count = f"{one['counts']:,} {one['values']}"
        print(f"{'':<9}  {count}, such as {examples[-1]}", file=sys.stderr)
    if len(classes) > MOST_CLASSES:
        print(f"{'':<9}  and {len(classes) - MOST_CLASSES} more classes", file=sys.stderr)
    return examples[0] if examples else ""


def _failures(place: Place, manifest: Manifest) -> pa.Table:
    """The failures of a store or layer, without those that a later retry set right."""
    names = [entry.name for _, entry in parts_of(place, manifest) or () if entry.rows]
    tables = [read_table(place, name) for name in names if name.startswith("failures/")]
    rows = pa.concat_tables([FAILURES.empty_table(), *tables])
    if len(rows) <= manifest.counts.failed:
        return rows

    alive: set[str] = set()
    for name in names:
        if name.startswith("global/"):
            part = read_columns(place, name, ["record_id", "status"])
            alive.update(
                part.filter(pc.equal(part.column("status"), "ok"))["record_id"].to_pylist()
            )
    last = {name: row for row, name in enumerate(rows.column("record_id").to_pylist())}
    kept = [
        row
        for row, (name, kind) in enumerate(
            zip(rows["record_id"].to_pylist(), rows["error_class"].to_pylist(), strict=True)
        )
        if kind == "duplicate" or (name not in alive and last[name] == row)
    ]
    return rows.take(kept)
