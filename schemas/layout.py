"""Every name that an output has on disk, and how row ids are counted, in one place."""

from __future__ import annotations

import re

import pyarrow as pa

from schemas.manifest import MANIFEST_NAME, PARTS_NAME

ROWS_A_PART = 4096  # a row id, int64, is (base of the store + part number) * ROWS_A_PART + row

ENTRIES = "plan/entries.parquet"  # of imported DELG files: the stem of each image's, or null

PLAN_FOLDER = "plan"  # it tells that a folder is an output of this software

PIECES = "pieces"  # folder of the markers of committed pieces
REPAIR_RECORD = "repair/record.json"  # of a repair under way

PLAN_NAME = "plan/plan.json"
JOB_NAME = "plan/job.json"  # all of the job but its units: what 'repair' needs to run it again

LAYER = "full"  # the layer of local descriptors that a full extraction makes
ROTATION_NAME = "plan/rotation.f32"  # of binary local descriptors

IMAGES_NAME = "plan/images.parquet"
RETRIES = "plan/retry-{:05}.parquet"  # failed images that a retry of this number describes again
SOURCE_NAME = "plan/source.json"

ARCHIVES_NAME = "plan/archives.parquet"  # where the archives lie: moved ones do not change the plan
ARCHIVES = pa.schema([pa.field("url", pa.string(), nullable=False)])
LISTED_NAME = "plan/listed.parquet"  # what image lists say that the archives hold
KEEP_DAMAGED = "plan/keep-damaged"  # of archives that end early what was read is taken
LISTED = pa.schema(
    [pa.field("source", pa.string(), nullable=False), pa.field("name", pa.string(), nullable=False)]
)

LAYERS = "layers"  # folder of a store's further layers of local descriptors

PLAN_FILES = (
    PLAN_NAME,
    JOB_NAME,
    ENTRIES,
    ROTATION_NAME,
    IMAGES_NAME,
    SOURCE_NAME,
    ARCHIVES_NAME,
    LISTED_NAME,
    KEEP_DAMAGED,
)

# Folders of what is under way; nothing in them outlives the command's end.
TRANSIENT = ("scratch", "attempts", "errors", "repair")

LEASE_FOLDER = "lease"
LEASE_NAME = "lease/driver.json"  # the heartbeat of the driver that is at work

NEXT = "next"  # the output that takes the place of an old one, until it is whole
BESIDE_NAME = "overwrite.json"  # in NEXT, first: the folder is ours
SWAP_NAME = "swap.json"  # in NEXT, once it is whole: which files go and which ones come

EXPORT_NAME = "export.json"  # of `export`, last
ABOUT_NAME = "about.json"  # of the demo's pictures: what they were made from


# What 'export', 'train' and the stages of a run write under fixed names.
EXPORT_ARRAYS = ("descriptor", "xy", "scale", "strength", "offset")
_FIXED = (
    *PLAN_FILES,
    MANIFEST_NAME,
    PARTS_NAME,
    EXPORT_NAME,
    ABOUT_NAME,
    "globals.npy",
    "record_ids.txt",
    *(f"locals/{name}.npy" for name in EXPORT_ARRAYS),
    "metrics.json",
    "per_query.parquet",
    "report.html",
    "weights.safetensors",
    "best.safetensors",
    "state.pt",
    "log.csv",
    "plot.png",
)
_HASHED = r"(?:[^/]+/)*[^/]+\.[0-9a-f]{12}\.\w+"
_OURS = re.compile(
    "|".join(
        [
            rf"(?:{LAYERS}/[^/]+/)?(?:{'|'.join(map(re.escape, _FIXED))})(?:\.tmp)?",
            _HASHED,  # data files, and what was written before it is renamed
            rf"(?:{LAYERS}/[^/]+/)?done/[^/]+\.json",
            rf"(?:{LAYERS}/[^/]+/)?{PIECES}/[^/]+\.json",
            "(?:cache|tensorboard)/.+",  # of 'train'
            rf"(?:{LAYERS}/[^/]+/)?plan/retry-\d+\.parquet",
        ]
    ),
    re.DOTALL,
)


def is_layout_name(name: str) -> bool:
    """Whether a file of an output could be called so by this software.

    What bookkeeping names besides may be its owner's: it can come from a stranger.
    """
    return _OURS.fullmatch(name) is not None


def retry_number(name: str) -> int:
    """The number of the retry whose table of images has this name; 0 of any other name."""
    match = re.fullmatch(r"plan/retry-(\d+)\.parquet", name)
    return int(match[1]) if match else 0
