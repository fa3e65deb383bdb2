"""docs/limits.md, made from the code: what is refused or passed over, by format and by option.

    python benchmarks/making/make_limits.py

writes the page; a test compares it with what the code says now.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from pipelines import options, yaml_text
from pipelines.stages import COMMANDS, load
from pipelines.storage import input_file
from rrt_core import image_formats
from schemas import inside

PAGE = ROOT / "docs" / "limits.md"
KINDS = {int: "whole number", float: "number", bool: "switch", str: "text"}
HEAD = """# Limits: what is refused, and what is passed over

Made from the code by `python benchmarks/making/make_limits.py`; a test holds the page to it.

What is refused ends the command with one sentence and exit code 2 before any work; damage of an
output, and work that failed, end it with 1. An image that cannot be described is a failed row with
its reason, and the command goes on.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_formats(), *_files(), *_options()]).rstrip() + "\n"


def _formats() -> Iterator[str]:
    yield "## Images\n"
    yield "Content decides, not the suffix. Files of a folder that hold none of these are passed"
    yield "over; their number is said, and stands in the manifest.\n"
    yield "| format | suffixes | needs | without it |\n|---|---|---|---|"
    for one in image_formats.FORMATS:
        needs = one.needs.removeprefix("package:") or "-"
        suffixes = " ".join(f"`{suffix}`" for suffix in one.suffixes)
        yield f"| {one.name} | {suffixes} | {needs} | {one.help if one.needs else '-'} |"
    for fix, suffixes in image_formats._OTHERS.items():
        listed = " ".join(f"`.{suffix}`" for suffix in suffixes.split())
        yield f"\nNot decoded ({fix}): {listed}"


def _files() -> Iterator[str]:
    yield "\n## Files\n"
    yield "| file | refused |\n|---|---|"
    yield (
        f"| YAML of a user | above {yaml_text.MOST_BYTES:,} bytes, {yaml_text.MOST_DEPTH} levels "
        f"or {yaml_text.MOST_VALUES:,} values (aliases counted as what they stand for); a key "
        "twice, or no text; tags; no UTF-8 |"
    )
    yield (
        f"| list, labels | above {input_file.MOST_BYTES:,} bytes; devices and pipes |\n"
        f"| JSON of an output | above {inside.MOST_BYTES:,} bytes or {inside.MOST_DEEP} brackets "
        "in each other; names that leave the output |"
    )
    yield (
        "| weights | empty; no safetensors and no plain torch file of tensors; compressed; more "
        "numbers than bytes; values that are not finite; a configuration that is not that of the "
        "tensors; tensors missing, unknown or of another shape; devices and pipes. Code is never "
        "run |"
    )


def _options() -> Iterator[str]:
    yield "\n## Options\n"
    yield (
        f"Where nothing else stands: a whole number is at most {options.MOST_WHOLE:,} from zero, a "
        f"number {options.MOST_NUMBER:,.0f} and finite; a text is one line of at most "
        f"{options.MOST_TEXT:,} characters, a list has at most {options.MOST_ITEMS:,} values. NaN "
        "and infinity are refused everywhere.\n"
    )
    for name, command in COMMANDS.items():
        rows = [row for field, kind in _fields(command) if (row := _row(field, kind))]
        if rows:
            yield f"### {name}\n\n| option | kind | limits |\n|---|---|---|"
            yield "\n".join(rows) + "\n"


def _fields(command: Any) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    for kind, offered in ((load(command.options), None), (load(command.settings), command.uses)):
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.metadata.get("help") and (offered is None or field.name in offered):
                yield field, hints[field.name]


def _row(field: dataclasses.Field[Any], kind: Any) -> str:
    """An option that has limits of its own; "" for others."""
    data = field.metadata
    words = [f"{text} {limit:,}" for text, limit in data["limits"].items()]
    if data["choices"]:
        words.append("one of " + ", ".join(f"`{one}`" for one in data["choices"] if one))
    if data["unique"]:
        words.append("each once")
    flags = [[_flag(name) for name in data[key]] for key in ("needs", "excludes")]
    words += [f"needs {' or '.join(names)}" for names in flags[:1] if names]
    words += [f"not with {', '.join(names)}" for names in flags[1:] if names]
    if not words:
        return ""
    listed = typing.get_origin(kind) is tuple
    plain = typing.get_args(kind)[0] if typing.get_args(kind) else kind
    called = f"list of {KINDS[plain]}s" if listed else KINDS.get(plain, "options")
    return f"| {_flag(field.name)} | {called} | {'; '.join(words)} |"


def _flag(name: str) -> str:
    return f"`--{name.replace('_', '-')}`"


def main() -> None:
    text = page()
    PAGE.write_text(text, encoding="utf-8")
    print_figures({"page": str(PAGE), "lines": text.count("\n")})


if __name__ == "__main__":
    main()
