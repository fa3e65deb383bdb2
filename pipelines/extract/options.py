"""Options of `extract`, and the sources that they name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipelines.engines.settings import RunSettings
from pipelines.options import option
from pipelines.sources.spec import SourceSpec, check_sources, read_sources
from pipelines.storage.place import open_place
from schemas import local_descriptors
from schemas.errors import UserError

MOST_SECONDS = 86_400.0  # for an image


@dataclass(frozen=True)
class Options:
    """Options of `extract`."""

    out: str = option("the store to make: a folder (path or URL)")
    images: str = option(
        "folder or glob of images, or the folder that the names of a list are relative to; or "
        "archives (.tar, .tar.gz, "
        ".tgz, .tar.bz2, .tar.xz, .zip): a path, a glob, a range such as "
        "revisitop1m.{1..100}.tar.gz, or URLs of these",
        "",
    )
    list: str = option(
        "image list: CSV or text with a name first in each row, or Parquet with a column 'path'", ""
    )
    ground_truth: str = option(
        "ground-truth file (.json, revisitop's .pkl or .mat) that names gallery and queries", ""
    )
    take: str = option(
        "what of the ground truth to describe", "", choices=("", "gallery", "queries")
    )
    source: str = option("name of the source in record ids; the folder's name where empty", "")
    sources: str = option(
        "YAML file of several sources for one store, in place of the five options above", ""
    )
    extractor: str = option(
        "efficientnet, rootsift, delg, timm:MODEL, or package.module:Class", "efficientnet"
    )
    extractor_option: dict[str, Any] = option(
        "an option of the extractor, such as sizes=512,360,256", {}
    )
    global_dtype: str = option("how globals are stored", "float32", choices=("float32", "float16"))
    local_dtype: str = option(
        "how local descriptors are stored; 500 of 128 dimensions take 262 kB (float32), 134 kB "
        "(float16), 70 kB (int8) "
        "or 15 kB (binary)",
        "float16",
        choices=tuple(local_descriptors.DTYPES),
    )
    locals: str = option(
        "all, or none: globals alone; --locals-for adds locals later",
        "all",
        choices=("all", "none"),
    )
    max_locals: int = option(
        "local descriptors kept an image, the strongest; 0: as many as the extractor gives", 0
    )
    locals_for: str = option(
        "add a layer of locals to the finished store: of the images that this run folder's "
        "shortlist reranks, or whose "
        "record ids this text file names",
        "",
    )
    shortlist: int = option("with --locals-for: how many of each query's list are reranked", 100)
    decoding: str = option(
        "full, or draft: large JPEGs are decoded at a half, a quarter or an eighth where the "
        "extractor looks at less",
        "full",
        choices=("full", "draft"),
    )
    rows_per_part: int = option("images a part; 0 chooses (at most 4,096 and 256 MB)", 0)
    max_pixels: int = option("images with more pixels are refused, as failed rows", 100_000_000)
    min_side: int = option("images with a shorter side are refused, as failed rows", 10)
    image_seconds: float = option(
        "an image that takes longer to decode, or to describe, is given up, as a failed row; "
        "below --stall-minutes",
        300.0,
    )
    decoders: int = option("threads of a worker that read and decode ahead of the model", 2)
    max_failures: str = option(
        "end when more images fail: a number, or per cent of all such as 5%", ""
    )
    retry_failed: bool = option("describe the failed images of the finished store once more", False)


def check_seconds(options: Options, settings: RunSettings) -> None:
    """Raise UserError where a worker that waits for an image would be taken for one that stands
    still.
    """
    most = min(60 * settings.stall_minutes, MOST_SECONDS)
    if not 0 < options.image_seconds < most:
        raise UserError(
            f"extract: --image-seconds is {options.image_seconds:g}; it must be above 0 and below "
            f"{most:g}, the "
            f"seconds of --stall-minutes {settings.stall_minutes:g} (a day at most)"
        )


def _specs(options: Options) -> list[SourceSpec]:
    """The sources that the options name. Raises UserError."""
    for name, value, least in (
        ("decoders", options.decoders, 1),
        ("max-locals", options.max_locals, 0),
    ):
        if value < least:
            raise UserError(f"extract: --{name} is {value}; it must be at least {least}")
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


def _where(options: Options) -> str:
    return open_place(options.sources or options.images).url
