"""Which failures of a remote place pass by themselves, and how long one waits for that.

An operation is tried again after a connection that broke or timed out, a throttled request or a
server's own error (HTTP 408, 425, 429 and 5xx); never where the answer is final: not there, not
allowed, a condition that does not hold. File systems are optional packages, so that their
exceptions are known by the names of their classes.
"""

from __future__ import annotations

import errno
import http.client
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from schemas.errors import Unreachable as Unreachable
from schemas.errors import UserError

Result = TypeVar("Result")

TRIES_VARIABLE = "RRT_STORAGE_TRIES"
SECONDS_VARIABLE = "RRT_STORAGE_SECONDS"
TRIES, SECONDS = 8, 120.0
FIRST_WAIT, LONGEST_WAIT = 0.2, 15.0

_FINAL = (
    FileNotFoundError,
    PermissionError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)
_PASSING = (ConnectionError, TimeoutError, http.client.HTTPException)
_PASSING_NAMES = {  # botocore, aiobotocore, aiohttp, requests, urllib3, google.api_core
    "ConnectionError",
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseStreamingError",
    "ResponseParserError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ServerDisconnectedError",
    "ChunkedEncodingError",
    "ProtocolError",
    "Timeout",
    "TransportError",
}
_PASSING_ERRNOS = {
    errno.EAGAIN,
    errno.EBUSY,  # s3fs: 409, 503
    errno.EPIPE,
    errno.ETIMEDOUT,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EIO,
    getattr(errno, "EREMOTEIO", errno.EIO),  # s3fs: 500
}
_PASSING_STATUS = {408, 409, 425, 429}  # 409: another conditional write of the name is under way
_PASSING_CODES = {  # S3's, some of which come with status 200 or 400
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "XAmzContentSHA256Mismatch",
}


class ShortRead(OSError):
    """Fewer bytes came than the object has, or more."""


def passes(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later."""
    if isinstance(error, _FINAL):
        return False

    # The class before the status: aiohttp gives a body that broke off a status of its own, 400.
    if isinstance(error, (*_PASSING, ShortRead)) or any(
        k.__name__ in _PASSING_NAMES for k in type(error).__mro__
    ):
        return True

    status, code = _answer(error)
    if code in _PASSING_CODES:
        return True

    if status is not None and status >= 300:
        return status in _PASSING_STATUS or (status >= 500 and status != 501)

    return isinstance(error, OSError) and error.errno in _PASSING_ERRNOS


def condition_failed(error: BaseException) -> bool:
    """Whether an exclusive create was refused because the object exists (perhaps just HTTP 412)."""
    return isinstance(error, FileExistsError) or _answer(error)[0] == 412


def _answer(error: BaseException) -> tuple[int | None, str]:
    """HTTP status and code of the server's answer, of the error or of what it was made from."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):  # botocore's ClientError
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(response.get("Error", {}).get("Code", ""))

        for name in ("status", "code", "status_code"):  # aiohttp, gcsfs, requests
            status = getattr(one, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return status, ""

        status = getattr(response, "status_code", None)
        if isinstance(status, int):
            return status, ""

    return None, ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def limits() -> tuple[int, float]:
    """Tries and total seconds of an operation, from the environment.

    Raises UserError for what is no number.
    """
    values = []
    for name, standard in ((TRIES_VARIABLE, float(TRIES)), (SECONDS_VARIABLE, SECONDS)):
        text = os.environ.get(name, "")
        try:
            values.append(float(text) if text else standard)
        except ValueError:
            raise UserError(f"{name} is {text!r}; it must be a number") from None

    return max(1, int(values[0])), values[1]


def retried(operation: Callable[[], Result], what: str) -> Result:
    """The operation's result, tried again with growing waits while its error passes.

    Raises what is no passing error as it is, and Unreachable ("`what`: ...") when tries or seconds
    are used up.
    """
    tries, seconds = limits()
    begun = time.monotonic()
    chance = random.SystemRandom()  # leaves the seeds of others alone
    for number in range(1, tries + 1):
        try:
            return operation()
        except Exception as error:
            if not passes(error):
                raise

            wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (number - 1)) * chance.uniform(0.5, 1.0)
            spent = time.monotonic() - begun
            if number == tries or spent + wait > seconds:
                raise Unreachable(
                    f"{what}: it failed {number} times in {spent:.0f} s, at last with: "
                    f"{words(error)}; "
                    "when the place answers again, the same command goes on from there"
                ) from error

            time.sleep(wait)

    raise AssertionError("unreachable")


def words(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
