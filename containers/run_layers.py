"""What an image's layers do, in a temporary folder, where there is no Docker engine.

    python containers/run_layers.py [--target software] [--keep] [--set EXTRAS=]

COPY from the checkout and RUN are done for the stages that the target is made of, with absolute
paths below the folder. Not done, and said: FROM (this machine's own system and Python stand for
it), COPY from other images, USER and ENTRYPOINT.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = Path(__file__).with_name("Dockerfile")
CACHES = ("UV_NO_CACHE", "PIP_NO_CACHE_DIR")  # this machine's own are of use here


@dataclass
class Stage:
    """A stage of a Dockerfile: its name, what it is made from, its instructions."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


def instructions(text: str) -> list[tuple[str, str]]:
    """(word, rest) of each instruction, its lines joined and comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.split("\n"))]


def read_stages(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name, "" the arguments ahead of them, in their order."""
    stages = {"": Stage("", "")}
    for word, rest in instructions(text):
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages[name] = Stage(name, base)
        else:
            list(stages.values())[-1].instructions.append((word, rest))

    return stages


def chain(stages: dict[str, Stage], target: str) -> list[Stage]:
    """The stages that a target is made of, from its first."""
    stage = stages[target]
    return [*(chain(stages, stage.base) if stage.base in stages else ()), stage]


class Layers:
    """The instructions of stages, done below a folder."""

    def __init__(self, folder: Path, given: dict[str, str]) -> None:
        self.folder, self.given = folder, given
        self.values = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        self.place = folder
        self.left_out: list[str] = []

    def do(self, word: str, rest: str) -> None:
        """One instruction. Raises CalledProcessError."""
        if word == "ARG":
            name, _, default = rest.partition("=")
            self.values[name] = self.given.get(name, default.strip('"'))
        elif word == "ENV":
            for name, value in re.findall(r'(\w+)=("[^"]*"|\S+)', rest):
                if name not in CACHES:
                    self.values[name] = self._expanded(value.strip('"'))
        elif word == "WORKDIR":
            self.place = self._below(rest)
            self.place.mkdir(parents=True, exist_ok=True)
        elif word == "COPY" and not rest.startswith("--from="):
            *sources, target = rest.split()
            for source in sources:
                self._copy(ROOT / source, target)
        elif word == "RUN":
            print(f"RUN {rest}", flush=True)
            caches = {name: os.environ[name] for name in ("UV_CACHE_DIR",) if name in os.environ}
            subprocess.run(
                ["/bin/sh", "-c", rest], cwd=self.place, env={**self.values, **caches}, check=True
            )
        else:
            self.left_out.append(f"{word} {rest}")

    def _copy(self, source: Path, target: str) -> None:
        into = self._below(target) if target.startswith("/") else self.place / target
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, into, dirs_exist_ok=True, ignore=ignored)
        else:
            into = into / source.name if target.endswith("/") else into
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, into)

    def _below(self, path: str) -> Path:
        return self.folder / path.lstrip("/")

    def _expanded(self, value: str) -> str:
        value = re.sub(r"\$\{?(\w+)\}?", lambda name: self.values.get(name[1], ""), value)
        return ":".join(
            str(self._below(part)) if part.startswith("/opt/") else part
            for part in value.split(":")
        )


def main() -> int:
    """Do a target's layers; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--target", default="software")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    parser.add_argument("--set", action="append", default=[], help="ARGUMENT=VALUE")
    given = parser.parse_args()

    folder = Path(tempfile.mkdtemp(prefix="rrt-layers-"))
    layers = Layers(folder, dict(one.split("=", 1) for one in given.set))
    try:
        for stage in chain(read_stages(DOCKERFILE.read_text()), given.target):
            layers.left_out.append(f"FROM {stage.base}")
            for word, rest in stage.instructions:
                layers.do(word, rest)
    finally:
        if not given.keep:
            shutil.rmtree(folder)

    print("\n".join(["done; not done here:", *(f"  {line}" for line in layers.left_out)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
