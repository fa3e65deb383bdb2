"""The one registry of commands: where the parts of each are, by name; nothing of them is imported.

A new stage is one entry here. The command line, the stages of `run`, the estimates and the unit
workers that an output on disk may name are all read from it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from schemas.errors import UserError

ESTIMATES = ("dry_run", "on", "json")
SPARK = ("master", "spark_conf", "executor_python", "py_files")
ENGINE = ("engine", "runner", *SPARK, "detach")
JOBS = (*ENGINE, "workers", "threads_per_worker", "overwrite", "stall_minutes")


@dataclass(frozen=True)
class Command:
    """A command. Its parts are named as ``module:name``.

    options: the dataclass of its options, in a module that imports nothing heavy.
    run: function (options, settings) that does the work.
    summarise: function (options, result) that prints what was made.
    complete: function that completes the values of the flags, as by a file that a flag names.
    estimate: function (options, settings, seconds since the start) that probes the command.
    estimate_text: stands in place of a probe. own_dry_run: --dry-run is one of its own options.
    settings: the dataclass of how to run. uses: those of its fields that the command offers.
    refused: fields that it refuses with a sentence. ignored: fields that it once offered, which
        are accepted with a sentence for one version.
    in_run: whether it is a stage of `run`.
    workers: its unit workers by the stable names that outputs on disk hold.
    """

    summary: str
    examples: tuple[str, ...]
    options: str
    run: str
    summarise: str = ""
    complete: str = ""
    estimate: str = ""
    estimate_text: str = ""
    own_dry_run: bool = False
    settings: str = "pipelines.engines.settings:RunSettings"
    uses: tuple[str, ...] = (*JOBS, *ESTIMATES)
    refused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    in_run: bool = False
    workers: Mapping[str, str] = field(default_factory=dict)

    @property
    def runs_beam(self) -> bool:
        """Whether flags that are not its own are Beam's."""
        return "runner" in self.uses


COMMANDS = {
    "demo": Command(
        "the main job on photographs that installed packages ship; needs no data of yours",
        ("demo", "demo --out /data/demo --workers 4"),
        options="pipelines.demo.options:Options",
        run="pipelines.demo.stage:run",
        summarise="pipelines.demo.stage:summarise",
        estimate_text="the demo takes a few minutes and about 0.5 GB",
        workers={"demo/pictures": "pipelines.demo.units:RenderPictures"},
        uses=(*JOBS, "dry_run", "json"),
        ignored=("on",),
    ),
    "extract": Command(
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
        options="pipelines.extract.options:Options",
        run="pipelines.extract.stage:run",
        estimate="pipelines.extract.estimate:estimate",
        in_run=True,
        workers={
            "extract/describe": "pipelines.extract.units:DescribeUnit",
            "extract/locals": "pipelines.extract.units:DescribeLocals",
        },
    ),
    "import": Command(
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
                "--out store/"
            ),
        ),
        options="pipelines.exchange.import_options:Options",
        run="pipelines.exchange.import_store:run",
        uses=JOBS,
        refused=ESTIMATES,
        workers={"import/part": "pipelines.exchange.import_store:ImportPart"},
    ),
    "export": Command(
        "a store as plain NumPy arrays, with the record ids; a run's ranking as a TREC run file",
        (
            "export store/ --out arrays/",
            "export store/ --out arrays/ --locals",
            "export run/ --format trec --out run.txt --protocol medium",
        ),
        options="pipelines.exchange.export_options:Options",
        run="pipelines.exchange.export:run",
        summarise="pipelines.exchange.export:summarise",
        uses=("overwrite",),
    ),
    "convert-delg": Command(
        "weights for the extractor delg from a TensorFlow SavedModel of DELG (needs the extra "
        "convert)",
        (
            "convert-delg r50delg_gldv2clean_20200914/ r50delg_gldv2clean.safetensors",
            "convert-delg exported/ mine.safetensors --threshold 120",
        ),
        options="pipelines.exchange.convert_options:Options",
        run="pipelines.exchange.convert_delg:run",
        summarise="pipelines.exchange.convert_delg:summarise",
        uses=("overwrite",),
    ),
    "index": Command(
        "build a faiss index of the globals of one or more stores",
        (
            "index --stores store/ --out index/",
            "index --stores db/,r1m/ --out index/ --key IVF4096,PQ64x8",
        ),
        options="pipelines.index.options:Options",
        run="pipelines.index.stage:run",
        estimate="pipelines.index.estimate:estimate",
        in_run=True,
        workers={
            "index/fill": "pipelines.index.units:Fill",
            "index/merge": "pipelines.index.units:Merge",
            "index/train": "pipelines.index.units:Train",
        },
    ),
    "search": Command(
        "find each query's candidates by global similarity",
        ("search --queries queries/ --index index/ --out run/ --ground-truth gnd_roxford5k.pkl",),
        options="pipelines.search.options:Options",
        run="pipelines.search.stage:run",
        estimate="pipelines.search.estimate:estimate",
        in_run=True,
        workers={
            "search/candidates": "pipelines.search.units:FetchCandidates",
            "search/exact-candidates": "pipelines.search.exact_units:SearchExactly",
            "search/exact-shortlist": "pipelines.search.exact_units:MergeExact",
            "search/excluded": "pipelines.search.excluded_units:FindExcluded",
            "search/labelled-counts": "pipelines.search.labelled_units:CountLabelled",
            "search/labelled-places": "pipelines.search.labelled_units:PlaceLabelled",
            "search/labelled-scores": "pipelines.search.labelled_units:ScoreLabelled",
            "search/shortlist": "pipelines.search.units:MakeShortlist",
        },
    ),
    "rerank": Command(
        "score query and candidate pairs with the Reranking Transformer, and rank",
        (
            "rerank --queries queries/ --out run/ --ground-truth gnd_roxford5k.pkl",
            (
                "rerank --queries queries/ --out run/ --reranker mutual_nn --reranker-option "
                "gallery_tokens=200"
            ),
        ),
        options="pipelines.rerank.options:Options",
        run="pipelines.rerank.stage:run",
        estimate="pipelines.rerank.estimate:estimate",
        in_run=True,
        workers={
            "rerank/replay": "pipelines.rerank.units:Replay",
            "rerank/score": "pipelines.rerank.units:ScorePairs",
        },
    ),
    "train": Command(
        "train the Reranking Transformer on labelled stores, for their extractor",
        (
            "train --stores store/ --labels train.txt --out weights/ --dry-run",
            (
                "train --stores store/ --labels folder --out weights/ --config "
                "configs/train/landmarks.yaml"
            ),
            (
                "train --stores store/ --labels train.csv --out weights/ --init matching --steps "
                "2000 --query-tokens 64"
            ),
        ),
        options="pipelines.train.options:Options",
        run="pipelines.train.stage:run",
        summarise="pipelines.train.stage:summarise",
        complete="pipelines.train.options:complete",
        own_dry_run=True,
        settings="pipelines.train.options:Settings",
        uses=("threads", "overwrite"),
    ),
    "evaluate": Command(
        "mAP and mP@k of the rankings (ROxford / RParis protocols)",
        (
            "evaluate --out run/ --ground-truth gnd_roxford5k.pkl",
            "evaluate --out run/ --ground-truth gnd_roxford5k.pkl --ensemble 0.5,0.3",
            "evaluate --out run/ --ground-truth gnd_roxford5k.pkl --ensemble tuned.json",
        ),
        options="pipelines.evaluate.options:Options",
        run="pipelines.evaluate.stage:run",
        summarise="pipelines.evaluate.stage:summarise",
        estimate_text="evaluating takes seconds, and a few kilobytes on disk",
        uses=(*JOBS, "dry_run", "json"),
        ignored=("on",),
        in_run=True,
        workers={"evaluate/evaluate": "pipelines.evaluate.units:Evaluate"},
    ),
    "tune": Command(
        "the best ensemble of global score and logit on a validation set, replayed from its scores",
        (
            "tune --out validation/run/ --ground-truth validation.json --result tuned.json",
            (
                "tune --out run/ --ground-truth val.json --result t.json --metric hard --grid "
                "k=50,100 --grid gamma=0.1,1"
            ),
        ),
        options="pipelines.evaluate.tune_options:Options",
        run="pipelines.evaluate.tune:run",
        summarise="pipelines.evaluate.tune:summarise",
        estimate_text="tuning replays stored scores: seconds to a minute, and a few kilobytes on "
        "disk",
        uses=("overwrite", "dry_run", "json"),
        ignored=("runner", "workers", "threads_per_worker", "stall_minutes", "on"),
    ),
    "train-products": Command(
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
                "timm:resnet18 --backbone-weights w"
            ),
        ),
        options="pipelines.train.products_options:Options",
        run="pipelines.train.products:run",
        summarise="pipelines.train.products:summarise",
        uses=("threads_per_worker", "overwrite"),
        refused=ESTIMATES,
        ignored=("runner", "workers", "stall_minutes"),
    ),
    "report": Command(
        "one HTML page: metrics and each query's list before and after reranking",
        (
            "report --out run/ --ground-truth gnd_roxford5k.pkl",
            "report --out run/ --ground-truth gnd_roxford5k.pkl --ensemble 0.5,0.3",
        ),
        options="pipelines.report.options:Options",
        run="pipelines.report.stage:run",
        summarise="pipelines.report.stage:summarise",
        estimate_text="the report takes seconds, and some megabytes on disk for its pictures",
        uses=(*JOBS, "dry_run", "json"),
        ignored=("on",),
        in_run=True,
        workers={"report/page": "pipelines.report.units:MakeReport"},
    ),
    "verify": Command(
        "check an output byte for byte and row for row; name the units that must be done again",
        (
            "verify store/",
            "verify results/ --quick",
            "verify s3://bucket/store --json findings.json",
        ),
        options="pipelines.verify.options:Options",
        run="pipelines.verify.verify:run",
        summarise="pipelines.verify.verify:summarise",
        uses=(),
    ),
    "finish": Command(
        "write the manifest of an output when workers that --detach left behind have done all of "
        "it",
        ("finish s3://bucket/store",),
        options="pipelines.engines.finish_options:Options",
        run="pipelines.engines.outputs:run",
        summarise="pipelines.engines.outputs:summarise",
        uses=(),
    ),
    "repair": Command(
        "verify, then do just the damaged units again",
        ("repair store/", "repair store/ --gc", "repair old-store/ --remove-damaged"),
        options="pipelines.verify.repair_options:Options",
        run="pipelines.verify.repair:run",
        uses=(*ENGINE, "workers", "threads_per_worker", "stall_minutes"),
        refused=(*ESTIMATES, "overwrite"),
    ),
    "estimate": Command(
        "what a stage would take in time, memory and on disk, from a measured probe; the same as "
        "its --dry-run",
        (
            "estimate extract --images photos/ --out store/",
            (
                "estimate extract --images 'revisitop1m.{1..100}.tar.gz' --out r1m/ --on 8,64 "
                "--json estimate.json"
            ),
            "estimate rerank --queries queries/ --out run/ --ground-truth gnd_roxford5k.pkl",
            "estimate run --config configs/roxford5k.yaml",
        ),
        options="pipelines.estimate.options:Options",
        run="pipelines.estimate.estimate:run",
        uses=("workers", "threads_per_worker", "on", "json"),
        ignored=("runner", "overwrite", "stall_minutes", "dry_run"),
    ),
    "run": Command(
        "all stages from one YAML configuration, each skipped where its output is there",
        (
            "run --config configs/demo.yaml",
            "run --config my.yaml --set out=/data/run --set rerank.shortlist=200",
        ),
        options="pipelines.run.options:Options",
        run="pipelines.run.stage:run",
        summarise="pipelines.run.stage:summarise",
        estimate="pipelines.run.estimate:estimate",
    ),
}
OF_THE_DOOR = {
    "test": "ruff, mypy and the test suite (handled by run_pipeline.sh)",
    "update-constraints": "resolve constraints.txt anew (handled by run_pipeline.sh)",
}
PROBED = tuple(name for name, command in COMMANDS.items() if command.estimate)
STAGES_OF_RUN = tuple(name for name, command in COMMANDS.items() if command.in_run)

# Stable names, which outputs on disk hold -> where the class is now.
WORKERS = {name: place for command in COMMANDS.values() for name, place in command.workers.items()}

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


def load(place: str) -> Any:
    """What a ``module:name`` of the registry names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def lazily(name: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a stage's package: its Options and run, imported when first used."""
    places = {"Options": COMMANDS[name].options, "run": COMMANDS[name].run}

    def attribute(attribute: str) -> Any:
        if attribute in places:
            return load(places[attribute])
        raise AttributeError(f"module 'pipelines.{name}' has no attribute {attribute!r}")

    return attribute


def refuse_without_estimate(name: str) -> None:
    """Raise UserError for a command that has no estimate."""
    estimated = [
        known
        for known, command in COMMANDS.items()
        if command.estimate or command.estimate_text or command.own_dry_run
    ]
    if name not in estimated:
        raise UserError(f"{name} has no estimate; there is one of {', '.join(estimated)}")
