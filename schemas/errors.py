"""What ends a command with one sentence: a user's mistake, a place that fails, a job that fails."""

from __future__ import annotations


class UserError(Exception):
    """Bad input or settings: one clear sentence that names the file, the row and the fix.

    The command line prints the sentence alone, without a traceback, and exits with code 2.
    """

    # False where one input is bad: a job does what it can of the others before it ends with it
    at_once: bool = True


class Unreachable(UserError):
    """A remote place that failed in all tries, or refuses. It is no fault of a single image."""


class JobFailed(Exception):
    """A job could not be finished: one sentence. Exit code 1; finished units stay."""
