"""Durable writes, exclusive create, sentences of a full disk."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from schemas.errors import UserError

_FULL = {
    errno.ENOSPC: "there is no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
    errno.EROFS: "the file system is read-only",
}
_REFUSED = {
    errno.EACCES: "permission denied",
    errno.EPERM: "the operation is not permitted",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a file stands where a folder must be",
    errno.EISDIR: "a folder stands in its place",
    errno.ENAMETOOLONG: "the name is too long",
}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}


def full_disk(error: OSError, where: str) -> UserError | None:
    """The sentence for an error that can only come from a disk that takes no more; None for any
    other.
    """
    why = _FULL.get(error.errno or 0)
    return (
        UserError(f"{where} cannot be written: {why}; mend it, the same command goes on from there")
        if why
        else None
    )


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(path: str | Path) -> None:
    """Make the names in a local folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
