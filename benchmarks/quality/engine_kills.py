"""kill -9 in the middle, of each process of each engine: does the work end well, and all with it?

    RRT_PRISM=.../prism python benchmarks/quality/engine_kills.py --times 5 [--only prism]

Each time: an extraction of ten units begins, and when some are done the process is killed. Then the
job must end well, or end with a sentence, and the same command, or that of another engine, must
complete it; contents must equal an undisturbed local run's; and after the scenario's time nothing
that it started may run. A line a kill; the last line is JSON.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from tests.support.clusters import (
    PRISM,
    content,
    done,
    extract,
    on_prism,
    pools,
    prisms,
    submitters,
)
from tests.support.pictures import save_scenes
from tests.support.watching import Running, wait_for

FAST = {"RRT_LEASE_SECONDS": "6"}
UNIT_SECONDS = 1.0
BEAM_SECONDS = 90.0  # in which all must have ended


@dataclass(frozen=True)
class Scenario:
    """A kill: of which processes of a command, and how long what it started may live."""

    name: str
    arguments: tuple[object, ...]
    victims: Callable[[Running], list[psutil.Process]]
    seconds: float
    environment: dict[str, str] = field(default_factory=lambda: dict(FAST))


def driver(running: Running) -> list[psutil.Process]:
    """The command itself."""
    return [psutil.Process(running.process.pid)]


def first(find: Callable[[Running], list[psutil.Process]]) -> Callable[..., list[psutil.Process]]:
    """One of two that must be there."""
    return lambda running: found[:1] if len(found := find(running)) >= 2 else []


def prism_scenarios() -> list[Scenario]:
    """Those of Prism; none where its program is missing."""
    kills = {
        "SDK worker": first(pools),
        "both SDK workers": lambda running: found if len(found := pools(running)) >= 2 else [],
        "submitter": first(submitters),
        "Prism": prisms,
        "driver": lambda running: driver(running) if len(pools(running)) >= 2 else [],
    }
    return [
        Scenario(f"prism: {name}", on_prism(), victims, BEAM_SECONDS)
        for name, victims in (kills.items() if PRISM else ())
    ]


def kill(scenario: Scenario, images: Path, folder: Path, expected: str) -> dict[str, Any]:
    """One kill; gives what was seen. Raises AssertionError where something is wrong."""
    out = folder / "store"
    command = extract(images, out, *scenario.arguments, seconds=UNIT_SECONDS / 3)
    running = Running([str(one) for one in command], scenario.environment, folder)
    victims = running.until(
        lambda: scenario.victims(running) if done(out) >= 2 else [], "something to kill"
    )
    at = done(out)
    for victim in victims:
        victim.kill()

    killed = time.monotonic()
    code = running.end(600)
    ended = time.monotonic() - killed
    said = running.text
    assert "Traceback" not in said, said
    wait_for(lambda: not running.orphans(), "the end of all that it started", scenario.seconds)
    quiet = time.monotonic() - killed - ended
    reruns = 0
    while code != 0:
        reruns += 1
        assert reruns <= 2, said
        again = Running([str(one) for one in command], scenario.environment, folder)
        code = again.end(600)
        said = again.text
        wait_for(lambda: not again.orphans(), "the end of the rerun", scenario.seconds)  # noqa: B023

    assert content(out) == expected, "contents differ"
    # what a killed driver's workers left in scratch/ may be in use for all that anybody knows
    left = [name for name in ("errors", "lease") if (out / name).exists()]
    assert not left, left
    return {"done": at, "seconds": round(ended, 1), "quiet": round(quiet, 1), "reruns": reruns}


def main() -> None:
    """Each scenario so many times."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--only", default="", help="scenarios whose name holds this")
    given = parser.parse_args()
    scenarios = [one for one in prism_scenarios() if given.only in one.name]
    failed: list[str] = []

    with tempfile.TemporaryDirectory(prefix="rrt-kills-") as name:
        folder = Path(name)
        images = folder / "images"
        images.mkdir()
        save_scenes(images, [f"{scene:02}" for scene in range(10)])
        command = extract(images, folder / "local", "--workers", 1, seconds=UNIT_SECONDS / 3)
        undisturbed = Running([str(one) for one in command], {}, folder)
        assert undisturbed.end() == 0, undisturbed.text
        expected = content(folder / "local")

        for number, scenario in enumerate(scenarios * given.times):
            place = folder / f"kill-{number}"
            place.mkdir()
            try:
                seen: object = kill(scenario, images, place, expected)
            except AssertionError as error:
                seen = f"WRONG: {error}"
                failed.append(scenario.name)
            print(f"{scenario.name:<28} {seen}", flush=True)

    print_figures({"kills": len(scenarios) * given.times, "failed": failed})
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
