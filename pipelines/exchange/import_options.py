"""Options of `import`, and the mistakes in them that are refused before any work."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.options import Checked, option
from schemas.errors import UserError

STAGE = "import"
MOST_SCALES = 256  # a scale number is one byte
FORMATS = ("delg", "ames", "npy", "npz", "mat", "clip")


@dataclass(frozen=True)
class Options(Checked, command="import"):
    """Options of `import`."""

    format: str = option("what made them: " + ", ".join(FORMATS), choices=FORMATS, positional=True)
    input: str = option(
        "folder of .delg_global and .delg_local, or of clip-retrieval; else the file",
        positional=True,
    )
    out: str = option("the store to make: a folder (path or URL)")
    list: str = option(
        "names of the images: CSV or text with a name first in each row, or Parquet; in the rows' "
        "order",
        "",
    )
    ground_truth: str = option(
        "ground-truth file (.json, revisitop's .pkl) that names gallery and queries", ""
    )
    take: str = option(
        "which of the ground truth's images they are",
        "",
        choices=("", "gallery", "queries"),
        needs=("ground_truth",),
    )
    record_ids: str = option(
        "text file with a record id a line, as 'export' writes it, in place of a list", ""
    )
    images: str = option(
        "folder of the images, for the report; names and ids are then those that 'extract' gives",
        "",
    )
    source: str = option(
        "name of the source in record ids; the folder's or file's name where empty", ""
    )
    variable: str = option(
        "npz, mat: name of the array; mat with a ground truth: X (gallery), Q (queries)", ""
    )
    layout: str = option(
        "matrices: whether an image is a row or a column",
        "auto",
        choices=("auto", "rows", "columns"),
    )
    globals: str = option("ames: file of the global descriptors, .npy or HDF5", "")
    local_arrays: str = option(
        "npy, npz, mat: folder of flat arrays of local descriptors, as 'export --locals' has", ""
    )
    locals: bool = option("delg: whether there are local descriptors to take", True)
    max_locals: int = option(
        "local descriptors taken of each image, by --local-order",
        500,
        least=1,
        most=65_535,
    )
    scale_field: str = option(
        "delg: what 'scale' means in the files", "feature", choices=("feature", "image")
    )
    queries_cropped: bool = option(
        "delg --take queries: they were described from their boxes (DELG), not from whole "
        "pictures (the paper's)",
        True,
    )
    extractor_name: str = option(
        "name of what described the images; queries and gallery must have the same", ""
    )
    scales: tuple[float, ...] = option(
        "image scale of each scale number; empty: the format's usual ones", (), above=0, most=1_000
    )
    weights_sha256: str = option(
        "hex SHA-256 of the weights that described the images, where known", ""
    )
    global_dtype: str = option("how globals are stored", "float32", choices=("float32", "float16"))
    local_dtype: str = option(
        "how locals are stored", "float16", choices=("float32", "float16", "int8")
    )
    local_order: str = option(
        "order of an image's locals, whose first are kept and compared first: strength, or given, "
        "as the arrays have them",
        "strength",
        choices=("strength", "given"),
        needs=("local_arrays",),
    )
    rows_per_part: int = option(
        "images a part; 0 chooses (at most 4,096 and 256 MB)", 0, least=0, most=4_096
    )


def refuse_mistakes(options: Options) -> None:
    """Raise UserError for options that do not go together, or are too many."""
    if options.ground_truth and not options.take:
        raise UserError("import: --ground-truth needs --take gallery or --take queries")
    if bool(options.list) + bool(options.ground_truth) + bool(options.record_ids) > 1:
        raise UserError("import: give one of --list, --ground-truth and --record-ids")
    if len(options.scales) > MOST_SCALES:
        raise UserError(
            f"import: --scales has {len(options.scales)} numbers; {MOST_SCALES} is the most"
        )
    if options.format == "ames" and not options.globals:
        raise UserError(
            "import ames: the file holds local descriptors alone; give --globals FILE.npy or "
            ".hdf5 too"
        )
    if options.local_arrays and options.format not in ("npy", "npz", "mat"):
        raise UserError(f"import {options.format}: --local-arrays goes with npy, npz and mat")
