"""The command line: a command a stage, its flags made from the stage's options."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
import textwrap
from dataclasses import dataclass
from typing import NoReturn

from pipelines import stopping
from pipelines.options import add_arguments, build
from schemas.errors import UserError

PROGRAM = "run_pipeline.sh"


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
        "pipelines.demo",
        "the main job on photographs that installed packages ship; needs no data of yours",
        ("demo", "demo --out /data/demo --workers 4"),
    ),
    "extract": Command(
        "pipelines.extract",
        "describe images: a global and up to 500 local descriptors each",
        (
            "extract --images photos/ --out store/",
            "extract --images jpg/ --ground-truth gnd_roxford5k.pkl --take queries --out queries/",
            "extract --images photos/ --out store/ --extractor-option sizes=512,360 --extractor-option max_locals=200",
            "extract --images 'revisitop1m.{1..100}.tar.gz' --list revisitop1m.txt --out r1m/ --locals none",
            "extract --locals-for run/ --ground-truth gnd_roxford5k.pkl --out r1m/",
            "extract --sources roxford+r1m.yaml --out all/ --max-failures 1% --dry-run",
        ),
    ),
    "import": Command(
        "pipelines.import_store",
        "a store from descriptors that others made: DELG, AMES, NumPy, MATLAB, clip-retrieval",
        (
            "import delg delg_r50_gldv2/ --out store/",
            "import delg delg_r50_gldv2/ --out queries/ --images jpg/ --ground-truth gnd_roxford5k.pkl --take queries",
            "import npy vectors.npy --list names.txt --out store/",
            "import mat roxford5k_gem.mat --ground-truth gnd_roxford5k.pkl --take gallery --out store/",
        ),
        OF_ESTIMATES,
    ),
    "export": Command(
        "pipelines.export",
        "a store as plain NumPy arrays, with the record ids",
        ("export store/ --out arrays/", "export store/ --out arrays/ --locals"),
    ),
    "convert-delg": Command(
        "pipelines.convert_delg",
        "weights for the extractor delg from a TensorFlow SavedModel of DELG (needs the extra convert)",
        (
            "convert-delg r50delg_gldv2clean_20200914/ r50delg_gldv2clean.safetensors",
            "convert-delg exported/ mine.safetensors --threshold 120",
        ),
    ),
    "index": Command(
        "pipelines.index",
        "build a faiss index of the globals of one or more stores",
        ("index --stores store/ --out index/", "index --stores db/,r1m/ --out index/ --key IVF4096,PQ64x8"),
    ),
    "search": Command(
        "pipelines.search",
        "find each query's candidates by global similarity",
        ("search --queries queries/ --index index/ --out run/ --ground-truth gnd_roxford5k.pkl",),
    ),
    "rerank": Command(
        "pipelines.rerank",
        "score query and candidate pairs with the Reranking Transformer, and rank",
        (
            "rerank --queries queries/ --out run/ --ground-truth gnd_roxford5k.pkl",
            "rerank --queries queries/ --out run/ --reranker mutual_nn --reranker-option gallery_tokens=200",
        ),
    ),
    "train": Command(
        "pipelines.train",
        "train the Reranking Transformer on labelled stores, for their extractor",
        (
            "train --stores store/ --labels train.txt --out weights/ --dry-run",
            "train --stores store/ --labels folder --out weights/ --config configs/train/landmarks.yaml",
            "train --stores store/ --labels train.csv --out weights/ --init matching --steps 2000 --query-tokens 64",
        ),
    ),
    "evaluate": Command(
        "pipelines.evaluate",
        "mAP and mP@k of the rankings (ROxford / RParis protocols)",
        (
            "evaluate --out run/ --ground-truth gnd_roxford5k.pkl",
            "evaluate --out run/ --ground-truth gnd_roxford5k.pkl --ensemble 0.5,0.3",
            "evaluate --out run/ --ground-truth gnd_roxford5k.pkl --ensemble tuned.json",
        ),
    ),
    "tune": Command(
        "pipelines.tune",
        "the best ensemble of global score and logit on a validation set, replayed from its scores",
        (
            "tune --out validation/run/ --ground-truth validation.json --result tuned.json",
            "tune --out run/ --ground-truth val.json --result t.json --metric hard --grid k=50,100 --grid gamma=0.1,1",
        ),
    ),
    "train-products": Command(
        "pipelines.train_products",
        "train the reranker for products: global descriptor, frozen backbone, or both jointly",
        (
            "train-products --images i/ --labels i.csv --out global/ --mode global",
            "train-products --images i/ --labels i.csv --out f/ --mode frozen --weights global/weights.safetensors",
            "train-products --images i/ --labels i.csv --out joint/ --mode joint --weights f/weights.safetensors",
            "train-products --images i/ --labels l --out g --mode global --backbone timm:resnet18 --backbone-weights w",
        ),
        OF_ESTIMATES,
    ),
    "report": Command(
        "pipelines.report",
        "one HTML page: metrics and each query's list before and after reranking",
        (
            "report --out run/ --ground-truth gnd_roxford5k.pkl",
            "report --out run/ --ground-truth gnd_roxford5k.pkl --ensemble 0.5,0.3",
        ),
    ),
    "verify": Command(
        "pipelines.verify",
        "check an output byte for byte and row for row; name the units that must be done again",
        ("verify store/", "verify results/ --quick", "verify s3://bucket/store --json findings.json"),
    ),
    "repair": Command(
        "pipelines.repair",
        "verify, then do just the damaged units again",
        ("repair store/", "repair store/ --gc", "repair old-store/ --remove-damaged"),
        (*OF_ESTIMATES, "overwrite"),
    ),
    "estimate": Command(
        "pipelines.estimate",
        "what a stage would take in time, memory and on disk, from a measured probe; the same as its --dry-run",
        (
            "estimate extract --images photos/ --out store/",
            "estimate extract --images 'revisitop1m.{1..100}.tar.gz' --out r1m/ --on 8,64 --json estimate.json",
            "estimate rerank --queries queries/ --out run/ --ground-truth gnd_roxford5k.pkl",
            "estimate run --config configs/roxford5k.yaml",
        ),
    ),
    "run": Command(
        "pipelines.run",
        "all stages from one YAML configuration, each skipped where its output is there",
        ("run --config configs/demo.yaml", "run --config my.yaml --set out=/data/run --set rerank.shortlist=200"),
    ),
}
OF_THE_DOOR = {
    "test": "ruff, mypy and the test suite (handled by run_pipeline.sh)",
    "update-constraints": "resolve constraints.txt anew (handled by run_pipeline.sh)",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are a user's mistake like any other."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message}; {self.prog} --help tells what there is")


def main_parser() -> argparse.ArgumentParser:
    """The parser that knows the commands' names; a command's own flags are added when it is asked for."""
    listed = {**{name: command.summary for name, command in COMMANDS.items()}, **OF_THE_DOOR}
    lines = "\n".join(f"  {name:<20}{text}" for name, text in listed.items())
    return argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [options]",
        description="Instance-level image retrieval on large collections with Reranking Transformers.",
        epilog=f"commands:\n{lines}\n\n{PROGRAM} COMMAND --help tells a command's options, with examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    from pipelines.driver import RunSettings

    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    how = getattr(module, "Settings", RunSettings)
    beam = "\n\nWith --runner, Beam's own flags are passed to it." if how is RunSettings else ""
    examples = "\n".join(f"  {PROGRAM} {example}" for example in command.examples)
    parser = Parser(
        prog=f"{PROGRAM} {name}",
        usage=f"{PROGRAM} {name} [options]",
        description=textwrap.fill(command.summary[0].upper() + command.summary[1:] + ".", 100),
        epilog=f"examples:\n{examples}{beam}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser.add_argument_group("what to do"), module.Options)
    add_arguments(parser.add_argument_group("how to run"), how, command.refused)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; gives the exit code: 0, 1 for a job that failed, 2 for a user's mistake."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(arguments)
        sys.stdout.flush()  # what cannot be written is noticed here and not at the interpreter's end
        return code
    except OSError as error:
        closed = isinstance(error, BrokenPipeError)  # the reader, such as head, has seen enough
        if not closed and (error.errno != errno.ENOSPC or error.filename is not None):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if closed:
            return 128 + signal.SIGPIPE
        print("Error: what is to be told cannot be written: the disk of the output is full", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(main_parser().format_help(), end="")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        known = ", ".join([*COMMANDS, *OF_THE_DOOR])
        print(f"There is no command {name!r}; known are {known}.", file=sys.stderr)
        return 2
    from pipelines.driver import JobFailed

    try:
        return run_command(name, arguments[1:])
    except (UserError, JobFailed) as error:
        stopping.pass_or_wait()  # what a signal stopped and cleaned away is no failure
        print(f"{'Error' if isinstance(error, UserError) else 'Failed'}: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1


def unknown_to_beam(arguments: list[str]) -> list[str]:
    """Those arguments that Beam does not know either."""
    import logging

    logging.getLogger().setLevel(logging.ERROR)  # Beam misses packages that nobody asked for
    from apache_beam.options.pipeline_options import PipelineOptions

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    return parser.parse_known_args(arguments)[1]


def run_command(name: str, arguments: list[str]) -> int:
    """Parse and run one command. Raises UserError and driver.JobFailed."""
    from dataclasses import fields

    from pipelines.driver import RunSettings

    if name == "estimate" and arguments and arguments[0] in COMMANDS and arguments[0] != name:
        from pipelines import estimate

        estimate.refuse_unknown(arguments[0])
        name, arguments = arguments[0], [*arguments[1:], "--dry-run"]
    parser = command_parser(name)
    parsed, beam_options = parser.parse_known_args(arguments)
    given = vars(parsed)
    module = importlib.import_module(COMMANDS[name].module)
    kind = getattr(module, "Settings", RunSettings)  # a stage without Beam has settings of its own
    how = {field.name for field in fields(kind)}
    settings_given = {key: value for key, value in given.items() if key in how}
    if kind is RunSettings:
        unknown = unknown_to_beam(beam_options) if beam_options else []
        if unknown:
            parser.error(f"unknown argument {unknown[0]!r} (it is none of Beam's options either)")
        settings_given["beam_options"] = beam_options
    elif beam_options:
        parser.error(f"unknown argument {beam_options[0]!r}")
    settings = build(kind, settings_given, name)
    estimated = isinstance(settings, RunSettings) and (settings.dry_run or name == "estimate")
    if isinstance(settings, RunSettings) and (settings.on or settings.json) and not estimated:
        parser.error("--on and --json belong to an estimate: give --dry-run too")  # else hours of work begin
    values = {key: value for key, value in given.items() if key not in how}
    options = build(module.Options, module.complete(values) if hasattr(module, "complete") else values, name)
    if estimated:
        from pipelines import estimate

        estimate.run(name, options, settings)
        return 0
    result = module.run(options, settings)
    summarise = getattr(module, "summarise", None)
    if summarise:
        summarise(options, result)
    return 0
