"""The command line: a command a stage, its flags made from the stage's options."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
import textwrap
from typing import NoReturn

from pipelines import stages as pipelines_stages
from pipelines.engines import signals as stopping
from pipelines.options import add_arguments, build
from pipelines.stages import COMMANDS, OF_THE_DOOR
from schemas.errors import JobFailed, UserError

PROGRAM = "run_pipeline.sh"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are a user's mistake like any other."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message}; {self.prog} --help tells what there is")


def main_parser() -> argparse.ArgumentParser:
    """The parser that knows the commands' names; a command's own flags are added when it is asked
    for.
    """
    listed = {**{name: command.summary for name, command in COMMANDS.items()}, **OF_THE_DOOR}
    lines = "\n".join(f"  {name:<20}{text}" for name, text in listed.items())
    return argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [options]",
        description="Instance-level image retrieval on large collections with Reranking "
        "Transformers.",
        epilog=f"commands:\n{lines}\n\n{PROGRAM} COMMAND --help tells a command's options, with "
        f"examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    from pipelines.engines.settings import RunSettings

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
        # what cannot be written is noticed here and not at the interpreter's end
        sys.stdout.flush()
        return code
    except OSError as error:
        closed = isinstance(error, BrokenPipeError)  # the reader, such as head, has seen enough
        if not closed and (error.errno != errno.ENOSPC or error.filename is not None):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if closed:
            return 128 + signal.SIGPIPE
        print(
            "Error: what is to be told cannot be written: the disk of the output is full",
            file=sys.stderr,
        )
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
    """Parse and run one command. Raises UserError and JobFailed."""
    from dataclasses import fields

    from pipelines.engines.settings import RunSettings

    if name == "estimate" and arguments and arguments[0] in COMMANDS and arguments[0] != name:
        from pipelines.estimate import estimate

        pipelines_stages.refuse_unknown(arguments[0])
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
        parser.error(
            "--on and --json belong to an estimate: give --dry-run too"
        )  # else hours of work begin
    values = {key: value for key, value in given.items() if key not in how}
    options = build(
        module.Options, module.complete(values) if hasattr(module, "complete") else values, name
    )
    if estimated:
        from pipelines.estimate import estimate

        estimate.run(name, options, settings)
        return 0
    result = module.run(options, settings)
    summarise = getattr(module, "summarise", None)
    if summarise:
        summarise(options, result)
    return 0
