"""A file that the user names, read whole and in bounded memory."""

from __future__ import annotations

from pipelines.storage.local import LocalPlace
from pipelines.storage.place import open_place
from pipelines.storage.remote import RemotePlace
from schemas.errors import UserError

MOST_BYTES = 1_000_000_000  # of a list: of ten million images


def read_input(path: str, what: str, most: int = MOST_BYTES) -> bytes:
    """The whole file at a path or URL. Raises UserError where none can be read there.

    what  such as "image list", for the sentence
    most  bytes that are read; a larger file is refused
    """
    place = open_place(path)
    assert isinstance(place, LocalPlace | RemotePlace)
    try:
        return place.read("", most=most)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such {what}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: it is a folder; give the {what} itself") from None
    except (OSError, ValueError) as error:  # below a file, not allowed, no path at all
        raise UserError(
            f"{path}: no {what} can be read there: {getattr(error, 'strerror', None) or error}"
        ) from None
