"""The one exception that a user's mistake raises."""

from __future__ import annotations


class UserError(Exception):
    """Bad input or settings: one clear sentence that names the file, the row and the mend.

    The command line prints the sentence alone, without a traceback, and exits with code 2.
    """

    # False where one input is bad: a job does what it can of the others before it ends with it
    at_once: bool = True
