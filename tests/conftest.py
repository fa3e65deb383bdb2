"""What tests share: fixtures, and the folder of real photographs, no part of the project."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What an installed package would be: its entry points name the tests' own unit workers, for
# children too.
PLUGINS = str(ROOT / "tests" / "support" / "plugins")
sys.path[:0] = [str(ROOT)]  # for `tests.`
sys.path.append(PLUGINS)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), PLUGINS]))

from tests.support.fixtures import (  # noqa: E402  as fixtures of all tests
    configuration,
    photographs,
    s3,
    s3_session,
    start,
    workers_end,
)

# Whose numbers depend on what the processor multiplies, and by which library.
NUMERIC = ("extractors", "products", "rerankers", "training", "transformer")

if os.environ.get("RRT_WITHOUT_ONEDNN"):
    import torch

    torch.backends.mkldnn.set_flags(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `numeric` what `.ci/run` tries once more, as on other processors."""
    for item in items:
        folders = item.path.relative_to(ROOT / "tests").parts
        if folders[0] == "rrt_core" and folders[1] in NUMERIC:
            item.add_marker("numeric")


__all__ = [
    "start",
    "photographs",
    "configuration",
    "s3_session",
    "s3",
    "workers_end",
    "shared_data",
]


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("photos")`: that path in the folder RRT_TEST_DATA (default: shared/ beside the
    project).

    Where it is missing the test is skipped, and the reason names what was missing.
    """
    folder = Path(os.environ.get("RRT_TEST_DATA", ROOT.parent / "shared"))

    def find(relative: str) -> Path:
        path = folder / relative
        if not path.exists():
            pytest.skip(f"{relative} is missing: RRT_TEST_DATA names the folder that holds it")
        return path

    return find
