"""Why an image cannot be described: the one exception that decoding raises."""

from __future__ import annotations


class DecodeError(Exception):
    """Why an image cannot be described.

    reason       one sentence for a person
    error_class  one word to count by: empty, unreadable, truncated, unsupported, too_large,
                 too_small, bad_box
    """

    def __init__(self, reason: str, error_class: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error_class = error_class

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        # Exceptions of two arguments do not pickle by themselves.
        return DecodeError, (self.reason, self.error_class)
