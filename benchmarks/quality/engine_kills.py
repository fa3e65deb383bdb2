"""kill -9 in the middle, of each process of each engine: does the work end well, and all with it?

    RRT_PRISM=.../prism python benchmarks/quality/engine_kills.py --times 5 [--only spark]

Each time: an extraction of ten units begins, and when some are done the process is killed. Then the
job must end well, or end with a sentence, and the same command, or that of another engine, must
complete it; contents must equal an undisturbed local run's; and after the scenario's time nothing
that it started may run. A line a kill; the last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from tests.support import spark_cluster
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

FAST = {"RRT_LEASE_SECONDS": "6", "RRT_EXECUTOR_SECONDS": "20"}
UNIT_SECONDS = 1.0
SPARK_SECONDS = 30.0  # in which all must have ended
BEAM_SECONDS = 90.0
Processes = list[psutil.Process]


@dataclass(frozen=True)
class Stage:
    """Where a command runs.

    victims   of the command, once they are there: whom to kill
    others    what works for it elsewhere than below it
    restore   brings back what was killed, so that the command can be given again
    """

    arguments: tuple[object, ...]
    victims: Callable[[Running], Processes]
    others: Callable[[], Processes] = list
    restore: Callable[[], object] = bool


@dataclass(frozen=True)
class Scenario:
    """A kill, and how long what was started may live after it."""

    name: str
    stage: Callable[[Path], contextlib.AbstractContextManager[Stage]]
    seconds: float


def driver(running: Running) -> Processes:
    """The command itself."""
    return [psutil.Process(running.process.pid)]


def first(find: Callable[[Running], Processes]) -> Callable[[Running], Processes]:
    """One of two that must be there."""
    return lambda running: found[:1] if len(found := find(running)) >= 2 else []


def both(find: Callable[[Running], Processes]) -> Callable[[Running], Processes]:
    """Two that must be there."""
    return lambda running: found if len(found := find(running)) >= 2 else []


def prism_scenarios() -> list[Scenario]:
    """Those of Prism; none where its program is missing."""
    kills = {
        "SDK worker": first(pools),
        "both SDK workers": both(pools),
        "submitter": first(submitters),
        "Prism": prisms,
        "driver": lambda running: driver(running) if len(pools(running)) >= 2 else [],
    }

    def stage(victims: Callable[[Running], Processes]) -> Callable[[Path], Any]:
        return lambda _: contextlib.nullcontext(Stage(on_prism(), victims))

    return [
        Scenario(f"prism: {name}", stage(victims), BEAM_SECONDS)
        for name, victims in (kills.items() if PRISM else ())
    ]


def spark_scenarios() -> list[Scenario]:
    """Those of a standalone cluster of two workers; none where PySpark or Java is missing."""
    if spark_cluster.missing():
        return []

    def workers(cluster: spark_cluster.Cluster) -> Processes:
        return [psutil.Process(worker.pid) for worker in cluster.workers]

    def of(cluster: spark_cluster.Cluster, name: str, running: Running) -> Processes:
        running.tree()  # so that its JVM is known
        if len(cluster.pythons()) < 2:
            return []
        return {
            "worker": lambda: workers(cluster)[:1],
            "both workers": lambda: workers(cluster),
            "executor": lambda: cluster.executors()[:1],
            "Python worker": lambda: cluster.pythons()[:1],
            "driver": lambda: driver(running),
        }[name]()

    def stage(name: str) -> Callable[[Path], Any]:
        @contextlib.contextmanager
        def started(folder: Path) -> Iterator[Stage]:
            with spark_cluster.running(folder) as cluster:
                yield Stage(
                    ("--engine", "spark", "--master", cluster.url),
                    lambda running: of(cluster, name, running),
                    cluster.below,
                    cluster.start_worker,
                )

        return started

    names = ("worker", "both workers", "executor", "Python worker", "driver")
    return [Scenario(f"spark: {name}", stage(name), SPARK_SECONDS) for name in names]


def kill(scenario: Scenario, images: Path, folder: Path, expected: str) -> dict[str, Any]:
    """One kill; gives what was seen. Raises AssertionError where something is wrong."""
    with scenario.stage(folder) as stage:
        return _kill(stage, scenario.seconds, images, folder, expected)


def _kill(
    stage: Stage, seconds: float, images: Path, folder: Path, expected: str
) -> dict[str, Any]:
    out = folder / "store"
    command = list(map(str, extract(images, out, *stage.arguments, seconds=UNIT_SECONDS / 3)))
    running = Running(command, FAST, folder)
    victims = running.until(
        lambda: stage.victims(running) if done(out) >= 2 else [], "something to kill"
    )
    at = done(out)
    for victim in victims:
        victim.kill()

    killed = time.monotonic()
    code = running.end(600)
    ended = time.monotonic() - killed
    said = running.text
    for noise in ("Traceback", "WARN", " at org.apache", "py4j"):
        assert noise not in said, said
    wait_for(
        lambda: not running.orphans() and not stage.others(),
        "the end of all that it started",
        seconds,
    )
    quiet = time.monotonic() - killed - ended
    reruns = 0
    while code != 0:
        reruns += 1
        assert reruns <= 2, said
        stage.restore()
        again = Running(command, FAST, folder)
        code = again.end(600)
        said = again.text
        wait_for(
            lambda: not again.orphans() and not stage.others(),  # noqa: B023
            "the end of the rerun",
            seconds,
        )

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
    every = [*spark_scenarios(), *prism_scenarios()]
    scenarios = [one for one in every if given.only in one.name]
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
