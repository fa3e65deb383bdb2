"""Generated hostile inputs: how many are tried, and what every reader owes to each of them.

`RRT_HOSTILE_TIMES=10` tries ten times as many as the suite does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

from schemas.errors import UserError
from tests.support.command_line import Ended

TIMES = int(os.environ.get("RRT_HOSTILE_TIMES", "1"))
MOST_SECONDS = 60.0


def inputs(number: int) -> settings:
    """Try that many generated inputs, the same ones in every run: `@inputs(60)` above `@given`."""
    return settings(
        max_examples=number * TIMES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def accepted(read: Callable[[], Any], *refusals: type[Exception]) -> bool:
    """Whether `read` takes its input; it may refuse it by a UserError of one line, or `refusals`.

    Any other exception goes on to the test, which it fails.
    """
    started = time.monotonic()
    try:
        read()
    except refusals:
        return False
    except UserError as error:
        assert_one_sentence(str(error))
        return False
    finally:
        assert time.monotonic() - started < MOST_SECONDS
    return True


def assert_one_sentence(text: str) -> None:
    """A message for a person: one line of a length that can be read, and no traceback."""
    assert text.strip() and "\n" not in text.strip() and len(text) < 2_000, text
    assert "Traceback" not in text


def assert_ended_well(ended: Ended, *codes: int) -> None:
    """A command that met hostile input ends with a known exit code, and shows no raw exception."""
    assert ended.code in (codes or (0, 1, 2)), ended
    assert "Traceback (most recent call last)" not in ended.said, ended.said
