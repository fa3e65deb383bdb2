"""Options of `extract`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.options import Checked, option

AUTO = "auto"
MOST_SECONDS = 86_400  # for an image: a day


@dataclass(frozen=True)
class Options(Checked, command="extract"):
    """Options of `extract`."""

    out: str = option("the store to make: a folder (path or URL)")
    images: str = option(
        "folder or glob of images, or the folder that the names of a list are relative to; or "
        "archives (.tar, .tar.gz, .tgz, .tar.bz2, .tar.xz, .zip): a path, a glob, a range such as "
        "revisitop1m.{1..100}.tar.gz, or URLs of these",
        "",
    )
    list: str = option(
        "image list: CSV or text with a name first in each row, or Parquet with a column 'path'", ""
    )
    ground_truth: str = option(
        "ground-truth file (.json, revisitop's .pkl or .mat, or a form of an installed package) "
        "that names gallery and queries",
        "",
    )
    take: str = option(
        "what of the ground truth to describe",
        "",
        choices=("", "gallery", "queries"),
        needs=("ground_truth",),
    )
    source: str = option(
        "name of the source in record ids; the folder's name where empty",
        "",
        needs=("images",),
        excludes=("sources",),
    )
    sources: str = option(
        "YAML file of several sources for one store, in place of the five options above", ""
    )
    extractor: str = option(
        "efficientnet, rootsift, delg, timm:MODEL, one of an installed package, or "
        "package.module:Class",
        "efficientnet",
    )
    extractor_option: dict[str, Any] = option(
        "an option of the extractor, such as sizes=512,360,256", {}
    )
    global_dtype: str = option(
        "how globals are stored; auto: float16, or as the store was begun",
        AUTO,
        choices=(AUTO, "float16", "float32"),
    )
    local_dtype: str = option(
        "how local descriptors are stored; 500 of 128 dimensions take 262 kB (float32), 134 kB "
        "(float16), 70 kB (int8) or 15 kB (binary)",
        "float16",
        choices=("float32", "float16", "int8", "binary"),
    )
    locals: str = option(
        "all, or none: globals alone; --locals-for adds locals later",
        "all",
        choices=("all", "none"),
    )
    max_locals: int = option(
        "local descriptors kept an image, the first in the extractor's order; 0: all that it gives",
        0,
        least=0,
    )
    locals_for: str = option(
        "add a layer of locals to the finished store: of the images that this run folder's "
        "shortlist reranks, or whose record ids this text file names",
        "",
    )
    shortlist: int = option(
        "with --locals-for: how many of each query's list are reranked",
        100,
        least=1,
        needs=("locals_for",),
    )
    decoding: str = option(
        "full, or draft: large JPEGs are decoded at a half, a quarter or an eighth where the "
        "extractor looks at less",
        "full",
        choices=("full", "draft"),
    )
    rows_per_part: int = option(
        "images a part; 0 chooses (at most 4,096 and 256 MB)", 0, least=0, most=4_096
    )
    max_pixels: int = option(
        "images with more pixels are refused, as failed rows", 100_000_000, least=1
    )
    min_side: int = option("images with a shorter side are refused, as failed rows", 10, least=0)
    jpeg_rows: float = option(
        "share of its rows that a JPEG which was cut off must have; below it is a failed row",
        1.0,
        above=0,
        most=1,
    )
    image_seconds: float = option(
        "an image that takes longer to decode, or to describe, is given up, as a failed row; "
        "below --stall-minutes",
        300.0,
        above=0,
        most=MOST_SECONDS,
    )
    decoders: int = option(
        "threads of a worker that read and decode ahead of the model", 2, least=1, most=64
    )
    max_failures: str = option(
        "end when more images fail: a number, or per cent of all such as 5%", ""
    )
    damaged_archives: str = option(
        "what to do with an archive that is damaged or was never closed: refuse, or keep what can "
        "be read, with a failed row for the rest; where empty as the store was begun, else refuse",
        "",
        choices=("", "refuse", "keep"),
    )
    retry_failed: bool = option("describe the failed images of the finished store once more", False)
