"""How fast `extract` is beside a bare loop over the same extractor, on the same images.

    python benchmarks/speed/extract_throughput.py --images FOLDER
        [--count 1000] [--sizes 320] [--repeats 1]

Bare loop: decode and describe, nothing written; the faster of one process with two torch threads
and two processes with one thread each. `extract` is the real command with two workers of one
thread, and with one. Rates leave start-up out (imports, weights, Beam); it is printed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.last_line import print_figures
from pipelines.sources.listing import list_images
from pipelines.sources.spec import SourceSpec


def bare(names: list[str], sizes: list[int], threads: int, ready: Any, go: Any, out: Any) -> None:
    """Decode ahead in a thread, describe in batches of 8; puts (images, seconds)."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from concurrent.futures import ThreadPoolExecutor

    import cv2
    import torch

    from rrt_core.extractors import create
    from rrt_core.images import decode

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    extractor = create("efficientnet", sizes=sizes)
    extractor.describe([decode(Path(names[0]).read_bytes(), names[0])])
    ready.put(1)
    go.wait()
    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(lambda name: decode(Path(name).read_bytes(), name), name)
            for name in names[:16]
        ]
        rest = iter(names[16:])
        while futures:
            batch, futures = futures[:8], futures[8:]
            images = [future.result() for future in batch]
            futures += [
                pool.submit(lambda name: decode(Path(name).read_bytes(), name), name)
                for name, _ in zip(rest, range(8), strict=False)
            ]
            extractor.describe(images)
    out.put((len(names), time.perf_counter() - started))


def bare_rate(names: list[str], sizes: list[int], processes: int, threads: int) -> float:
    """Images a second of `processes` bare loops at once, from the common start to the last end."""
    context = multiprocessing.get_context("spawn")
    ready, out, go = context.Queue(), context.Queue(), context.Event()
    shares = [names[number::processes] for number in range(processes)]
    running = [
        context.Process(target=bare, args=(share, sizes, threads, ready, go, out))
        for share in shares
    ]
    for process in running:
        process.start()
    for _ in running:
        ready.get()
    go.set()
    results = [out.get() for _ in running]
    for process in running:
        process.join()
    return sum(count for count, _ in results) / max(seconds for _, seconds in results)


def extract_rate(
    images: Path, listed: Path, sizes: list[int], workers: int, count: int
) -> tuple[float, float]:
    """Images a second of `extract`, from the first unit's start to the last marker.

    Second: the seconds of its start-up.
    """
    store = Path(tempfile.mkdtemp(prefix="rrt-throughput-")) / "store"
    options = ["--extractor-option", "sizes=[" + ",".join(map(str, sizes)) + "]"]
    command = [
        sys.executable,
        "-m",
        "pipelines",
        "extract",
        "--images",
        str(images),
        "--list",
        str(listed),
    ]
    started = time.time()
    subprocess.run(
        [*command, "--out", str(store), "--workers", str(workers), *options], cwd=ROOT, check=True
    )
    wall = time.time() - started
    markers = list((store / "done").glob("*.json"))
    ends = [marker.stat().st_mtime for marker in markers]
    begins = [
        end - json.loads(marker.read_bytes())["seconds"]
        for marker, end in zip(markers, ends, strict=True)
    ]
    shutil.rmtree(store.parent)
    window = max(ends) - min(begins)
    return count / window, wall - window


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--sizes", default="320")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    folder = Path(options.images).resolve()
    listing = list_images(SourceSpec(str(folder)))
    names = [os.fsdecode(reference.location) for reference in listing][: options.count]
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(scratch, "list.txt")
        listed.write_text("".join(f"{os.path.relpath(name, folder)}\n" for name in names))
        print(f"{len(names)} images, sizes {sizes}, maximum {os.cpu_count()} cores")
        count = len(names)
        one = bare_rate(names, sizes, 1, 2)
        print(f"bare loop, one process, two threads        {one:7.2f} images/s")
        single, start = extract_rate(folder, listed, sizes, 1, count)
        print(
            f"extract, one worker                        {single:7.2f} images/s  (start-up "
            f"{start:.1f} s)"
        )
        shares, scales, both = [], [], 0.0
        before = bare_rate(names, sizes, 2, 1)
        for repeat in range(options.repeats):
            print(f"bare loop, two processes, one thread each  {before:7.2f} images/s")
            both, start = extract_rate(folder, listed, sizes, 2, count)
            after = bare_rate(names, sizes, 2, 1)
            # The machine's speed drifts: each run of extract stands between two bare loops.
            bare_loop = max((before + after) / 2, one)
            shares.append(both / bare_loop)
            scales.append(both / single)
            print(
                f"extract, two workers                       {both:7.2f} images/s  (start-up "
                f"{start:.1f} s)"
            )
            print(
                f"  repeat {repeat + 1}: extract / bare loop {shares[-1]:.3f}, two workers / one "
                f"{scales[-1]:.3f}"
            )
            before = after
        print(f"bare loop, two processes, one thread each  {before:7.2f} images/s")
        print(
            f"median: extract / bare loop {median(shares):.3f}, two workers / one worker "
            f"{median(scales):.3f}"
        )
        print_figures(
            {
                "images": count,
                "bare_one_process_images_a_second": one,
                "bare_two_processes_images_a_second": before,
                "extract_one_worker_images_a_second": single,
                "extract_two_workers_images_a_second": both,
                "start_up_seconds": start,
                "extract_over_bare_loop": median(shares),
                "two_workers_over_one": median(scales),
            }
        )


if __name__ == "__main__":
    main()
