"""Processes that die with their parent, and threads that do not fight."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from functools import cache

PARENT_VARIABLE = "RRT_PARENT_PID"
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
WAIT_VARIABLE = "OMP_WAIT_POLICY"
# of oneDNN's compiled layers kept: at its 1,024, for each layer and shape, a worker grows by half
PRIMITIVES = "64"


def die_with_parent(parent: int | None = None) -> None:
    """End this process by SIGKILL as soon as its parent ends.

    On Linux the kernel does it (PR_SET_PDEATHSIG); elsewhere a thread looks twice a second.
    `parent` is the process id expected, so that a parent that ended before this call is noticed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()

    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)

    os.kill(os.getpid(), signal.SIGKILL)


@cache
def kill_group_at_end() -> None:
    """Have this process's group killed when this process ends, in whatever way.

    For the leader of a group whose libraries start processes: those of a Beam runner outlive it.
    """
    if os.name != "posix" or os.getpgrp() != os.getpid():
        return

    # The pipe's other end is held by this process alone, so that its end is this process's own.
    read, _ = os.pipe()
    subprocess.Popen(
        ["/bin/sh", "-c", "read line; kill -s KILL 0"], stdin=read, stdout=2, close_fds=True
    )
    os.close(read)


def thread_environment(threads: int) -> dict[str, str]:
    """Environment, set before its imports, of a process that computes with so many threads."""
    variables = {name: str(threads) for name in THREAD_VARIABLES}
    primitives = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    return {
        **variables,
        primitives: os.environ.get(primitives, PRIMITIVES),
        # threads that wait by spinning take the cores from the other workers' threads
        WAIT_VARIABLE: os.environ.get(WAIT_VARIABLE, "PASSIVE"),
    }


def limit_threads(threads: int) -> None:
    """Hold torch, OpenCV and OpenMP in this process to this many threads, where they are loaded."""
    os.environ.update(thread_environment(threads))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)

    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(threads)

    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(threads)


if __name__ == "__main__":  # python -m pipelines.engines.processes PROGRAM [ARGUMENTS]
    # The kernel's promise outlives exec, so that a program that knows nothing of it dies, too.
    die_with_parent(int(os.environ.get(PARENT_VARIABLE, "0")) or None)
    os.execvp(sys.argv[1], sys.argv[1:])
