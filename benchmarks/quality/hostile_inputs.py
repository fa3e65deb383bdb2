"""Ten times the generated hostile inputs of the tests, and options through the real door.

    python benchmarks/quality/hostile_inputs.py

runs all tests/**/test_hostile_*.py with RRT_HOSTILE_TIMES=10, then every tenth case of
tests/pipelines/option_cases.py as `python -m pipelines`. The last line is JSON: how many inputs,
tracebacks, raw exceptions, seconds of the slowest, and bytes of the largest process.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from tests.pipelines.option_cases import cases
from tests.support.small_world import arguments_of, make_world

RAW = re.compile(r"failed 3 times: (?:[A-Z]\w*(?:Error|Exception)|\w+\.)")
MOST_SECONDS = 60.0


def main() -> int:
    """Run both; code 1 where a test failed, or a case ended badly."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10, help="of the tests' inputs")
    parser.add_argument("--every", type=int, default=10, help="case of an option that is tried")
    chosen = parser.parse_args()

    failed = _tests(chosen.times)
    figures = _doors(chosen.every)
    largest = 1_024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print_figures({"tests_exit_code": failed, **figures, "largest_bytes": largest})
    return int(bool(failed or figures["tracebacks"] or figures["raw"] or figures["slow"]))


def _tests(times: int) -> int:
    """Exit code of the tests."""
    files = sorted(str(path) for path in (ROOT / "tests").rglob("test_hostile_*.py"))
    environment = {**os.environ, "RRT_HOSTILE_TIMES": str(times)}
    command = [sys.executable, "-m", "pytest", "-q", *files]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def _doors(every: int) -> dict[str, float]:
    figures = {"options": 0, "tracebacks": 0, "raw": 0, "slow": 0, "slowest_seconds": 0.0}
    with tempfile.TemporaryDirectory(prefix="rrt-hostile-") as folder:
        world = Path(folder) / "world"
        world.mkdir()
        make_world(world)
        here = world / "here" / "a" / "b" / "c"
        here.mkdir(parents=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

        for case in cases()[::every]:
            if "\0" in case.value:
                continue  # no program can be given one
            arguments = [*arguments_of(world, case.command, case.field), *case.flags]
            command = [sys.executable, "-m", "pipelines", case.command, *arguments]
            started = time.monotonic()
            try:
                done = subprocess.run(
                    [os.fsencode(word) for word in command],
                    cwd=here,
                    env=environment,
                    capture_output=True,
                    timeout=MOST_SECONDS,
                    check=False,
                )
                said, code = done.stderr.decode(errors="replace"), done.returncode
            except subprocess.TimeoutExpired:
                said, code = "", -1
            seconds = time.monotonic() - started
            figures["options"] += 1
            figures["tracebacks"] += "Traceback" in said
            figures["raw"] += bool(RAW.search(said))
            figures["slow"] += code == -1
            figures["slowest_seconds"] = max(figures["slowest_seconds"], round(seconds, 2))
            if code not in (0, 1, 2) or "Traceback" in said:
                print(f"{case}: code {code}\n{said[-2_000:]}", flush=True)
    return figures


if __name__ == "__main__":
    sys.exit(main())
