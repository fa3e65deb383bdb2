"""Inputs of an output: known by their content, found by hints of where they lie.

An output records its inputs by absolute place. A place is a hint: where folders were moved, renamed
or mounted elsewhere, what lies beside the output as the recorded place did, is the input if it has
the recorded content, and so is what the command names instead. Nothing of another content is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipelines.jobs.manifests import read_manifest
from pipelines.storage.place import open_place
from pipelines.storage.protocol import Place
from schemas.errors import Unreachable, UserError
from schemas.manifest import MANIFEST_NAME, Manifest, sha256_text
from schemas.plan import Job

MOST_STEPS = 32  # of a path, that are looked for beside an output


def find_input(recorded: str, content: str, home: str) -> str | None:
    """Where an input of that content lies now; None where it is at no place that is known.

    home: the output that records it. Beside a local one it is looked for first, so that a copy of
    a whole folder of results reads its own stores.
    """
    near, far = places_near(recorded, home), (recorded,)
    for url in (*far, *near) if "://" in home else (*near, *far):
        if content_at(url) == content:
            return url
    return None


def places_near(recorded: str, home: str) -> Iterator[str]:
    """Where a thing may lie that was moved together with the output at `home`: by the end of its
    recorded place, beside each folder above the output, the nearest first.
    """
    scheme, _, path = recorded.rpartition("://")
    scheme_of_home, mark, above = home.rpartition("://")
    steps = [step for step in path.split("/") if step][-MOST_STEPS:]
    if scheme != scheme_of_home or {".", ".."} & {*steps}:
        return

    for _ in range(MOST_STEPS):
        above = above.rpartition("/")[0]
        if not above:
            return
        for first in range(len(steps)):
            yield f"{scheme}{mark}{above}/{'/'.join(steps[first:])}"


def content_at(url: str) -> str | None:
    """The content of the finished output, or of the local file, at a place; None where there is
    none.
    """
    try:
        place = open_place(url)
        if place.local and os.path.isfile(place.root):
            return file_content(place)
        manifest = read_manifest(place)
    except Unreachable:
        raise
    except (UserError, OSError, ValueError):  # a place that cannot be, or that is none of ours
        return None
    return manifest.content if manifest else None


def file_content(place: Place) -> str:
    """The content of a file, such as a ground truth."""
    return sha256_text(place.read("").hex())


def find_inputs(
    hints: Sequence[tuple[str, str]], home: str, given: Sequence[str], option: str, what: str
) -> list[str]:
    """Where the inputs of an output lie now.

    Args:
        hints: (recorded place, content) of each.
        home: the output that records them.
        given: places that the command names in the place of recorded ones, in any order.
        option, what: the command's option for these, and the things, in words.

    Raises UserError where one is at no known place, or what is named has another content.
    """
    named = {}
    for url in given:
        content = content_at(url)
        if content not in {content for _, content in hints}:
            has = f"has the content {content[:12]}" if content else "is not there, or not finished"
            wanted = ", ".join(f"{content[:12]} ({recorded})" for recorded, content in hints)
            raise UserError(f"{option} {url}: that {what} {has}; {home} was made of {wanted}")
        named[content] = open_place(url).url

    found = []
    for recorded, content in hints:
        place = named.get(content) or find_input(recorded, content, home)
        if place is None:
            raise _lost(recorded, content, home, option, what)
        found.append(place)
    return found


def _lost(recorded: str, content: str, home: str, option: str, what: str) -> UserError:
    now = content_at(recorded)
    if now is None:
        return UserError(
            f"{recorded}: the {what} that {home} was made of is not there, nor beside {home}; if "
            f"it was moved, give its place by {option}"
        )
    return UserError(
        f"{recorded}: the {what} was made again since {home} was made of it (content {now[:12]}, "
        f"then {content[:12]}); give the place of the old one by {option}, or make {home} again"
    )


def with_new_places(place: Place, job: Job, manifest: Manifest) -> Manifest:
    """The manifest of an output of the same recipe, in which inputs that have moved are found.

    It is written where it differs.
    """
    facts = {**manifest.facts, **{key: job.facts[key] for key in ("stores",) if key in job.facts}}
    now = replace(manifest, inputs=job.inputs, facts=facts)
    if now.to_bytes() == manifest.to_bytes():
        return manifest

    place.write(MANIFEST_NAME, now.to_bytes())
    return now
