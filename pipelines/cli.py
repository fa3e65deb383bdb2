"""The command line: a command a stage, its flags made from the stage's options."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import textwrap
from typing import Any, NoReturn

from pipelines.engines import signals as stopping
from pipelines.engines.settings import HandedOver
from pipelines.options import add_arguments, build
from pipelines.stages import COMMANDS, OF_THE_DOOR, Command, load, refuse_without_estimate
from schemas.errors import JobFailed, UserError

PROGRAM = "run_pipeline.sh"

# A place that the user named and that cannot be, against one that fails.
_OF_A_NAME = (
    errno.EACCES,
    errno.EFBIG,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are a user's mistake like any other."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message}; {self.prog} --help lists the options")


def main_parser() -> argparse.ArgumentParser:
    """The parser that knows the commands' names; each command has one of its own for its flags."""
    listed = {**{name: command.summary for name, command in COMMANDS.items()}, **OF_THE_DOOR}
    lines = "\n".join(f"  {name:<20}{text}" for name, text in listed.items())
    return argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [options]",
        description="Instance-level image retrieval on large collections with Reranking "
        "Transformers.",
        epilog=f"commands:\n{lines}\n\n{PROGRAM} COMMAND --help lists a command's options, with "
        "examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def command_parser(name: str) -> Parser:
    """The parser of one command."""
    command = COMMANDS[name]
    beam = "\n\nWith --runner, Beam's own flags are passed to it." if command.runs_beam else ""
    examples = "\n".join(f"  {PROGRAM} {example}" for example in command.examples)
    parser = Parser(
        prog=f"{PROGRAM} {name}",
        usage=f"{PROGRAM} {name} [options]",
        description=textwrap.fill(command.summary[0].upper() + command.summary[1:] + ".", 100),
        epilog=f"examples:\n{examples}{beam}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser.add_argument_group("what to do"), load(command.options))
    how, hidden = parser.add_argument_group("how to run"), (*command.refused, *command.ignored)
    add_arguments(how, load(command.settings), command.uses, hidden)
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
            where = os.fsdecode(error.filename) if error.filename is not None else "a file"
            print(f"Error: {UserError(f'{where}: {error.strerror or error}')}", file=sys.stderr)
            return 2 if error.errno in _OF_A_NAME else 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if closed:
            return 128 + signal.SIGPIPE
        print(
            "Error: the output cannot be written: its disk is full",
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
        mistake = isinstance(error, UserError)
        print(f"{'Error' if mistake else 'Failed'}: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, UserError) else 1
    except HandedOver as handed:
        print(f"{name}: {handed}")
        return 0


def unknown_to_beam(arguments: list[str]) -> list[str]:
    """Those arguments that Beam does not know either."""
    import logging

    logging.getLogger().setLevel(logging.ERROR)  # Beam misses packages that nobody needs
    from apache_beam.options.pipeline_options import PipelineOptions

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    return parser.parse_known_args(arguments)[1]


def run_command(name: str, arguments: list[str]) -> int:
    """Parse and run one command. Raises UserError and JobFailed."""
    if name == "estimate" and arguments and arguments[0] in COMMANDS and arguments[0] != name:
        refuse_without_estimate(arguments[0])
        name, arguments = arguments[0], [*arguments[1:], "--dry-run"]
    command, parser = COMMANDS[name], command_parser(name)
    parsed, beam_options = parser.parse_known_args(arguments)
    values = vars(parsed)
    fields = {*command.uses, *command.refused, *command.ignored}
    how = {field: values.pop(field) for field in fields & values.keys()}

    may_be_beams = command.runs_beam or "runner" in command.ignored
    unknown = unknown_to_beam(beam_options) if beam_options and may_be_beams else beam_options
    if unknown:
        more = " (it is none of Beam's options either)" if may_be_beams else ""
        parser.error(f"unknown argument {unknown[0]!r}{more}")

    estimated = how.get("dry_run", False) or name == "estimate"
    if (how.get("on") or how.get("json")) and not estimated:
        # else hours of work begin
        parser.error("--on and --json belong to an estimate: give --dry-run too")
    used = _without_ignored(name, command, how, beam_options)
    settings = build(load(command.settings), used, name)
    if command.complete:
        values = load(command.complete)(values)
    options = build(load(command.options), values, name)

    if estimated:
        load(COMMANDS["estimate"].run)(name, options, settings)
        return 0
    result = load(command.run)(options, settings)
    if command.summarise:
        load(command.summarise)(options, result)
    return 0


def _without_ignored(
    name: str, command: Command, how: dict[str, Any], beam_options: list[str]
) -> dict[str, Any]:
    """The settings that the command uses; a sentence names the others that were given."""
    flags = [f"--{field.replace('_', '-')}" for field in command.ignored if field in how]
    used = {field: value for field, value in how.items() if field not in command.ignored}
    if command.runs_beam:
        used["beam_options"] = beam_options
    else:
        flags += [option.partition("=")[0] for option in beam_options if option.startswith("--")]

    if flags:
        are, have, they = ("is", "has", "it") if len(flags) == 1 else ("are", "have", "they")
        print(
            f"{name}: {', '.join(flags)} {are} not used any more and {have} no effect; {they} will "
            "be refused in a later version",
            file=sys.stderr,
        )
    return used
