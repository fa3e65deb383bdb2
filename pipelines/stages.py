"""The unit workers by name: what `plan/job.json` may name, and no other code."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from schemas.errors import UserError


@dataclass(frozen=True)
class Command:
    """A command: where its Options and run are, what it does, and examples.

    refused: settings that it refuses with a sentence, and that its --help leaves out.
    """

    module: str
    summary: str
    examples: tuple[str, ...]
    refused: tuple[str, ...] = ()


OF_ESTIMATES = ("dry_run", "on", "json")


COMMANDS = {
    "demo": Command(
        "pipelines.demo.stage",
        "the main job on photographs that installed packages ship; needs no data of yours",
        ("demo", "demo --out /data/demo --workers 4"),
    ),
    "extract": Command(
        "pipelines.extract.stage",
        "describe images: a global and up to 500 local descriptors each",
        (
            "extract --images photos/ --out store/",
            "extract --images jpg/ --ground-truth gnd_roxford5k.pkl --take queries --out queries/",
            (
                "extract --images photos/ --out store/ --extractor-option sizes=512,360 "
                "--extractor-option max_locals=200"
            ),
            (
                "extract --images 'revisitop1m.{1..100}.tar.gz' --list revisitop1m.txt --out r1m/ "
                "--locals none"
            ),
            "extract --locals-for run/ --ground-truth gnd_roxford5k.pkl --out r1m/",
            "extract --sources roxford+r1m.yaml --out all/ --max-failures 1% --dry-run",
        ),
    ),
    "import": Command(
        "pipelines.exchange.import_store",
        "a store from descriptors that others made: DELG, AMES, NumPy, MATLAB, clip-retrieval",
        (
            "import delg delg_r50_gldv2/ --out store/",
            (
                "import delg delg_r50_gldv2/ --out queries/ --images jpg/ --ground-truth "
                "gnd_roxford5k.pkl --take queries"
            ),
            "import npy vectors.npy --list names.txt --out store/",
            (
                "import mat roxford5k_gem.mat --ground-truth gnd_roxford5k.pkl --take gallery "
                "--out "
                "store/"
            ),
        ),
        OF_ESTIMATES,
    ),
    "export": Command(
        "pipelines.exchange.export",
        "a store as plain NumPy arrays, with the record ids",
        ("export store/ --out arrays/", "export store/ --out arrays/ --locals"),
    ),
    "convert-delg": Command(
        "pipelines.exchange.convert_delg",
        "weights for the extractor delg from a TensorFlow SavedModel of DELG (needs the extra "
        "convert)",
        (
            "convert-delg r50delg_gldv2clean_20200914/ r50delg_gldv2clean.safetensors",
            "convert-delg exported/ mine.safetensors --threshold 120",
        ),
    ),
    "index": Command(
        "pipelines.index.stage",
        "build a faiss index of the globals of one or more stores",
        (
            "index --stores store/ --out index/",
            "index --stores db/,r1m/ --out index/ --key IVF4096,PQ64x8",
        ),
    ),
    "search": Command(
        "pipelines.search.stage",
        "find each query's candidates by global similarity",
        ("search --queries queries/ --index index/ --out run/ --ground-truth gnd_roxford5k.pkl",),
    ),
    "rerank": Command(
        "pipelines.rerank.stage",
        "score query and candidate pairs with the Reranking Transformer, and rank",
        (
            "rerank --queries queries/ --out run/ --ground-truth gnd_roxford5k.pkl",
            (
                "rerank --queries queries/ --out run/ --reranker mutual_nn --reranker-option "
                "gallery_tokens=200"
            ),
        ),
    ),
    "train": Command(
        "pipelines.train.stage",
        "train the Reranking Transformer on labelled stores, for their extractor",
        (
            "train --stores store/ --labels train.txt --out weights/ --dry-run",
            (
                "train --stores store/ --labels folder --out weights/ --config "
                "configs/train/landmarks.yaml"
            ),
            (
                "train --stores store/ --labels train.csv --out weights/ --init matching --steps "
                "2000 "
                "--query-tokens 64"
            ),
        ),
    ),
    "evaluate": Command(
        "pipelines.evaluate.stage",
        "mAP and mP@k of the rankings (ROxford / RParis protocols)",
        (
            "evaluate --out run/ --ground-truth gnd_roxford5k.pkl",
            "evaluate --out run/ --ground-truth gnd_roxford5k.pkl --ensemble 0.5,0.3",
            "evaluate --out run/ --ground-truth gnd_roxford5k.pkl --ensemble tuned.json",
        ),
    ),
    "tune": Command(
        "pipelines.evaluate.tune",
        "the best ensemble of global score and logit on a validation set, replayed from its scores",
        (
            "tune --out validation/run/ --ground-truth validation.json --result tuned.json",
            (
                "tune --out run/ --ground-truth val.json --result t.json --metric hard --grid "
                "k=50,100 --grid gamma=0.1,1"
            ),
        ),
    ),
    "train-products": Command(
        "pipelines.train.products",
        "train the reranker for products: global descriptor, frozen backbone, or both jointly",
        (
            "train-products --images i/ --labels i.csv --out global/ --mode global",
            (
                "train-products --images i/ --labels i.csv --out f/ --mode frozen --weights "
                "global/weights.safetensors"
            ),
            (
                "train-products --images i/ --labels i.csv --out joint/ --mode joint --weights "
                "f/weights.safetensors"
            ),
            (
                "train-products --images i/ --labels l --out g --mode global --backbone "
                "timm:resnet18 "
                "--backbone-weights w"
            ),
        ),
        OF_ESTIMATES,
    ),
    "report": Command(
        "pipelines.report.stage",
        "one HTML page: metrics and each query's list before and after reranking",
        (
            "report --out run/ --ground-truth gnd_roxford5k.pkl",
            "report --out run/ --ground-truth gnd_roxford5k.pkl --ensemble 0.5,0.3",
        ),
    ),
    "verify": Command(
        "pipelines.verify.verify",
        "check an output byte for byte and row for row; name the units that must be done again",
        (
            "verify store/",
            "verify results/ --quick",
            "verify s3://bucket/store --json findings.json",
        ),
    ),
    "repair": Command(
        "pipelines.verify.repair",
        "verify, then do just the damaged units again",
        ("repair store/", "repair store/ --gc", "repair old-store/ --remove-damaged"),
        (*OF_ESTIMATES, "overwrite"),
    ),
    "estimate": Command(
        "pipelines.estimate.estimate",
        "what a stage would take in time, memory and on disk, from a measured probe; the same as "
        "its --dry-run",
        (
            "estimate extract --images photos/ --out store/",
            (
                "estimate extract --images 'revisitop1m.{1..100}.tar.gz' --out r1m/ --on 8,64 "
                "--json "
                "estimate.json"
            ),
            "estimate rerank --queries queries/ --out run/ --ground-truth gnd_roxford5k.pkl",
            "estimate run --config configs/roxford5k.yaml",
        ),
    ),
    "run": Command(
        "pipelines.run.stage",
        "all stages from one YAML configuration, each skipped where its output is there",
        (
            "run --config configs/demo.yaml",
            "run --config my.yaml --set out=/data/run --set rerank.shortlist=200",
        ),
    ),
}
OF_THE_DOOR = {
    "test": "ruff, mypy and the test suite (handled by run_pipeline.sh)",
    "update-constraints": "resolve constraints.txt anew (handled by run_pipeline.sh)",
}

# Stable names, which outputs on disk hold -> where the class is now.
WORKERS = {
    "evaluate/evaluate": "pipelines.evaluate.units:Evaluate",
    "extract/describe": "pipelines.extract.units:DescribeUnit",
    "extract/locals": "pipelines.extract.units:DescribeLocals",
    "import/part": "pipelines.exchange.import_store:ImportPart",
    "index/fill": "pipelines.index.units:Fill",
    "index/merge": "pipelines.index.units:Merge",
    "index/train": "pipelines.index.units:Train",
    "report/page": "pipelines.report.units:MakeReport",
    "rerank/replay": "pipelines.rerank.units:Replay",
    "rerank/score": "pipelines.rerank.units:ScorePairs",
    "search/candidates": "pipelines.search.units:FetchCandidates",
    "search/shortlist": "pipelines.search.units:MakeShortlist",
}

# What older outputs hold: the place of the class at that time.
OLD_WORKER_NAMES = {
    "pipelines.evaluate:Evaluate": "evaluate/evaluate",
    "pipelines.describe_units:DescribeUnit": "extract/describe",
    "pipelines.layers:DescribeLocals": "extract/locals",
    "pipelines.import_store:ImportPart": "import/part",
    "pipelines.index:Fill": "index/fill",
    "pipelines.index:Merge": "index/merge",
    "pipelines.index:Train": "index/train",
    "pipelines.report:MakeReport": "report/page",
    "pipelines.rerank:Replay": "rerank/replay",
    "pipelines.rerank:ScorePairs": "rerank/score",
    "pipelines.search:FetchCandidates": "search/candidates",
    "pipelines.search:MakeShortlist": "search/shortlist",
}
WORKER_ENTRY_POINTS = "rrt_pipelines.unit_workers"


def worker_class(name: str) -> str:
    """``package.module:Class`` of a unit worker by its name, or by the name that older outputs
    hold.

    Installed packages add workers by entry points of the group ``rrt_pipelines.unit_workers``.
    Raises UserError for any other name: it may come from a file that somebody else made.
    """
    name = OLD_WORKER_NAMES.get(name, name)
    if name in WORKERS:
        return WORKERS[name]

    for entry in metadata.entry_points(group=WORKER_ENTRY_POINTS):
        if entry.name == name:
            return entry.value

    raise UserError(
        f"there is no unit worker {name!r}: the output was made by another version of this "
        f"software, "
        "or by a package that is not installed here; give the command that made it"
    )


PROBED = {
    "extract": "pipelines.extract.estimate",
    "index": "pipelines.index.estimate",
    "search": "pipelines.search.estimate",
    "rerank": "pipelines.rerank.estimate",
    "run": "pipelines.run.estimate",
}
PLAIN = {
    "demo": "the demo takes a few minutes and about 0.5 GB",
    "evaluate": "evaluating takes seconds, and a few kilobytes on disk",
    "report": "the report takes seconds, and some megabytes on disk for its pictures",
    "tune": "tuning replays stored scores: seconds to a minute, and a few kilobytes on disk",
}
OWN = ("train",)  # stages whose own --dry-run mines and tells


def refuse_unknown(name: str) -> None:
    """Raise UserError for a command that has no estimate."""
    if name not in (*PROBED, *PLAIN, *OWN):
        raise UserError(
            f"{name} has no estimate; there is one of {', '.join((*PROBED, *PLAIN, *OWN))}"
        )
