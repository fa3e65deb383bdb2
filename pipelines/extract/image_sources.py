"""The sources of images that the options of `extract` name, and what is refused before any work."""

from __future__ import annotations

from dataclasses import asdict

from pipelines.engines.settings import RunSettings
from pipelines.extract.options import Options
from pipelines.sources.spec import SourceSpec, check_sources, read_sources
from pipelines.storage.place import open_place
from schemas.errors import UserError


def check_seconds(options: Options, settings: RunSettings) -> None:
    """Raise UserError where a worker that waits for an image would be taken for a stalled one."""
    most = 60 * settings.stall_minutes
    if options.image_seconds >= most:
        raise UserError(
            f"extract: --image-seconds is {options.image_seconds:g}; it must be below {most:g}, "
            f"the seconds of --stall-minutes {settings.stall_minutes:g}"
        )


def specs_of(options: Options) -> list[SourceSpec]:
    """The sources that the options name. Raises UserError."""
    if options.take and not options.ground_truth and not options.sources:
        raise UserError("extract: --take without --ground-truth; name the ground truth")
    if options.ground_truth and not options.take:
        raise UserError("extract: --ground-truth needs --take gallery or --take queries")
    single = SourceSpec(
        options.images, options.list, options.ground_truth, options.take, options.source
    )
    if options.sources:
        if any(asdict(single).values()):
            flags = "--images, --list, --ground-truth, --take, --source"
            raise UserError(f"extract: --sources names all; leave out {flags}")
        specs = read_sources(options.sources)
    elif not options.images:
        raise UserError("extract: --images is missing (or --sources, for several)")
    else:
        specs = [single]
    check_sources(specs)
    return specs


def images_url(options: Options) -> str:
    """Where the images are, for messages and for the inputs of the job."""
    return open_place(options.sources or options.images).url
