"""Members of a zip file in the order in which they lie, by its directory at the end."""

from __future__ import annotations

import bz2
import io
import stat
import zipfile
from collections.abc import Callable, Iterator

from pipelines.sources.member import Broken, Member, Unreadable
from pipelines.storage.blocks import BlockFile
from schemas.errors import UserError

MOST_DIRECTORY = 128_000_000  # bytes: over a million entries
BOMB_BYTES, BOMB_RATIO = 64_000_000, 200  # larger than, and so many times its packed size
PIECE = 4096  # bytes: zipfile unpacks LZMA from so many packed ones without a bound
_UTF8, _ENCRYPTED = 0x800, 0x41


class _Bounded:
    """zipfile reads the directory at once, whatever its size is said to be."""

    def __init__(self, file: BlockFile) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._file = file

    def read(self, count: int = -1) -> bytes:
        if count > MOST_DIRECTORY:
            raise Broken(
                f"its directory has {count:,} bytes; more than {MOST_DIRECTORY:,} are not read"
            )
        return self._file.read(count)


def zip_members(file: BlockFile, size: int) -> Iterator[Member]:
    """The members of a zip file of `size` bytes that are no folders.

    Raises Broken.
    """
    try:
        archive = zipfile.ZipFile(_Bounded(file))
    except (Broken, UserError, MemoryError):
        raise
    # names that are not the UTF-8 they claim to be, offsets out of the file, ...
    except Exception as error:
        raise Broken(f"its directory cannot be read: {error}") from error

    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    for place, info in enumerate(infos):
        if info.is_dir():
            continue

        name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
        behind = infos[place + 1].header_offset if place + 1 < len(infos) else archive.start_dir
        position = min(1.0, max(0.0, info.header_offset / size))
        yield Member(name, info.file_size, position, _refusal(info, behind), _reader(archive, info))


def _refusal(info: zipfile.ZipInfo, behind: int) -> tuple[str, str] | None:
    kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
    if kind == stat.S_IFLNK:
        return "link", "it is a link, not a file; links are not followed"
    if kind not in (0, stat.S_IFREG):
        return "special", "it is a device or another thing that is no file"
    if info.flag_bits & _ENCRYPTED:
        return "encrypted", "it is encrypted"
    if info.header_offset + info.compress_size > behind:
        return "unreadable", "its data overlap with another file's"
    if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * info.compress_size:
        return (
            "too_large",
            f"{info.compress_size:,} bytes would unpack to {info.file_size:,}: a zip bomb",
        )
    return None


class _Bzip2:
    """bzip2 that unpacks no more than is said to be there: 242 bytes may hold 300 MB."""

    def __init__(self, most: int) -> None:
        self._decoder, self._left = bz2.BZ2Decompressor(), most

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    def decompress(self, data: bytes) -> bytes:
        unpacked = self._decoder.decompress(data, self._left + 1)
        self._left -= len(unpacked)
        if self._left < 0:
            raise Unreadable("its data are more than the directory says")
        return unpacked


def _reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            whole = io.BytesIO()
            with archive.open(info) as member:
                if info.compress_type == zipfile.ZIP_BZIP2:
                    member._decompressor = _Bzip2(info.file_size)  # type: ignore[attr-defined]
                while whole.tell() <= info.file_size and (piece := member.read(PIECE)):
                    whole.write(piece)  # the last read compares the checksum
                data = whole.getvalue()
                if len(data) != info.file_size:
                    raise Unreadable(
                        f"its data have not the {info.file_size:,} bytes that the directory says"
                    )
                return data
        except (Unreadable, Broken, UserError, MemoryError):
            raise
        except Exception as error:
            raise Unreadable(f"it cannot be unpacked: {error}") from error

    return read
