"""Whether a place refuses a name that exists: the one thing that the commit protocol relies on."""

from __future__ import annotations

import os
import re
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from pipelines.storage.protocol import Place
from schemas.errors import UserError
from schemas.layout import LEASE_FOLDER

CARELESS = ("hdfs://", "webhdfs://", "viewfs://")  # by fsspec: it looks first, and writes then
AT_ONCE = 2  # times that two creates are tried at the same moment
NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|lustre|gpfs|beegfs|glusterfs|orangefs|fuse\..+|fuse"
)


def refuse_careless_place(place: Place) -> None:
    """Raise UserError where two writers can both make a file of one name.

    Tried once a process in each bucket or disk; a local disk that is no network's is not tried.
    """
    if place.url.startswith("memory://") or (place.local and not _on_network(place.root)):
        return

    key = str(os.stat(place.root).st_dev) if place.local else "/".join(place.url.split("/")[:3])
    _tried(_Place(key, place))


class _Place:
    """A place that counts as the same as others of its bucket or disk."""

    def __init__(self, key: str, place: Place) -> None:
        self.key, self.place = key, place

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Place) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@cache
def _tried(tried: _Place) -> None:
    place = tried.place
    if place.url.startswith(CARELESS) or not (
        _in_turn(place) and all(_at_once(place) for _ in range(AT_ONCE))
    ):
        raise UserError(
            f"{place.url}: two writers can both make a file of one name there, each as if it was "
            f"the first, so that no output is safe there (HDFS and some stores like S3 are so); "
            f"give a folder, or a place on S3 or GCS"
        )


def _in_turn(place: Place) -> bool:
    """Whether the second create of a name is refused."""
    name = _name()
    try:
        first, second = (place.create(name, data) for data in (b"first", b"second"))
        return first and not second and place.read(name) == b"first"
    finally:
        _remove(place, name)


def _at_once(place: Place) -> bool:
    """Whether one of two creates of a name at the same moment is refused, and the other holds."""
    name, together = _name(), threading.Barrier(2)
    contents = [b"one", b"other"]

    def create(data: bytes) -> bool:
        together.wait()
        return place.create(name, data)

    try:
        with ThreadPoolExecutor(2) as pool:
            made = list(pool.map(create, contents))
        return sum(made) == 1 and place.read(name) == contents[made.index(True)]
    finally:
        _remove(place, name)


def _name() -> str:
    return f"{LEASE_FOLDER}/probe-{secrets.token_hex(6)}"


def _remove(place: Place, name: str) -> None:
    place.remove(name)
    place.remove_empty_folder(LEASE_FOLDER)


def _on_network(path: str) -> bool:
    """Whether a local folder lies on a network's disk, as far as Linux says."""
    try:
        with open("/proc/self/mountinfo") as file:
            lines = [line.split(" - ") for line in file]
    except OSError:
        return False

    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    kinds = {after.split()[0] for before, after, *_ in lines if before.split()[2] == wanted}
    return any(NETWORK.fullmatch(kind) for kind in kinds)
