"""Whether this machine, or the control group that a container gives it, has memory for a job."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from pipelines.quantities import byte_text, workers_text

GROUPS = Path("/sys/fs/cgroup")
# Of a group's folder, in versions 2 and 1: the limit, what is used, unused pages of files in it.
GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory(groups: Path = GROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that this process and its children may still take.

    The least of what the machine has free and what each control group leaves, from the process's
    own up to the root's.
    """
    return min([psutil.virtual_memory().available, *_left_by_groups(groups, membership)])


def _left_by_groups(groups: Path, membership: Path) -> list[int]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []  # another system than Linux

    left = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = groups / "memory" if controllers else groups
        own = root / name.strip("/")
        for folder in (own, *own.parents):  # a container sees its own group as the root
            if folder.is_relative_to(root):
                left += [_left(folder, *names) for names in GROUP_FILES]
    return [bytes_left for bytes_left in left if bytes_left is not None]


def _left(folder: Path, limit: str, used: str, reclaimable: str) -> int | None:
    """What a group's limit leaves, its unused pages of files being as good as free."""
    try:
        most, current = (folder / limit).read_text().strip(), int((folder / used).read_text())
        if not most.isdigit():
            return None  # "max": no limit
        stat = (folder / limit).with_name("memory.stat").read_text().split()
        pages = dict(zip(stat[::2], stat[1::2], strict=False)).get(reclaimable, "0")
    except (OSError, ValueError):
        return None
    return max(0, int(most) - current + int(pages))


def say_memory(title: str, workers: int, work_bytes: int) -> None:
    """Say where so many workers may not fit into what is free.

    A worker loads what this process has loaded (libraries, a model), and `work_bytes` of data.
    """
    a_worker = psutil.Process().memory_info().rss + work_bytes
    free = free_memory()
    if workers * a_worker <= free:
        return

    fit = free // a_worker
    advice = f"--workers {fit} may be faster" if fit else "it may be killed"
    print(
        f"{title}  WARNING: {workers_text(workers)} of about {byte_text(a_worker)} each may not "
        f"fit into the {byte_text(free)} of memory that are free here; {advice}",
        file=sys.stderr,
    )
