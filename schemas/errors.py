"""What ends a command with one sentence: a user's mistake, a place that fails, a job that fails."""

from __future__ import annotations

import re

LONGEST, LONGEST_WORD = 1_200, 400  # characters of a sentence, and of a name in it
LONGEST_END = 300  # of a sentence that is longer: it says what to do
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class _OneSentence(Exception):
    def __init__(self, sentence: object = "") -> None:
        super().__init__(_in_one_line(str(sentence)))


class UserError(_OneSentence):
    """Bad input or settings: one clear sentence that names the file, the row and the fix.

    The command line prints the sentence alone, without a traceback, and exits with `exit_code`.
    """

    exit_code: int = 2
    # False where one input is bad: a job does what it can of the others before it ends with it
    at_once: bool = True


class Damaged(UserError):
    """A file of an output that is missing, cut, or not what it must be: no mistake of the user."""

    exit_code = 1

    @classmethod
    def file(cls, output: str, name: str, why: object) -> Damaged:
        """The sentence for a file `name` of the output's folder, which 'repair' makes again."""
        what = " ".join(str(why).split())
        return cls(f"{output}/{name}: {what}; 'repair {output}' makes it again")


class Unreachable(UserError):
    """A remote place that failed in all tries, or refuses. It is no fault of a single image."""


class JobFailed(_OneSentence):
    """A job could not be finished: one sentence. Exit code 1; finished units stay."""


def _in_one_line(sentence: str) -> str:
    """The sentence where names in it, which are others', may hold lines' ends or have no end.

    The middle of a very long one is left out.
    """
    line = _CONTROL.sub(lambda match: ascii(match[0])[1:-1], sentence)
    line = re.sub(rf"(\S{{{LONGEST_WORD}}})\S+", r"\1...", line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]}...{line[-LONGEST_END:]}"
